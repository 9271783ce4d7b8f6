"""The ways a held-out sentence becomes sound: as recorded, through the vocoder, through the codec, spoken."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from muomni.data.audio import audio_frames, denormalise, log_mel
from muomni.infer.session import Session
from muomni.models.griffin_lim import GriffinLim

ORIGINAL, VOCODER, GRIFFIN_LIM, CODEC, SAY = "original", "vocoder", "griffin_lim", "codec", "say"
WHAT: dict[str, str] = {
    ORIGINAL: "the recording",
    VOCODER: "vocoder of the recording's log-mel",
    GRIFFIN_LIM: "Griffin-Lim of the recording's log-mel",
    CODEC: "codec round trip, then the vocoder",
    SAY: "the Talker says the text",
}
SoundPath = Callable[[np.ndarray], np.ndarray]
"""A recording (n_samples,) float32 -> the same sound after the path, (n_samples,) float32 in [-1, 1]."""


def resynthesis(session: Session) -> dict[str, SoundPath]:
    """The paths that start from a recording, by name; each gives as many samples as it gets, none shifted.

    A model whose own vocoder is Griffin-Lim has one row for both.
    """
    model, config, device = session.engine.model, session.config, session.engine.device
    mel, factor = config.mel, config.codec.factor
    griffin_lim = GriffinLim(mel, config.griffin_lim, block=factor).to(device)

    def heard(vocoder: Callable[[Tensor], Tensor], log_mels: Tensor, n_samples: int) -> np.ndarray:
        # The last frame is whole and reaches over the end of the recording.
        return vocoder(log_mels.to(device))[:n_samples].float().clamp(-1.0, 1.0).cpu().numpy()

    @torch.inference_mode()
    def through_vocoder(waveform: np.ndarray) -> np.ndarray:
        return heard(model.vocoder, log_mel(waveform, mel), len(waveform))

    @torch.inference_mode()
    def through_griffin_lim(waveform: np.ndarray) -> np.ndarray:
        return heard(griffin_lim, log_mel(waveform, mel), len(waveform))

    @torch.inference_mode()
    def through_codec(waveform: np.ndarray) -> np.ndarray:
        codes = model.codec.encode(audio_frames(waveform, mel, factor=factor)[None].to(device))
        rows = model.codec.decode(codes)[0].reshape(-1, mel.n_mels)
        return heard(model.vocoder, denormalise(rows, mel), len(waveform))

    found: dict[str, SoundPath] = {ORIGINAL: lambda waveform: waveform}
    if not isinstance(model.vocoder, GriffinLim):
        found[VOCODER] = through_vocoder
    return found | {GRIFFIN_LIM: through_griffin_lim, CODEC: through_codec}
