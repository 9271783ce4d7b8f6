"""log_mel, waveform -> log-mel at 100 Hz: checks, documentation, dispatch."""

from __future__ import annotations

import functools
import math
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch

from muomni_kernels import checks, cpp, mel_reference, registry
from muomni_kernels.library import operator
from muomni_kernels.mel_reference import MelSpec, mel_filterbank, mel_frames

__all__ = ["log_mel", "mel_filterbank", "mel_frames"]

LINE = 64
"""Bytes of a cache line: what lies on one may be written past the cache."""
PAGED = 32 * 2**20
"""Bytes above which malloc takes fresh pages of the system for every call."""


def offsets_of(counts: list[int]) -> np.ndarray:
    """(n + 1,) int64: where each of n consecutive parts begins, and the end."""
    return np.fromiter(accumulate(counts, initial=0), np.int64, len(counts) + 1)


def as_waveform(
    waveform: np.ndarray | torch.Tensor, cu_samples: np.ndarray | torch.Tensor | None
) -> torch.Tensor:
    """The waveform as a tensor. Raises ValueError for a dtype or shape that log_mel does not take."""
    if isinstance(waveform, np.ndarray):
        # torch takes neither negative strides nor, without a warning, read-only memory.
        waveform = torch.from_numpy(np.require(waveform, requirements=["C", "W"]))
    if waveform.dtype not in (torch.float32, torch.int16):
        raise ValueError(f"waveform: expected float32 or int16, got {waveform.dtype}.")
    if waveform.ndim not in (1, 2) or (waveform.ndim == 2 and cu_samples is not None):
        raise ValueError(
            "waveform: expected (n_samples,), (B, n_samples) or flat with cu_samples, got "
            f"{tuple(waveform.shape)}."
        )
    return waveform


@functools.lru_cache(maxsize=64)
def check_spec(spec: MelSpec) -> None:
    """Raises ValueError for settings that log_mel does not take."""
    for name, value, known in (
        ("padding", spec.padding, ("causal", "reflect")),
        ("log", spec.log, ("ln", "whisper")),
    ):
        if value not in known:
            raise ValueError(f"{name}: expected {' or '.join(known)}, got {value!r}.")
    if spec.n_fft % 2 or not 4 <= spec.n_fft <= 65_536:
        raise ValueError(f"n_fft: expected an even number from 4 to 65536, got {spec.n_fft}.")
    if not 1 <= spec.hop_length <= spec.win_length <= spec.n_fft:
        raise ValueError(
            f"hop_length, win_length: expected 1 <= hop_length <= win_length <= n_fft {spec.n_fft}, got "
            f"{spec.hop_length} and {spec.win_length}."
        )
    if not 1.2e-38 <= spec.floor <= 3.4e38:
        raise ValueError(f"floor: expected a positive number that float32 holds, got {spec.floor}.")
    mel_reference.filterbank_of(spec)


def threads(n_threads: int | None) -> int:
    """How many threads a call may use. Raises ValueError for none and for too many."""
    if n_threads is None:
        return torch.get_num_threads()
    if not 1 <= n_threads <= 1024:
        raise ValueError(f"n_threads: expected 1 to 1024, got {n_threads}.")
    return n_threads


def clips(
    wave: torch.Tensor, cu_samples: np.ndarray | torch.Tensor | None, spec: MelSpec
) -> tuple[np.ndarray, list[int]]:
    """Offsets of the clips in the flat waveform, (clips + 1,) int64, and the frames of each.

    Raises ValueError for unsound offsets and for a clip too short to reflect.
    """
    if cu_samples is None:
        different, n_clips = [wave.shape[-1]], wave.shape[0] if wave.ndim == 2 else 1
        cu = offsets_of(different * n_clips)
    else:
        cu, n_clips = checks.offsets("cu_samples", cu_samples, wave.shape[0]).numpy(), 1
        different = np.diff(cu).tolist()
    if spec.padding == "reflect":
        for clip, n in enumerate(different):
            if spec.hop_length <= n <= spec.n_fft // 2:
                raise ValueError(
                    f"waveform: clip {clip} of {n} samples is too short to reflect; expected more than "
                    f"{spec.n_fft // 2}. Drop it or use padding='causal'."
                )
    frames = [mel_frames(n, hop_length=spec.hop_length, padding=spec.padding) for n in different]
    return cu, frames * n_clips


