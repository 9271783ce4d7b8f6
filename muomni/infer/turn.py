"""One turn as it happens: the text is decoded, and spoken while it is still being written."""

from __future__ import annotations

import math
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import numpy as np

from muomni.data.text import Tokenizer, broken
from muomni.infer.batch import Ticket, Written
from muomni.infer.engine import Engine
from muomni.infer.lane import NO_SAMPLES, Lane
from muomni.infer.request import RequestError
from muomni.infer.rows import Lease
from muomni.infer.speech import SpeechStream
from muomni.infer.stops import Loops, Stops
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
    full. A stream that nobody holds any more is closed.
    """

    def __init__(self, turn: Answering) -> None:
        """turn: begun by a session, which asks it how far it came."""
        self._turn = turn
        # Not what is referred to in a circle, so it goes as soon as nobody holds it.
        weakref.finalize(self, turn.close).atexit = False

    def __next__(self) -> Chunk:
        """The next piece of text or sound."""
        return self._turn.next()

    @property
    def ids(self) -> list[int]:
        """Answer tokens so far, all of them in the cache."""
        return self._turn.ids

    @property
    def reply(self) -> Reply:
        """The whole turn, or what was used of it before `close`.

        Raises RuntimeError while it is still going on.
        """
        return self._turn.reply

    def close(self) -> None:
        """Stop here: what was given out so far is what the conversation remembers."""
        self._turn.close()

    def stop(self, played_seconds: float | None = None) -> Reply:
        """Somebody spoke: stop here, and remember no more than was heard.

        played_seconds: how much of the speech was played; the words begun by then are kept, in the conversation and in
        the reply. None: all that was given out.
        Raises RequestError for seconds that are none or of a turn without speech (it then goes on), and for seconds
        when the conversation has gone on since.
        """
        return self._turn.stop(played_seconds)


class Answering:
    """A turn while it is answered, and what came of it. It holds the row and the lane until `close`."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        begun: Begun,
        *,
        stops: Stops,
        loops: Loops,
        speech: tuple[SpeechStream, Lane] | None,
    ) -> None:
        """speech: who says the text, and the lane it is said in, which goes back to the engine at the end."""
        self._engine, self._tokenizer, self._begun = engine, tokenizer, begun
        self._stops, self._loops = stops, loops
        self._speech, self._lane = speech or (None, None)
        self.ids: list[int] = []
        """Answer tokens so far, all of them in the cache."""
        self._timings = Timings()
        self._text: list[str] = []
        self._pcm: list[np.ndarray] = []
        self._ended: Ended = "interrupted"
        self._n_samples: int | None = None
        self._chunks = self._generate()
        self._done = False
        self.settled = False
        """The conversation has taken it over: it cannot be cut any more."""
        begun.lease.busy = True

    @property
    def length(self) -> int:
        """Positions of the cache, the answer's included, that belong to the conversation."""
        return self._begun.length + len(self.ids)

    def next(self) -> Chunk:
        """The next piece of text or sound. Raises StopIteration at the end; whatever is raised, the turn is closed."""
        given = False
        try:
            chunk = next(self._chunks)
            given = True
        finally:
            if not given:
                self.close()
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
        self._timings.total = self._timings.total or time.perf_counter() - self._begun.started

    def stop(self, played_seconds: float | None) -> Reply:
        """As `TurnStream.stop`."""
        if self.settled and played_seconds is not None:
            raise RequestError("stop: the conversation has gone on; stop a turn before the next one begins.")
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
        n_bytes, heard = speech.heard(math.ceil(n_samples / config.samples_per_frame)), b""
        kept = 0
        # A character that is begun is kept whole, or not at all.
        while kept < len(self.ids) and (len(heard) < n_bytes or broken(heard)):
            heard += self._tokenizer.spell(self.ids[kept])
            kept += 1
        while kept and broken(b"".join(map(self._tokenizer.spell, self.ids[:kept]))):
            kept -= 1
        self.ids = self.ids[:kept]
        self._text, self._pcm = [self._tokenizer.decode(self.ids)], [waveform[:n_samples]]
        self._n_samples = n_samples
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
        if self._n_samples is not None:
            codes = codes[:, : math.ceil(self._n_samples / config.samples_per_frame)]
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
        # Tokens with how many characters there are once theirs are whole; None while that is not known.
        held: deque[tuple[Written, int | None]] = deque()
        n_written = n_given = 0
        while not self._stops.met:
            began = time.perf_counter()
            written = None if self._loops.met else next(ticket, None)
            times.decode += time.perf_counter() - began
            piece = decoder.finish() if written is None else decoder.push(written.token)
            n_written += len(piece)
            if written is not None:
                held.append((written, None))
                times.n_tokens += 1
            if written is None or decoder.whole:
                held = deque((token, n_written if n is None else n) for token, n in held)
            # A stop string may end in the middle of what has already been asked for.
            text = self._stops.push(piece)
            if written is None:
                text += self._stops.finish()
            n_given += len(text)
            if text and not times.first_text:
                times.first_text = time.perf_counter() - self._begun.started
            # Without stop strings nothing is kept back, half a character neither.
            while held and (not self._stops.strings or (held[0][1] is not None and held[0][1] <= n_given)):
                self._take(held.popleft()[0])
            if text:
                yield Chunk(text, NO_SAMPLES)
            yield from self._spoken()
            if written is None:
                break
        # A loop may be met with the token that was the last one anyway.
        ended = None if ticket.n_ahead else ticket.ended
        self._ended = "stop" if self._stops.met else ended or ("loop" if self._loops.met else "interrupted")
        if self._speech is not None and self.ids:
            self._speech.end()
            yield from self._spoken()
            yield Chunk("", self._timed(self._speech.flush))
        times.total = time.perf_counter() - self._begun.started

    def _take(self, written: Written) -> None:
        """A token is part of the answer."""
        self.ids.append(written.token)
        self._loops.push(written.token)
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
