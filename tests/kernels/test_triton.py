"""Triton kernels: right in the interpreter; compiled ahead of time for four GPUs without spills or fp64."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from muomni_kernels import triton_support

triton = pytest.importorskip("triton", reason="triton is not installed")

CASES = Path(__file__).with_name("cases_triton.py")


def _run_cases(**environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=short", "-p", "no:cacheprovider", str(CASES)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=CASES.parents[2])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) >= 30


def test_kernels_are_right_in_the_interpreter() -> None:
    _run_cases(TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_are_right_on_the_gpu() -> None:
    _run_cases()


# kernel -> (module, pointer dtypes and integer arguments); bf16 as in training on a GPU
KERNELS: dict[str, tuple[str, dict[str, str]]] = {
    "rms_norm_forward_kernel": (
        "triton_rms_norm",
        {"x_ptr": "*bf16", "w_ptr": "*bf16", "y_ptr": "*bf16", "rstd_ptr": "*fp32", "n_rows": "i32"},
    ),
    "rms_norm_backward_kernel": (
        "triton_rms_norm",
        {
            **dict.fromkeys(("dy_ptr", "x_ptr", "w_ptr"), "*bf16"),
            "rstd_ptr": "*fp32",
            "dx_ptr": "*bf16",
            "partial_ptr": "*fp32",
            "n_rows": "i32",
        },
    ),
    "rope_kernel": (
        "triton_rope",
        {
            "x_ptr": "*bf16",
            "cos_ptr": "*fp32",
            "sin_ptr": "*fp32",
            "y_ptr": "*bf16",
            "n_rows": "i32",
            "n_heads": "i32",
        },
    ),
    "swiglu_forward_kernel": ("triton_swiglu", {"x_ptr": "*bf16", "y_ptr": "*bf16", "n_rows": "i32"}),
    "swiglu_backward_kernel": (
        "triton_swiglu",
        {"dy_ptr": "*bf16", "x_ptr": "*bf16", "dx_ptr": "*bf16", "n_rows": "i32"},
    ),
}


def _constants(name: str, width: int) -> dict[str, float | int]:
    """The constexpr arguments of a launch: d_model for RMSNorm, head_dim for RoPE, d_ff for SwiGLU."""
    if name == "rope_kernel":
        rows, half = triton_support.rows_per_tile(width), width // 2
        return {"D": width, "HALF": half, "SIGN": 1.0, "ROWS": rows, "BLOCK": half, "REST": 1}
    if name.startswith("swiglu"):
        rows, columns = importlib.import_module("muomni_kernels.triton_swiglu").tile(width)
        return {"F": width, "ROWS": rows, "BLOCK": columns}
    block = triton_support.next_power_of_two(width)
    tile = {"N": width, "ROWS": triton_support.rows_per_tile(width), "BLOCK": block}
    return tile if "backward" in name else {**tile, "EPS": 1e-6}


# Widths of the sizes in muomni/recipes.py; 32 is QK-norm's.
WIDTHS = {"rms_norm": (32, 128, 192, 256, 384, 512), "rope": (32, 64), "swiglu": (768,)}
COMPILED = [
    (name, width)
    for name in KERNELS
    for op, widths in WIDTHS.items()
    if name.startswith(op)
    for width in widths
]


def _resources(cubin: bytes, folder: Path) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        pytest.skip(f"this triton wheel brings no cuobjdump ({tool})")
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    return subprocess.run(
        [str(tool), "-res-usage", str(path)], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize(("name", "width"), COMPILED)
@pytest.mark.parametrize("capability", [86, 89, 90, 120])
def test_kernel_compiles_without_spills_or_double_precision(
    capability: int, name: str, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    module, arguments = KERNELS[name]
    function = getattr(importlib.import_module(f"muomni_kernels.{module}"), name)
    signature = {p: arguments.get(p, "constexpr") for p in function.arg_names}
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, p in enumerate(function.arg_names)
        if arguments.get(p, "").startswith("*")
    }
    source = ASTSource(function, signature, constexprs=_constants(name, width), attrs=attributes)
    compiled = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options=triton_support.OPTIONS
    )
    ptx = compiled.asm["ptx"]
    assert not re.search(r"\.f64\b", ptx), "double precision crept in"
    usage = _resources(compiled.asm["cubin"], tmp_path)
    stack, local = (int(re.search(rf"{word}:(\d+)", usage).group(1)) for word in ("STACK", "LOCAL"))
    assert (stack, local) == (0, 0), usage
    assert re.search(r"ld\.global[.\w:]*\.v[248]\.b(16|32|64)", ptx), "loads are wide"
