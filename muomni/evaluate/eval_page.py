"""The page of `muomni eval all`: every family's figures as bars, tables, and cases to look at and hear.

Nothing is measured here. One file that needs no network, no larger than MAX_BYTES.
"""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from muomni.config import MelConfig
from muomni.data.audio import log_mel
from muomni.data.media import read_image
from muomni.evaluate.family import Case
from muomni.evaluate.report import STYLE, Sound, number, picture, table, text
from muomni.evaluate.run import FAMILIES, Evaluation

MAX_BYTES = 9_500_000
"""Of the page. Media that would not fit are left out, and the page says so in their place."""
PICTURE_SIDE = 96
"""Pixels of a shown picture, at most."""
_ROOM = 9_000_000
"""Of MAX_BYTES, what media may take."""
_WIDTH, _HEIGHT = 200, 18
_OWN = """
.bar{width:200px;height:18px}.bar .value{fill:#2563eb}.bar .worse{fill:#b91c1c}
.bar .spread{stroke:currentColor;stroke-width:1.5}.bar .floor{stroke:#d97706;stroke-width:2}
nav a{margin-right:.8rem}code{font-size:.8rem;opacity:.75}
"""


class _Media:
    """Turns media into HTML as long as there is room."""

    def __init__(self, mel: MelConfig) -> None:
        self.mel, self._left = mel, _ROOM

    def sound(self, waveform: np.ndarray | None) -> str:
        """A player below its spectrogram; empty for no sound."""
        if waveform is None or not len(waveform):
            return ""
        rows = log_mel(torch.from_numpy(np.array(waveform, np.float32)), self.mel).numpy()
        sound = Sound(waveform=waveform, log_mel=rows, sample_rate=self.mel.sample_rate)
        return self._fitted(sound.player(), "sound")

    def picture(self, payload: bytes, alt: str) -> str:
        """A small copy."""
        shown = read_image(payload)
        shown.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
        buffer = io.BytesIO()
        shown.save(buffer, "PNG")
        return self._fitted(picture(buffer.getvalue(), alt), "picture")

    def _fitted(self, markup: str, what: str) -> str:
        if len(markup) > self._left:
            return f"<span class=small>{what} left out: the page is full</span>"
        self._left -= len(markup)
        return markup


def render_eval(found: Evaluation, *, mel: MelConfig, title: str, lead: str, plots: Mapping[str, str]) -> str:
    """The page as text: no script, no external resource. plots: stage -> SVG of its training."""
    media = _Media(mel)
    links = "".join(f'<a href="#{name}">{text(FAMILIES[name])}</a>' for name in found.families)
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}{_OWN}</style></head><body>",
        f"<h1>{text(title)}</h1><p class=lead>{text(lead)}</p><nav>{links}</nav>",
        "<p class=small>Held-out items only. Beside every figure stands what a trivial method gets on the same items "
        "(the orange line); brackets and the thin line are its 95 % bootstrap interval, items resampled; n items, "
        "seed. A red bar does not beat its baseline. What could not be measured is listed with the reason.</p>",
    ]
    for name, own in found.families.items():
        parts.append(f'<h2 id="{name}">{text(FAMILIES[name])}</h2>')
        if own.figures:
            parts.append(_figures([figure.to_dict() for figure in own.figures]))
        if own.missing:
            rows = [(f"<code>{text(m.name)}</code>", f"not measured: {text(m.why)}") for m in own.missing]
            parts.append(table(("figure", ""), rows))
        for heading, rows in own.tables.items():
            if len(rows) > 1:
                cells = [[text(cell) for cell in row] for row in rows[1:]]
                parts.append(f"<h3>{text(heading)}</h3>{table(rows[0], cells)}")
        for heading, cases in own.cases.items():
            if cases:
                parts.append(f"<h3>{text(heading)}</h3>{_cases(cases, media)}")
    if plots:
        shown = "".join(f"<div>{svg}</div>" for svg in plots.values())
        parts.append(f"<h2>Training</h2><div class=plots>{shown}</div>")
    seconds = [(text(FAMILIES[name]), f"{value:.1f}") for name, value in found.seconds.items()]
    parts.append(f"<h2>Time</h2>{table(('family', 'seconds'), seconds)}")
    return "".join(parts) + "</body></html>\n"


def _figures(figures: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for figure in figures:
        low, high = figure["interval"]
        arrow = "↓" if figure["better"] == "lower" else "↑"
        rows.append(
            (
                f"{text(figure['what'])} <span class=small>{arrow}</span><br><code>{text(figure['name'])}</code>",
                bar(figure),
                f"<b>{number(figure['value'])}</b> <span class=small>[{number(low)}, {number(high)}] "
                f"{text(figure['unit'])}</span>",
                f"{number(figure['baseline'])} <span class=small>{text(figure['baseline_name'])}</span>",
                f"{figure['n']}, {figure['seed']}",
            )
        )
    return table(
        ("figure (arrow: the better direction)", "", "this model", "baseline, same items", "n, seed"), rows
    )


def bar(figure: Mapping[str, Any]) -> str:
    """An SVG bar from zero to the value, its interval as a thin line, the baseline as an upright one."""
    value, baseline, (low, high) = figure["value"], figure["baseline"], figure["interval"]
    left, right = min(0.0, low, value, baseline), max(0.0, high, value, baseline)
    scale = (_WIDTH - 4) / (right - left or 1.0)

    def x(at: float) -> float:
        return 2 + (at - left) * scale

    start, end = sorted((x(0.0), x(value)))
    kind = "value" if figure["beats_baseline"] else "worse"
    middle, label = _HEIGHT / 2, html.escape(f"{figure['name']} {value:.4g}, baseline {baseline:.4g}")
    return (
        f'<svg class="bar" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
        f'<rect class="{kind}" x="{start:.1f}" y="4" width="{max(end - start, 1.0):.1f}" height="{_HEIGHT - 8}"/>'
        f'<line class="spread" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{middle}" y2="{middle}"/>'
        f'<line class="floor" x1="{x(baseline):.1f}" x2="{x(baseline):.1f}" y1="1" y2="{_HEIGHT - 1}"/></svg>'
    )


def _cases(cases: Sequence[Case], media: _Media) -> str:
    """A table of cases; columns that are empty in all of them are left out."""
    columns = {
        "shown": [" ".join(media.picture(own, case.item) for own in case.pictures) for case in cases],
        "played": [media.sound(case.heard) for case in cases],
        "asked": [text(case.asked) for case in cases],
        "expected": [text(case.expected) for case in cases],
        "came": [text(case.given) or "<span class=small>(nothing)</span>" for case in cases],
        "said": [media.sound(case.said) for case in cases],
        "item": [f"<code>{text(case.item)}</code>" for case in cases],
    }
    kept = {name: cells for name, cells in columns.items() if any(cells)}
    return table(list(kept), list(zip(*kept.values(), strict=True)))
