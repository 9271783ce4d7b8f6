"""The audio front end: waveform -> log-mel at 100 Hz -> mel frames at 12.5 Hz. Checks, documentation, dispatch."""

from __future__ import annotations

import numpy as np
import torch

from muomni_kernels import cpp, mel_reference, registry
from muomni_kernels.mel_reference import MelSpec, mel_filterbank, mel_frames

__all__ = ["log_mel", "mel_downsample", "mel_filterbank", "mel_frames"]


def _offsets(counts: list[int]) -> torch.Tensor:
    return torch.tensor([0, *np.cumsum(counts).tolist()], dtype=torch.int64)


def _check_offsets(cu: torch.Tensor, total: int, name: str) -> torch.Tensor:
    cu = cu.to(torch.int64).cpu()
    if cu.ndim != 1 or len(cu) < 1 or int(cu[0]) != 0 or int(cu[-1]) != total or bool((cu.diff() < 0).any()):
        raise ValueError(f"{name}: expected offsets rising from 0 to {total}, got {cu.tolist()[:8]}.")
    return cu.contiguous()


def log_mel(
    waveform: np.ndarray | torch.Tensor,
    *,
    cu_samples: torch.Tensor | None = None,
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
    n_threads: int = 1,
) -> torch.Tensor:
    """Log of the mel power spectrum: |rfft(window * x)|^2 @ filters, floored, then a logarithm.

    waveform:   (n_samples,) one clip, (B, n_samples) equally long clips, or with cu_samples (n + 1,) the
                concatenation of n clips; float32 in [-1, 1] or int16 (divided by 32,768), on the CPU.
    sample_rate, f_min, f_max: Hz. n_fft, win_length, hop_length: samples; n_fft even.
    padding:    "causal": frame t sees samples before (t + 1) * hop only, n_frames = ceil(n_samples / hop);
                "reflect": centred as Whisper's, n_frames = n_samples // hop.
    log:        "ln": ln(max(power, floor)); "whisper": log10, clamped 8 below the clip's maximum, (x + 4) / 4.
    Returns float32 (n_frames, n_mels); (B, n_frames, n_mels) for a batch; clips one after another for ragged
    input. Raises ValueError for other shapes, dtypes or names, and for a clip too short to reflect.
    """
    wave = torch.as_tensor(waveform)
    if wave.dtype not in (torch.float32, torch.int16) or wave.device.type != "cpu":
        raise ValueError(
            f"waveform: expected float32 or int16 on the CPU, got {wave.dtype} on {wave.device}."
        )
    if wave.ndim not in (1, 2) or (wave.ndim == 2 and cu_samples is not None):
        raise ValueError(
            f"waveform: expected (n_samples,), (B, n_samples) or flat with cu_samples, got {tuple(wave.shape)}."
        )
    for name, value, known in (
        ("padding", padding, ("causal", "reflect")),
        ("log", log, ("ln", "whisper")),
        ("scale", scale, ("slaney", "htk")),
    ):
        if value not in known:
            raise ValueError(f"{name}: expected {' or '.join(known)}, got {value!r}.")
    if n_fft % 2 or not 1 <= hop_length <= win_length <= n_fft or floor <= 0.0:
        raise ValueError(
            "n_fft, win_length, hop_length, floor: expected an even n_fft >= win_length >= hop_length >= 1 and floor > 0, "
            f"got {n_fft}, {win_length}, {hop_length}, {floor}."
        )
    spec = MelSpec(
        sample_rate=sample_rate, n_fft=n_fft, win_length=win_length, hop_length=hop_length, n_mels=n_mels,
        f_min=f_min, f_max=f_max, scale=scale, padding=padding, log=log, floor=floor,
    )  # fmt: skip
    batch = wave.shape[0] if wave.ndim == 2 else None
    if cu_samples is None:
        cu = _offsets([wave.shape[-1]] * (1 if batch is None else batch))
    else:
        cu = _check_offsets(cu_samples, wave.shape[0], "cu_samples")
    lengths = cu.diff().tolist()
    frames = [mel_frames(n, hop_length=hop_length, padding=padding) for n in lengths]
    if padding == "reflect" and any(f and n <= n_fft // 2 for n, f in zip(lengths, frames, strict=True)):
        raise ValueError(
            f"waveform: a clip of {min(lengths)} samples is too short to reflect; expected more than {n_fft // 2}."
        )
    arguments = (wave.reshape(-1), cu, _offsets(frames), spec, n_threads)
    out = registry.select("log_mel", *arguments)(*arguments)
    return out if batch is None else out.view(batch, -1, n_mels)


def mel_downsample(
    frames: torch.Tensor, *, factor: int = 8, mode: str = "stack", cu_frames: torch.Tensor | None = None
) -> torch.Tensor:
    """Every `factor` frames of a clip become one: 100 Hz -> 12.5 Hz at factor 8.

    frames:    (n, width) float; one clip, or with cu_frames (clips + 1,) clips one after another.
    mode:      "stack": side by side, factor * width columns, a short last group filled with zeros;
               "mean": over the frames there are; "max".
    Returns (m, width or factor * width) with ceil(n / factor) rows a clip, frames' dtype; no group spans two
    clips. Differentiable in frames. Raises ValueError for other shapes or names.
    """
    if frames.ndim != 2 or not frames.is_floating_point():
        raise ValueError(f"frames: expected (n, width) float, got {tuple(frames.shape)} {frames.dtype}.")
    if factor < 1 or mode not in ("stack", "mean", "max"):
        raise ValueError(
            f"factor, mode: expected at least 1 and stack, mean or max, got {factor} and {mode!r}."
        )
    cu_in = (
        _offsets([len(frames)]) if cu_frames is None else _check_offsets(cu_frames, len(frames), "cu_frames")
    )
    cu_out = _offsets([-(-n // factor) for n in cu_in.diff().tolist()])
    arguments = (frames, cu_in, cu_out, factor, mode)
    return registry.select("mel_downsample", *arguments)(*arguments)


def _reference_log_mel(
    flat: torch.Tensor, cu_samples: torch.Tensor, cu_frames: torch.Tensor, spec: MelSpec, n_threads: int
) -> torch.Tensor:
    wave = flat.float() / 32_768.0 if flat.dtype == torch.int16 else flat
    bounds = cu_samples.tolist()
    clips = [mel_reference.log_mel(wave[a:b], spec) for a, b in zip(bounds, bounds[1:], strict=False)]
    return torch.cat(clips) if clips else torch.zeros(0, spec.n_mels)


def _reference_downsample(
    frames: torch.Tensor, cu_in: torch.Tensor, cu_out: torch.Tensor, factor: int, mode: str
) -> torch.Tensor:
    bounds = cu_in.tolist()
    clips = [
        mel_reference.downsample(frames[a:b], factor, mode) for a, b in zip(bounds, bounds[1:], strict=False)
    ]
    return torch.cat(clips)


def _cpp_log_mel_supports(*_: object) -> str | None:
    return cpp.available()


def _cpp_downsample_supports(frames: torch.Tensor, *_: object) -> str | None:
    if frames.dtype != torch.float32 or frames.device.type != "cpu":
        return f"needs float32 on the CPU, got {frames.dtype} on {frames.device}"
    return cpp.available()


def _anything(*_: object) -> None:
    """Runs wherever PyTorch does."""


registry.register("log_mel", "cpp", cpp.log_mel, supports=_cpp_log_mel_supports, available=cpp.available)
registry.register("log_mel", "reference", _reference_log_mel, supports=_anything, available=_anything)
registry.register(
    "mel_downsample", "cpp", cpp.downsample, supports=_cpp_downsample_supports, available=cpp.available
)
registry.register(
    "mel_downsample", "reference", _reference_downsample, supports=_anything, available=_anything
)
