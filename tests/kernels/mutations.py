"""Do the tests of the kernels notice a fault? python tests/kernels/mutations.py [op ...]

Each mutant is one deliberate fault: a skipped term, a wrong sign, a wrong bound, a lost part of a sum. It is made in
a copy of the package and the op's cases must then fail, in Triton's interpreter, so no GPU is needed. An unchanged
copy must pass them first. Prints a table; ends with 1 if a mutant survives or a fault cannot be made, because its
text is not in the file exactly once. Not collected by pytest: it takes minutes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parents[1]
PACKAGE = ROOT / "kernels" / "muomni_kernels"
SECONDS = 300
"""Longest run of one op's cases; a fault that hangs the kernel is found too."""


class Suite(NamedTuple):
    """The cases of an op."""

    file: str
    keyword: str
    """As pytest's -k; "" for all."""


SUITES = {
    "rms_norm": Suite("cases_rowwise.py", "test_rms_norm"),
    "add_rms_norm": Suite("cases_rowwise.py", "test_add_rms_norm"),
    "rope": Suite("cases_rowwise.py", "test_rope"),
    "qk_norm_rope": Suite("cases_rowwise.py", "test_qk_norm_rope"),
    "swiglu": Suite("cases_rowwise.py", "test_swiglu"),
    "linear_cross_entropy": Suite("cases_head.py", ""),
    "vq_nearest": Suite("cases_vq.py", ""),
    "mel_downsample": Suite("cases_mel.py", "not compiled and not sound"),
    "attention": Suite("test_attention.py", "not decod"),
    "attention_decode": Suite("test_attention.py", "decod"),
}


class Mutant(NamedTuple):
    """One fault."""

    op: str
    fault: str
    file: str
    old: str
    new: str


