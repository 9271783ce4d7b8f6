"""The summary of a run: every op against its fastest baseline, the targets, one plot an op."""

from __future__ import annotations

import html
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import AGAIN, infer_report, train_report
from muomni.plot import line_plot

Row = dict[str, Any]

OURS = ("triton", "flash", "varlen", "sdpa", "chunked", "cpp")
"""Backends that count as ours, the first that was timed; the others of a case are what it must beat."""
COMPILED = ("compile", "compile-max-autotune")

COPY_TARGETS: dict[str, dict[str, tuple[float, float]]] = {
    "rms_norm": {"forward": (0.96, 0.90), "backward": (0.90, 0.80)},
    "add_rms_norm": {"forward": (0.95, 0.90), "backward": (0.88, 0.80)},
    "qk_norm_rope": {"forward": (0.92, 0.85), "backward": (0.85, 0.75)},
    "swiglu": {"forward": (0.96, 0.94), "backward": (0.92, 0.90)},
}
"""Share of a same-bytes copy to reach: tensors of 256 MB and more, and 16,384 rows of the model."""
LARGE = 256 * 2**20
YARDSTICK_TARGETS: dict[str, tuple[str, str, float]] = {
    "linear_cross_entropy": ("both", "three products", 1 / 1.35),
    "vq_nearest": ("forward", "distance products", 0.7),
}
"""Pass, matrix products an op cannot do without, and the share of their speed to reach (1 / 1.8 on an H200)."""
HOST_TARGETS = {"forward": 25.0, "backward": 40.0}
"""Microseconds of host time an op."""
GEOMEAN_TARGETS = {"liger": 1.5, "torch.compile": 1.15}
FLOOR = 0.97
"""Never slower than the fastest baseline by more than this factor, on any shape."""


def fmt(value: float | None, digits: int = 2) -> str:
    """A number for a table."""
    return "-" if value is None else f"{value:.{digits}f}"


