"""The tasks of the omni stage: which there are, how much of each, and the examples of a split."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from muomni.data.examples import Example
from muomni.data.items import Source, Split
from muomni.data.task import Material, Task
from muomni.data.task_mix import mix
from muomni.data.tasks_pictures import picture_tasks
from muomni.data.tasks_several import several_tasks
from muomni.data.tasks_words import word_tasks

WEIGHTS: Mapping[str, float] = MappingProxyType({
    "name": 0.7, "name spoken": 0.7, "group": 1.5, "group spoken": 1.5, "caption": 1.0, "yes or no": 1.3,
    "count": 0.6, "count kind": 0.7, "odd one out": 0.7, "read": 0.7,
    "transcribe": 1.2, "definition": 0.15, "definition spoken": 0.5, "chat": 0.65, "say": 0.4,
    "dialogue": 1.0,
})  # fmt: skip
"""What each task counts beside one of as many things; with the embedded set and TEMPERATURE one example in seven is
chat, one in sixteen transcription, and a third what needs several pictures or a yes or no: such answers are one or two
tokens, of which a loss that is a mean over tokens takes little notice. Stage text has taught to say what was read."""
TASKS = tuple(WEIGHTS)
NAMING = ("name", "name spoken", "group", "group spoken")
"""Tasks with a picture whose answer is its own words; the spoken ones ask with a clip."""
CHOOSING = ("yes or no", "count", "count kind", "odd one out")
"""Tasks with a few possible answers: their share of right ones is compared with the most common answer's."""
TEMPERATURE = 2.0
"""Of `task_mix.mix`: of two tasks, one with four times as many things is asked twice as often."""
MAX_EXAMPLES = 50_000
"""Training examples made at most: their documents are all made before the first step, in about 8 s and what the ear
takes to spell the spoken questions among them."""
MAX_HELD_OUT = 1_000
"""Held-out examples of a task, at most."""


def tasks(split: Split, *, max_audio_samples: int, source: Source) -> list[Task]:
    """Every task in the order of TASKS, those without anything to ask about included.

    max_audio_samples: longer clips are left out.
    """
    material = Material.of(source, split, max_audio_samples=max_audio_samples)
    found = [*picture_tasks(material), *several_tasks(material), *word_tasks(material)]
    return sorted(found, key=lambda task: TASKS.index(task.name))


def examples(
    split: Split,
    *,
    max_audio_samples: int,
    source: Source,
    seed: int = 0,
    weights: Mapping[str, float] = WEIGHTS,
    temperature: float = TEMPERATURE,
) -> list[Example]:
    """The examples of a split, task by task: a function of the arguments alone.

    Training examples are drawn: as many as there are things to ask about, at most MAX_EXAMPLES, mixed by
    `task_mix.mix`. A thing is asked about again, in another wording by chance, once all have been. Held-out ones are
    one for each thing, at most MAX_HELD_OUT a task.
    max_audio_samples: longer clips are left out. seed: of the training draw. weights, temperature: of the mix.
    Raises ValueError for weights or a temperature that `mix` refuses.
    """
    found = tasks(split, max_audio_samples=max_audio_samples, source=source)
    counts = {task.name: task.n for task in found}
    if split == "train":
        total = min(sum(n for name, n in counts.items() if weights.get(name)), MAX_EXAMPLES)
        draws = mix(counts, total=total, temperature=temperature, weights=weights)
    else:
        draws, seed = {name: min(n, MAX_HELD_OUT) for name, n in counts.items()}, 0
    return [example for task in found for example in _drawn(task, draws[task.name], seed=seed)]


def _drawn(task: Task, n: int, *, seed: int) -> list[Example]:
    """n examples about as different things as there are, in the things' order pass by pass."""
    stream = zlib.crc32(task.name.encode())
    chosen: list[int] = []
    while len(chosen) < n:
        pass_ = np.random.default_rng((seed, stream, 0, len(chosen))).permutation(task.n)
        chosen += sorted(pass_[: n - len(chosen)].tolist())
    return [task.make(i, np.random.default_rng((seed, stream, 1, k))) for k, i in enumerate(chosen)]
