"""What bench_train found: figures of a row, goals met or missed, tables, a plot."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import Any

Row = dict[str, Any]

START = "start"
"""Name of the size of the project this one starts from."""
OURS, PLAIN_EAGER, PLAIN_COMPILED, LIGER = "ours", "plain eager", "plain compiled", "plain with Liger"
"""Contenders; a row's has its precision behind a comma."""

STARTING = 560 * 0.027
"""Useful tokens a CPU-second of the starting project at its size: 560 positions, 2.7 % of them no padding."""
STARTING_GOAL = 50.0
FLOOR_GOALS = {"base": 1.5, "tiny": 2.5}
"""Most time a step may take over its floor."""
BUSY_GOAL = 0.97
PEER_GOALS: dict[str, tuple[tuple[str, float], ...]] = {
    "cuda": ((PLAIN_EAGER, 2.0), (PLAIN_COMPILED, 1.3)),
    "cpu": ((PLAIN_EAGER, 1.3),),
}
"""Times that ours must be faster than each peer of the same precision, by device."""


def line(row: Row) -> str:
    """A row in one line, for the terminal."""
    if row["status"] != "ok":
        return f"{row['variant']}, {row['contender']}: {row['status']}"
    return (
        f"{row['variant']}, {row['contender']}: {row['p50'] / 1e3:.1f} ms, {row['tokens_per_s']:,.0f} tokens/s, "
        f"MFU {row['mfu']:.0%}, {row['over_floor']:.2f} x floor"
    )


def _ok(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["op"] == "train" and row["status"] == "ok"]


def kind_of(rows: Sequence[Row]) -> str:
    """cuda or cpu, by whether kernels were watched."""
    return "cuda" if any(row["busy"] is not None for row in _ok(rows)) else "cpu"


def goals(rows: Sequence[Row]) -> Iterator[str]:
    """A line for every goal: met, missed or not measured; best of the rounds, and the medians beside it."""
    kind, ok = kind_of(rows), _ok(rows)
    # A CPU's other users take its clock, less of its time.
    best, middle = ("min", "p50") if kind == "cuda" else ("cpu_min", "cpu_p50")
    found = {(r["size"], r["stage"], r["kind"], r["contender"]): r for r in ok}
    precisions = list(dict.fromkeys(r["contender"].rpartition(", ")[2] for r in ok))
    for size in ("nano", "tiny", "base"):
        for precision in precisions:
            for batches in ("packed", "full"):
                own = found.get((size, "text", batches, f"{OURS}, {precision}"))
                for peer, goal in PEER_GOALS[kind] if own else ():
                    other = found.get((size, "text", batches, f"{peer}, {precision}"))
                    what = f"{size} text, {batches}, {precision}: times faster than {peer}"
                    if other is None or own is None:
                        yield f"| {what} | >= {goal:g} | - | - | not measured |"
                        continue
                    ratio, usual = other[best] / own[best], other[middle] / own[middle]
                    yield _judged(what, f">= {goal:g}", f"{ratio:.2f}", f"{usual:.2f}", ratio >= goal)
    for row in ok:
        if not row["contender"].startswith(f"{OURS}, "):
            continue
        goal = FLOOR_GOALS.get(row["size"])
        what = f"{row['variant']}, {row['contender'].rpartition(', ')[2]}"
        if goal is not None:
            ratios = f"{row['over_floor_min']:.2f}", f"{row['over_floor']:.2f}"
            yield _judged(f"{what}: times the floor", f"<= {goal:g}", *ratios, row["over_floor_min"] <= goal)
        if row["busy"] is not None:
            share = f"{row['busy']:.1%}"
            yield _judged(f"{what}: GPU busy", f">= {BUSY_GOAL:.0%}", share, share, row["busy"] >= BUSY_GOAL)
        if row["size"] == START:
            unit = "useful tokens a CPU-second" if kind == "cpu" else "useful tokens a second"
            times = [row["fill"] * row["positions"] / row[key] * 1e6 / STARTING for key in (best, middle)]
            yield _judged(
                f"{what}: {unit} over the starting project's {STARTING:.1f}", f">= {STARTING_GOAL:g}",
                f"{times[0]:.1f}", f"{times[1]:.1f}", times[0] >= STARTING_GOAL,
            )  # fmt: skip
    if not any(r["size"] == START for r in ok):
        yield f"| useful tokens over the starting project's | >= {STARTING_GOAL:g} | - | - | not measured |"


