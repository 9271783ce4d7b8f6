"""Host time of an op without a GPU: `python -m benchmarks.host`.

The public ops run on CPU tensors and launch through Triton with a driver that does nothing: checks, backend choice,
autograd function, allocation, grid and Triton's launcher are timed, what the CUDA driver adds (2 to 3 us a launch) and
the kernels are not. Forward alone, and what a backward pass over many calls takes for each: as in a training step. A
figure of this machine's CPU, to compare versions on one machine; `python -m benchmarks.gpu` measures it all on a GPU.
"""

from __future__ import annotations

import sys
import timeit
from collections.abc import Callable, Iterator
from functools import partial
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

CALLS = 20
"""Calls of one backward pass."""


def _empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, requires_grad=dtype == torch.bfloat16)


def calls() -> dict[str, tuple[list[torch.Tensor], Callable[..., Any]]]:
    """Ops at the Thinker's shapes of size tiny: their tensors, and the call on them."""
    x, w, qkv, head = _empty(64, 256), _empty(256), _empty(64, 512), _empty(32)
    heads, angle, gate_up = _empty(64, 8, 32), _empty(64, 16, dtype=torch.float32), _empty(64, 1_536)
    return {
        "rms_norm": ([x, w], rms_norm),
        "add_rms_norm": ([x, x, w], add_rms_norm),
        "rope": ([heads, angle, angle], rope),
        "qk_norm_rope": ([qkv, head, head, angle, angle], partial(qk_norm_rope, n_heads=8, n_kv_heads=4)),
        "swiglu": ([gate_up], swiglu),
    }


class IdleDriver:
    """Stands in for Triton's CUDA driver: compiles for sm_90, loads and launches nothing."""

    class utils:
        """What the compiled kernel asks of the device."""

        @staticmethod
        def load_binary(*_: object) -> tuple[int, int, int, int, int]:
            """Module, function, registers, spills, most threads a block."""
            return 1, 2, 32, 0, 1_024

        @staticmethod
        def get_device_properties(_: int) -> dict[str, int]:
            """An H200's."""
            return {
                "max_shared_mem": 232_448,
                "multiprocessor_count": 132,
                "max_num_regs": 65_536,
                "warpSize": 32,
            }

    def __init__(self) -> None:
        """The launcher takes whatever it is given."""
        self.launcher_cls = lambda source, metadata: lambda *_: None

    def get_current_device(self) -> int:
        """The only one."""
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        """The default stream."""
        return 0

    def get_current_target(self) -> Any:
        """Hopper."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


def use_idle_driver() -> None:
    """From now on this process's Triton backends take CPU tensors and launch into nothing."""
    from triton.runtime import driver

    triton_support.interpreting = lambda: True
    driver.set_active(IdleDriver())  # pyright: ignore[reportArgumentType]


def microseconds(call: Callable[[], Any], *, n: int = 300) -> float:
    """The best of five loops."""
    call()
    return min(timeit.repeat(call, number=n, repeat=5)) / n * 1e6


def rows(*, n: int = 300) -> Iterator[tuple[str, float, float, float]]:
    """(op, forward, its backward among CALLS, choosing the backend), microseconds a call."""
    use_idle_driver()
    with dispatch.use_table(None):
        for op, (shared, call) in calls().items():
            leaves = [[t.detach().requires_grad_(t.requires_grad) for t in shared] for _ in range(CALLS)]

            def forward(leaves: list[list[torch.Tensor]] = leaves, call: Any = call) -> list[torch.Tensor]:
                outs = [call(*some) for some in leaves]
                return [y for out in outs for y in (out if isinstance(out, tuple) else (out,))]

            def both(forward: Any = forward, leaves: list[list[torch.Tensor]] = leaves) -> None:
                outputs = forward()
                wanted = [t for some in leaves for t in some if t.requires_grad]
                torch.autograd.grad(outputs, wanted, [y.detach() for y in outputs])

            once = microseconds(forward, n=max(1, n // CALLS)) / CALLS
            twice = microseconds(both, n=max(1, n // CALLS)) / CALLS
            yield op, once, twice - once, _choice(lambda: call(*shared), n=n)  # noqa: B023 - called at once


def _choice(call: Callable[[], Any], *, n: int) -> float:
    """Microseconds of `registry.select` for the call."""
    chosen: list[tuple[Any, ...]] = []
    select = registry.select

    def spy(*arguments: Any) -> Any:
        chosen.append(arguments)
        return select(*arguments)

    registry.select = spy
    try:
        call()
    finally:
        registry.select = select
    return microseconds(lambda: select(*chosen[0]), n=n)


def main() -> int:
    """Print the table."""
    about = describe("cpu")
    print(
        f"{about['device']}, torch {about['torch']}, triton {about['triton']}, commit {about['commit']}; "
        "nothing is launched"
    )
    print(f"{'op':<14} {'forward us':>11} {'backward us':>12} {'choice us':>10}")
    for op, forward, backward, choice in rows():
        print(f"{op:<14} {forward:>11.1f} {backward:>12.1f} {choice:>10.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
