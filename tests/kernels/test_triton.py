"""Triton kernels are right in the interpreter, and on a GPU where there is one."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from muomni_kernels import triton_support

pytest.importorskip("triton", reason="triton is not installed")

CASES = sorted(Path(__file__).parent.glob("cases_*.py"))


def _run_cases(**environment: str) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "--tb=short",
        "-p",
        "no:cacheprovider",
        *map(str, CASES),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=CASES[0].parents[2])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) >= 100


def test_kernels_are_right_in_the_interpreter() -> None:
    _run_cases(TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_are_right_on_the_gpu() -> None:
    _run_cases()


class Elsewhere:
    """As much of a tensor on a second GPU as `launch` looks at."""

    is_cuda = True
    device = torch.device("cuda", 1)


def test_a_kernel_starts_on_the_device_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    current = [0]

    @contextmanager
    def device(wanted: torch.device) -> Iterator[None]:
        before, current[0] = current[0], wanted.index
        yield
        current[0] = before

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *arguments, **options: started.append((grid, current[0], arguments[1:], options))

    started: list[tuple[object, ...]] = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "device", device)
    triton_support.launch(Kernel(), (3,), Elsewhere(), 7, N=2, num_warps=8)
    assert started == [((3,), 1, (7,), {"N": 2, "num_warps": 8, "enable_fp_fusion": True})]
    assert current == [0]
