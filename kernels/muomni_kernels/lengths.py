"""How many tokens an audio encoder makes of n frames, by the named rules of the field, and its chunks of frames.

Length bugs are the commonest defect of audio pipelines; each rule is the exact result of the convolutions it names.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch

from muomni_kernels import checks

Lengths = TypeVar("Lengths", int, np.ndarray, torch.Tensor)


def _halved(n: Lengths) -> Lengths:
    """A convolution of kernel 3, stride 2, padding 1: ceil(n / 2)."""
    return (n + 1) // 2  # pyright: ignore[reportReturnType]


RULES: dict[str, Callable[..., object]] = {
    # mel_downsample at factor 8: 12.5 Hz.
    "muomni": lambda n: (n + 7) // 8,
    # One convolution of stride 2: 50 Hz.
    "whisper": _halved,
    # Qwen2-Audio, Qwen2.5-Omni: that, then averages of two, the odd last one dropped: 25 Hz.
    "qwen2_audio": lambda n: _halved(n) // 2,
    # Qwen3-Omni: three convolutions of stride 2 on each chunk of 100 frames by itself: 13 tokens a second.
    "qwen3_omni": lambda n: n // 100 * 13 + _halved(_halved(_halved(n % 100))),
    # Parakeet, Phi-4: three convolutions of stride 2 on the whole clip: 12.5 Hz.
    "conv8": lambda n: _halved(_halved(_halved(n))),
    # FunASR's low frame rate, seven frames every six, the ends repeated: 16.7 Hz.
    "lfr6": lambda n: (n + 5) // 6,
}
"""Rule -> tokens of n frames at 100 Hz."""


def token_lengths(n_frames: Lengths, rule: str = "muomni") -> Lengths:
    """Tokens that an encoder makes of clips of n_frames frames at 100 Hz.

    n_frames: an int, or an integer array or tensor of any shape, each at least 0; not modified.
    rule:     "muomni" ceil(n/8); "whisper" ceil(n/2); "qwen2_audio" (also Qwen2.5-Omni) floor(ceil(n/2)/2);
              "qwen3_omni" 13 a full chunk of 100 frames and ceil(rest/8); "conv8" (Parakeet, Phi-4) ceil(n/8);
              "lfr6" (FunASR, seven frames every six) ceil(n/6).
    Returns the same type and shape. On a GPU values are not read by the host, and not checked.
    Raises ValueError for an unknown rule, numbers that are not integers, or a negative one.
    """
    if rule not in RULES:
        raise ValueError(f"rule: expected one of {', '.join(RULES)}, got {rule!r}.")
    if isinstance(n_frames, torch.Tensor):
        whole = not (n_frames.is_floating_point() or n_frames.is_complex() or n_frames.dtype == torch.bool)
        negative = whole and n_frames.device.type == "cpu" and bool((n_frames < 0).any())
    elif isinstance(n_frames, np.ndarray):
        whole = np.issubdtype(n_frames.dtype, np.integer)
        negative = whole and bool((n_frames < 0).any())
    else:
        whole = isinstance(n_frames, int) and not isinstance(n_frames, bool)
        negative = whole and n_frames < 0
    if not whole or negative:
        raise ValueError(f"n_frames: expected integers of at least 0, got {n_frames!r}.")
    return RULES[rule](n_frames)  # pyright: ignore[reportReturnType]


def chunk_and_pad(
    frames: torch.Tensor, *, chunk: int = 100, cu_frames: np.ndarray | torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut clips into chunks of frames, as encoders of the rule "qwen3_omni" take them.

    frames:    (n, width), one clip, or with cu_frames (clips + 1,) clips one after another; not modified.
    chunk:     frames of a chunk; a clip's last one may be shorter.
    Returns chunks (n_chunks, longest, width), each padded with zeros to the longest one there is, and their frames
    (n_chunks,) int64 on the CPU: token_lengths(lengths, "qwen3_omni") are the tokens to keep of each. Differentiable
    in frames. A clip without frames gives no chunk. Raises ValueError for other shapes.
    """
    if frames.ndim != 2:
        raise ValueError(f"frames: expected (n, width), got {tuple(frames.shape)}.")
    if chunk < 1:
        raise ValueError(f"chunk: expected at least 1 frame, got {chunk}.")
    n = len(frames)
    offsets = [0, n] if cu_frames is None else checks.offsets("cu_frames", cu_frames, n).tolist()
    pieces = [
        piece
        for start, stop in pairwise(offsets)
        if stop > start
        for piece in frames[start:stop].split(chunk)
    ]
    lengths = torch.tensor([len(piece) for piece in pieces], dtype=torch.int64)
    if not pieces:
        return frames.new_zeros(0, 0, frames.shape[1]), lengths
    return torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True), lengths
