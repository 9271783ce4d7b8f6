"""Kernels as torch.library operators (namespace muomni): one node for torch.compile, no cost for eager code."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

_LIBRARY = torch.library.Library("muomni", "DEF")


def operator(
    schema: str, *, fake: Callable[..., Any], opaque: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Define torch.ops.muomni.<name of the schema> with the decorated implementation.

    schema: as torch.library takes it; functional, outputs never alias inputs or each other.
    fake:   gives empty results of the right shape, dtype and device from the operator's arguments.
    opaque: no PyTorch operator does the work inside, so that a TorchDispatchMode must be shown this one.
    The decorated function runs the implementation directly, because a trip through the dispatcher costs 6 to
    11 us; while torch.compile traces, it calls the operator, which stays one node.
    """
    name = schema.partition("(")[0]

    def define(implementation: Callable[..., Any]) -> Callable[..., Any]:
        _LIBRARY.define(schema)
        for key in ("CPU", "CUDA"):
            _LIBRARY.impl(name, implementation, key)
        torch.library.register_fake(f"muomni::{name}", fake, lib=_LIBRARY)
        node = getattr(torch.ops.muomni, name).default

        @functools.wraps(implementation)
        def call(*arguments: Any) -> Any:
            if torch.compiler.is_compiling() or (opaque and is_in_torch_dispatch_mode()):
                return node(*arguments)
            return implementation(*arguments)

        return call

    return define
