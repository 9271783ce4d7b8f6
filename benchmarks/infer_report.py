"""What bench_infer found: goals met or missed, tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

Row = dict[str, Any]

OURS, PLAIN, LLAMA = "ours", "plain eager, concatenated cache", "transformers generate, Llama"
"""Contenders; a row's has its precision behind a comma."""
START = "start"

STARTING = 84.0
"""Tokens a CPU-second of the starting project at its size, batch 1, with a cache."""
STARTING_GOAL = 5.0
BATCH_GOAL = 12.0
"""Throughput of batch 32 over that of batch 1."""
GPU_TOKENS_GOAL = 3_000.0
"""Tokens/s of tiny alone on a data-centre card."""
FLOOR_GOAL = 0.85
"""Share of the floor's speed on a GPU, tiny alone."""
FIRST_AUDIO_GOAL = {"cuda": 0.050, "cpu": 0.250}
"""Seconds, tiny; on a CPU with two threads."""
RTF_GOAL = {"cuda": 0.05, "cpu": 0.5}
"""Of speech, tiny."""


def line(row: Row) -> str:
    """A row in one line, for the terminal."""
    if row["status"] != "ok":
        return f"{row['variant']}, {row['contender']}: {row['status']}"
    if row["pass"] == "decode":
        return f"{row['variant']}, {row['contender']}: {row['tokens_per_s']:,.0f} tokens/s"
    figures = ", ".join(f"{key} {value:.4g}" for key, value in row.items() if key.endswith(("_p50", "_mb")))
    return f"{row['variant']}, {row['contender']}: {figures}"


def kind_of(rows: Sequence[Row]) -> str:
    """cuda or cpu: a CPU's rows have threads."""
    timed = [row for row in rows if row["op"] == "infer" and row["pass"] != "memory"]
    return "cuda" if timed and not any(row["threads"] for row in timed) else "cpu"


def _ok(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["op"] == "infer" and row["status"] == "ok"]


def goals(rows: Sequence[Row]) -> Iterator[str]:
    """A Markdown row for each goal whose figure was measured: met or missed."""
    ok, kind = _ok(rows), kind_of(rows)
    decoded = [row for row in ok if row["pass"] == "decode" and row["contender"].startswith(f"{OURS}, ")]
    if kind == "cpu":
        for row in decoded:
            if row["size"] == START and row["batch"] == 1 and row["threads"] == 1:
                times = row["tokens_per_cpu_s"] / STARTING
                what = f"{row['contender']}: tokens a CPU-second at the starting project's size over its {STARTING:g}"
                yield _judged(what, f">= {STARTING_GOAL:g}", f"{times:.1f}", times >= STARTING_GOAL)
    else:
        for row in decoded:
            if row["size"] == "tiny" and row["batch"] == 1 and "graph" in row["contender"]:
                speed, share = row["tokens_per_s"], row["of_floor"]
                yield _judged(
                    f"{row['contender']}: tiny alone, tokens/s", f">= {GPU_TOKENS_GOAL:,.0f}", f"{speed:,.0f}",
                    speed >= GPU_TOKENS_GOAL,
                )  # fmt: skip
                what = f"{row['contender']}: tiny alone, share of the floor's speed"
                yield _judged(what, f">= {FLOOR_GOAL:.0%}", f"{share:.0%}", share >= FLOOR_GOAL)
    alone = {(r["size"], r["threads"], r["contender"]): r["tokens_per_s"] for r in decoded if r["batch"] == 1}
    for row in decoded:
        one = alone.get((row["size"], row["threads"], row["contender"]))
        if row["batch"] == 32 and row["size"] == "tiny" and one:
            times = row["tokens_per_s"] / one
            what = f"{row['contender']}{_threads(row)}: tiny, batch 32 over batch 1"
            yield _judged(what, f">= {BATCH_GOAL:g}", f"{times:.1f}", times >= BATCH_GOAL)
    for row in ok:
        if row["pass"] != "turn" or row["size"] != "tiny" or (kind == "cpu" and row["threads"] != 2):
            continue
        first, rtf = row["first_audio_p50"], row["rtf_p50"]
        yield _judged(
            f"{row['contender']}: tiny, time to first audio, ms", f"<= {FIRST_AUDIO_GOAL[kind] * 1e3:g}",
            f"{first * 1e3:.0f}", first <= FIRST_AUDIO_GOAL[kind],
        )  # fmt: skip
        yield _judged(
            f"{row['contender']}: tiny, real-time factor of speech", f"<= {RTF_GOAL[kind]:g}", f"{rtf:.3f}",
            rtf <= RTF_GOAL[kind],
        )  # fmt: skip