MUTANTS = [
    Mutant(
        "rms_norm", "mean over the padded width", "triton_rms_norm.py",
        "tl.sum(s * s, axis=1) / N + EPS", "tl.sum(s * s, axis=1) / BLOCK + EPS",
    ),
    Mutant(
        "rms_norm", "padding is not zero", "triton_rms_norm.py",
        "s = tl.load(x_ptr + at, mask=inside, other=0.0)", "s = tl.load(x_ptr + at, mask=inside, other=1.0)",
    ),
    Mutant(
        "rms_norm", "gradient without the mean", "triton_rms_norm.py",
        "rstd[:, None] * (g - h * mean[:, None])", "rstd[:, None] * g",
    ),
    Mutant("rms_norm", "dw of the last tile only", "triton_rms_norm.py", "dw += dy * h", "dw = dy * h"),
    Mutant("rms_norm", "dw without the norm", "triton_rms_norm.py", "dw += dy * h", "dw += dy * s"),
    Mutant(
        "add_rms_norm", "residual subtracted", "triton_rms_norm.py",
        "s += tl.load(residual_ptr + at", "s -= tl.load(residual_ptr + at",
    ),
    Mutant(
        "add_rms_norm", "residual's gradient dropped", "triton_rms_norm.py",
        "ds += tl.load(d_residual_ptr + at, mask=inside, other=0.0)",
        "ds += 0.0 * tl.load(d_residual_ptr + at, mask=inside, other=0.0)",
    ),
    Mutant(
        "rope", "backward turns forward", "triton_rope.py",
        "s = tl.load(sin_ptr + angle_at, mask=inside, other=0.0) * SIGN",
        "s = tl.load(sin_ptr + angle_at, mask=inside, other=0.0)",
    ),
    Mutant("rope", "wrong sign of the second half", "triton_rope.py", "(b * c + a * s)", "(b * c - a * s)"),
    Mutant("rope", "another token's angles", "triton_rope.py", "(rows // n_heads)", "(rows // (n_heads + 1))"),
    Mutant("rope", "rest one short", "triton_rope.py", "(tail < D)", "(tail < D - 1)"),
    Mutant(
        "qk_norm_rope", "v copied from k", "triton_qk_norm_rope.py",
        "a, b = _halves(qkv_ptr, at + (HEADS + KV_HEADS + head) * D, inside, HALF)",
        "a, b = _halves(qkv_ptr, at + (HEADS + head) * D, inside, HALF)",
    ),
    Mutant(
        "qk_norm_rope", "backward turns forward", "triton_qk_norm_rope.py",
        "da, db = da * c + db * s, db * c - da * s", "da, db = da * c - db * s, db * c + da * s",
    ),
    Mutant(
        "qk_norm_rope", "mean over one half", "triton_qk_norm_rope.py",
        "tl.sum(dw_a * w_a + dw_b * w_b, axis=1)", "tl.sum(dw_a * w_a, axis=1)",
    ),
    Mutant(
        "qk_norm_rope", "dw of the last head only", "triton_qk_norm_rope.py", "dw_kb += dw_b", "dw_kb = dw_b"
    ),
    Mutant("swiglu", "wrong sign in the gate's gradient", "triton_swiglu.py",
           "(1.0 + g * (1.0 - s))", "(1.0 - g * (1.0 - s))"),
    Mutant("swiglu", "sigmoid of -gate", "triton_swiglu.py", "y = g / (1.0 + tl.exp(-g))", "y = g / (1.0 + tl.exp(g))"),
    Mutant("swiglu", "sigmoid missing in d_up", "triton_swiglu.py", "(dy * g * s)", "(dy * g)"),
    Mutant("swiglu", "up one to the left", "triton_swiglu.py",
           "u = tl.load(source + F,", "u = tl.load(source + F - 1,"),
    Mutant(
        "linear_cross_entropy", "label not smoothed", "triton_cross_entropy.py",
        "tl.where(cols[None, :] == y[:, None], 1.0 - SMOOTHING, 0.0)",
        "tl.where(cols[None, :] == y[:, None], 1.0, 0.0)",
    ),
    Mutant(
        "linear_cross_entropy", "half the z-loss's gradient", "triton_cross_entropy.py",
        "(1.0 + 2.0 * Z_LOSS * lse)", "(1.0 + Z_LOSS * lse)",
    ),
    Mutant("linear_cross_entropy", "gradient past the soft cap", "triton_cross_entropy.py",
           "dz *= 1.0 - t * t", "dz *= 1.0"),
    Mutant(
        "linear_cross_entropy", "padding counts as logits", "triton_cross_entropy.py",
        'return tl.where((cols < V)[None, :], z, float("-inf"))', "return z",
    ),
    Mutant(
        "linear_cross_entropy", "sum not scaled to a new maximum", "triton_cross_entropy.py",
        "scaled = scaled * tl.exp(largest - base) +", "scaled = scaled +",
    ),
    Mutant("linear_cross_entropy", "a tie goes to the later class", "triton_cross_entropy.py",
           "(cols[None, :] >= y[:, None])", "(cols[None, :] <= y[:, None])"),
    Mutant("linear_cross_entropy", "NaN is behind the label", "triton_cross_entropy.py",
           "ahead = ~behind", "ahead = (z > z_y[:, None]) | ((z == z_y[:, None]) & (cols[None, :] < y[:, None]))"),
    Mutant("mel_downsample", "frames past the end", "triton_mel.py", "tl.minimum(end, n_frames)", "end"),
    Mutant("linear_cross_entropy", "ignored rows have gradients", "triton_cross_entropy.py",
           "return tl.where(counts[:, None], dz * sound[:, None], 0.0)", "return dz * sound[:, None]"),
    Mutant("linear_cross_entropy", "dW of the last chunk only", "head_chunks.py",
           "dw = _add_product(dw,", "dw = _add_product(None,"),
    Mutant("vq_nearest", "norm not doubled against the product", "triton_vq.py",
           "norm[None, :] - 2.0 * dots", "norm[None, :] - dots"),
    Mutant("vq_nearest", "a tie goes to the later block", "triton_vq.py", "low < best, at", "low <= best, at"),
    Mutant("vq_nearest", "residual never taken down", "triton_vq.py",
           "other=0.0) - word, mask=inside", "other=0.0), mask=inside"),
    Mutant("vq_nearest", "words past the end compete", "triton_vq.py",
           'mask=words < S, other=float("inf")', 'mask=words < S, other=0.0'),
    Mutant("vq_nearest", "sum of the last word only", "triton_vq.py",
           "tl.load(total_ptr + at, mask=inside, other=0.0) + word", "word"),
    Mutant("vq_nearest", "gradient of every level to the first", "quantise.py",
           "d_books[level].index_add_", "d_books[0].index_add_"),
    Mutant("mel_downsample", "mean over frames that are not there", "triton_mel.py",
           "value /= tl.maximum(tl.minimum(end - first, FACTOR), 1)", "value /= tl.maximum(end * 0 + FACTOR, 1)"),
    Mutant("mel_downsample", "max's gradient to the last holder", "triton_mel.py", "(x > best)", "(x >= best)"),
    Mutant("mel_downsample", "clip before its first row", "triton_mel.py",
           "tl.load(cu_rows_ptr + middle) <= rows", "tl.load(cu_rows_ptr + middle) < rows"),
    Mutant("mel_downsample", "windows see the clip before", "triton_mel.py",
           "there &= (at >= begin) & (first < end)", "there &= first < end"),
    Mutant("mel_downsample", "windows of the row before give nothing", "triton_mel.py",
           "range(low, high + 1)", "range(tl.maximum(low, 0), high + 1)"),
    Mutant("mel_downsample", "gradients past the last row lost", "triton_mel.py",
           "n_rows + BEYOND, n_clips", "n_rows, n_clips"),
    Mutant("mel_downsample", "copies of the first frame give nothing", "triton_mel.py",
           "((first + j) == begin)[:, None], head, 0.0)", "((first + j) == begin)[:, None], 0.0, 0.0)"),
    Mutant("mel_downsample", "copies of the last frame count once more", "triton_mel.py",
           "(i - LEAD) >= end)", "(i - LEAD) >= end - 1)"),
    Mutant("mel_downsample", "padding behind a clip is its own", "triton_mel.py",
           "clips_ptr + low * STRIDE + 1", "clips_ptr + low * STRIDE + STRIDE"),
    Mutant("mel_downsample", "mean's gradient not divided", "triton_mel.py",
           "dy /= tl.maximum(tl.minimum(end - first, FACTOR), 1).to(tl.float32)[:, None]", "dy += 0.0"),
    Mutant("attention", "window one wider", "attend_chunked.py", "position - window + 1", "position - window"),
    Mutant("attention", "chunk's last key lost", "attend_chunked.py",
           "int(starts[begin]), int(ends[end - 1])", "int(starts[begin]), int(ends[end - 1]) - 1"),
    Mutant("attention", "sees one row ahead", "attend_sdpa.py", "(before >= 0)", "(before >= -1)"),
    Mutant("attention", "sees documents before", "attend_sdpa.py",
           "document[:, None] == document[None, :]", "document[:, None] >= document[None, :]"),
    Mutant("attention", "rows of no document kept", "attend_sdpa.py",
           "torch.where(inside[:, None, None], out, 0.0)", "out"),
    Mutant("attention", "window one wider for flash", "attend_flash.py", "else window - 1", "else window"),
    Mutant("attention", "always causal for flash", "attend_flash.py", "0 if causal else reach", "0"),
    Mutant("attention", "unwritten gradients kept", "attend_flash.py",
           "*(torch.where(inside, grad, 0.0) for grad in grads)", "*grads"),
    Mutant("attention", "heads paired with other keys", "attend_chunked.py",
           "q.view(n, n_queries, kv_heads, groups, d).permute(0, 2, 3, 1, 4)",
           "q.view(n, n_queries, groups, kv_heads, d).permute(0, 3, 2, 1, 4)"),
    Mutant("attention_decode", "window one narrower", "attend_sdpa.py",
           "key >= limit - window", "key > limit - window"),
    Mutant("attention_decode", "one key past the length", "attend_sdpa.py",
           "seen = key < limit", "seen = key <= limit"),
    Mutant("attention_decode", "keys of shorter rows cut off", "attend_sdpa.py",
           "shortest - n_queries + 1 - window", "longest - n_queries + 1 - window"),
]  # fmt: skip


