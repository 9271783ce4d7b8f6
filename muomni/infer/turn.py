"""One turn as it happens: the text is decoded, and spoken while it is still being written."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import numpy as np

from muomni.data.text import Tokenizer
from muomni.infer.batch import Ticket, Written
from muomni.infer.engine import Engine
from muomni.infer.lane import NO_SAMPLES, Lane
from muomni.infer.request import RequestError
from muomni.infer.rows import Lease
from muomni.infer.speech import SpeechStream
from muomni.infer.stops import Stops
from muomni.infer.stream import Audio, Chunk, Ended, Reply, Timings


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A turn whose prompt is in the cache."""

    ticket: Ticket
    lease: Lease
    length: int
    """Positions of the cache before the answer."""
    truncated: int
    """Turns forgotten before this one."""
    unheard: float = 0.0
    """Seconds of films' sound that were left out of this one."""
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
        begun: Begun,
        *,
        stops: Stops,
        speech: tuple[SpeechStream, Lane] | None,
    ) -> None:
        """speech: who says the text, and the lane it is said in, which goes back to the engine at the end."""
        self._engine, self._tokenizer, self._begun, self._stops = engine, tokenizer, begun, stops
        self._speech, self._lane = speech or (None, None)
        self.ids: list[int] = []
        """Answer tokens so far, all of them in the cache."""
        self._timings = Timings()
        self._text: list[str] = []
        self._pcm: list[np.ndarray] = []
        self._ended: Ended = "interrupted"
        self._chunks = self._generate()
        self._done = False
        begun.lease.busy = True

    @property
    def length(self) -> int:
        """Positions of the cache, the answer's included, that belong to the conversation."""
        return self._begun.length + len(self.ids)

    def __next__(self) -> Chunk:
        """The next piece of text or sound."""
        try:
            chunk = next(self._chunks)
        except StopIteration:
            self.close()
            raise
        self._text.append(chunk.text)
        self._pcm.append(chunk.pcm)
        return chunk

    def close(self) -> None:
        """Stop here: what was given out so far is what the conversation remembers."""
        if self._done:
            return
        self._chunks.close()
        self._engine.batch.leave(self._begun.ticket)
        if self._lane is not None:
            self._engine.put_back(self._lane)
            self._lane = None
        self._begun.lease.busy = False
        self._done = True

    def stop(self, played_seconds: float | None = None) -> Reply:
        """Somebody spoke: stop here, and remember no more than was heard.

        played_seconds: how much of the speech was played; the words begun by then are kept, in the conversation and in
        the reply. None: all that was given out.
        Raises RequestError for seconds that are none, or of a turn without speech; the turn then goes on.
        """
        if played_seconds is not None:
            if self._speech is None:
                raise RequestError("stop: this turn is not spoken; leave played_seconds out.")
            if not 0.0 <= played_seconds < math.inf:
                raise RequestError(f"stop: played_seconds: expected 0 or more, got {played_seconds}.")
        self.close()
        if played_seconds is not None and self._speech is not None:
            self._keep(self._speech, played_seconds)
        return self.reply

    def _keep(self, speech: SpeechStream, played_seconds: float) -> None:
        config = self._engine.config
        n_samples = round(played_seconds * config.mel.sample_rate)
        waveform = np.concatenate([NO_SAMPLES, *self._pcm])
        if n_samples >= len(waveform) and self._ended != "interrupted":
            return
        n_bytes, kept = speech.heard(math.ceil(n_samples / config.samples_per_frame)), 0
        for token in self.ids:
            if n_bytes <= 0:
                break
            n_bytes -= len(self._tokenizer.spell(token))
            kept += 1
        self.ids = self.ids[:kept]
        self._text, self._pcm = [self._tokenizer.decode(self.ids)], [waveform[:n_samples]]
        self._ended = "interrupted"

    @property
    def reply(self) -> Reply:
        """The whole turn, or what was used of it before `close`.

        Raises RuntimeError while it is still going on.
        """
        if not self._done:
            raise RuntimeError("reply: the turn is still going on; use up its chunks or close it first.")
        config, codes = self._engine.config, self._speech.codes if self._speech is not None else None
        audio = Audio(np.concatenate([NO_SAMPLES, *self._pcm]), config.mel.sample_rate)
        codes = np.zeros((config.codec.n_codebooks, 0), np.int64) if codes is None else codes
        self._timings.audio_seconds, self._timings.n_frames = audio.seconds, codes.shape[1]
        return Reply(
            text="".join(self._text),
            audio=audio,
            codes=codes,
            ended=self._ended,
            spoken=self._speech is not None and self._speech.finished,
            truncated=self._begun.truncated,
            unheard=self._begun.unheard,
            timings=self._timings.to_dict(),
        )

    def _generate(self) -> Generator[Chunk, None, None]:
        ticket, times, decoder = self._begun.ticket, self._timings, self._tokenizer.stream()
        held: deque[tuple[Written, int]] = deque()
        n_written = n_given = 0
        while not self._stops.met:
            began = time.perf_counter()
            written = next(ticket, None)
            times.decode += time.perf_counter() - began
            # A stop string may end in the middle of what has already been asked for.
            text = self._stops.push(decoder.finish() if written is None else decoder.push(written.token))
            if written is None:
                text += self._stops.finish()
            else:
                n_written += len(self._tokenizer.spell(written.token))
                held.append((written, n_written))
                times.n_tokens += 1
            n_given += len(text.encode("utf-8"))
            if text and not times.first_text:
                times.first_text = time.perf_counter() - self._begun.started
            # Without stop strings nothing is kept back, half a character neither.
            while held and (held[0][1] <= n_given or not self._stops.strings or written is None):
                self._take(held.popleft()[0])
            if text:
                yield Chunk(text, NO_SAMPLES)
            yield from self._spoken()
            if written is None:
                break
        self._ended = "stop" if self._stops.met else ticket.ended or "interrupted"
        if self._speech is not None and self.ids:
            self._speech.end()
            yield from self._spoken()
            yield Chunk("", self._timed(self._speech.flush))
        times.total = time.perf_counter() - self._begun.started

    def _take(self, written: Written) -> None:
        """A token is part of the answer."""
        self.ids.append(written.token)
        if self._speech is not None:
            self._speech.add(written.state, written.embed, self._tokenizer.spell(written.token))

    def _spoken(self) -> Generator[Chunk, None, None]:
        """As much as is ready to be said."""
        while self._speech is not None and self._speech.ready:
            pcm = self._timed(self._speech.frame)
            if len(pcm):
                yield Chunk("", pcm)

    def _timed(self, make: Callable[[], np.ndarray]) -> np.ndarray:
        began = time.perf_counter()
        pcm = make()
        now = time.perf_counter()
        self._timings.speech += now - began
        if len(pcm) and self._timings.first_audio is None:
            self._timings.first_audio = now - self._begun.started
        return pcm
