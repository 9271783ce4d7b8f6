"""One utterance's streaming states from condition to samples: Talker, codec decoder, vocoder; a frame is one call."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from muomni.infer.sampling import Sampler, Sampling
from muomni.models.omni import OmniModel
from muomni.models.recording import Record
from muomni.models.vocoder import Vocoder

NO_SAMPLES = np.zeros(0, np.float32)


class Lane:
    """Used by one utterance after another. With `record` a frame is recorded once its states are all there."""

    def __init__(self, model: OmniModel, *, max_frames: int, record: Record | None = None) -> None:
        """max_frames: longest utterance in code frames (12.5 Hz)."""
        self._model, self._max_frames = model, max_frames
        # Griffin-Lim's states grow and shrink.
        self._record = record if isinstance(model.vocoder, Vocoder) else None
        self._talker = model.talker.new_state(1, max_frames)
        device = self._talker.backbone.k.device
        self.sampler = Sampler(device=device)
        self._moving = torch.ones(1, dtype=torch.int32, device=device)
        self._input = torch.zeros(1, model.config.talker.d_model, device=device, dtype=model.talker.bos.dtype)
        self._kept: list[Tensor] = []
        self._replays: dict[tuple[Sampling, ...], _Replay] = {}
        self.begin(Sampling(), seed=0)

    # Who made the lane may have been in that mode, whose tensors are written in it alone.
    @torch.inference_mode()
    def begin(self, sampling: Sampling, *, seed: int) -> None:
        """A new utterance: silence before it. How its codes are chosen."""
        self.sampler.replace(0, sampling, seed=seed)
        self._talker.backbone.reset()
        self._talker.first = self._talker.frame = None
        self._codec, self._vocoder = self._model.codec.new_state(1), self._model.vocoder.new_state()
        self._n_steps = 0
        self._own = False

    @property
    def full(self) -> bool:
        """The utterance is as long as it may be."""
        return self._n_steps >= self._max_frames

    @torch.inference_mode()
    def frame(self, condition: Tensor) -> tuple[Tensor | None, float, np.ndarray]:
        """The next step of the Talker, condition (1, d_model).

        Returns the codes (1, K) of the frame that is now whole, None before the first; the mean number of characters
        to move on by; and the float32 samples that are now finished.
        """
        self._n_steps += 1
        if self._record is not None and self._steady:
            codes, advance, pcm = self._replayed(condition, self._record)
        else:
            codes, advance = self._model.talker.step(condition, self._talker, self.sampler)
            pcm = None if codes is None else self._heard(codes)
        return codes, advance.item(), _samples(pcm)

    @torch.inference_mode()
    def flush(self, condition: Tensor) -> tuple[Tensor | None, np.ndarray]:
        """The end of the utterance: codes of a frame that was not whole yet, and all samples that are left."""
        codes = self._model.talker.drain(condition, self._talker, self.sampler)
        last = None if codes is None else self._heard(codes)
        rest = self._model.vocoder.flush(self._vocoder)
        return codes, np.concatenate([_samples(last), _samples(rest)])

    def _heard(self, codes: Tensor) -> Tensor:
        """The samples that a whole frame finishes."""
        mel = self._model.config.mel
        frames = self._model.codec.decode_step(codes[:, :, None], self._codec)
        log_mel = frames.reshape(-1, mel.n_mels) * mel.std + mel.mean
        return self._model.vocoder.step(log_mel, self._vocoder)

    @property
    def _steady(self) -> bool:
        vocoder = self._model.vocoder
        return isinstance(vocoder, Vocoder) and self._vocoder.n_frames >= vocoder.n_held

    def _states(self) -> list[Tensor]:
        """Everything that a step replaces, in order."""
        talker, vocoder = self._talker, self._vocoder
        steps = [state for state in (talker.first, talker.frame) if state is not None]
        return [*steps, *self._codec.past, *vocoder.past, vocoder.tail]

    def _put(self, states: list[Tensor]) -> None:
        talker, rest = self._talker, iter(states)
        talker.first, talker.frame = next(rest), next(rest)
        self._codec.past = [next(rest) for _ in self._codec.past]
        self._vocoder.past = [next(rest) for _ in self._vocoder.past]
        self._vocoder.tail = next(rest)

    def _replayed(self, condition: Tensor, record: Record) -> tuple[Tensor, Tensor, Tensor]:
        if not self._own:
            # From here on the states are where the recording reads and writes them.
            if not self._kept:
                self._kept = [state.clone() for state in self._states()]
            for kept, state in zip(self._kept, self._states(), strict=True):
                kept.copy_(state)
            self._put(self._kept)
            self._own = True
        self._input.copy_(condition)
        way = self.sampler.way([0])
        if way not in self._replays:
            self._replays[way] = _Replay(self, record)
        codes, advance, pcm = self._replays[way]()
        self._talker.backbone.count([0])
        # The next replay overwrites them.
        return codes.clone(), advance, pcm.clone()

    def _work(self) -> tuple[Tensor, Tensor, Tensor]:
        """A step by tensors alone, its states left where they were found."""
        talker = self._talker
        backbone, talker.backbone = talker.backbone, talker.backbone.recorded(1, self._moving)
        codes, advance = self._model.talker.step(self._input, talker, self.sampler)
        talker.backbone = backbone
        assert codes is not None
        pcm = self._heard(codes)
        for kept, state in zip(self._kept, self._states(), strict=True):
            kept.copy_(state)
        self._put(self._kept)
        return codes, advance, pcm


class _Replay:
    """A lane's step, recorded; what recording it did to the lane is undone."""

    def __init__(self, lane: Lane, record: Record) -> None:
        before = [state.clone() for state in lane._kept]
        drawn = lane.sampler.snapshot()
        self._results: list[tuple[Tensor, Tensor, Tensor]] = []
        lane._moving.zero_()

        def work() -> None:
            self._results[:] = [lane._work()]

        self._replay = record(work)
        lane._moving.fill_(1)
        lane.sampler.restore(drawn)
        for kept, state in zip(lane._kept, before, strict=True):
            kept.copy_(state)

    def __call__(self) -> tuple[Tensor, Tensor, Tensor]:
        """Overwrites what the last call gave."""
        self._replay()
        return self._results[0]


def _samples(pcm: Tensor | None) -> np.ndarray:
    return NO_SAMPLES if pcm is None else pcm.reshape(-1).float().clamp(-1.0, 1.0).cpu().numpy()
