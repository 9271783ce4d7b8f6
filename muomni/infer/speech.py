"""Speech as it is made: a text is read character by character, a frame of 80 ms at a time, each heard at once."""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import Tensor

from muomni.infer.lane import Lane
from muomni.models.script import Reading, Script

BYTES_A_FRAME = 0.75
"""Of a text's UTF-8 that is said in pieces: few speakers of English are slower than that (9.4 characters a second)."""
_ENDS = (r"[.!?…]+\s", r"[,;:]\s", r"\s")
"""Where a text may be cut, best first: behind a sentence, a part of it, a word."""


def pieces(text: str, most: int) -> list[str]:
    """A text in order, in pieces of at most `most` bytes of UTF-8 (4 or more), white space around them left out."""
    text, start, found = text.strip(), 0, list[str]()
    while start < len(text):
        fits = len(text[start : start + most].encode()[:most].decode(errors="ignore"))
        if start + fits < len(text):
            # One more: a space there ends a word that fits.
            window = text[start : start + fits + 1]
            cuts = ([match.end() for match in re.finditer(end, window)] for end in _ENDS)
            fits = next((own[-1] for own in cuts if own), fits)
        found.append(text[start : start + fits].rstrip())
        start += fits
        while start < len(text) and text[start].isspace():
            start += 1
    return found


class SpeechStream:
    """One utterance in one voice, of a text that may still be written while its beginning is said."""

    def __init__(self, script: Script, lane: Lane, *, voice: Tensor) -> None:
        """lane: begun, and used by nobody else until the end; voice: (1, d_model) of `Talker.voice`."""
        self._lane, self._voice, self._reading = lane, voice, Reading(script)
        self._frames: list[Tensor] = []
        self._places: list[int] = []

    @property
    def finished(self) -> bool:
        """All of the text has been said."""
        return self._reading.over

    @property
    def ready(self) -> bool:
        """There is a frame to be said: enough of the text is known, and the utterance is not full."""
        return self._reading.ready and not self._lane.full

    def add(self, state: Tensor, embed: Tensor, spelled: bytes) -> None:
        """Take a subword more. state, embed: (d_thinker,) Thinker state and token embedding; spelled: its UTF-8."""
        self._reading.add(state, embed, spelled)

    def end(self) -> None:
        """The text is whole: what is left of it can be said, one `frame` after another while `ready`."""
        self._reading.end()

    def frame(self) -> np.ndarray:
        """The next 80 ms: float32 samples, none while codes or vocoder are still ahead of them."""
        self._places.append(self._reading.place)
        codes, advance, pcm = self._lane.frame(self._condition())
        self._reading.advance(advance)
        if codes is not None:
            self._frames.append(codes)
        return pcm

    def flush(self) -> np.ndarray:
        """What is not finished yet: the last frame's codes, and the samples the vocoder still holds."""
        codes, pcm = self._lane.flush(self._condition())
        if codes is not None:
            self._frames.append(codes)
        return pcm

    @property
    def codes(self) -> np.ndarray | None:
        """All codes so far, int64 (n_codebooks, n_frames); None before the first frame is whole."""
        return torch.cat(self._frames).T.cpu().numpy() if self._frames else None

    def heard(self, n_frames: int) -> int:
        """Bytes of the text that the first frames reach: whatever a frame is at has been begun."""
        return self._places[min(n_frames, len(self._places)) - 1] + 1 if n_frames and self._places else 0

    @torch.inference_mode()
    def _condition(self) -> Tensor:
        return self._reading.condition() + self._voice
