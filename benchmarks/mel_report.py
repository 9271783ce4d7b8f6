"""What bench_mel found, as a table, a plot and the gates of the audio front end."""

from __future__ import annotations

import html
import math
import platform
from pathlib import Path
from typing import Any

Row = dict[str, Any]

WHISPER = "log_mel, Whisper's scale"
GATES: tuple[tuple[str, str, str, str, float, float], ...] = (
    (
        "fused against the torch composition",
        "30 s",
        "torch composition, mean",
        "log_mel_downsample, mean",
        10,
        20,
    ),
    ("", "64 x 10 s", "torch composition, mean", "log_mel_downsample, mean", 20, 35),
    ("", "64 ragged", "torch composition, mean", "log_mel_downsample, mean", 10, 20),
    ("log-mel against transformers (torch)", "30 s", "transformers (torch)", WHISPER, 15, 25),
    ("", "64 x 10 s", "transformers (torch)", WHISPER, 30, 50),
    ("log-mel against whisper", "30 s", "whisper", WHISPER, 12, 20),
    ("log-mel against librosa", "30 s", "librosa", "log_mel", 14, 20),
    ("log-mel against DALI", "64 x 10 s", "DALI, CPU", "log_mel", 10, 16),
    ("log-mel against audioflux", "64 x 10 s", "audioflux", "log_mel", 9, 14),
    ("log-mel against kaldi-native-fbank", "64 x 10 s", "kaldi-native-fbank", "log_mel", 40, 60),
    ("two threads against one", "64 x 10 s", "log_mel", "log_mel, 2 threads", 1.8, 1.95),
    ("", "64 x 10 s", "log_mel_downsample, mean", "log_mel_downsample, mean, 2 threads", 1.8, 1.95),
)
"""What, case, slower contender, faster contender, gate, stretch: the slower's time over the faster's."""
READ_GATE = (1.3, 1.1)
"""Time of mel_downsample over that of reading its input once: at most."""
MEMORY_GATE = 0.5
"""Peak memory of the fused op, which needs no frames at 100 Hz, over the best peer's: at most."""
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
    read = times.get(("downsample", "read once (sum)"))
    if read:
        ratio = times["downsample", "mel_downsample, mean"] / read
        verdict = "stretch" if ratio <= READ_GATE[1] else "met" if ratio <= READ_GATE[0] else "**missed**"
        lines.append(
            f"| mel_downsample (mean) against reading once, at most | {READ_GATE[0]:g} | {READ_GATE[1]:g} | "
            f"{ratio:.2f} | {verdict} |"
        )
    memory = {r["contender"]: r["peak_mib"] for r in rows if "peak_mib" in r}
    peers = {name: mib for name, mib in memory.items() if not name.startswith(OURS)}
    if peers and "log_mel_downsample, mean" in memory:
        best = min(peers, key=lambda name: peers[name])
        ratio = memory["log_mel_downsample, mean"] / peers[best]
        verdict = "met" if ratio <= MEMORY_GATE else "**missed**"
        lines.append(
            f"| memory of the fused op against the least of a peer ({best}) | {MEMORY_GATE:g} | | {ratio:.2f} | "
            f"{verdict} |"
        )
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
    lines += gates(rows)
    for case in dict.fromkeys(r["case"] for r in rows):
        lines += ["", f"## {case}", ""]
        lines += [
            "| | ms, best | ms, median | CPU ms | x real time | peak MiB (the result) | agreement | |",
            "|" + "---|" * 8,
        ]
        timed = [r for r in rows if r["case"] == case and "wall_ms_min" in r]
        for r in sorted(timed, key=lambda r: r["wall_ms_min"]):
            memory = f"{r['peak_mib']:.0f} ({r['result_mib']:.0f})" if "peak_mib" in r else ""
            agrees = f"{r['agreement']:.3f}" if "agreement" in r else ""
            version = f"{r['package']} {r['version']}" if "package" in r else ""
            note = "; ".join(x for x in (version, r.get("note", "")) if x)
            lines.append(
                f"| {r['contender']} | {r['wall_ms_min']:.2f} | {r['wall_ms_median']:.2f} | {r['cpu_ms_min']:.2f} | "
                f"{r['x_real_time']:,.0f} | {memory} | {agrees} | {note} |"
            )
        lines += [
            f"| {r['contender']} | - | - | - | - | | | {r['status']} |"
            for r in rows
            if r["case"] == case and "status" in r
        ]
    return "\n".join(lines) + "\n"


def plot(rows: list[Row]) -> str:
    """Times real time of every contender as bars on a logarithmic scale: one SVG, a block a case."""
    parts, y = [], 10
    timed = [r for r in rows if "wall_ms_min" in r and r["case"] != "downsample"]
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
