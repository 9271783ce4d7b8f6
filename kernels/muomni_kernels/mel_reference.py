"""The specification of the audio front end in plain PyTorch: log-mel and mel-frame downsampling.

Sources: mel scales of O'Shaughnessy (HTK) and of Slaney's Auditory Toolbox; Whisper's clamp and scale.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F


@dataclass(frozen=True, kw_only=True)
class MelSpec:
    """The checked arguments of log_mel, hashable so that tables are built once."""

    sample_rate: int
    n_fft: int
    win_length: int
    hop_length: int
    n_mels: int
    f_min: float
    f_max: float
    scale: str
    padding: str
    log: str
    floor: float


def _hz_to_mel(hz: np.ndarray, scale: str) -> np.ndarray:
    if scale == "htk":
        return 2595.0 * np.log10(1.0 + hz / 700.0)
    # Slaney: linear below 1 kHz (200/3 Hz a mel), then 27 steps for each factor of 6.4.
    return np.where(
        hz < 1000.0, hz / (200.0 / 3.0), 15.0 + np.log(np.maximum(hz, 1e-9) / 1000.0) * 27.0 / math.log(6.4)
    )


def _mel_to_hz(mel: np.ndarray, scale: str) -> np.ndarray:
    if scale == "htk":
        return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    return np.where(mel < 15.0, mel * (200.0 / 3.0), 1000.0 * np.exp((mel - 15.0) * math.log(6.4) / 27.0))


@functools.cache
def mel_filterbank(
    *,
    n_mels: int,
    n_fft: int,
    sample_rate: int,
    f_min: float = 0.0,
    f_max: float = 8_000.0,
    scale: str = "slaney",
) -> torch.Tensor:
    """Triangular filters (n_mels, n_fft // 2 + 1) float32, each of unit area in Hz (Slaney's norm).

    f_min, f_max: Hz. The result is shared: do not modify it. Bands narrower than the distance of two bins may
    be empty. Raises ValueError for an unknown scale, no bands, or an empty frequency range.
    """
    if scale not in ("slaney", "htk") or not 0.0 <= f_min < f_max <= sample_rate / 2:
        raise ValueError(
            f"scale, f_min, f_max: expected slaney or htk and 0 <= f_min < f_max <= {sample_rate / 2:g}, got "
            f"{scale!r}, {f_min:g}, {f_max:g}."
        )
    if not 1 <= n_mels <= 4096 or not 4 <= n_fft <= 65_536 or n_fft % 2:
        raise ValueError(f"n_mels, n_fft: expected 1 to 4096 and an even 4 to 65536, got {n_mels}, {n_fft}.")
    ends = _hz_to_mel(np.array([f_min, f_max]), scale)
    edges = _mel_to_hz(np.linspace(ends[0], ends[1], n_mels + 2), scale)
    bins = np.arange(n_fft // 2 + 1) * sample_rate / n_fft
    lower, centre, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - lower) / (centre - lower), (upper - bins) / (upper - centre)
    triangles = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (upper - lower))
    # A tensor born in inference mode could never be used for training afterwards.
    with torch.inference_mode(False):
        return torch.from_numpy(triangles.astype(np.float32))


def filterbank_of(spec: MelSpec) -> torch.Tensor:
    """The filters of a spec: (n_mels, n_fft // 2 + 1) float32, shared."""
    return mel_filterbank(
        n_mels=spec.n_mels, n_fft=spec.n_fft, sample_rate=spec.sample_rate,
        f_min=spec.f_min, f_max=spec.f_max, scale=spec.scale,
    )  # fmt: skip


@functools.cache
def window(spec: MelSpec) -> torch.Tensor:
    """Periodic Hann window of win_length, centred in n_fft zeros: (n_fft,) float32, shared."""
    with torch.inference_mode(False):
        hann = torch.hann_window(spec.win_length, periodic=True, dtype=torch.float64, device="cpu")
        left = (spec.n_fft - spec.win_length) // 2
        return F.pad(hann, (left, spec.n_fft - spec.win_length - left)).float()


def mel_frames(n_samples: int, *, hop_length: int = 160, padding: str = "causal") -> int:
    """Frames of a clip: causal ceil(n_samples / hop_length), reflect n_samples // hop_length (Whisper's).

    Raises ValueError for a negative length, a hop below 1 or another padding.
    """
    if n_samples < 0 or hop_length < 1 or padding not in ("causal", "reflect"):
        raise ValueError(
            "n_samples, hop_length, padding: expected at least 0, at least 1 and causal or reflect, got "
            f"{n_samples}, {hop_length}, {padding!r}."
        )
    return -(-n_samples // hop_length) if padding == "causal" else n_samples // hop_length


def not_finite(clip: int) -> str:
    """The message of both backends for a clip that cannot be analysed."""
    return f"waveform: clip {clip} holds a sample that is not finite or far outside [-1, 1]; drop the clip."


def log_mel(waveform: torch.Tensor, spec: MelSpec) -> torch.Tensor:
    """One clip (n_samples,) float32 or float64 -> (n_frames, n_mels) of the same dtype; differentiable.

    causal: n_fft - hop zeros before, zeros after, so frame t sees samples before (t + 1) * hop only.
    reflect: n_fft // 2 mirrored samples on both sides, the last frame dropped.
    """
    n_frames = mel_frames(len(waveform), hop_length=spec.hop_length, padding=spec.padding)
    if n_frames == 0:
        return waveform.new_zeros(0, spec.n_mels)
    if spec.padding == "causal":
        right = n_frames * spec.hop_length - len(waveform)
        padded = F.pad(waveform, (spec.n_fft - spec.hop_length, right))
    else:
        half = spec.n_fft // 2
        padded = F.pad(waveform[None], (half, half), mode="reflect")[0]
    segments = padded.unfold(0, spec.n_fft, spec.hop_length)[:n_frames]
    spectrum = torch.fft.rfft(segments * window(spec).to(waveform))
    power = spectrum.real.square() + spectrum.imag.square()
    mel = (power @ filterbank_of(spec).to(waveform).T).clamp(min=spec.floor)
    if spec.log == "ln":
        return mel.log()
    log10 = mel.log10()
    return (torch.maximum(log10, log10.max() - 8.0) + 4.0) / 4.0


def clip_bounds(clips: torch.Tensor, n_clips: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(begins, ends), views of (n_clips + 1,) offsets or of (2 * n_clips,) begins and ends in turn."""
    return (clips[:-1], clips[1:]) if len(clips) == n_clips + 1 else (clips[::2], clips[1::2])


def downsample(
    frames: torch.Tensor,
    clips: torch.Tensor,
    cu_rows: torch.Tensor,
    factor: int,
    mode: str,
    n_rows: int,
    window: int | None = None,
    lead: int = 0,
    edge: str = "zeros",
) -> torch.Tensor:
    """Frames (n, width) -> (n_rows, width), or window * width columns for stack; the host reads no offset.

    clips: where they lie, as `clip_bounds` takes them; clip i has rows cu_rows[i] to cu_rows[i + 1], and those behind
    its frames are zero. window: None is factor; other windows, a lead and an edge "repeat" are for stack.
    """
    (n_frames, width), window = frames.shape, factor if window is None else window
    if not n_frames or not n_rows:
        # Nothing to take, but still a function of the frames.
        return frames.new_zeros(n_rows, width * (window if mode == "stack" else 1)) + frames[:0].sum()
    rows = torch.arange(n_rows, device=frames.device)
    clip = torch.searchsorted(cu_rows, rows, right=True) - 1
    n_clips = len(cu_rows) - 1
    if not n_clips:
        begins = ends = first = torch.zeros_like(rows)
    else:
        there, clip = clip < n_clips, clip.clamp(max=n_clips - 1)
        begins, ends = (side.long()[clip] for side in clip_bounds(clips, n_clips))
        first = begins + (rows - cu_rows[clip]) * factor
        ends = torch.where(there, ends, begins)
    at = (first - lead)[:, None] + torch.arange(window, device=frames.device)
    valid = (first < ends)[:, None].expand_as(at)
    if edge == "repeat":
        at = at.clamp(begins[:, None], (ends - 1)[:, None])
    else:
        valid = valid & (at >= begins[:, None]) & (at < ends[:, None])
    valid = valid[..., None]
    # Gradients of a frame that several windows show are added up in fp32 at least.
    shared = window > factor or edge == "repeat"
    source = frames.float() if shared and frames.dtype != torch.float64 else frames
    groups = source[at.clamp(0, n_frames - 1)]
    if mode == "max":
        largest = groups.masked_fill(~valid, float("-inf")).max(1).values
        return largest.masked_fill(~valid.any(1), 0.0)
    groups = groups.masked_fill(~valid, 0.0)
    if mode == "stack":
        return groups.reshape(n_rows, window * width).to(frames.dtype)
    wide = groups if groups.dtype == torch.float64 else groups.float()
    return (wide.sum(1) / valid.sum(1).clamp(min=1)).to(frames.dtype)
