"""Pictures and clips of a request -> network input. Every kind of value goes through data/media.py."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image
from torch import Tensor

from muomni.config import ModelConfig
from muomni.data.audio import audio_frames
from muomni.data.image import to_array, to_float
from muomni.data.media import MediaError, read_audio, read_image

Picture = Path | str | bytes | Image.Image | np.ndarray
"""A file, its bytes, a PIL picture, or (H, W, 3) uint8."""
Clip = Path | str | bytes | np.ndarray
"""A file, its bytes, or (n_samples,) float at the model's sample rate."""


def read_picture(picture: Picture, config: ModelConfig) -> Tensor:
    """A picture as (1, 3, S, S) float32 in [-1, 1]. Raises MediaError."""
    size = config.vision.image_size
    return to_float(torch.from_numpy(to_array(read_image(_picture_source(picture)), size))[None], size)


def read_clip(clip: Clip, config: ModelConfig) -> Tensor:
    """A clip as (n_frames, factor * n_mels) float32, n_frames = ceil(seconds * 12.5).

    Raises MediaError for what cannot be read, TokenBudgetError for a clip longer than max_audio_samples.
    """
    waveform = read_recording(clip, config)
    config.budget(n_text=0, audio_samples=(len(waveform),))
    return audio_frames(waveform, config.mel, factor=config.audio.factor)


def read_recording(clip: Clip, config: ModelConfig) -> np.ndarray:
    """A recording of any length as (n_samples,) float32 at mel.sample_rate. Raises MediaError."""
    return read_audio(_clip_source(clip, config.mel.sample_rate), sample_rate=config.mel.sample_rate)


def _picture_source(picture: Picture) -> Path | str | bytes:
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            raise MediaError(
                f"image: expected an array (H, W, 3) uint8, got {picture.shape} {picture.dtype}."
            )
        picture = Image.fromarray(picture)
    if not isinstance(picture, Image.Image):
        return picture
    file = io.BytesIO()
    kept = picture if picture.mode in ("RGB", "RGBA", "L", "LA", "P") else picture.convert("RGB")
    kept.save(file, format="PNG", compress_level=1)
    return file.getvalue()


def _clip_source(clip: Clip, sample_rate: int) -> Path | str | bytes:
    if not isinstance(clip, np.ndarray):
        return clip
    if clip.ndim != 1 or clip.dtype.kind != "f" or not clip.size:
        raise MediaError(
            f"audio: expected a non-empty array (n_samples,) of floats, got {clip.shape} {clip.dtype}."
        )
    file = io.BytesIO()
    soundfile.write(file, clip.astype(np.float32), sample_rate, format="WAV", subtype="FLOAT")
    return file.getvalue()
