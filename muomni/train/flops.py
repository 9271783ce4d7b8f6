"""The FLOPs of a training step, counted once, and the device's rate at them, measured: their ratio is the MFU."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from muomni.data.batch import to_device
from muomni.models.flops import Flops, counting
from muomni.train.stage import Stage

GEMM_SIZE = {"cpu": 768, "cuda": 4096}
"""Rows and columns of the measured product."""
GEMM_SECONDS = 0.12
"""How long products are timed, at least three of them."""


def count(stage: Stage, model: nn.Module, batch: Any, *, half: bool = False) -> Flops:
    """FLOPs of all phases' losses and their gradients on one micro-batch, from one forward; no gradient is computed.

    batch: on any device. half: the forward runs under bf16 autocast. Padded positions count as all others: the fill
    rate says how many they are; for the rest see `models.flops.counting`.
    Parameters, their `.grad`, buffers and generators stay as they are; reads the device.
    """
    device = next(model.parameters()).device
    batch = to_device(batch, device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=half)
    with _untouched(model, device), autocast, counting(model) as counter:
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