def frames_each(wave: torch.Tensor, spec: MelSpec) -> int:
    """Frames of every clip of a batch (B, n_samples), also of none."""
    return mel_frames(wave.shape[-1], hop_length=spec.hop_length, padding=spec.padding)


def log_mel(
    waveform: np.ndarray | torch.Tensor,
    *,
    cu_samples: np.ndarray | torch.Tensor | None = None,
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
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """log(max(|rfft(window * x)|^2 @ filters, floor)): mel *power*, a periodic Hann window, Slaney's norm.

    waveform:   (n_samples,) one clip, (B, n_samples) equally long clips, or with cu_samples (clips + 1,) the
                concatenation of clips; float32 in [-1, 1] or int16 (divided by 32,768). Not modified.
    sample_rate, f_min, f_max: Hz. n_fft (even, any), win_length (centred in n_fft), hop_length: samples.
    scale:      "slaney" or "htk".
    padding:    "causal": n_fft - hop zeros before and zeros after; frame t sees samples before (t + 1) * hop
                only; ceil(n_samples / hop) frames. "reflect": n_fft / 2 mirrored samples at both ends, as
                Whisper; n_samples // hop frames, and a clip with any needs more than n_fft / 2 samples.
    log:        "ln": natural logarithm; "whisper": log10, clamped 8 below the clip's maximum, (x + 4) / 4.
    floor:      smallest mel power before the logarithm.
    n_threads:  at most so many threads work on it, of a pool of the process's own; None: as many as PyTorch uses
                (torch.get_num_threads(), 1 in a DataLoader's workers). The result is the same, bit for bit.
    out:        contiguous float32 (n_frames, n_mels) on the CPU to write into and return; else allocated.
    Returns float32 (n_frames, n_mels); (B, n_frames, n_mels) for a batch; for ragged input the clips' frames
    one after another. A clip's frames do not depend on its neighbours, bit for bit. Differentiable in a
    waveform that requires a gradient (by the reference).
    Raises ValueError for other shapes, dtypes or names, for a clip too short to reflect, and, on the CPU, for
    a clip that is not finite: its spectrum would be silence or noise without any symptom. Under torch.compile it
    is one node, which raises when it runs; neither out nor a gradient is possible there, and with cu_samples the
    number of frames is unknown until then: torch._dynamo.config.capture_dynamic_output_shape_ops has to be set.
    """
    wave = as_waveform(waveform, cu_samples)
    spec = MelSpec(
        sample_rate=sample_rate, n_fft=n_fft, win_length=win_length, hop_length=hop_length, n_mels=n_mels,
        f_min=f_min, f_max=f_max, scale=scale, padding=padding, log=log, floor=floor,
    )  # fmt: skip
    if torch.compiler.is_compiling():
        return log_mel_node(*compiled_arguments(wave, cu_samples, spec, n_threads, out))
    check_spec(spec)
    cu, n_frames = clips(wave, cu_samples, spec)
    shape = (sum(n_frames), n_mels) if wave.ndim == 1 else (len(wave), frames_each(wave, spec), n_mels)
    out = check_out(out, shape, torch.float32, wave)
    if wave.ndim == 2:
        wave, out = wave.reshape(-1), out.view(-1, n_mels)
    arguments = (wave, cu, offsets_of(n_frames), spec, threads(n_threads), out)
    found = registry.select("log_mel", *arguments)(*arguments)
    return found if len(shape) == 2 else found.view(shape)


SPEC_SCHEMA = (
    "int sample_rate, int n_fft, int win_length, int hop_length, int n_mels, float f_min, float f_max, str scale, "
    "str padding, str log, float floor, int? n_threads"
)
_SETTINGS = tuple(argument.split(" ")[1] for argument in SPEC_SCHEMA.split(", "))


def compiled_arguments(
    wave: torch.Tensor,
    cu_samples: np.ndarray | torch.Tensor | None,
    spec: MelSpec,
    n_threads: int | None,
    out: torch.Tensor | None,
) -> tuple[Any, ...]:
    """What an operator takes: the waveform, the offsets and SPEC_SCHEMA's values.

    Raises ValueError for what an operator cannot do; without fullgraph torch.compile then runs the call eagerly.
    """
    if out is not None or (wave.requires_grad and torch.is_grad_enabled()):
        raise ValueError(
            "out, waveform: expected out=None and no gradient under torch.compile; call it outside the compiled "
            "function."
        )
    cu = None if cu_samples is None else torch.as_tensor(cu_samples)
    return (
        wave, cu, spec.sample_rate, spec.n_fft, spec.win_length, spec.hop_length, spec.n_mels, spec.f_min, spec.f_max,
        spec.scale, spec.padding, spec.log, spec.floor, n_threads,
    )  # fmt: skip


def settings(values: tuple[Any, ...]) -> dict[str, Any]:
    """SPEC_SCHEMA's values by their names, as the public functions take them."""
    return dict(zip(_SETTINGS, values, strict=True))


def fake_frames(wave: torch.Tensor, cu_samples: torch.Tensor | None, values: tuple[Any, ...]) -> Any:
    """Frames of each clip of (B, n) or of one clip; of a ragged batch those of all, a number unknown before it runs."""
    if cu_samples is not None:
        return torch.library.get_ctx().new_dynamic_size()
    named = settings(values)
    return mel_frames(wave.shape[-1], hop_length=named["hop_length"], padding=named["padding"])


def _fake(wave: torch.Tensor, cu_samples: torch.Tensor | None, *values: Any) -> torch.Tensor:
    n_frames = fake_frames(wave, cu_samples, values)
    return wave.new_empty(*wave.shape[:-1], n_frames, settings(values)["n_mels"], dtype=torch.float32)


@operator(f"log_mel(Tensor waveform, Tensor? cu_samples, {SPEC_SCHEMA}) -> Tensor", fake=_fake)
def log_mel_node(wave: torch.Tensor, cu_samples: torch.Tensor | None, *values: Any) -> torch.Tensor:
    """log_mel with all its checks and backends, as one node of a compiled graph."""
    with torch.no_grad():
        return log_mel(wave, cu_samples=cu_samples, **settings(values))


def check_out(
    out: torch.Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, wave: torch.Tensor
) -> torch.Tensor:
    """out, or where it is None new memory on the waveform's device. Raises ValueError for another shape or kind."""
    if out is None:
        if wave.device.type == "cpu" and math.prod(shape) * dtype.itemsize > PAGED:
            # NumPy asks for huge pages: of small ones, each is a fault that costs more than its frames.
            n_bytes = math.prod(shape) * dtype.itemsize
            memory = np.empty(n_bytes + LINE, np.uint8)
            first = -memory.ctypes.data % LINE
            return torch.from_numpy(memory[first : first + n_bytes]).view(dtype).view(shape)
        return torch.empty(shape, dtype=dtype, device=wave.device)
    if tuple(out.shape) != shape or out.dtype != dtype or not out.is_contiguous():
        raise ValueError(
            f"out: expected contiguous {str(dtype).removeprefix('torch.')} {shape}, got {tuple(out.shape)} "
            f"{out.dtype} with strides {out.stride()}."
        )
    if out.device != wave.device or out.requires_grad or wave.requires_grad:
        raise ValueError(
            f"out: expected a tensor on {wave.device} and no gradients, got {out.device}; leave out=None to "
            "train."
        )
    return out


def reference_log_mel(
    flat: torch.Tensor,
    cu_samples: np.ndarray,
    cu_frames: np.ndarray,
    spec: MelSpec,
    n_threads: int,
    out: torch.Tensor,
) -> torch.Tensor:
    """log_mel by the specification, clip by clip; into out unless a gradient is wanted."""
    wave = flat.float() / 32_768.0 if flat.dtype == torch.int16 else flat
    clips = [mel_reference.log_mel(wave[a:b], spec) for a, b in pairwise(cu_samples.tolist())]
    for index, clip in enumerate(clips):
        if clip.device.type == "cpu" and not bool(clip.isfinite().all()):
            raise ValueError(mel_reference.not_finite(index))
    if wave.requires_grad and torch.is_grad_enabled():
        return torch.cat(clips)
    return torch.cat(clips, out=out) if clips else out


registry.register("log_mel", "cpp", cpp.log_mel, supports=cpp.log_mel_supports, available=cpp.available)
registry.register("log_mel", "reference", reference_log_mel)
