"""The C++ backend of the audio front end: muomni_kernels._C, where it was built."""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

import numpy as np
import torch

from muomni_kernels import mel_reference
from muomni_kernels.mel_reference import MelSpec

SIMD_ENVIRONMENT = "MUOMNI_SIMD"
"""Names the instruction set to use (avx512, avx2, base; neon on AArch64); unset, the best this CPU has."""


def _load() -> tuple[Any, str | None]:
    try:
        return importlib.import_module("muomni_kernels._C"), None
    except ModuleNotFoundError:
        return None, "muomni_kernels._C is not built: install a C++ compiler, then install muomni again"
    except ImportError as error:
        return None, f"muomni_kernels._C does not load ({error}): install muomni again"


# With this module and not when first needed: torch.compile asks whether it is there and cannot trace an import.
_C, _REASON = _load()


def extension() -> Any:
    """The compiled module, or None when this installation has none that loads."""
    return _C


def available() -> str | None:
    """None when the extension is there, else the reason against it."""
    return _REASON


@functools.cache
def _tables(spec: MelSpec) -> Any:
    return extension().MelTables(
        mel_reference.window(spec).numpy(), mel_reference.filterbank_of(spec).numpy()
    )


def _array(x: torch.Tensor) -> np.ndarray:
    """A view of a float tensor for the extension: of half types the bits, since NumPy has no bfloat16."""
    return (x if x.dtype == torch.float32 else x.view(torch.uint16)).numpy()


_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def _samples(flat: torch.Tensor) -> np.ndarray:
    """The waveform's memory, or a contiguous copy."""
    return np.ascontiguousarray((flat.detach() if flat.requires_grad else flat).numpy())


def log_mel_supports(flat: torch.Tensor, *_: object) -> str | None:
    """None when this backend can run log_mel on the waveform, else the reason against it."""
    if flat.device.type != "cpu":
        return f"needs a waveform on the CPU, got {flat.device}"
    if flat.requires_grad and torch.is_grad_enabled():
        return "has no gradient, and the waveform requires one"
    return available()


def log_mel(
    flat: torch.Tensor,
    cu_samples: np.ndarray,
    cu_frames: np.ndarray,
    spec: MelSpec,
    n_threads: int,
    out: torch.Tensor,
) -> torch.Tensor:
    """Ragged waveforms (n_samples,) float32 or int16 -> out (n_frames, n_mels) float32, contiguous.

    Raises ValueError naming the first clip with a sample that is not finite.
    """
    bad_clip = extension().log_mel(
        _tables(spec), _samples(flat), cu_samples, cu_frames, out.numpy(),
        hop_length=spec.hop_length, padding=spec.padding, log=spec.log, floor=spec.floor, n_threads=n_threads,
        simd=os.environ.get(SIMD_ENVIRONMENT, ""),
    )  # fmt: skip
    if bad_clip >= 0:
        raise ValueError(mel_reference.not_finite(bad_clip))
    return out


def log_mel_downsample(
    flat: torch.Tensor,
    cu_samples: np.ndarray,
    cu_frames: np.ndarray,
    cu_rows: np.ndarray,
    spec: MelSpec,
    factor: int,
    mode: str,
    n_threads: int,
    out: torch.Tensor,
) -> torch.Tensor:
    """Ragged waveforms (n_samples,) -> out (n_rows, columns) float32 or bfloat16, contiguous.

    Raises ValueError naming the first clip with a sample that is not finite.
    """
    bad_clip = extension().log_mel_downsample(
        _tables(spec), _samples(flat), cu_samples, cu_frames, cu_rows, _array(out), factor=factor, mode=mode,
        hop_length=spec.hop_length, padding=spec.padding, log=spec.log, floor=spec.floor, n_threads=n_threads,
        simd=os.environ.get(SIMD_ENVIRONMENT, ""),
    )  # fmt: skip
    if bad_clip >= 0:
        raise ValueError(mel_reference.not_finite(bad_clip))
    return out


def downsample_supports(frames: torch.Tensor, *_: object) -> str | None:
    """None when this backend can run mel_downsample on the frames, else the reason against it."""
    if frames.dtype not in _DTYPES or frames.device.type != "cpu":
        return f"needs float32, bfloat16 or float16 on the CPU, got {frames.dtype} on {frames.device}"
    return available()


def _offsets(x: torch.Tensor) -> np.ndarray:
    return x.to(torch.int64).contiguous().numpy()


def downsample(
    frames: torch.Tensor,
    clips: torch.Tensor,
    cu_rows: torch.Tensor,
    factor: int,
    mode: str,
    n_rows: int,
    window: int,
    lead: int,
    edge: str,
) -> torch.Tensor:
    """Frames (n, width) float32, bfloat16 or float16 -> (n_rows, width or window * width).

    Raises ValueError for clips outside the frames and for more rows than n_rows.
    """
    frames = frames.detach().contiguous()
    out = frames.new_empty(n_rows, frames.shape[1] * (window if mode == "stack" else 1))
    extension().downsample(
        _array(frames), _offsets(clips), _offsets(cu_rows), factor, mode, _array(out), dtype=_DTYPES[frames.dtype],
        window=window, lead=lead, repeat=edge == "repeat", simd=os.environ.get(SIMD_ENVIRONMENT, ""),
    )  # fmt: skip
    return out


def downsample_backward(
    dy: torch.Tensor,
    frames: torch.Tensor,
    clips: torch.Tensor,
    cu_rows: torch.Tensor,
    factor: int,
    mode: str,
    n_frames: int,
    window: int,
    lead: int,
    edge: str,
) -> torch.Tensor:
    """d frames (n_frames, width), written everywhere; only max reads frames."""
    d_frames = dy.new_empty(n_frames, dy.shape[1] // (window if mode == "stack" else 1))
    extension().downsample_backward(
        _array(dy.detach().contiguous()), _array(frames.detach().contiguous()), _offsets(clips), _offsets(cu_rows),
        factor, mode, _array(d_frames), dtype=_DTYPES[dy.dtype], window=window, lead=lead, repeat=edge == "repeat",
    )  # fmt: skip
    return d_frames
