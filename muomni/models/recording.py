"""Work on tensors at fixed addresses, recorded once and replayed: a CUDA graph leaves the host nothing to launch."""

from __future__ import annotations

from collections.abc import Callable

import torch

Record = Callable[[Callable[[], None]], Callable[[], None]]
"""Called as record(work): runs the work a few times, keeps what it did on the device, and returns its replay."""

WARM_UP = 3
"""Runs before a capture, in which libraries and the allocator settle."""


def cuda_record() -> Record:
    """Records into CUDA graphs that share one pool of memory."""
    pool = torch.cuda.graph_pool_handle()

    def record(work: Callable[[], None]) -> Callable[[], None]:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                work()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        try:
            # Thread-local: the thread that pins the next batches' memory is none of the capture's.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                work()
        except RuntimeError as error:
            # Ending the broken capture raises on top of what broke it.
            if isinstance(error.__context__, torch.OutOfMemoryError):
                raise error.__context__ from None
            raise
        return graph.replay

    return record
