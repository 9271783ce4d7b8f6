"""The C++ backend of the audio front end: loads muomni_kernels._C when it is first needed."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np
import torch

from muomni_kernels.mel_reference import MelSpec, mel_filterbank, window


@functools.cache
def extension() -> Any:
    """The compiled module, or None when this installation has none."""
    try:
        return importlib.import_module("muomni_kernels._C")
    except ImportError:
        return None


def available() -> str | None:
    """None when the extension is there, else the reason against it."""
    if extension() is None:
        return "muomni_kernels._C is not built; install a C++ compiler and reinstall muomni"
    return None


@functools.cache
def _plan(spec: MelSpec) -> Any:
    filters = mel_filterbank(
        n_mels=spec.n_mels, n_fft=spec.n_fft, sample_rate=spec.sample_rate,
        f_min=spec.f_min, f_max=spec.f_max, scale=spec.scale,
    )  # fmt: skip
    centred = window(spec).numpy()
    return extension().MelPlan(spec.n_fft, spec.hop_length, centred, filters.numpy())


def log_mel(
    flat: torch.Tensor, cu_samples: torch.Tensor, cu_frames: torch.Tensor, spec: MelSpec, n_threads: int
) -> torch.Tensor:
    """Ragged waveforms (n_samples,) float32 or int16 -> (n_frames, n_mels) float32."""
    out = torch.empty(int(cu_frames[-1]), spec.n_mels)
    run = extension().log_mel_int16 if flat.dtype == torch.int16 else extension().log_mel_float32
    arrays = (flat.contiguous().numpy(), cu_samples.numpy(), cu_frames.numpy())
    run(_plan(spec), *arrays, spec.padding, spec.log, spec.floor, n_threads, out.numpy())
    return out


class _Downsample(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, frames: torch.Tensor, cu_in: torch.Tensor, cu_out: torch.Tensor, factor: int, mode: str
    ) -> torch.Tensor:
        frames = frames.contiguous()
        columns = frames.shape[1] * (factor if mode == "stack" else 1)
        out = torch.empty(int(cu_out[-1]), columns)
        extension().downsample(frames.numpy(), cu_in.numpy(), cu_out.numpy(), factor, mode, out.numpy())
        ctx.save_for_backward(frames, cu_in, cu_out)
        ctx.factor, ctx.mode = factor, mode
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        frames, cu_in, cu_out = ctx.saved_tensors
        d_in = torch.empty_like(frames)
        arrays: list[np.ndarray] = [t.contiguous().numpy() for t in (grads[0], frames, cu_in, cu_out)]
        extension().downsample_backward(*arrays, ctx.factor, ctx.mode, d_in.numpy())
        return d_in, None, None, None, None


def downsample(
    frames: torch.Tensor, cu_in: torch.Tensor, cu_out: torch.Tensor, factor: int, mode: str
) -> torch.Tensor:
    """Ragged frames (n, width) float32 -> (m, width or factor * width)."""
    return _Downsample.apply(frames, cu_in, cu_out, factor, mode)  # pyright: ignore[reportReturnType]
