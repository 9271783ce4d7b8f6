"""Pictures, clips and films of a request -> network input. Every kind of value goes through data/media.py."""

from __future__ import annotations

import io
import itertools
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from PIL import Image
from torch import Tensor

from muomni.config import ModelConfig
from muomni.data.audio import audio_frames
from muomni.data.film import Video, read_video
from muomni.data.image import to_array, to_float
from muomni.data.media import MediaError, read_audio, read_image
from muomni.data.template import Film

Picture = Path | str | bytes | Image.Image | np.ndarray
"""A file, its bytes, a PIL picture, or (H, W, 3) uint8."""
Clip = Path | str | bytes | np.ndarray
"""A file, its bytes, or (n_samples,) float at the model's sample rate."""
FilmSource = Path | str | bytes | Video
"""A file, its bytes, or frames with their times and sound."""


class FilmInput(NamedTuple):
    """A film as network input."""

    film: Film
    """When what is seen and heard."""
    images: Tensor
    """(n, 3, S, S) float32 in [-1, 1]."""
    sound: Tensor | None
    """(n_audio, factor * n_mels) float32; None without sound."""
    unheard: float
    """Seconds at the end of its sound track that are left out."""


def read_picture(picture: Picture, config: ModelConfig) -> Tensor:
    """A picture as (1, 3, S, S) float32 in [-1, 1]. Raises MediaError."""
    size = config.vision.image_size
    return to_float(torch.from_numpy(to_array(read_image(_picture_source(picture)), size))[None])


def read_clip(clip: Clip, config: ModelConfig) -> Tensor:
    """A clip as (n_frames, factor * n_mels) float32, n_frames = ceil(seconds * 12.5).

    Raises MediaError for what cannot be read, TokenBudgetError for a clip longer than max_audio_samples.
    """
    waveform = read_recording(clip, config)
    config.budget(n_text=0, audio_samples=(len(waveform),))
    return audio_frames(waveform, config.mel, factor=config.audio.factor)


def read_recording(clip: Clip, config: ModelConfig) -> np.ndarray:
    """A recording as (n_samples,) float32 at mel.sample_rate, of any length that `read_audio` takes.

    Raises MediaError.
    """
    return read_audio(_clip_source(clip, config.mel.sample_rate), sample_rate=config.mel.sample_rate)


def read_film(source: FilmSource, config: ModelConfig) -> FilmInput:
    """A film as frames and sound: `config.film_frames` of a file, all of a Video.

    The sound is heard for max_audio_samples from the beginning on; `unheard` says what that leaves out.
    Raises MediaError for what cannot be read, TokenBudgetError for a Video of too many frames.
    """
    sample_rate, most = config.mel.sample_rate, config.max_audio_samples
    if isinstance(source, Video):
        video = source
        _check_times(video)
    else:
        video = read_video(
            source, n_frames=config.film_frames, sample_rate=sample_rate, max_sound=most / sample_rate
        )
    n_audio, sound, heard_seconds, unheard = 0, None, 0.0, 0.0
    if video.waveform is not None:
        waveform = read_recording(video.waveform, config)
        heard_seconds = len(waveform) / sample_rate
        config.budget(n_text=0, n_images=len(video.frames), audio_samples=(min(len(waveform), most),))
        sound = audio_frames(waveform[:most], config.mel, factor=config.audio.factor)
        n_audio = len(sound)
        if len(waveform) > most:
            unheard = max(heard_seconds, video.sound_seconds or 0.0) - most / sample_rate
    else:
        config.budget(n_text=0, n_images=len(video.frames))
    seconds = max(video.seconds or 0.0, video.frame_times[-1], heard_seconds)
    steps = [config.film_steps(time) for time in video.frame_times]
    return FilmInput(
        film=Film(frames=steps, n_audio=n_audio, n_steps=math.ceil(config.frame_rate * seconds)),
        images=torch.cat([read_picture(frame, config) for frame in video.frames]),
        sound=sound,
        unheard=unheard,
    )


def listed(value: object) -> Sequence:
    """One item or several, as a sequence; files, bytes, arrays and pictures are one item."""
    if value is None:
        return ()
    return value if isinstance(value, list | tuple) else (value,)


def _check_times(video: Video) -> None:
    times = [*video.frame_times]
    if not len(video.frames) or len(video.frames) != len(times):
        raise MediaError(
            f"video: expected frames and as many frame_times, got {len(video.frames)} and {len(times)}."
        )
    if not all(math.isfinite(time) and time >= 0 for time in times) or any(
        a > b for a, b in itertools.pairwise(times)
    ):
        raise MediaError("video: expected frame_times in seconds from 0 on, in order.")
    if video.seconds is not None and not (math.isfinite(video.seconds) and video.seconds >= times[-1]):
        raise MediaError(f"video: expected seconds of at least the last frame's time, got {video.seconds}.")


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
    try:
        kept = picture if picture.mode in ("RGB", "RGBA", "L", "LA", "P") else picture.convert("RGB")
        kept.save(file, format="PNG", compress_level=1)
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error) as error:
        # A picture that was opened is read only here, and its file may be broken, or closed.
        raise MediaError(f"image: is a broken picture ({' '.join(str(error).split())}).") from None
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
