"""What bench_mel found, as a table, a plot and the gates of the audio front end."""

from __future__ import annotations

import html
import math
import platform
from pathlib import Path
from typing import Any

from benchmarks import mel_floor

Row = dict[str, Any]

WHISPER = "log_mel, Whisper's scale"
COMPOSITION, FUSED = "torch composition, mean", "log_mel_downsample, mean"
GATES: tuple[tuple[str, str, str, str, float, float], ...] = (
    (
        "fused against the torch composition",
        "30 s",
        COMPOSITION,
        FUSED,
        10,
        20,
    ),
    ("", "64 x 10 s", COMPOSITION, FUSED, 20, 35),
    ("", "64 ragged", COMPOSITION, FUSED, 10, 20),
    ("log-mel against transformers (torch)", "30 s", "transformers (torch)", WHISPER, 15, 25),
    ("", "64 x 10 s", "transformers (torch)", WHISPER, 30, 50),
    ("log-mel against whisper", "30 s", "whisper", WHISPER, 12, 20),
    ("log-mel against librosa", "30 s", "librosa", "log_mel", 14, 20),
    ("log-mel against DALI", "64 x 10 s", "DALI, CPU", "log_mel", 10, 16),
    ("log-mel against audioflux", "64 x 10 s", "audioflux", "log_mel", 9, 14),
    ("log-mel against kaldi-native-fbank", "64 x 10 s", "kaldi-native-fbank", "log_mel", 40, 60),
    ("two threads against one", "64 x 10 s", "log_mel", "log_mel, 2 threads", 1.8, 1.95),
    ("", "64 x 10 s", FUSED, "log_mel_downsample, mean, 2 threads", 1.8, 1.95),
)
"""What, case, slower contender, faster contender, gate, stretch: the slower's time over the faster's."""
READ_GATE = (1.3, 1.1)
"""Time of mel_downsample over that of reading its input once: at most."""
MEMORY_GATE = 0.5
"""Peak memory of the fused op, which needs no frames at 100 Hz, over the best peer's: at most."""
ERROR_GATE = 2e-5
"""Largest error against fp64 in Whisper's scale."""
OURS = ("log_mel", "mel_downsample")


