"""A case: one op at one shape and dtype with its contenders; the check against fp64 before anything is timed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

PASSES = ("forward", "backward", "both")

Inputs = list[Any]
"""Arguments of a call: tensors, the differentiable ones first."""


class NotRun(RuntimeError):
    """Why a contender is not part of a case: not installed, cannot run these arguments."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to compute an op."""

    call: Callable[..., Any]
    scope: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Entered around every use, for example to force a backend."""
    backend: bool = False
    """A registered backend of ours, held to the parity rule; others to a bound that shows they compute the same."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is timed, and what it should cost."""

    op: str
    variant: str
    """What sets the shape apart in words, such as "16384x256"."""
    shape: dict[str, int]
    dtype: torch.dtype
    make: Callable[[int], Inputs]
    """Seed -> arguments on the device; the same for every contender."""
    n_grads: int
    """How many of the first arguments get a gradient; 0 for an op without backward."""
    contenders: dict[str, Callable[[], Contender]]
    """By name, made when needed; may raise NotRun. "reference" is plain PyTorch and the truth in fp64."""
    rows: int
    width: int
    """As muomni_kernels.dispatch.extents tells calls apart."""
    n_bytes: dict[str, int]
    """Fewest bytes a pass moves; for ops bound by arithmetic too."""
    flops: dict[str, int] = field(default_factory=dict)
    model: bool = False
    """A shape that a size of the model really has."""
    judge: Callable[[Inputs, Any], str | None] | None = None
    """Called with the arguments and all outputs and gradients, instead of the parity rule: None when they are right,
    else what is wrong. For choices that have no one right answer, and for shapes whose fp64 reference fits no GPU."""
    yardsticks: dict[str, Callable[..., Any]] = field(default_factory=dict)
    """Timed beside the contenders and neither checked nor beaten: the matrix products an op cannot do without."""
    compared: tuple[str, ...] = PASSES
    """Passes that do the same work in every contender."""

    @property
    def name(self) -> str:
        """The case in one line."""
        return f"{self.op} {self.variant} {str(self.dtype).removeprefix('torch.')}"

    @property
    def passes(self) -> tuple[str, ...]:
        """Passes that exist."""
        return self.compared if self.n_grads else PASSES[:1]


def floats(result: Any) -> tuple[torch.Tensor, ...]:
    """The floating-point tensors of a result, in order."""
    parts = result if isinstance(result, tuple | list) else (result,)
    return tuple(t for t in parts if isinstance(t, torch.Tensor) and t.is_floating_point())


def leaves(case: Case, inputs: Inputs, dtype: torch.dtype | None = None) -> Inputs:
    """The arguments as fresh leaves, floating-point ones in another dtype if one is given."""
    fresh: Inputs = []
    for i, value in enumerate(inputs):
        if isinstance(value, torch.Tensor):
            value = value.detach()
            if dtype is not None and value.is_floating_point():
                value = value.to(dtype)
            value.requires_grad_(i < case.n_grads)
        fresh.append(value)
    return fresh


