"""Contenders every op shares: our registered backends, torch.compile of the reference, and adapters of other libraries.

A library that is not installed is reported as such. Adapters change layouts where a library wants another one, and the
change is part of its time: it is what using it here would cost.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch._functorch.config as functorch_config
from muomni_kernels import dispatch, registry, use_backend

from benchmarks.case import Contender, NotRun

Make = Callable[[], Contender]


def backends(op: str, public: Callable[..., Any]) -> dict[str, Make]:
    """Every registered backend of an op, in order of priority, through its public function."""
    registry.load()
    return {row.name: _forced(op, row.name, public) for row in registry.backends(op)}


def _forced(op: str, name: str, public: Callable[..., Any]) -> Make:
    def make() -> Contender:
        row = next(row for row in registry.backends(op) if row.name == name)
        reason = row.available()
        if reason:
            raise NotRun(reason)
        return Contender(call=public, scope=lambda: use_backend(op, name), backend=True)

    return make


def automatic(public: Callable[..., Any]) -> Contender:
    """What a caller gets who forces nothing, without the dispatch table: the order of priority."""
    return Contender(call=public, scope=lambda: dispatch.use_table(None), backend=True)


COMPILE_MODES = {"compile": "default", "compile-max-autotune": "max-autotune-no-cudagraphs"}


def compiled(plain: Callable[..., Any], *, device: torch.device) -> dict[str, Make]:
    """torch.compile of a plain function for the case's exact shapes, with default options and autotuned.

    On a CPU, where only the benchmark itself is tested, nothing is generated: backend aot_eager.
    """

    def maker(mode: str) -> Make:
        def make() -> Contender:
            # Donated buffers would forbid replaying a backward on the tensors its forward saved.
            if hasattr(functorch_config, "donated_buffer"):
                functorch_config.donated_buffer = False
            options: dict[str, Any] = {"mode": mode} if device.type == "cuda" else {"backend": "aot_eager"}
            return Contender(call=torch.compile(plain, fullgraph=True, dynamic=False, **options))

        return make

    return {name: maker(mode) for name, mode in COMPILE_MODES.items()}


def foreign(module: str, build: Callable[[Any], Callable[..., Any]]) -> Make:
    """An adapter of another library: build(module) gives the function; not run where it cannot be imported."""

    def make() -> Contender:
        try:
            found = importlib.import_module(module)
        except ImportError:
            raise NotRun("not installed") from None
        try:
            return Contender(call=build(found))
        except AttributeError as error:
            raise NotRun(f"this version has another interface ({error})") from None

    return make


LIGER = "liger_kernel.transformers.functional"


def liger(build: Callable[[Any], Callable[..., Any]]) -> dict[str, Make]:
    """Liger-Kernel, its in-place options off: inputs and gradients are shared with the other contenders."""
    return {"liger": foreign(LIGER, build)}


def quack(module: str, build: Callable[[Any], Callable[..., Any]]) -> dict[str, Make]:
    """Quack (CuTe DSL, Hopper and later)."""
    return {"quack": foreign(f"quack.{module}", build)}