def processor() -> str:
    """The CPU's name and clock as the system tells them."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    fields = dict(
        line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line
    )
    found = {key.strip(): value.strip() for key, value in fields.items()}
    name, family, model = (found.get(key, "?") for key in ("model name", "cpu family", "model"))
    return f"{name} family {family} model {model}"


def _times(rows: list[Row]) -> dict[tuple[str, str], float]:
    return {(r["case"], r["contender"]): r["wall_ms_min"] for r in rows if "wall_ms_min" in r}


def gates(rows: list[Row]) -> list[str]:
    """A line of the table for every gate whose two sides were timed."""
    times, lines = _times(rows), []
    what = ""
    for name, case, slow, fast, gate, stretch in GATES:
        what = name or what
        if (case, slow) not in times or (case, fast) not in times:
            lines.append(f"| {what}, {case} | {gate:g} | {stretch:g} | - | not measured |")
            continue
        ratio = times[case, slow] / times[case, fast]
        verdict = "stretch" if ratio >= stretch else "met" if ratio >= gate else "**missed**"
        lines.append(f"| {what}, {case} | {gate:g} | {stretch:g} | {ratio:.1f} | {verdict} |")
    read = times.get(("downsample", mel_floor.READ))
    if read:
        ratio = times["downsample", "mel_downsample, mean"] / read
        verdict = "stretch" if ratio <= READ_GATE[1] else "met" if ratio <= READ_GATE[0] else "**missed**"
        lines.append(
            f"| mel_downsample (mean) against reading once, at most | {READ_GATE[0]:g} | {READ_GATE[1]:g} | "
            f"{ratio:.2f} | {verdict} |"
        )
    errors = [r["max_error"] for r in rows if r["case"] == "accuracy" and r["contender"] == "log_mel"]
    if errors:
        verdict = "met" if max(errors) <= ERROR_GATE else "**missed**"
        lines.append(
            f"| largest error against fp64, Whisper's scale, at most | {ERROR_GATE:g} | | {max(errors):.1e} | "
            f"{verdict} |"
        )
    return lines + _memory_gates(rows)


def _memory_gates(rows: list[Row]) -> list[str]:
    """The fused op against the least of any peer, which keeps 100 Hz; both kinds against their like."""
    measured = {r["contender"]: r for r in rows if "peak_mib" in r}
    peers = [r for name, r in measured.items() if not name.startswith((*OURS, COMPOSITION))]
    if not peers or not {"log_mel", FUSED} <= measured.keys():
        return ["| memory | 0.5 | | - | not measured |"]
    # A result of fewer bands is smaller whatever computes it.
    as_wide = [r for r in peers if r["result_mib"] > 0.95 * measured["log_mel"]["result_mib"]]
    sides = [("fused op, 12.5 Hz, against the least of a peer", FUSED, peers)]
    sides += [("full log-mel against the least of a peer with as many bands", "log_mel", as_wide)]
    if COMPOSITION in measured:
        sides += [("fused op", FUSED, [measured[COMPOSITION]])]
    lines = []
    for what, name, others in sides:
        if not others:
            continue
        least = min(others, key=lambda r: r["peak_mib"])
        ratio = measured[name]["peak_mib"] / least["peak_mib"]
        verdict = "met" if ratio <= MEMORY_GATE else "**missed**"
        lines.append(
            f"| memory, {what} ({least['contender']}), at most | {MEMORY_GATE:g} | | {ratio:.2f} | {verdict} |"
        )
    return lines


def floors(rows: list[Row]) -> list[str]:
    """The section on the floor, empty where it was not measured."""
    found = mel_floor.floor(rows)
    if not found:
        return []
    lines = [
        "",
        "## Floor",
        "",
        f"This core: {found[0]['rate']:.1f} multiply-adds a nanosecond in a matrix product of {mel_floor.SIZE}, "
        f"{found[0]['read']:.1f} bytes a nanosecond read.",
        "",
        "| | operations a frame | ns at that rate | bytes a frame | ns at that rate | ns measured | floor / measured |",
        "|" + "---|" * 7,
    ]
    for r in found:
        share = max(r["ns_operations"], r["ns_bytes"]) / r["ns"]
        lines.append(
            f"| {r['contender']} | {r['operations']:,} | {r['ns_operations']:.0f} | {r['bytes']:,} | "
            f"{r['ns_bytes']:.0f} | {r['ns']:.0f} | {share:.0%} |"
        )
    for pooled, name in ((False, "full"), (True, "pooled")):
        parts = mel_floor.operations(pooled=pooled)
        lines += ["", f"Operations, {name}: " + ", ".join(f"{k} {v:,}" for k, v in parts.items()) + "."]
    return lines


def summary(rows: list[Row], about: dict[str, str]) -> str:
    """The whole result as Markdown."""
    lines = ["# Audio front end", ""]
    lines += [f"- {key}: {value}" for key, value in about.items()]
    lines += [
        "",
        "## Gates (best of the rounds)",
        "",
        "| | gate | stretch | measured | |",
        "|---|---|---|---|---|",
    ]
    lines += gates(rows) + floors(rows)
    accuracy = [r for r in rows if r["case"] == "accuracy"]
    if accuracy:
        lines += ["", "## Largest error against fp64, Whisper's scale", ""]
        lines += [f"- {r['contender']}, {r['clip']}: {r['max_error']:.1e}" for r in accuracy]
    for case in dict.fromkeys(r["case"] for r in rows if r["case"] not in ("accuracy", "floor")):
        lines += ["", f"## {case}", ""]
        lines += [
            "| | ms, best | ms, median | CPU ms | x real time | a core | peak MiB (the result) | agreement | |",
            "|" + "---|" * 9,
        ]
        timed = [r for r in rows if r["case"] == case and "wall_ms_min" in r]
        for r in sorted(timed, key=lambda r: r["wall_ms_min"]):
            memory = f"{r['peak_mib']:.1f} ({r['result_mib']:.1f})" if "peak_mib" in r else ""
            speeds = [f"{r[key]:,.0f}" if key in r else "" for key in ("x_real_time", "x_real_time_core")]
            agrees = f"{r['agreement']:.3f}" if "agreement" in r else ""
            version = f"{r['package']} {r['version']}" if "package" in r else ""
            lost = f"memory: {r['memory_status']}" if "memory_status" in r else ""
            note = "; ".join(x for x in (version, r.get("note", ""), lost) if x)
            lines.append(
                f"| {r['contender']} | {r['wall_ms_min']:.2f} | {r['wall_ms_median']:.2f} | {r['cpu_ms_min']:.2f} | "
                f"{' | '.join(speeds)} | {memory} | {agrees} | {note} |"
            )
        lines += [
            f"| {r['contender']} | - | - | - | - | - | | | {r['status']} |"
            for r in rows
            if r["case"] == case and "status" in r
        ]
    return "\n".join(lines) + "\n"


def plot(rows: list[Row]) -> str:
    """Times real time of every contender as bars on a logarithmic scale: one SVG, a block a case."""
    parts, y = [], 10
    timed = [r for r in rows if "x_real_time" in r]
    top = max(r["x_real_time"] for r in timed)
    for case in dict.fromkeys(r["case"] for r in timed):
        y += 18
        parts.append(f'<text x="8" y="{y}" font-weight="600">{html.escape(case)}: times real time</text>')
        for r in sorted((r for r in timed if r["case"] == case), key=lambda r: -r["x_real_time"]):
            y += 17
            # A bar a decade long for every factor of ten above 100.
            length = max(2.0, 330 * _decades(r["x_real_time"]) / _decades(top))
            colour = "#2563eb" if r["contender"].startswith(OURS) else "#94a3b8"
            parts.append(
                f'<text x="236" y="{y}" text-anchor="end">{html.escape(r["contender"])}</text>'
                f'<rect x="242" y="{y - 10}" width="{length:.1f}" height="12" fill="{colour}"/>'
                f'<text x="{248 + length:.1f}" y="{y}">{r["x_real_time"]:,.0f}</text>'
            )
        y += 12
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 {y + 10}" font-family="sans-serif" '
        f'font-size="12">{"".join(parts)}</svg>\n'
    )


def _decades(value: float) -> float:
    return max(0.0, math.log10(value / 100))
