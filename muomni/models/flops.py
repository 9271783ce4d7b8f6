"""Counts the arithmetic of a model's forward and of the backward it leads to, while the forward runs.

MFU as in Chowdhery et al., PaLM, 2022, appendix B, counts what a forward and its backward need once: recomputation is
left out, and so are norms, activations and all else that multiplies no matrices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from muomni_kernels.registry import use_backend
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from muomni.nn.attention import Attention

_OPERANDS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2), "convolution": (0, 1)}
)
"""ATen products, in place or not, with the places of their two factors."""


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Floating-point operations of a forward and its backward; an addition and a multiplication are two."""

    products: int
    """Matrix products and convolutions outside attention."""
    attention: int
    """Scores and weighted sums of the pairs of positions that see each other."""

    @property
    def total(self) -> int:
        """All that is counted."""
        return self.products + self.attention


class Counter(TorchDispatchMode):
    """Adds up products as they are dispatched; the two of their backward by who requires a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.products = self.attention = 0
        self.inside = False
        """Within an attention module, where only its projections count as products."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.rpartition("::")[2].removesuffix("_")
        places = _OPERANDS.get(name)
        if places is None or (self.inside and name not in ("mm", "addmm")):
            return out
        a, b = (args[place] for place in places)
        if name == "convolution":
            transposed = args[6]
            forward = 2 * (a if transposed else out).numel() * b[0].numel()
        else:
            forward = 2 * out.numel() * a.shape[-1]
        # What computes gradients on the way has them off, and its products are counted as they come.
        backward = sum(t.requires_grad for t in (a, b)) if torch.is_grad_enabled() else 0
        self.products += forward * (1 + backward)
        return out

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Before an Attention.forward: count its pairs by its real cu_seqlens, of padding's documents too."""
        assert isinstance(module, Attention)
        x, cu_seqlens = args[0], args[3]
        lengths = cu_seqlens.long().diff()
        pairs = lengths * (lengths + 1) // 2 if module.causal else lengths.square()
        trained = torch.is_grad_enabled() and (x.requires_grad or module.qkv.weight.requires_grad)
        forward = 4 * int(pairs.sum()) * module.n_heads * module.head_dim
        self.attention += forward * (3 if trained else 1)
        self.inside = True

    def leave(self, *_: object) -> None:
        """After it."""
        self.inside = False


@contextmanager
def counting(model: nn.Module) -> Iterator[Counter]:
    """Forwards of the model inside are counted, eager ones only; yields the count so far. Reads the device.

    Attention counts by its real cu_seqlens, padding's documents too. The head counts as its backend computes it: on a
    CPU at positions with a target.
    """
    counter = Counter()
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, Attention):
                stack.callback(module.register_forward_pre_hook(counter.enter).remove)
                stack.callback(module.register_forward_hook(counter.leave).remove)
        # Triton's search of the codebooks multiplies where no dispatcher sees it.
        stack.enter_context(use_backend("vq_nearest", "reference"))
        stack.enter_context(counter)
        yield counter
