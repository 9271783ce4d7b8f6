"""Host time of the dispatch path without a GPU: `python -m benchmarks.host`.

The public ops run on CPU tensors with launches recorded instead of started: checks, backend choice, autograd function,
allocation and grid are timed, Triton's own launcher (which a GPU run adds) and kernels are not. A figure of this
machine's CPU, to compare versions on one machine; `python -m benchmarks.gpu` measures the whole on a GPU.
"""

from __future__ import annotations

import sys
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from muomni_kernels import (
    add_rms_norm,
    dispatch,
    qk_norm_rope,
    registry,
    rms_norm,
    rope,
    swiglu,
    triton_support,
)

from benchmarks.provenance import describe


def _empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, requires_grad=dtype == torch.bfloat16)


def calls() -> dict[str, tuple[list[torch.Tensor], Callable[[], Any]]]:
    """Ops at the Thinker's shapes of size tiny: what gets a gradient, and the call."""
    x, residual, w = _empty(64, 256), _empty(64, 256), _empty(256)
    qkv, head = _empty(64, 512), _empty(32)
    heads, angle, gate_up = _empty(64, 8, 32), _empty(64, 16, dtype=torch.float32), _empty(64, 1_536)
    return {
        "rms_norm": ([x, w], lambda: rms_norm(x, w)),
        "add_rms_norm": ([x, residual, w], lambda: add_rms_norm(x, residual, w)),
        "rope": ([heads], lambda: rope(heads, angle, angle)),
        "qk_norm_rope": (
            [qkv, head],
            lambda: qk_norm_rope(qkv, head, head, angle, angle, n_heads=8, n_kv_heads=4),
        ),
        "swiglu": ([gate_up], lambda: swiglu(gate_up)),
    }


@contextmanager
def stub_launches() -> Iterator[list[Any]]:
    """Triton backends take CPU tensors, and their launches are listed."""
    interpreting = triton_support.interpreting
    triton_support.interpreting = lambda: True
    try:
        with triton_support.record_launches() as launches:
            yield launches
    finally:
        triton_support.interpreting = interpreting


def microseconds(call: Callable[[], Any], *, n: int = 300) -> float:
    """The best of five loops."""
    call()
    return min(timeit.repeat(call, number=n, repeat=5)) / n * 1e6


def rows(*, n: int = 300) -> Iterator[tuple[str, float, float, float]]:
    """(op, forward, forward and backward, choosing the backend), microseconds a call."""
    with stub_launches() as launches, dispatch.use_table(None):
        for op, (leaves, call) in calls().items():

            def both(call: Callable[[], Any] = call, leaves: list[torch.Tensor] = leaves) -> None:
                out = call()
                outputs = [y for y in (out if isinstance(out, tuple) else (out,)) if y.requires_grad]
                torch.autograd.grad(outputs, leaves, [torch.empty_like(y) for y in outputs])

            chosen: list[tuple[Any, ...]] = []
            select = registry.select

            def spy(*arguments: Any, chosen: list[tuple[Any, ...]] = chosen, select: Any = select) -> Any:
                chosen.append(arguments)
                return select(*arguments)

            registry.select = spy
            call()
            registry.select = select
            arguments = chosen[0]
            choice = microseconds(lambda a=arguments: registry.select(*a), n=n)
            yield op, microseconds(call, n=n), microseconds(both, n=n), choice
            launches.clear()


def main() -> int:
    """Print the table."""
    about = describe("cpu")
    print(
        f"{about['device']}, torch {about['torch']}, commit {about['commit']}; launches recorded, not started"
    )
    print(f"{'op':<14} {'forward us':>11} {'both us':>9} {'choice us':>10}")
    for op, forward, both, choice in rows():
        print(f"{op:<14} {forward:>11.1f} {both:>9.1f} {choice:>10.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
