"""One turn as it happens: the text is decoded, and spoken while it is still being written."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from muomni.data.text import Tokenizer
from muomni.infer.engine import Engine
from muomni.infer.sampling import Sampler
from muomni.infer.speech import NO_SAMPLES, SpeechStream
from muomni.infer.stream import Chunk, Reply, Timings
from muomni.models.thinker import KVCache
from muomni.tokens import EOS


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prefilled cache, ready to be continued."""

    cache: KVCache
    hidden: Tensor
    """(d_model,) state of the last position."""
    position: int
    """Rotary position of the first answer token."""
    max_new_tokens: int
    """Most tokens of answer."""
    truncated: int
    """Turns forgotten before this one."""
    started: float
    """time.perf_counter() when the turn began."""


class TurnStream(Iterator[Chunk]):
    """Chunks of one turn; `reply` holds the whole of it once they are used up.

    Speech follows a few characters behind the text that is being decoded, until all of it is said or the utterance is
    full.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        prompt: Prompt,
        *,
        sampler: Sampler,
        speech: SpeechStream | None,
    ) -> None:
        """Nothing is computed before the first chunk is asked for."""
        self._engine, self._tokenizer, self._prompt = engine, tokenizer, prompt
        self._sampler, self._speech = sampler, speech
        self.ids: list[int] = []
        """Answer tokens so far, all of them in the cache."""
        self._finished = False
        self._text: list[str] = []
        self._pcm: list[np.ndarray] = []
        self._timings = Timings()
        self._chunks = self._generate()
        self._done = False

    def __next__(self) -> Chunk:
        """The next piece of text or sound."""
        try:
            chunk = next(self._chunks)
        except StopIteration:
            self._done = True
            raise
        self._text.append(chunk.text)
        self._pcm.append(chunk.pcm)
        return chunk

    def close(self) -> None:
        """Stop here: what was said so far is what the conversation remembers."""
        self._chunks.close()
        self._done = True

    @property
    def reply(self) -> Reply:
        """The whole turn, or what was used of it before `close`.

        Raises RuntimeError while it is still going on.
        """
        if not self._done:
            raise RuntimeError("reply: the turn is still going on; use up its chunks or close it first.")
        waveform = np.concatenate([NO_SAMPLES, *self._pcm])
        sample_rate = self._engine.config.mel.sample_rate
        self._timings.audio_seconds = len(waveform) / sample_rate
        speech = self._speech
        codes = (
            np.zeros((self._engine.config.codec.n_codebooks, 0), np.int64)
            if speech is None
            else speech.codes()
        )
        self._timings.n_frames = codes.shape[1]
        return Reply(
            text="".join(self._text),
            waveform=waveform,
            sample_rate=sample_rate,
            codes=codes,
            finished=self._finished,
            spoken=speech is not None and speech.finished,
            truncated=self._prompt.truncated,
            timings=self._timings.to_dict(),
        )

    def _generate(self) -> Generator[Chunk, None, None]:
        engine, prompt, times = self._engine, self._prompt, self._timings
        decoder = self._tokenizer.stream()
        hidden = prompt.hidden
        while len(self.ids) < prompt.max_new_tokens:
            began = time.perf_counter()
            token = int(self._sampler(engine.logits(hidden)))
            if not times.first_text:
                times.first_text = time.perf_counter() - prompt.started
            if token == EOS:
                self._finished = True
                break
            state, embed = engine.step(token, prompt.position + len(self.ids), prompt.cache)
            self.ids.append(token)
            hidden = state[0, 0]
            times.decode += time.perf_counter() - began
            times.n_tokens += 1
            text = decoder.push(token)
            pcm = NO_SAMPLES
            if self._speech is not None:
                spelled = self._tokenizer.spell(token)
                pcm = self._timed(self._speech.text, state[0, 0], embed[0, 0], spelled)
            if text or len(pcm):
                yield Chunk(text, pcm)
        rest = decoder.finish()
        if rest:
            yield Chunk(rest, NO_SAMPLES)
        if self._speech is not None and self.ids:
            self._speech.end()
            while self._speech.ready:
                yield Chunk("", self._timed(self._speech.frame))
            yield Chunk("", self._timed(self._speech.flush))
        times.total = time.perf_counter() - prompt.started

    def _timed(self, make: Callable[..., np.ndarray], *arguments: Tensor | bytes) -> np.ndarray:
        began = time.perf_counter()
        pcm = make(*arguments)
        now = time.perf_counter()
        self._timings.speech += now - began
        if len(pcm) and self._timings.first_audio is None:
            self._timings.first_audio = now - self._prompt.started
        return pcm
