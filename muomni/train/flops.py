"""The arithmetic of a training step, counted, and the device's rate at it: their ratio is the MFU.

MFU as in Chowdhery et al., PaLM, 2022, appendix B: what a forward and its backward need once, recomputation left
out, over what the device could do in the same time; here that is measured and not read off a data sheet.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from muomni_kernels.registry import use_backend
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from muomni.data.batch import to_device
from muomni.nn.attention import Attention
from muomni.train.stage import Stage

_OPERANDS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2), "convolution": (0, 1)}
)
"""ATen products, in place or not, with the places of their two factors."""
GEMM_SIZE = {"cpu": 768, "cuda": 4096}
"""Rows and columns of the measured product."""
GEMM_SECONDS = 0.12
"""How long products are timed, at least three of them."""


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


class _Counter(TorchDispatchMode):
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
        terms = b[0].numel() if name == "convolution" else a.shape[-1]
        # What computes gradients on the way has them off, and its products are counted as they come.
        backward = sum(t.requires_grad for t in (a, b)) if torch.is_grad_enabled() else 0
        self.products += 2 * out.numel() * terms * (1 + backward)
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


def count(stage: Stage, model: nn.Module, batch: Any, *, half: bool = False) -> Flops:
    """FLOPs of all phases' losses and their gradients on one micro-batch, from one forward; no gradient is computed.

    batch: on any device. half: the forward runs under bf16 autocast. Padded positions count as all others: the fill
    rate says how many they are. The head is counted as the backend computes it: on a CPU at positions with a target.
    Parameters, their `.grad`, buffers and generators stay as they are; reads the device.
    """
    counter = _Counter()
    device = next(model.parameters()).device
    batch = to_device(batch, device)
    with ExitStack() as stack:
        stack.enter_context(_untouched(model, device))
        for module in model.modules():
            if isinstance(module, Attention):
                for hook in (
                    module.register_forward_pre_hook(counter.enter),
                    module.register_forward_hook(counter.leave),
                ):
                    stack.callback(hook.remove)
        # Triton's search of the codebooks multiplies where no dispatcher sees it.
        stack.enter_context(use_backend("vq_nearest", "reference"))
        stack.enter_context(torch.autocast(device.type, torch.bfloat16, enabled=half))
        stack.enter_context(counter)
        for phase in stage.phases:
            stage.losses(model, batch, phase)
    return Flops(products=counter.products, attention=counter.attention)


@contextmanager
def _untouched(model: nn.Module, device: torch.device) -> Iterator[None]:
    """A forward inside leaves no trace: eval mode gathers no statistics, buffers and generators are put back."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)


def gemm_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of a few square products of a dtype, with this process's threads; measured once."""
    return _gemm_rate(str(device), dtype, torch.get_num_threads())


@functools.cache
def _gemm_rate(device: str, dtype: torch.dtype, n_threads: int) -> float:
    on_gpu = device.startswith("cuda")
    size = GEMM_SIZE["cuda" if on_gpu else "cpu"]
    a = torch.full((size, size), 0.5, device=device, dtype=dtype)
    out = torch.empty_like(a)

    def seconds() -> float:
        started = time.perf_counter()
        torch.mm(a, a, out=out)
        if on_gpu:
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    with torch.no_grad():
        seconds()
        times: list[float] = []
        while len(times) < 3 or sum(times) < GEMM_SECONDS:
            times.append(seconds())
    return 2.0 * size**3 / min(times)
