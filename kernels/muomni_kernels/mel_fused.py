"""log_mel_downsample, waveform -> rows at 12.5 Hz in one pass: checks, documentation, dispatch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from muomni_kernels import cpp, downsample, mel, mel_reference, registry
from muomni_kernels.library import operator
from muomni_kernels.mel_reference import MelSpec


def log_mel_downsample(
    waveform: np.ndarray | torch.Tensor,
    *,
    cu_samples: np.ndarray | torch.Tensor | None = None,
    factor: int = 8,
    mode: str = "stack",
    dtype: torch.dtype = torch.float32,
    out: torch.Tensor | None = None,
    sample_rate: int = 16_000,
    n_fft: int = 400,
    win_length: int = 400,
    hop_length: int = 160,
    n_mels: int = 128,
    f_min: float = 0.0,
    f_max: float = 8_000.0,
    scale: str = "slaney",
    padding: str = "causal",
    log: str = "ln",
    floor: float = 1e-10,
    n_threads: int | None = None,
) -> torch.Tensor:
    """mel_downsample(log_mel(waveform)) of each clip, with no frame kept in memory.

    Bit for bit the same, but for the mean over eight of natural logarithms: AVX2 and AVX-512 take one logarithm of a
    product there, which agrees to 4e-6.

    waveform, cu_samples and the options from sample_rate on: as log_mel takes them.
    factor, mode: as mel_downsample takes them.
    dtype:        float32, or bfloat16: computed in float32, then rounded to nearest even.
    out:          contiguous (n_rows, columns) of dtype on the CPU to write into and return, pinned or a slice of a
                  batch buffer if you like; else allocated.
    Returns (n_rows, columns) with columns n_mels, for "stack" factor * n_mels; (B, n_rows, columns) for a batch; for
    ragged input the clips' rows one after another, ceil(frames / factor) each. log="whisper" needs a clip's maximum
    before it can pool: there each thread holds the frames of one clip at a time. Differentiable in a waveform that
    requires a gradient (by the reference).
    Raises ValueError as log_mel and mel_downsample do, and for another dtype. Under torch.compile as log_mel.
    """
    wave = mel.as_waveform(waveform, cu_samples)
    spec = MelSpec(
        sample_rate=sample_rate, n_fft=n_fft, win_length=win_length, hop_length=hop_length, n_mels=n_mels,
        f_min=f_min, f_max=f_max, scale=scale, padding=padding, log=log, floor=floor,
    )  # fmt: skip
    if torch.compiler.is_compiling():
        wave, cu, *values = mel.compiled_arguments(wave, cu_samples, spec, n_threads, out)
        return log_mel_downsample_node(wave, cu, factor, mode, dtype, *values)
    mel.check_spec(spec)
    downsample.check_groups(factor, mode)
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"dtype: expected torch.float32 or torch.bfloat16, got {dtype}.")
    cu, n_frames = mel.clips(wave, cu_samples, spec)
    n_rows = [-(-n // factor) for n in n_frames]
    columns = n_mels * (factor if mode == "stack" else 1)
    total = sum(n_rows)
    shape = (
        (total, columns)
        if wave.ndim == 1
        else (len(wave), -(-mel.frames_each(wave, spec) // factor), columns)
    )
    out = mel.check_out(out, shape, dtype, wave)
    if wave.ndim == 2:
        wave, out = wave.reshape(-1), out.view(total, columns)
    arguments = (
        wave, cu, mel.offsets_of(n_frames), mel.offsets_of(n_rows), spec, factor, mode,
        mel.threads(n_threads), out,
    )  # fmt: skip
    found = registry.select("log_mel_downsample", *arguments)(*arguments)
    return found if len(shape) == 2 else found.view(shape)


def _fake(
    wave: torch.Tensor,
    cu_samples: torch.Tensor | None,
    factor: int,
    mode: str,
    dtype: torch.dtype,
    *values: Any,
) -> torch.Tensor:
    n_frames = mel.fake_frames(wave, cu_samples, values)
    # Of a ragged batch the number is that of the rows as well as of the frames: unknown.
    n_rows = n_frames if cu_samples is not None else -(-n_frames // factor)
    columns = mel.settings(values)["n_mels"] * (factor if mode == "stack" else 1)
    return wave.new_empty(*wave.shape[:-1], n_rows, columns, dtype=dtype)


@operator(
    "log_mel_downsample(Tensor waveform, Tensor? cu_samples, int factor, str mode, ScalarType dtype, "
    f"{mel.SPEC_SCHEMA}) -> Tensor",
    fake=_fake,
)
def log_mel_downsample_node(
    wave: torch.Tensor,
    cu_samples: torch.Tensor | None,
    factor: int,
    mode: str,
    dtype: torch.dtype,
    *values: Any,
) -> torch.Tensor:
    """log_mel_downsample with all its checks and backends, as one node of a compiled graph."""
    options = mel.settings(values)
    with torch.no_grad():
        return log_mel_downsample(
            wave, cu_samples=cu_samples, factor=factor, mode=mode, dtype=dtype, **options
        )


def _reference(
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
    frames = flat.new_empty(int(cu_frames[-1]), spec.n_mels, dtype=torch.float32)
    frames = mel.reference_log_mel(flat, cu_samples, cu_frames, spec, n_threads, frames)
    clips, rows_of = (torch.from_numpy(cu).to(flat.device) for cu in (cu_frames, cu_rows))
    rows = mel_reference.downsample(frames, clips, rows_of, factor, mode, len(out))
    return rows.to(out.dtype) if rows.requires_grad else out.copy_(rows)


registry.register(
    "log_mel_downsample",
    "cpp",
    cpp.log_mel_downsample,
    supports=cpp.log_mel_supports,
    available=cpp.available,
)
registry.register("log_mel_downsample", "reference", _reference)