def _threads(row: Row) -> str:
    return f", {row['threads']} threads" if row["threads"] else ""


def _judged(what: str, goal: str, value: str, met: bool) -> str:
    return f"| {what} | {goal} | {value} | {'met' if met else '**missed**'} |"


def section(rows: Sequence[Row]) -> list[str]:
    """Goals and tables in Markdown; empty without rows of this benchmark."""
    own = [row for row in rows if row["op"] == "infer"]
    if not own:
        return []
    lines = ["### Goals", "", "| | goal | median | |", "|---|---|---|---|", *goals(own)]
    decoded = [row for row in own if row["pass"] == "decode"]
    if decoded:
        lines += ["", "### Thinker tokens/s", "", *_decoding(decoded)]
    for name, title in (("turn", "Turns"), ("encoders", "Encoders"), ("memory", "Memory")):
        found = [row for row in own if row["pass"] == name]
        if found:
            lines += ["", f"### {title}", "", *_plain(found)]
    return lines


def _decoding(rows: Sequence[Row]) -> Iterator[str]:
    yield "| | contender | tokens/s | tokens a CPU-second | over plain eager | prefill, ms | of the floor's speed |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        if row["status"] != "ok":
            yield f"| {row['variant']} | {row['contender']} | {row['status']} | | | | |"
            continue
        precision = "fp32" if row["contender"].endswith("int8") else row["contender"].rpartition(", ")[2]
        plain = next(
            (
                r["tokens_per_s"] for r in rows
                if r["variant"] == row["variant"] and r["contender"] == f"{PLAIN}, {precision}" and r["status"] == "ok"
            ),
            None,
        )  # fmt: skip
        times = "" if plain is None else f"{row['tokens_per_s'] / plain:.1f}"
        yield (
            f"| {row['variant']} | {row['contender']} | {row['tokens_per_s']:,.0f} | {row['tokens_per_cpu_s']:,.0f} "
            f"| {times} | {row['prefill_ms']:.1f} | {row['of_floor']:.0%} |"
        )


def _plain(rows: Sequence[Row]) -> Iterator[str]:
    names = list(dict.fromkeys(key for row in rows for key in row if key.endswith(("_p50", "_mb"))))
    yield f"| | contender | {' | '.join(name.removesuffix('_p50').replace('_', ' ') for name in names)} |"
    yield "|---" * (len(names) + 2) + "|"
    for row in rows:
        if row["status"] != "ok":
            yield f"| {row['variant']} | {row['contender']} | {row['status']} |{' |' * (len(names) - 1)}"
            continue
        yield f"| {row['variant']} | {row['contender']} | {' | '.join(f'{row[name]:.4g}' for name in names)} |"


def summary(rows: Sequence[Row], about: dict[str, str]) -> str:
    """The whole result as Markdown."""
    lines = ["# Inference", "", *(f"- {key}: {value}" for key, value in about.items()), ""]
    lines += [
        "Decoding is greedy behind prompts of 64 tokens, 64 tokens of each: the best time of 65 tokens less the best "
        "of one, contenders in turn. Plain PyTorch has the same weights and agreed in its first tokens; other weights "
        "are random. The floor is what a step cannot do without: its weights read once and its products, at the speeds "
        "measured in this run, on a GPU also the launch of its kernels by a graph. Turns: a picture, a clip of 5 s and "
        "a question, 48 tokens of text, spoken through the vocoder, with random weights and a steady pace; medians, "
        "seconds.",
        "", *section(rows),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"