def _judged(what: str, goal: str, best: str, usual: str, met: bool) -> str:
    return f"| {what} | {goal} | {best} | {usual} | {'met' if met else '**missed**'} |"


def section(rows: Sequence[Row]) -> list[str]:
    """Goals and tables in Markdown; empty without rows of this benchmark."""
    own = [row for row in rows if row["op"] == "train"]
    if not own:
        return []
    lines = ["### Goals", "", "| | goal | best of the rounds | medians | |", "|---|---|---|---|---|"]
    lines += goals(own)
    for variant in dict.fromkeys(row["variant"] for row in own):
        lines += ["", f"### {variant}", "", *_table([row for row in own if row["variant"] == variant])]
    return lines


def _table(rows: Sequence[Row]) -> Iterator[str]:
    ok = _ok(rows)
    if ok:
        first = ok[0]
        yield (
            f"{first['flops'] / 1e9:,.1f} GFLOP of products; fill of the embedded set "
            f"{'unknown without trained parents' if first['fill'] is None else format(first['fill'], '.1%')}; " +
            "; ".join(
                f"{'bf16' if row['dtype'] == 'bfloat16' else 'fp32'}: {row['yard_tflops']:.3g} TFLOP/s, "
                f"{row['yard_gb_per_s']:.3g} GB/s, {row['bytes'] / 1e6:,.0f} MB, floor {row['floor'] / 1e3:.2f} ms"
                for row in {row["dtype"]: row for row in ok}.values()
            ) + "."
        )  # fmt: skip
        yield ""
    columns = (
        "",
        "ms a step (p20, median, p80)",
        "best",
        "CPU ms (best)",
        "tokens/s",
        "useful/s",
        "useful/CPU-s",
    )
    columns = (*columns, "MFU", "x floor", "GPU busy", "peak MB", "rounds", "")
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for row in sorted(ok, key=lambda r: r["p50"]):
        times = ", ".join(f"{row[p] / 1e3:.2f}" for p in ("p20", "p50", "p80"))
        useful = [
            "-" if row[key] is None else f"{row[key]:,.0f}" for key in ("useful_per_s", "useful_per_cpu_s")
        ]
        cells = (
            row["contender"], times, f"{row['min'] / 1e3:.2f}", f"{row['cpu_min'] / 1e3:.2f}",
            f"{row['tokens_per_s']:,.0f}", *useful, f"{row['mfu']:.1%}", f"{row['over_floor']:.2f}",
            "-" if row["busy"] is None else f"{row['busy']:.1%}", f"{row['peak_bytes'] / 1e6:,.0f}",
            str(row["n_rounds"]), "",
        )  # fmt: skip
        yield f"| {' | '.join(cells)} |"
    for row in rows:
        if row["status"] != "ok":
            yield f"| {row['contender']} |{' - |' * (len(columns) - 2)} {row['status']} |"


def summary(rows: Sequence[Row], about: dict[str, str]) -> str:
    """The whole result as Markdown."""
    lines = ["# Training steps", "", *(f"- {key}: {value}" for key, value in about.items()), ""]
    lines += [
        "Peers have the same weights and batches and agreed with ours in their first losses and gradients. MFU and "
        "floor are against a product and a copy timed in this run at the same precision (benchmarks/train_floor.py); "
        "on a CPU all three are by its own time.",
        "", *section(rows),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[Row]) -> str:
    """Tokens a second of every contender as bars, a block a case with a scale of its own: one SVG."""
    parts, y = [], 6
    ok = _ok(rows)
    for variant in dict.fromkeys(row["variant"] for row in ok):
        own = sorted((r for r in ok if r["variant"] == variant), key=lambda r: -r["tokens_per_s"])
        y += 20
        parts.append(f'<text x="8" y="{y}" font-weight="600">{html.escape(variant)}: tokens/s</text>')
        for row in own:
            y += 17
            length = 330 * row["tokens_per_s"] / own[0]["tokens_per_s"]
            colour = "#2563eb" if row["contender"].startswith(f"{OURS},") else "#94a3b8"
            parts.append(
                f'<text x="196" y="{y}" text-anchor="end">{html.escape(row["contender"])}</text>'
                f'<rect x="202" y="{y - 10}" width="{length:.1f}" height="12" fill="{colour}"/>'
                f'<text x="{208 + length:.1f}" y="{y}">{row["tokens_per_s"]:,.0f}</text>'
            )
        y += 8
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 {y + 10}" font-family="sans-serif" '
        f'font-size="12">{"".join(parts)}</svg>\n'
    )
