"""The front end's threads beside others: DataLoader workers, forked children, threads of Python."""

import operator
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest
import torch
from muomni_kernels import cpp, log_mel, log_mel_downsample
from torch.utils.data import DataLoader

native = cpp.extension()
pytestmark = [
    pytest.mark.skipif(native is None, reason=cpp.available() or ""),
    # What Python warns of, a fork beside running threads, is what is tested.
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]
TIMEOUT = 120  # seconds: a hang fails


def calls(n: int) -> list[partial[torch.Tensor]]:
    """n calls of four seconds, enough for two threads each, some of either op; picklable by the package's names."""
    generator = np.random.default_rng(0)
    waves = [generator.standard_normal(64_000 + 37 * i, np.float32) * np.float32(0.1) for i in range(n)]
    return [
        partial(log_mel, wave, n_threads=2) if i % 2 else partial(log_mel_downsample, wave, n_threads=2)
        for i, wave in enumerate(waves)
    ]


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_data_loader_workers_equal_the_parent_that_computes_too(start_method: str) -> None:
    jobs = calls(12)
    expected = [job() for job in jobs]
    loader = DataLoader(
        jobs,  # pyright: ignore[reportArgumentType]
        batch_size=None, collate_fn=operator.call, num_workers=2, multiprocessing_context=start_method,
        timeout=TIMEOUT,
    )  # fmt: skip
    n_found = 0
    for found, again, one in zip(loader, jobs, expected, strict=True):
        assert torch.equal(found, one)
        assert torch.equal(again(), one)
        n_found += 1
    assert n_found == len(jobs)


FORK = f"""
import os, signal, sys, threading
import numpy as np, torch
from muomni_kernels import log_mel, log_mel_downsample

wave = np.random.default_rng(0).standard_normal(80_000, np.float32)
expected = log_mel(wave, n_threads=2), log_mel_downsample(wave, n_threads=2)
stop = threading.Event()

def work():
    while not stop.is_set():
        log_mel(wave, n_threads=2)

busy = threading.Thread(target=work)
busy.start()
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        break
    children.append(child)
signal.alarm({TIMEOUT})  # ends a process that hangs, the child too: it does not inherit its parent's
for _ in range(3):
    assert torch.equal(log_mel(wave, n_threads=2), expected[0])
    assert torch.equal(log_mel_downsample(wave, n_threads=2), expected[1])
if child == 0:
    sys.exit(0)
stop.set()
busy.join()
statuses = [os.waitpid(child, 0)[1] for child in children]
sys.exit(any(statuses))
"""


def test_children_forked_in_the_middle_of_a_call_compute_and_exit() -> None:
    # An interpreter of its own: the children leave through its exit, which ends what the extension holds.
    script = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK]
    subprocess.run(script, check=True, timeout=2 * TIMEOUT)


def test_threads_of_python_compute_at_the_same_time() -> None:
    jobs = calls(6)
    expected = [job() for job in jobs]
    found: dict[tuple[int, int], torch.Tensor] = {}

    def work(thread: int) -> None:
        for i, job in enumerate(jobs):
            found[thread, i] = job()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert len(found) == 24
    assert all(torch.equal(rows, expected[i]) for (_, i), rows in found.items())


@pytest.mark.parametrize("n_threads", [1, 2])
def test_the_interpreter_runs_on_during_a_call(n_threads: int) -> None:
    n_fft = 2 * 8_191  # a prime's transform is a direct sum: one frame takes long
    tables = native.MelTables(np.ones(n_fft, np.float32), np.ones((1, n_fft // 2 + 1), np.float32))
    waveform, offsets, out = np.ones(n_fft, np.float32), np.array([0, 1]), np.zeros((1, 1), np.float32)
    finished = []
    cu_samples = offsets * n_fft
    settings = {"hop_length": n_fft, "padding": "causal", "log": "ln", "floor": 1e-10, "simd": ""}

    def work() -> None:
        native.log_mel(tables, waveform, cu_samples, offsets, out, n_threads=n_threads, **settings)
        finished.append(True)

    interval = sys.getswitchinterval()
    # No thread is made to yield: this one goes on before the other has finished only if the call lets it.
    sys.setswitchinterval(1_000.0)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        was_finished = bool(finished)
    finally:
        sys.setswitchinterval(interval)
    thread.join(TIMEOUT)
    assert finished and not was_finished
