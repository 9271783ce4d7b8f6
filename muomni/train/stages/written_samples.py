"""Samples one can read: continuations, transcripts, nearest captions, answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from muomni.data.audio import decode_ctc
from muomni.data.batch import to_device
from muomni.data.image import to_float
from muomni.data.items import Split
from muomni.data.tasks import TASKS
from muomni.metrics.edit import error_rate
from muomni.models.thinker import Thinker
from muomni.tokens import BOS
from muomni.train.samples import N_ITEMS, greedy, spread, write_lines
from muomni.train.stage import part

if TYPE_CHECKING:
    from muomni.train.stages.audio import AudioStage
    from muomni.train.stages.omni import OmniStage
    from muomni.train.stages.text import TextStage
    from muomni.train.stages.vision import VisionStage

MAX_NEW = 32
"""Tokens written after a prompt."""
MAX_PROMPT = 64
"""Tokens of a conversation's first turn that are given."""
NEAREST = 3
"""Captions shown for a picture."""
MOST_PICTURES = 512
"""Held-out pictures whose captions are compared."""


def text_samples(stage: TextStage, model: nn.Module, split: Split, folder: Path) -> dict[str, float]:
    """continuations.txt: held-out texts from their first line or half on, as the Thinker goes on and as they do."""
    thinker, device = part(model, "thinker", Thinker), stage.device(model)
    begun = [_begun(text) for text in spread(stage.held_texts(split))]
    given = [stage.tokenizer.encode(first)[:MAX_PROMPT] for first, _ in begun]
    prompts = []
    for ids in given:
        whole = torch.tensor([BOS, *ids], device=device)
        prompts.append((thinker.embed(whole), torch.arange(len(whole), device=device)[:, None].expand(-1, 3)))
    said = greedy(thinker, prompts, max_new=MAX_NEW)
    blocks = [
        [
            ("given", stage.tokenizer.decode(ids)),
            ("continued", _continued(stage, ids, new)),
            ("recorded", rest),
        ]
        for (_, rest), ids, new in zip(begun, given, said, strict=True)
    ]
    write_lines(folder / "continuations.txt", blocks)
    return {}


def _continued(stage: TextStage, ids: list[int], new: list[int]) -> str:
    """What new ids add to a text."""
    stream = stage.tokenizer.stream()
    for token in ids:
        stream.push(token)
    return "".join(map(stream.push, new)) + stream.finish()


def _begun(text: str) -> tuple[str, str]:
    """A text's first line and the one after; of a single line its halves."""
    first, _, rest = text.partition("\n")
    if rest:
        return f"{first}\n", rest.partition("\n")[0]
    return text[: len(text) // 2], text[len(text) // 2 :]


def audio_samples(stage: AudioStage, model: nn.Module, split: Split, folder: Path) -> dict[str, float]:
    """transcripts.txt: what the CTC head spells against what is said; their character error rate."""
    from muomni.train.stages.audio import SPEEDS

    chosen = spread(stage.items(split), min(N_ITEMS, stage.run.train.batch_items))
    read = [(item, mel) for item in chosen if (mel := stage.mel(item, SPEEDS.index(1.0))) is not None]
    items, mels = [item for item, _ in read], [mel for _, mel in read]
    n_frames = sum(-(-len(mel) // stage.config.audio.factor) for mel in mels)
    batch = stage.collate(mels, [item.text for item in items], capacity=n_frames)
    best = stage.logits(model, to_device(batch, stage.device(model))).argmax(-1).cpu()
    lengths = (batch.input_lengths[: len(items)] * stage.config.audio.ctc_expand).tolist()
    said = [decode_ctc(clip.tolist()) for clip in best[: sum(lengths)].split(lengths)]
    blocks = [[("said", item.text), ("spelled", text)] for item, text in zip(items, said, strict=True)]
    write_lines(folder / "transcripts.txt", blocks)
    return {"character error rate": error_rate([item.text for item in items], said).value}


def vision_samples(stage: VisionStage, model: nn.Module, split: Split, folder: Path) -> dict[str, float]:
    """captions.txt: of all held-out labels, the nearest ones to each picture; the mean rank of the right one."""
    from muomni.train.stages.vision import collate

    items, images = stage.read(stage.data.pictures(split)[:MOST_PICTURES])
    captions = [stage.caption(item, stage.chosen(item, None)) for item in items]
    batch = collate(to_float(images), captions, n_items=len(items))
    found = stage.embeddings(model, to_device(batch, stage.device(model)))
    pictures, captions = (side.float().cpu() for side in found[:2])
    blocks, ranks = [], []
    for i in spread(range(len(items))):
        order = (captions @ pictures[i]).argsort(descending=True).tolist()
        ranks.append(order.index(i) + 1)
        nearest = ", ".join(items[j].label for j in order[:NEAREST])
        blocks.append(
            [("picture", items[i].label), ("nearest", nearest), ("rank", f"{ranks[-1]} of {len(items)}")]
        )
    write_lines(folder / "captions.txt", blocks)
    return {"rank of the right caption": sum(ranks) / len(ranks)}


def omni_samples(stage: OmniStage, model: nn.Module, split: Split, folder: Path) -> dict[str, float]:
    """answers.txt: one example of some tasks, asked with their media; the share that is answered exactly."""
    thinker = part(model, "thinker", Thinker)
    found = stage.examples(split)
    first = {task: next((e for e in found if e.task == task), None) for task in TASKS}
    chosen = spread([example for example in first.values() if example is not None])
    documents = stage.documents(split, chosen)
    none = torch.zeros(0)
    prompts: list[tuple[torch.Tensor, torch.Tensor]] = [(none, none)] * len(chosen)
    for row in stage.order(chosen, documents, shuffle=False).epoch(0):
        batch = stage.collate(split, [chosen[i] for i in row], [documents[i] for i in row])
        batch = batch.to(stage.device(model))
        embeds = stage.embeds(model, batch)
        for i, start in zip(row, batch.cu_seqlens.tolist(), strict=False):
            # A document up to its last answer, with the media on their places.
            place = slice(start, start + documents[i].answers[-1][0])
            prompts[i] = (embeds[place], batch.positions[place])
    said = [stage.tokenizer.decode(new) for new in greedy(thinker, prompts, max_new=MAX_NEW)]
    blocks = [
        [("task", e.task), ("asked", e.question or "(spoken)"), ("answered", text), ("right", e.answer)]
        for e, text in zip(chosen, said, strict=True)
    ]
    write_lines(folder / "answers.txt", blocks)
    return {"exact answers": sum(t == e.answer for e, t in zip(chosen, said, strict=True)) / len(chosen)}
