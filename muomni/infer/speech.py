"""Speech as it is made: Talker frame -> codec step -> vocoder block -> PCM, each with streaming state."""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import Tensor

from muomni.infer.sampling import Sampler
from muomni.models.omni import OmniModel
from muomni.models.script import Reading

NO_SAMPLES = np.zeros(0, np.float32)
_ENDS = (r"[.!?…]+\s", r"[,;:]\s", r"\s")
"""Where a text may be cut, best first: behind a sentence, a part of it, a word."""


def pieces(text: str, most: int) -> list[str]:
    """A text in order, in pieces of at most `most` characters, white space around them left out."""
    rest, found = text.strip(), list[str]()
    while len(rest) > most:
        window = rest[: most + 1]
        cuts = ([match.end() for match in re.finditer(end, window)] for end in _ENDS)
        cut = next((own[-1] for own in cuts if own), most)
        found.append(rest[:cut].rstrip())
        rest = rest[cut:].lstrip()
    return [*found, rest] if rest else found


class SpeechStream:
    """One utterance in one voice, of a text that may still be written while its beginning is said."""

    def __init__(self, model: OmniModel, sampler: Sampler, *, max_frames: int, voice: Tensor) -> None:
        """Start silent, with empty states.

        voice: (1, d_model) of `Talker.voice`.
        max_frames: longest utterance in code frames (12.5 Hz); whatever the Talker says, it ends there.
        """
        self._model, self._sampler, self._max_frames, self._voice = model, sampler, max_frames, voice
        self._talker = model.talker.new_state(1, max_frames)
        self._codec = model.codec.new_state(1)
        self._vocoder = model.vocoder.new_state()
        self._reading = Reading(model.talker.script)
        self.frames: list[Tensor] = []
        """Codes (1, K) of the frames that are whole."""
        self._n_steps = 0

    @property
    def finished(self) -> bool:
        """All of the text has been said."""
        return self._reading.over

    @property
    def ready(self) -> bool:
        """There is a frame to be said: enough of the text is known, and the utterance is not full."""
        return self._reading.ready and self._n_steps < self._max_frames

    def text(self, state: Tensor, embed: Tensor, spelled: bytes) -> np.ndarray:
        """Take a subword more, and say as much as is ready.

        state, embed: (d_thinker,) Thinker state and token embedding; spelled: its UTF-8.
        Returns float32 samples, none while text, codes or vocoder are still ahead of them.
        """
        self._reading.add(state, embed, spelled)
        parts = [NO_SAMPLES]
        while self.ready:
            parts.append(self.frame())
        return np.concatenate(parts)

    def end(self) -> None:
        """The text is whole: what is left of it can be said, one `frame` after another while `ready`."""
        self._reading.end()

    @torch.inference_mode()
    def frame(self) -> np.ndarray:
        """The next 80 ms; samples as of `text`."""
        self._n_steps += 1
        codes, advance = self._model.talker.step(self._condition(), self._talker, self._sampler)
        self._reading.advance(advance.item())
        return self._heard(codes)

    @torch.inference_mode()
    def flush(self) -> np.ndarray:
        """What is not finished yet: the last frame's codes, and the samples the vocoder still holds."""
        last = self._heard(self._model.talker.drain(self._condition(), self._talker, self._sampler))
        return np.concatenate([last, _samples(self._model.vocoder.flush(self._vocoder))])

    def codes(self) -> np.ndarray:
        """All codes so far, int64 (n_codebooks, n_frames)."""
        if not self.frames:
            return np.zeros((self._model.config.codec.n_codebooks, 0), np.int64)
        return torch.cat(self.frames, dim=0).T.cpu().numpy()

    def _condition(self) -> Tensor:
        return self._reading.condition() + self._voice

    def _heard(self, codes: Tensor | None) -> np.ndarray:
        """The samples that a whole frame finishes."""
        if codes is None:
            return NO_SAMPLES
        self.frames.append(codes)
        mel = self._model.config.mel
        frames = self._model.codec.decode_step(codes[:, :, None], self._codec)
        log_mel = frames.reshape(-1, mel.n_mels) * mel.std + mel.mean
        return _samples(self._model.vocoder.step(log_mel, self._vocoder))


def _samples(pcm: Tensor) -> np.ndarray:
    return pcm.reshape(-1).float().clamp(-1.0, 1.0).cpu().numpy()
