"""Held-out examples of every task, scored by likelihood or answered in writing; media are read and encoded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from muomni.data.audio import audio_frames
from muomni.data.examples import Example, Places, clips, documents, fitting, pictures
from muomni.data.image import to_float
from muomni.data.items import DialogueFile
from muomni.data.splits import normalised
from muomni.data.tasks import TASKS, examples
from muomni.evaluate.family import Case, HeldOut, spread
from muomni.evaluate.score import Scores, score
from muomni.evaluate.written import Question, write
from muomni.infer.engine import Heard
from muomni.models.thinker import Thinker


@dataclass(frozen=True, kw_only=True)
class Answered:
    """An example with what was answered."""

    example: Example
    given: str
    """As it was written."""

    @property
    def exact(self) -> bool:
        """Whether the words are those of the expected answer; case and punctuation are not looked at."""
        return normalised(self.given) == normalised(self.example.answer)


class Asked:
    """The examples of one split, asked of one session."""

    def __init__(self, held: HeldOut) -> None:
        """No file is read yet."""
        self.held, self.session, self.source = held, held.session, held.source
        self.clips = clips(held.split, held.source)
        self.pictures = pictures(held.split, held.source)
        self._tokens = [self.session.config.audio_tokens(clip.n_samples) for clip in self.clips]
        self._seen: dict[int, Tensor] = {}
        self._heard: dict[int, Heard] = {}

    def chosen(self, tasks: Sequence[str] = TASKS) -> dict[str, list[Example]]:
        """At most n examples of each of these tasks that has any, spread over the split."""
        found: dict[str, list[Example]] = {task: [] for task in tasks}
        longest = self.session.config.max_audio_samples
        every = examples(self.held.split, max_audio_samples=longest, source=self.source)
        wanted = [example for example in every if example.task in found]
        for example in self._fitting(wanted):
            found[example.task].append(example)
        return {task: spread(all_, self.held.n) for task, all_ in found.items() if all_}

    def score(self, asked: list[Example], *, thinker: Thinker | None = None) -> Scores:
        """Score the answers; another thinker gets the questions without their media."""
        rendered = documents(asked, self.session.tokenizer, **self._places(asked), media=thinker is None)
        if thinker is not None:
            return score(thinker, rendered)
        embeds = [
            self.session.engine.embed(
                document,
                torch.cat([self._see(i) for i in example.pictures]) if example.pictures else None,
                torch.cat([self._hear(i).features for i in example.clips]) if example.clips else None,
            )
            for document, example in zip(rendered, asked, strict=True)
        ]
        return score(self.session.engine.model.thinker, rendered, embeds)

    def answer(self, asked: Sequence[Example], *, max_new_tokens: int = 48) -> list[Answered]:
        """The greedy answers, as a user gets them from the files. Raises ValueError for a dialogue."""
        questions = [self.question(example) for example in asked]
        given = write(self.session, questions, max_new_tokens=max_new_tokens)
        return [Answered(example=e, given=g) for e, g in zip(asked, given, strict=True)]

    def question(self, example: Example) -> Question:
        """An example as a user asks it. Raises ValueError for one of a dialogue."""
        shown = [self.pictures[i] for i in example.pictures]
        played = [self.clips[i] for i in example.clips]
        if example.before or any(isinstance(item, DialogueFile) for item in (*shown, *played)):
            raise ValueError("example: expected one question, got a dialogue.")
        return Question(
            text=example.question,
            pictures=tuple(map(self.source.file, shown)),
            clips=tuple(map(self.source.file, played)),
        )

    def case(self, one: Answered, *, error: float) -> Case:
        """An answered example to look at and to hear."""
        example = one.example
        items = (*(self.pictures[i] for i in example.pictures), *(self.clips[i] for i in example.clips))
        spoken = ", ".join(getattr(self.clips[i], "text", "") for i in example.clips)
        return Case(
            item=", ".join(item.id for item in items),
            asked=example.question or spoken,
            expected=example.answer,
            given=one.given,
            error=error,
            pictures=self.question(example).pictures,
            heard=self.source.waveform(self.clips[example.clips[0]]) if example.clips else None,
        )

    def wrong(self, answered: Sequence[Answered], n: int) -> list[Case]:
        """n of the answers that are not exact, evenly spaced: typical ones, not chosen."""
        return [self.case(one, error=1.0) for one in spread([a for a in answered if not a.exact], n)]

    def _fitting(self, wanted: list[Example]) -> list[Example]:
        """Those that fit; a clip is heard where that depends on how much the ear spells of it."""
        tokenizer = self.session.tokenizer
        most = self._room({i: range(n) for i, n in enumerate(self._tokens)})
        sure = {id(example) for example in fitting(wanted, tokenizer, **most)}
        rest = [example for example in wanted if id(example) not in sure]
        sure |= {id(example) for example in fitting(rest, tokenizer, **self._places(rest))}
        return [example for example in wanted if id(example) in sure]

    def _places(self, asked: Sequence[Example]) -> Places:
        played = sorted({i for example in asked for i in example.all_clips})
        spelled = self.session.tokenizer.encode_batch([self._hear(i).text for i in played])
        return self._room(dict(zip(played, spelled, strict=True)))

    def _room(self, heard: Mapping[int, Sequence[int]]) -> Places:
        config = self.session.config
        return Places(
            clip_tokens=self._tokens, heard=heard, n_image_tokens=config.vision.n_image_tokens,
            max_seq_len=config.max_seq_len,
        )  # fmt: skip

    def _see(self, index: int) -> Tensor:
        if index not in self._seen:
            size = self.session.config.vision.image_size
            pixels = self.source.picture(self.pictures[index], side=size)
            self._seen[index] = self.session.engine.see(to_float(torch.from_numpy(pixels)[None]))
        return self._seen[index]

    def _hear(self, index: int) -> Heard:
        if index not in self._heard:
            config = self.session.config
            waveform = self.source.waveform(self.clips[index])
            self._heard[index] = self.session.engine.hear(
                audio_frames(waveform, config.mel, factor=config.audio.factor)
            )
        return self._heard[index]
