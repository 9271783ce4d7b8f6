"""Speech as it is made: Talker frame -> codec step -> vocoder block -> PCM, each with streaming state."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from muomni.infer.sampling import Sampler
from muomni.models.omni import OmniModel

STOP_PROBABILITY = 0.5
"""The Talker's stop output above which speech ends."""


class SpeechStream:
    """One utterance. Frame t is conditioned on text position t, on the pad condition after the text, and on a voice."""

    def __init__(self, model: OmniModel, sampler: Sampler, *, max_frames: int, voice: Tensor) -> None:
        """Start silent, with empty states.

        voice: (1, d_model) of `Talker.voice`.
        max_frames: longest utterance in code frames (12.5 Hz); whatever the Talker says, it ends there.
        """
        self._model, self._sampler, self._max_frames, self._voice = model, sampler, max_frames, voice
        self._talker = model.talker.new_state(1, max_frames)
        self._codec = model.codec.new_state(1)
        self._vocoder = model.vocoder.new_state()
        self.frames: list[Tensor] = []
        """Codes (1, K) of the frames that are whole."""
        self._n_steps = 0
        self.stopped = False
        """The Talker said it was done."""

    @property
    def full(self) -> bool:
        """No further frame may be spoken."""
        return self._n_steps >= self._max_frames

    def text(self, state: Tensor, embed: Tensor) -> np.ndarray:
        """Take the step of one text position.

        state, embed: (1, 1, d_thinker) Thinker state and token embedding of that position.
        Returns float32 samples, none while codes or vocoder are still ahead of them, or when the utterance is full.
        """
        return self._frame(state, embed, 1)

    def pad(self) -> np.ndarray:
        """Take one step after the end of the text; learns from the Talker whether it was the last."""
        nothing = torch.zeros(1, 1, self._model.config.thinker.d_model, device=self._sampler.device)
        return self._frame(nothing, nothing, 0)

    @torch.inference_mode()
    def flush(self) -> np.ndarray:
        """What is not finished yet: the last frame's codes, and the samples the vocoder still holds."""
        nothing = torch.zeros(1, 1, self._model.config.thinker.d_model, device=self._sampler.device)
        condition = self._condition(nothing, nothing, 0)
        last = self._heard(self._model.talker.drain(condition, self._talker, self._sampler))
        return np.concatenate([last, _samples(self._model.vocoder.flush(self._vocoder))])

    def codes(self) -> np.ndarray:
        """All codes so far, int64 (n_codebooks, n_frames)."""
        if not self.frames:
            return np.zeros((self._model.config.codec.n_codebooks, 0), np.int64)
        return torch.cat(self.frames, dim=0).T.cpu().numpy()

    @torch.inference_mode()
    def _frame(self, state: Tensor, embed: Tensor, n_text: int) -> np.ndarray:
        if self.full:
            return np.zeros(0, np.float32)
        self._n_steps += 1
        condition = self._condition(state, embed, n_text)
        codes, stop = self._model.talker.step(condition, self._talker, self._sampler)
        # Stopping counts only once the text is used up: no word is left out.
        self.stopped = not n_text and bool(stop.item() > STOP_PROBABILITY)
        return self._heard(codes)

    def _condition(self, state: Tensor, embed: Tensor, n_text: int) -> Tensor:
        counts = torch.tensor([n_text], device=state.device)
        return self._model.talker.condition(state, embed, counts, 1, self._voice)[:, 0]

    def _heard(self, codes: Tensor | None) -> np.ndarray:
        """The samples that a whole frame finishes."""
        if codes is None:
            return np.zeros(0, np.float32)
        self.frames.append(codes)
        mel = self._model.config.mel
        frames = self._model.codec.decode_step(codes[:, :, None], self._codec)
        log_mel = frames.reshape(-1, mel.n_mels) * mel.std + mel.mean
        return _samples(self._model.vocoder.step(log_mel, self._vocoder))


def _samples(pcm: Tensor) -> np.ndarray:
    return pcm.reshape(-1).float().clamp(-1.0, 1.0).cpu().numpy()