def geomean(values: list[float]) -> float | None:
    """Of positive numbers; None of none."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def timed(rows: list[Row]) -> dict[tuple[str, str, str, str], dict[str, Row]]:
    """(op, variant, dtype, pass) -> contender -> row, of the kernel rows that were timed."""
    found: dict[tuple[str, str, str, str], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if row["status"] in ("ok", "yardstick") and row["op"] not in (
            "train_step",
            "loss_pair",
            "train",
            "infer",
        ):
            found[row["op"], row["variant"], row["dtype"], row["pass"]][row["contender"]] = row
    return found


def ours(contenders: dict[str, Row]) -> str | None:
    """The name of our backend in a case."""
    return next((name for name in OURS if name in contenders), None)


def _is_baseline(name: str, row: Row, own: str) -> bool:
    return name != own and not name.endswith(AGAIN) and row["status"] == "ok"


def speedups(contenders: dict[str, Row]) -> dict[str, float]:
    """How many times faster ours is than each baseline, "torch.compile" (its better mode) and the "fastest"."""
    own = ours(contenders)
    if own is None:
        return {}
    base = contenders[own]["p50"]
    found = {n: r["p50"] / base for n, r in contenders.items() if _is_baseline(n, r, own)}
    modes = [found[name] for name in COMPILED if name in found]
    if modes:
        found["torch.compile"] = min(modes)
    if found:
        found["fastest"] = min(found.values())
    return found


def spread(contenders: dict[str, Row]) -> float | None:
    """Relative difference of the two timings of the same version."""
    own = ours(contenders)
    again = contenders.get(f"{own}{AGAIN}")
    return abs(again["p50"] / contenders[own]["p50"] - 1.0) if own and again else None


def _op_table(rows: list[Row]) -> Iterator[str]:
    groups: dict[tuple[str, str], list[tuple[str, dict[str, Row]]]] = defaultdict(list)
    for (op, variant, dtype, stage), contenders in timed(rows).items():
        groups[op, stage].append((f"{variant} {dtype}", contenders))
    columns = ("op", "pass", "ours", "shapes", "vs fastest", "vs torch.compile", "vs Liger", "vs reference")
    columns = (*columns, "worst shape", "noise")
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for (op, stage), cases in groups.items():
        found = [(name, speedups(contenders)) for name, contenders in cases]
        found = [(name, values) for name, values in found if values]
        if not found:
            continue
        means = {
            key: geomean([values[key] for _, values in found if key in values])
            for key in ("fastest", "torch.compile", "liger", "reference")
        }
        worst, values = min(found, key=lambda entry: entry[1]["fastest"])
        noise = max((s for _, contenders in cases if (s := spread(contenders)) is not None), default=None)
        names = sorted({own for _, contenders in cases if (own := ours(contenders))})
        yield (
            f"| {op} | {stage} | {', '.join(names)} | {len(found)} | {fmt(means['fastest'])} | "
            f"{fmt(means['torch.compile'])} | {fmt(means['liger'])} | {fmt(means['reference'])} | "
            f"{worst}: {values['fastest']:.2f} | {'-' if noise is None else f'{noise:.1%}'} |"
        )


def _verdict(name: str, value: float | None, target: float, *, at_least: bool = True) -> str:
    if value is None:
        return f"| {name} | {target:g} | - | not measured |"
    met = value >= target if at_least else value <= target
    return (
        f"| {name} | {'>=' if at_least else '<='} {target:g} | {value:.2f} | {'met' if met else 'missed'} |"
    )


def _target_table(rows: list[Row]) -> Iterator[str]:
    cases = timed(rows)
    yield "| target | wanted | measured | |"
    yield "|---|---|---|---|"
    for op, stages in COPY_TARGETS.items():
        for stage, (large, model) in stages.items():
            own = [
                (key[1], c[name])
                for key, c in cases.items()
                if key[0] == op and key[3] == stage and (name := ours(c))
            ]
            at_model = [r["fraction_of_copy"] for _, r in own if r["model"] and r["rows"] == 16_384]
            at_large = [r["fraction_of_copy"] for _, r in own if r["bytes"] >= LARGE]
            for where, values, target in (
                ("16,384 rows", at_model, model),
                ("256 MB and more", at_large, large),
            ):
                known = [v for v in values if v is not None]
                yield _verdict(f"{op} {stage}, share of copy, {where}", min(known, default=None), target)
    for op, (stage, yardstick, target) in YARDSTICK_TARGETS.items():
        shares = [
            c[yardstick]["p50"] / c[name]["p50"]
            for key, c in cases.items()
            if key[0] == op and key[3] == stage and (name := ours(c)) and yardstick in c
        ]
        yield _verdict(
            f"{op}, share of the speed of its {yardstick}", min(shares, default=None), round(target, 2)
        )
    for stage, target in HOST_TARGETS.items():
        slowest = [
            c[name]["us_host"]
            for key, c in cases.items()
            if key[3] == stage and (name := ours(c)) == "triton"
        ]
        yield _verdict(
            f"host time {stage}, slowest op, us",
            max((v for v in slowest if v), default=None),
            target,
            at_least=False,
        )
    found = [(key, values) for key, c in cases.items() if (values := speedups(c)) and ours(c) == "triton"]
    model = [values for key, values in found if any(r["model"] for r in cases[key].values())]
    for name, target in GEOMEAN_TARGETS.items():
        yield _verdict(
            f"geomean vs {name}, the model's shapes", geomean([v[name] for v in model if name in v]), target
        )
    floor = min((values["fastest"] for _, values in found), default=None)
    yield _verdict("slowest shape vs the fastest baseline, before dispatch", floor, FLOOR)


def _train_table(rows: list[Row]) -> Iterator[str]:
    steps = [row for row in rows if row["op"] == "train_step"]
    pairs = [row for row in rows if row["op"] == "loss_pair"]
    if steps:
        yield "| training step | ops | tokens/s | ms a step (p20, p50, p80) | peak memory, MB | |"
        yield "|---|---|---|---|---|---|"
    for row in steps:
        if row["status"] == "ok":
            times = ", ".join(f"{row[p] / 1e3:.2f}" for p in ("p20", "p50", "p80"))
            memory = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}"
            yield f"| {row['variant']} | {row['contender']} | {row['tokens_per_s']:,} | {times} | {memory} | |"
        else:
            yield f"| {row['variant']} | {row['contender']} | - | - | - | {row['status']} |"
    for row in pairs:
        if row["status"] == "ok":
            yield ""
            yield (
                f"{row['steps']} steps with kernels on and off, {row['variant']}: losses differ by at most "
                f"{row['largest_difference']:.2e}, at the end {row['last'][0]:.4f} and {row['last'][1]:.4f}."
            )


def _left_out(rows: list[Row]) -> Iterator[str]:
    counts: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        if row["status"] not in ("ok", "yardstick"):
            counts[row["status"], f"{row['op']} {row['contender']} {row['pass']}"].append(row["variant"])
    for (status, what), variants in counts.items():
        shown = "; ".join(variants[:4]) + (f" and {len(variants) - 4} more" if len(variants) > 4 else "")
        yield f"- {what}: {status} ({shown})"


def plots(rows: list[Row], folder: Path) -> list[Path]:
    """One SVG an op: its share of the copy's speed, or TFLOP/s, over the rows, by contender; the widest pass."""
    folder.mkdir(parents=True, exist_ok=True)
    by_op: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    labels: dict[str, str] = {}
    for (op, _, _, stage), contenders in timed(rows).items():
        if stage not in ("both", "forward") or (
            stage == "forward" and any(k[0] == op and k[3] == "both" for k in timed(rows))
        ):
            continue
        for name, row in contenders.items():
            if row["status"] == "ok" and not name.endswith(AGAIN):
                bound = row["tflops"] is not None
                labels[op] = "TFLOP/s" if bound else "share of a same-bytes copy"
                value = row["tflops"] if bound else row["fraction_of_copy"]
                if value is not None:
                    by_op[op][f"{name}"].append((math.log2(max(1, row["rows"] * row["width"])), value))
    written = []
    for op, series in by_op.items():
        picture = line_plot(
            {name: sorted(points) for name, points in series.items()},
            title=op, x_label="log2 of rows x width", y_label=labels[op], width=720, height=360,
        )  # fmt: skip
        path = folder / f"{op}.svg"
        style = "<style>text{font:11px sans-serif}.title{font-weight:bold}.grid{stroke:#e5e7eb}</style>"
        picture = picture.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(
            ">", f">{style}", 1
        )
        path.write_text(picture, encoding="utf-8")
        written.append(path)
    return written