class CannotJudge(RuntimeError):
    """A fault cannot be made, or the cases do not pass without one."""


def _run(suite: Suite, packages: Path) -> int:
    """pytest's exit code on the cases, with the package found under `packages`."""
    path = os.pathsep.join(map(str, (packages, ROOT)))
    env = {
        **os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", str(TESTS / suite.file)]
    done = subprocess.run(
        command + (["-k", suite.keyword] if suite.keyword else []),
        capture_output=True, env=env, cwd=ROOT, timeout=SECONDS, check=False,
    )  # fmt: skip
    return done.returncode


def _copy(directory: Path) -> Path:
    packages = directory / "kernels"
    shutil.copytree(PACKAGE, packages / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    return packages


def check_baseline(op: str) -> None:
    """Raises CannotJudge unless the op's cases pass on an unchanged copy."""
    with tempfile.TemporaryDirectory() as directory:
        code = _run(SUITES[op], _copy(Path(directory)))
    if code:
        raise CannotJudge(f"{op}: its cases do not pass without a fault (pytest ended with {code}).")


def survives(mutant: Mutant) -> bool:
    """Whether the op's cases pass in spite of the fault. Raises CannotJudge when they do not even start."""
    with tempfile.TemporaryDirectory() as directory:
        packages = _copy(Path(directory))
        file = packages / PACKAGE.name / mutant.file
        source = file.read_text(encoding="utf-8")
        if (found := source.count(mutant.old)) != 1:
            raise CannotJudge(f"{mutant.file}: expected {mutant.old!r} once, found it {found} times.")
        file.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
        try:
            code = _run(SUITES[mutant.op], packages)
        except subprocess.TimeoutExpired:
            return False
    # 1: a test failed. Below zero: a signal, as when a kernel writes where it must not.
    if code > 1:
        raise CannotJudge(f"{mutant.op}, {mutant.fault}: pytest ended with {code}, no test was judged.")
    return code == 0


def main() -> int:
    """The command; gives its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("op", nargs="*", choices=[*SUITES, []], help="default: all")
    ops = parser.parse_args().op or list(SUITES)
    bad = 0
    for op in ops:
        mutants = [mutant for mutant in MUTANTS if mutant.op == op]
        try:
            check_baseline(op)
        except CannotJudge as error:
            print(f"ERROR     {error}", flush=True)
            bad += 1
            continue
        for mutant in mutants:
            try:
                verdict = "SURVIVED" if survives(mutant) else "killed"
            except CannotJudge as error:
                verdict = f"ERROR     {error}\n         "
            bad += verdict != "killed"
            print(f"{verdict:9} {op:22} {mutant.fault}", flush=True)
    print(f"{bad} of {sum(mutant.op in ops for mutant in MUTANTS)} not killed" if bad else "all killed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
