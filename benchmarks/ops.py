"""The ops that are timed, each in bench_<op>.py, the heaviest of a training step first."""

from __future__ import annotations

OPS = (
    "rms_norm",
    "add_rms_norm",
    "qk_norm_rope",
    "swiglu",
    "linear_cross_entropy",
    "attention",
    "vq_nearest",
    "rope",
    "mel_downsample",
    "attention_decode",
)