def summary(rows: list[Row], sections: list[str], *, note: str = "") -> str:
    """The report in Markdown: where and when, the sections' outcomes, tables, what is missing."""
    common = rows[0] if rows else {}
    where = ", ".join(
        f"{key} {common[key]}"
        for key in ("device", "capability", "python", "torch", "triton", "commit", "date")
        if key in common
    )
    parts = ["# Benchmark results", "", *([f"**{note}**", ""] if note else []), where, ""]
    if common:
        parts += [f"`{html.escape(common['command'], quote=False)}`", ""]
    parts += ["## Sections", "", *(f"- {line}" for line in sections), ""]
    parts += [
        "## Ops",
        "",
        "Times faster than each baseline, geometric mean over shapes; more than 1 is faster.",
        "",
    ]
    parts += [
        *_op_table(rows),
        "",
        "## Targets",
        "",
        *_target_table(rows),
        "",
        "## Training",
        "",
        *_train_table(rows),
    ]
    stages = train_report.section(rows)
    parts += ["", "## Stages", "", *stages] if stages else []
    inference = infer_report.section(rows)
    parts += ["", "## Inference", "", *inference] if inference else []
    left = list(_left_out(rows))
    parts += ["", "## Not in the tables", "", *(left or ["Nothing."]), ""]
    return "\n".join(parts)
