"""Ahead-of-time gate: every Triton variant the models can launch, compiled for five GPU targets, without a GPU.

`python -m benchmarks.ahead` compiles and writes docs/kernel_variants.md; with --check it compares and fails on drift.
A variant passes with no stack or local memory, no fp64 instruction, at most 99 KiB of shared memory where that is all
there is, and most bytes of its global loads and stores in 128-bit accesses. The variants are recorded, not listed: the
ops' own launch code runs on meta tensors for every part of every size in muomni/recipes.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from muomni_kernels import triton_support

from benchmarks.variants import Variant, model_variants

TARGETS = (80, 86, 89, 90, 120)
SHARED_LIMIT = {86: 101_376, 89: 101_376, 120: 101_376}
"""Bytes of shared memory a block may have: 99 KiB on the consumer cards."""
WIDE_SHARE = 0.5
TABLE = Path("docs/kernel_variants.md")

POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}
OPTION_NAMES = ("num_warps", "num_stages", "enable_fp_fusion", "maxnreg")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resources:
    """What one compiled variant takes on one target."""

    registers: int
    shared: int
    """Bytes a block."""
    stack: int
    local: int
    """Bytes a thread."""
    doubles: int
    """fp64 instructions."""
    wide: float
    """Share of the bytes of global loads and stores that go in accesses of 128 bits or more, by instruction."""

    def faults(self, target: int) -> list[str]:
        """What the gate has against it."""
        found = []
        if self.stack or self.local:
            found.append(f"spills: {self.stack} B of stack, {self.local} B of local memory")
        if self.doubles:
            found.append(f"{self.doubles} fp64 instructions")
        if self.shared > SHARED_LIMIT.get(target, 166_912):
            found.append(f"{self.shared} B of shared memory")
        if self.wide < WIDE_SHARE:
            found.append(f"only {self.wide:.0%} of the bytes in accesses of 128 bits")
        return found


def _signature(launch: triton_support.Launch) -> tuple[dict[str, str], dict[tuple[int], Any], dict[str, Any]]:
    """Types, alignment and compile-time values of a launch, as Triton's just-in-time path would choose them."""
    names = launch.kernel.arg_names
    types: dict[str, str] = {}
    attributes: dict[tuple[int], Any] = {}
    constants = {name: value for name, value in launch.constants.items() if name not in OPTION_NAMES}
    for i, (name, value) in enumerate(zip(names, launch.arguments, strict=False)):
        if isinstance(value, torch.Tensor):
            types[name] = POINTERS[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, int):
            types[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            raise TypeError(
                f"{name}: expected a tensor or an integer argument, got {value!r}; make it constexpr."
            )
    for name in names[len(launch.arguments) :]:
        types[name] = "constexpr"
    return types, attributes, constants


def _tool(name: str) -> str:
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _inspect(cubin: bytes, shared: int) -> Resources:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage, sass = (
            subprocess.run(
                [_tool(tool), *flags, str(path)], capture_output=True, text=True, check=True
            ).stdout
            # Without data flow: a quarter of the time goes into the labels of jumps, which nothing here reads.
            for tool, flags in (("cuobjdump", ["-res-usage"]), ("nvdisasm", ["-c", "-ndf"]))
        )
    registers, stack, local = (
        int(found.group(1))
        for word in ("REG", "STACK", "LOCAL")
        if (found := re.search(rf"{word}:(\d+)", usage))
    )
    widths: Counter[int] = Counter()
    for suffix in re.findall(r"\b(?:LDG|STG|LDGSTS)\.E((?:\.\w+)*)", sass):
        bits = re.search(r"\.(256|128|64|U16|S16|U8|S8|16|8)\b", suffix)
        width = {"U16": 16, "S16": 16, "U8": 8, "S8": 8}.get(bits.group(1)) if bits else 32
        widths[width or int(bits.group(1) if bits else 32)] += 1
    total = sum(width * count for width, count in widths.items())
    if re.search(r"\b(LDL|STL)\b", sass):
        local = max(local, 1)
    return Resources(
        registers=registers,
        shared=shared,
        stack=stack,
        local=local,
        doubles=len(re.findall(r"\bD(?:ADD|MUL|FMA|SETP|MNMX)\b|\.F64\b", sass)),
        wide=(128 * widths[128] + 256 * widths[256]) / total if total else 0.0,
    )


def compile_variant(variant: Variant, target: int) -> Resources:
    """Compile one variant for one target (compute capability times ten) and read what it takes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    launch = variant.launch
    types, attributes, constants = _signature(launch)
    options = {**triton_support.OPTIONS, **launch.constants}
    source = ASTSource(launch.kernel, types, constexprs=constants, attrs=attributes)
    compiled: Any = triton.compile(
        source,
        target=GPUTarget("cuda", target, 32),
        options={name: options[name] for name in OPTION_NAMES if name in options},
    )
    return _inspect(compiled.asm["cubin"], compiled.metadata.shared)


def _work(job: tuple[int, int]) -> Resources:
    return compile_variant(_VARIANTS[job[0]], job[1])


_VARIANTS: list[Variant] = []


def measure(only: str = "") -> Iterator[tuple[Variant, int, Resources]]:
    """Every variant whose name holds `only`, on every target."""
    _VARIANTS[:] = [v for v in model_variants() if only in v.name]
    jobs = [(i, target) for i in range(len(_VARIANTS)) for target in TARGETS]
    # Forked after torch and the variants are there; each worker compiles on one thread.
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        for (i, target), found in zip(jobs, pool.map(_work, jobs, chunksize=len(TARGETS)), strict=True):
            yield _VARIANTS[i], target, found


def table(rows: list[tuple[Variant, int, Resources]]) -> str:
    """The committed page: a line a variant, the worst target named where targets differ."""
    import triton

    lines = [
        "# Kernel variants",
        "",
        "Generated by `python -m benchmarks.ahead`; `tests/kernels/test_ahead.py` compares. Every Triton variant",
        f"that the models of muomni/recipes.py can launch, compiled with Triton {triton.__version__} for sm_"
        + ", ".join(map(str, TARGETS))
        + ".",
        "None uses stack or local memory or fp64. Shared memory in bytes a block; wide: share of the bytes of global",
        "loads and stores that go in accesses of 128 bits or more, by instruction. Registers and shared memory in the",
        "order of the targets.",
        "",
        "| kernel | variant | warps | registers | shared memory | wide, least |",
        "|---|---|---|---|---|---|",
    ]
    by_variant: dict[Variant, list[Resources]] = {}
    for variant, _, found in rows:
        by_variant.setdefault(variant, []).append(found)
    for variant, found in by_variant.items():
        shared = sorted({r.shared for r in found})
        lines.append(
            f"| `{variant.kernel}` | {variant.name.partition(' ')[2]} | {variant.n_warps} | "
            f"{' '.join(str(r.registers) for r in found)} | "
            f"{shared[0] if len(shared) == 1 else ' '.join(str(r.shared) for r in found)} | "
            f"{min(r.wide for r in found):.0%} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Compile, report faults, write or compare the table. Returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help=f"compare with {TABLE} instead of writing it")
    parser.add_argument("--only", default="", help="variants whose name holds this text; nothing is written")
    options = parser.parse_args()
    os.environ.setdefault("TRITON_CACHE_DIR", tempfile.mkdtemp(prefix="muomni-triton-"))
    rows, faults = [], []
    for variant, target, found in measure(options.only):
        rows.append((variant, target, found))
        faults += [f"{variant.name} on sm_{target}: {fault}" for fault in found.faults(target)]
        if options.only:
            print(f"{variant.name:<90} sm_{target:<4} {found}")
    print(f"{len(rows)} kernels compiled, {len(faults)} faults", *faults, sep="\n")
    if options.only or faults:
        return 1 if faults else 0
    text = table(rows)
    if not options.check:
        TABLE.write_text(text)
    elif TABLE.read_text() != text:
        print(f"{TABLE} differs from what was compiled; run `python -m benchmarks.ahead` and commit it.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
