"""The page of `muomni eval speech`: figures by path, cost by part, sounds. Nothing is measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from muomni.evaluate.listening import METRICS
from muomni.evaluate.report import STYLE, Sound, table, text
from muomni.evaluate.speech_paths import WHAT

Take = tuple[str, Sound, str]
"""Path with its seed in words, its sound, what the recogniser understood."""


def cell(figure: Mapping[str, Any], n: int) -> str:
    """A figure with its interval: `3.1 % [1.5, 4.9]` for error rates, else with three decimals; its own n if not n."""
    rate = figure["metric"] in ("cer", "wer")
    scale, digits, unit = (100.0, 1, " %") if rate else (1.0, 3, "")
    low, high = (f"{bound * scale:.{digits}f}" for bound in figure["interval"])
    own = "" if figure["n"] == n else f" n={figure['n']}"
    return f"{figure['value'] * scale:.{digits}f}{unit} [{low}, {high}]{own}"


def rows_of(result: Mapping[str, Any]) -> list[list[str]]:
    """The table of figures as text, its header first: one row a path, one column a metric."""
    figures = {(f["path"], f["metric"]): f for f in result["figures"]}
    metrics = [m for m in METRICS if any(metric == m for _, metric in figures)]
    rows = [["path", *metrics, "n", "seeds"]]
    for path in dict.fromkeys(path for path, _ in figures):
        own = [figures.get((path, metric)) for metric in metrics]
        seeds = next(figure["seeds"] for figure in own if figure is not None)
        cells = [cell(figure, result["n"]) if figure is not None else "" for figure in own]
        rows.append([WHAT[path], *cells, str(result["n"]), " ".join(map(str, seeds))])
    return rows


def speeds_of(result: Mapping[str, Any]) -> list[list[str]]:
    """The table of the parts' cost as text, its header first."""
    rows = [["part", "parameters", "RTF", "seconds", "of sound", "clips", "threads", "device"]]
    for s in result["speed"]:
        costs = [f"{s['rtf']:.4f}", f"{s['seconds']:.2f}", f"{s['audio_seconds']:.1f}"]
        rows.append(
            [s["part"], f"{s['parameters']:,}", *costs, str(s["n"]), str(s["n_threads"]), s["device"]]
        )
    return rows


def render_speech(result: Mapping[str, Any], examples: Sequence[tuple[str, str, Sequence[Take]]]) -> str:
    """The page: no script, no external resource. examples: (item, what is said, takes)."""
    names = "; ".join(f"<b>{text(m)}</b>: {text(METRICS[m][0])}" for m in rows_of(result)[0] if m in METRICS)
    judges = "; ".join(text(about) for about in result["judges"].values())
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>How well it speaks</title><style>{STYLE}</style></head><body>",
        f"<h1>How well it speaks</h1><p class=lead>{text(result['run'])}: {result['n']} held-out recordings of "
        f"{text(result['data'])}, split {text(result['split'])}.</p>",
        "<h2>What independent judges hear</h2>",
        f"<p class=small>Brackets: 95 % bootstrap interval over the recordings. {names}. Judges: {judges}.</p>",
        _plain(rows_of(result)),
        "<h2>What each part costs</h2>",
        "<p class=small>Real-time factor: processing time over the duration of the sound; on a CPU the time of all "
        f"threads. {text(result['machine'])}</p>",
        _plain(speeds_of(result)),
        "<h2>Examples</h2>",
    ]
    for item, said, takes in examples:
        parts.append(f"<h3>“{text(said)}” <span class=small>{text(item)}</span></h3>")
        parts.append(
            table(
                ("path", "sound", "understood"),
                [(text(path), sound.player(), text(heard)) for path, sound, heard in takes],
            )
        )
    return "".join(parts) + "</body></html>\n"


def _plain(rows: Sequence[Sequence[str]]) -> str:
    return table(rows[0], [[text(value) for value in row] for row in rows[1:]])
