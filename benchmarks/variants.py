"""Every Triton launch the models can make, recorded from the ops' own launch code on meta tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from muomni_kernels import downsample, head, quantise, rowwise, triton_mel, triton_support

from muomni import recipes
from muomni.config import SIZES, ModelConfig
from muomni.models.omni import OmniModel
from muomni.models.talker import DepthTransformer
from muomni.models.vision import ContrastModel, VisionEncoder
from muomni.nn.attention import Attention
from muomni.nn.moe import FeedForward
from muomni.nn.norm import RMSNorm
from muomni.tokens import IGNORE_INDEX

ROWS = 4_099
"""Rows of the recorded calls: odd, so that nothing is specialised on a count that is a multiple of 16."""
DTYPE = torch.bfloat16
TRITON = "triton"
SHORT = {
    torch.bfloat16: "bf16", torch.float32: "f32", torch.int64: "i64", torch.int32: "i32", torch.bool: "b",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Variant:
    """One kernel with one set of compile-time values and dtypes."""

    name: str
    """Kernel, then what sets this variant apart."""
    launch: triton_support.Launch

    @property
    def kernel(self) -> str:
        """Name of the kernel function."""
        return self.launch.kernel.fn.__name__

    @property
    def n_warps(self) -> int:
        """Warps of a block."""
        return self.launch.constants.get("num_warps", triton_support.OPTIONS["num_warps"])


def empty(*shape: int, dtype: torch.dtype = DTYPE) -> torch.Tensor:
    """A meta tensor."""
    return torch.empty(shape, dtype=dtype, device="meta")


def _norm(width: int) -> None:
    f32 = torch.float32
    rstd = empty(ROWS, dtype=f32)
    # All in one dtype; and as under autocast: fp32 weights and residual stream, branches in bf16.
    for branch, stream in ((DTYPE, DTYPE), (DTYPE, f32)):
        x, residual, w = (
            empty(ROWS, width, dtype=branch),
            empty(ROWS, width, dtype=stream),
            empty(width, dtype=stream),
        )
        rowwise.rms_norm_forward(residual, w, 1e-6, TRITON)
        rowwise.rms_norm_backward(residual, None, residual, w, rstd, TRITON)
        rowwise.add_rms_norm_forward(x, residual, w, 1e-6, TRITON)
        rowwise.rms_norm_backward(x, residual, residual, w, rstd, TRITON)
        # The last norm's residual stream goes nowhere.
        rowwise.rms_norm_backward(x, None, residual, w, rstd, TRITON)


def _attention(m: Attention, *, rotate: bool) -> None:
    d, heads, kv_heads = m.head_dim, m.n_heads, m.n_kv_heads
    qkv = empty(ROWS, (heads + 2 * kv_heads) * d)
    angles = empty(ROWS, d // 2, dtype=torch.float32) if rotate else None
    dq, dk = empty(ROWS, heads, d), empty(ROWS, kv_heads, d)
    for dtype in (DTYPE, torch.float32):
        w = empty(d, dtype=dtype)
        rowwise.qk_norm_rope_forward(qkv, w, w, angles, angles, heads, kv_heads, 1e-6, TRITON)
        rowwise.qk_norm_rope_backward(dq, dk, dk, qkv, w, w, angles, angles, 1e-6, TRITON)
    if rotate:
        for inverse in (False, True):
            rowwise.rope_rotate(dq, angles, angles, inverse, TRITON)


def _swiglu(d_ff: int) -> None:
    rowwise.swiglu_forward(empty(ROWS, 2 * d_ff), TRITON)
    rowwise.swiglu_backward(empty(ROWS, d_ff), empty(ROWS, 2 * d_ff), TRITON)


def _loss(vocab_size: int, width: int, *, n_heads: int, bias: bool) -> None:
    """A head's training pass and its evaluation pass, the products left out."""
    x, weight = empty(1_001, n_heads, width), empty(n_heads, vocab_size, width)
    biases = empty(n_heads, vocab_size, dtype=torch.float32) if bias else None
    labels = empty(1_001, n_heads, dtype=torch.int64)
    for top, want in ((False, True), (True, False)):
        head.linear_cross_entropy_forward(
            x, weight, biases, labels, IGNORE_INDEX, 0.0, 0.0, 0.0, True, top, want, want, want and bias
        )


def _codes(n_levels: int, size: int, width: int) -> None:
    """A step's rows and a turn's, all levels; and one level, for the start by k-means."""
    f32 = torch.float32
    for n_rows in (ROWS, 2 * ROWS + 1):
        for levels in (n_levels, 1):
            quantise.vq_nearest_forward(
                empty(n_rows, width, dtype=f32), empty(levels, size, width, dtype=f32)
            )


def _mel(n_mels: int, factor: int) -> None:
    frames, cu = empty(ROWS, n_mels, dtype=torch.float32), empty(9, dtype=torch.int32)
    groups = [(cu, factor, mode, factor, 0, "zeros") for mode in triton_mel.MODES]
    # No model has overlapping windows or a padded batch; public recognisers stack 7 frames every 6.
    groups += [(cu, 6, "stack", 7, 3, edge) for edge in ("zeros", "repeat")]
    groups += [(empty(16, dtype=torch.int32), factor, "stack", factor, 0, "zeros")]
    for clips, each, mode, *window in groups:
        rest, backend = (clips, cu, each, mode), (*window, "triton")
        y = downsample.mel_downsample_forward(frames, *rest, ROWS // each, *backend)
        downsample.mel_downsample_backward(
            empty(*y.shape, dtype=torch.float32), frames, *rest, ROWS, *backend
        )


def models(config: ModelConfig) -> Iterator[torch.nn.Module]:
    """Every model that is trained at one size, without memory."""
    with torch.device("meta"):
        yield OmniModel(config)
        yield ContrastModel(config.vision, vocab_size=config.thinker.vocab_size)


def _record(config: ModelConfig) -> None:
    thinker, codec = config.thinker, config.codec
    _loss(thinker.vocab_size, thinker.d_model, n_heads=1, bias=False)
    _loss(codec.codebook_size, codec.latent_dim, n_heads=codec.n_codebooks, bias=True)
    _codes(codec.n_codebooks, codec.codebook_size, codec.latent_dim)
    _mel(config.mel.n_mels, config.audio.factor)
    for model in models(config):
        # Their positions are learned.
        unrotated = {
            id(part)
            for owner in model.modules()
            if isinstance(owner, VisionEncoder | DepthTransformer)
            for part in owner.modules()
        }
        for module in model.modules():
            if isinstance(module, RMSNorm):
                _norm(len(module.weight))
            elif isinstance(module, FeedForward):
                _swiglu(module.down.in_features)
            elif isinstance(module, Attention):
                _attention(module, rotate=id(module) not in unrotated)


def _describe(launch: triton_support.Launch) -> str:
    kernel = launch.kernel.fn.__name__
    shown = {k: v for k, v in launch.constants.items() if k not in ("num_warps", "maxnreg", "EPS", "IGNORE")}
    dtypes = [SHORT[a.dtype] for a in launch.arguments if isinstance(a, torch.Tensor)]
    return f"{kernel} {' '.join(f'{k}={v}' for k, v in shown.items())}, {' '.join(dtypes)}"


def model_variants() -> list[Variant]:
    """The distinct variants of all sizes, sorted by name."""
    with triton_support.record_launches() as launches:
        for size in SIZES:
            _record(recipes.model(size))
    found = {_describe(launch): launch for launch in launches}
    return [Variant(name, found[name]) for name in sorted(found)]