def incoming(case: Case, outputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """Gradients of the outputs: the same numbers for every contender, in the outputs' dtype."""
    found = []
    for i, y in enumerate(outputs):
        generator = torch.Generator(y.device).manual_seed(99 + i)
        dy = torch.randn(y.shape, generator=generator, device=y.device, dtype=torch.float32)
        found.append((dy if y.ndim else torch.ones_like(dy)).to(case.dtype).to(y.dtype))
    return found


def differentiable(outputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Those that carry a gradient."""
    return tuple(y for y in outputs if y.requires_grad)


def gradients(
    case: Case, outputs: tuple[torch.Tensor, ...], arguments: Inputs, dys: list[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """Gradients of the first arguments, () for an op without backward."""
    if not case.n_grads:
        return ()
    carrying = differentiable(outputs)
    return torch.autograd.grad(carrying, arguments[: case.n_grads], dys[: len(carrying)])


def run_both(
    case: Case, contender: Contender, arguments: Inputs, dys: list[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """Outputs and gradients of one call."""
    outputs = floats(contender.call(*arguments))
    return (*outputs, *gradients(case, outputs, arguments, dys))


@contextmanager
def _kept_settings() -> Iterator[None]:
    """fp32 matrix products in full precision while the truth is computed."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


ROUNDOFF = {torch.float32: 2e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Relative error, in the norm of the whole tensor, up to which a baseline counts as computing the same."""


@dataclass(kw_only=True)
class Truth:
    """Outputs and gradients in fp64, and those of plain PyTorch at the case's precision."""

    exact: list[torch.Tensor]
    plain: list[torch.Tensor]
    dys: list[torch.Tensor]

    def fault(self, case: Case, contender: Contender, arguments: Inputs) -> str | None:
        """What is wrong with a contender's numbers, None when nothing is."""
        outputs = floats(contender.call(*arguments))
        n_outputs = len(self.exact) - case.n_grads
        if len(outputs) != n_outputs:
            return f"gives {len(outputs)} floating-point tensors, expected {n_outputs}"
        for i, value in enumerate(outputs):
            fault = self._compare(f"output {i}", value, i, case, contender)
            if fault:
                return fault
        for i, value in enumerate(gradients(case, outputs, arguments, self.dys)):
            fault = self._compare(f"gradient {i}", value, n_outputs + i, case, contender)
            if fault:
                return fault
        return None

    def _compare(
        self, name: str, found: torch.Tensor, i: int, case: Case, contender: Contender
    ) -> str | None:
        fault = _fault(found.detach(), self.exact[i], self.plain[i], case, strict=contender.backend)
        return f"{name}: {fault}" if fault else None


def _fault(
    found: torch.Tensor, exact: torch.Tensor, plain: torch.Tensor, case: Case, *, strict: bool
) -> str | None:
    if found.shape != exact.shape:
        return f"shape {tuple(found.shape)}, expected {tuple(exact.shape)}"
    if not found.numel():
        return None
    if not bool(torch.isfinite(found).all()):
        return "not finite"
    difference = (found.double() - exact.double()).abs()
    if not strict:
        error = float(difference.norm() / exact.double().norm().clamp(min=1e-30))
        limit = ROUNDOFF[case.dtype]
        return None if error <= limit else f"relative error {error:.1e} > {limit:.0e}"
    error, allowed = float(difference.max()), float((plain.double() - exact.double()).abs().max())
    # Sums over rows round in an order of their own: their tolerance grows with the root of the rows.
    scale = float(exact.abs().max()) * math.sqrt(max(1.0, case.rows / 1024))
    limit = 2 * allowed + 1e-6 + 2e-6 * scale
    return None if error <= limit else f"error {error:.1e} > {limit:.1e}, twice that of plain PyTorch"


def truth_of(case: Case, inputs: Inputs) -> Truth:
    """The yardsticks of a case; in fp32 arithmetic where fp64 does not fit the memory (the parity rule allows it).

    Raises torch.OutOfMemoryError when that does not fit either.
    """
    reference = case.contenders["reference"]()
    with _kept_settings(), reference.scope():
        arguments = leaves(case, inputs)
        outputs = floats(reference.call(*arguments))
        dys = incoming(case, differentiable(outputs) if case.n_grads else outputs)
        del outputs
        plain = [t.detach() for t in run_both(case, reference, arguments, dys)]
        for wide in (torch.float64, torch.float32):
            try:
                arguments = leaves(case, inputs, wide)
                exact = run_both(case, reference, arguments, _like_outputs(case, reference, arguments, dys))
                return Truth(exact=[t.detach() for t in exact], plain=plain, dys=dys)
            except torch.OutOfMemoryError:
                if wide == torch.float32:
                    raise
                torch.cuda.empty_cache()
    raise AssertionError("one of the two precisions returns or raises")


def _like_outputs(
    case: Case, reference: Contender, arguments: Inputs, dys: list[torch.Tensor]
) -> list[torch.Tensor]:
    """The incoming gradients in the dtypes of the reference's outputs on wider arguments."""
    if not case.n_grads:
        return dys
    with torch.no_grad():
        outputs = floats(reference.call(*arguments))
    return [dy.to(y.dtype) for dy, y in zip(dys, outputs, strict=False)]
