"""Attention by FlashAttention-2: the flash-attn package where it is installed, or the kernel PyTorch brings.

Their backward adds up dq with atomics, so gradients are not the same bits each time unless
torch.use_deterministic_algorithms is on. Source: Dao, 2023.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Collection
from typing import Any

import torch

from muomni_kernels import registry

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None


def _load_package() -> tuple[Any, str | None]:
    """The flash-attn package and None, or None and the reason against it."""
    try:
        package = importlib.import_module("flash_attn")
    except ModuleNotFoundError:
        return None, "flash-attn is not installed"
    except ImportError as error:  # Built for another torch or CUDA.
        return None, f"flash-attn cannot be imported ({error})"
    return package, reason_against_package(package)


def reason_against_package(package: Any) -> str | None:
    """None when a flash_attn module is one that torch.compile can trace (2.7), else the reason against it."""
    version = getattr(package, "__version__", "0")
    if tuple(int(part) for part in version.split(".")[:2]) < (2, 7):
        return f"needs flash-attn 2.7, found {version}"
    return None


def varlen_features(function: Callable[..., object] | None) -> frozenset[str]:
    """Which of is_causal, window_size and enable_gqa a torch's varlen_attn takes.

    torch 2.10 has is_causal alone, 2.11 window_size in its place, 2.12 enable_gqa too.
    """
    if function is None:
        return frozenset()
    return frozenset(inspect.signature(function).parameters) & {"is_causal", "window_size", "enable_gqa"}


flash_attn, _NO_FLASH = _load_package()
_VARLEN = varlen_features(varlen_attn)


class _KeepDocuments(torch.autograd.Function):
    """q, k and v as they are; in the backward the gradients of rows of no document, which the kernels leave
    unwritten, become zero. Source: of this project."""

    @staticmethod
    def forward(
        ctx: Any, inside: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(inside)
        return q.view_as(q), k.view_as(k), v.view_as(v)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        return None, *(torch.where(inside, grad, 0.0) for grad in grads)


def _inside(q: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    """(T, 1, 1) bool: rows that belong to a document."""
    return (torch.arange(q.shape[0], device=q.device, dtype=torch.int32) < cu_seqlens[-1])[:, None, None]


def _sides(causal: bool, window: int | None) -> tuple[int, int]:
    """(keys before, keys after) that a query sees besides its own, -1 for all of them."""
    reach = -1 if window is None else window - 1
    return reach, 0 if causal else reach


def flash(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    causal: bool,
    window: int | None = None,
) -> torch.Tensor:
    """flash_attn_varlen_func of the package; grouped keys as they are. Shapes as in `attend.attention`."""
    inside = _inside(q, cu_seqlens)
    q, k, v = _KeepDocuments.apply(inside, q, k, v)
    out = flash_attn.flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens,
        cu_seqlens,
        max_seqlen,
        max_seqlen,
        causal=causal,
        window_size=_sides(causal, window),
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return torch.where(inside, out, 0.0)


def varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    causal: bool,
    window: int | None = None,
) -> torch.Tensor:
    """PyTorch's own kernel; a torch whose kernel takes no grouped keys gets them repeated."""
    assert varlen_attn is not None
    inside = _inside(q, cu_seqlens)
    q, k, v = _KeepDocuments.apply(inside, q, k, v)
    options: dict[str, Any] = {}
    if "window_size" in _VARLEN:
        options["window_size"] = _sides(causal, window)
    else:
        options["is_causal"] = causal
    groups = q.shape[1] // k.shape[1]
    if groups > 1 and "enable_gqa" in _VARLEN:
        options["enable_gqa"] = True
    elif groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    out = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, **options)
    assert isinstance(out, torch.Tensor)
    return torch.where(inside, out, 0.0)


def decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    window: int | None = None,
) -> torch.Tensor:
    """flash_attn_with_kvcache, which lines the queries up with the end of each row's keys; no gradient."""
    return flash_attn.flash_attn_with_kvcache(
        q,
        k_cache,
        v_cache,
        cache_seqlens=lengths.to(torch.int32),
        causal=True,
        window_size=_sides(True, window),
    )


def flash_available() -> str | None:
    """None when this machine can run the package, else the reason against it."""
    if not torch.cuda.is_available():
        return "needs a CUDA device, this machine has none"
    return _NO_FLASH


def _missing(features: Collection[str]) -> str | None:
    if "window_size" in features or "is_causal" in features:
        return None
    return "this torch has no torch.nn.attention.varlen"


def varlen_available() -> str | None:
    """None when this machine can run PyTorch's kernel, else the reason against it."""
    if not torch.cuda.is_available():
        return "needs a CUDA device, this machine has none"
    return _missing(_VARLEN)


def _reason_against(q: torch.Tensor) -> str | None:
    """What neither implementation can take."""
    if not q.is_cuda:
        return f"needs a CUDA tensor, got {q.device.type}"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"needs float16 or bfloat16, got {q.dtype}"
    if q.shape[-1] % 8 or q.shape[-1] > 256:
        return f"needs a head_dim that is a multiple of 8 up to 256, got {q.shape[-1]}"
    if int(registry.device_key(q).removeprefix("sm_")) < 80:
        return "needs compute capability 8.0"
    return None if q.shape[0] else "needs at least one row"


def flash_supports(q: torch.Tensor, *_: object) -> str | None:
    """None when the package can run the call, else the reason against it."""
    return _reason_against(q) or flash_available()


def varlen_supports(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    causal: bool,
    window: int | None = None,
) -> str | None:
    """None when PyTorch's kernel can run the call, else the reason against it."""
    if window is not None and "window_size" not in _VARLEN:
        return "this torch's varlen_attn has no window_size"
    return _reason_against(q) or varlen_available()


def decode_supports(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    window: int | None = None,
) -> str | None:
    """None when the package can run the decode step, else the reason against it."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in (q, k_cache, v_cache)):
        return "gives no gradient"
    if torch.compiler.is_compiling():
        return "cannot be traced by torch.compile"
    return _reason_against(q) or flash_available()
