"""The demo's report: one self-contained HTML page drawn from plain values.

Nothing is measured here; the caller hands over figures, curves, media and texts.
"""

from __future__ import annotations

import html
import io
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from muomni.plot import data_uri, png_data_uri

STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8881;--good:#15803d;--bad:#b91c1c}
body{font:15px/1.5 system-ui,sans-serif;max-width:1020px;margin:0 auto;padding:1.5rem}
h1{font-size:1.7rem;margin:0}h2{font-size:1.2rem;margin:2.2rem 0 .6rem;border-bottom:1px solid var(--line)}
p{max-width:70ch}.lead{font-size:1.05rem}
table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{text-align:left;padding:.32rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}
td.number,th.number{text-align:right;font-variant-numeric:tabular-nums}
.turn{display:grid;grid-template-columns:auto 1fr;gap:1.4rem;background:var(--soft);border-radius:12px;padding:1.2rem}
.turn img.picture{width:190px;border-radius:8px;background:#fff}
.answer{font-size:1.25rem;margin:.2rem 0 .6rem}
.who{font-size:.8rem;text-transform:uppercase;letter-spacing:.06em;opacity:.65;margin:0}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:1rem}
.spectrogram{width:100%;height:90px;image-rendering:pixelated;border-radius:6px;display:block;margin:.3rem 0}
audio{width:100%;height:34px}.plot{width:100%}.plot .title{font:600 12px system-ui;fill:currentColor}
.plot .tick{font:10px system-ui;fill:currentColor;opacity:.75}.plot .grid{stroke:var(--line)}
.good{color:var(--good);font-weight:600}.bad{color:var(--bad);font-weight:600}.small{font-size:.82rem;opacity:.75}
td img{width:52px;background:#fff;border-radius:4px}td audio{min-width:210px}
"""


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A waveform with its log-mel, ready to be shown."""

    waveform: np.ndarray
    """(n_samples,) float32 in [-1, 1]."""
    log_mel: np.ndarray
    """(n_frames, n_mels) float32."""
    sample_rate: int = 16_000
    """Hz."""

    def wav(self) -> bytes:
        """The waveform as a 16-bit WAV file."""
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(self.sample_rate)
            file.writeframes((np.clip(self.waveform, -1.0, 1.0) * 32_767).astype("<i2").tobytes())
        return buffer.getvalue()

    def player(self, *, spectrogram: bool = True) -> str:
        """An audio player, with the spectrogram above it (time to the right, low bands at the bottom)."""
        shown = ""
        if spectrogram and len(self.log_mel):
            rows = self.log_mel[: 100 * 12, ::2].T[::-1]
            low, high = float(np.percentile(rows, 5)), float(rows.max())
            uri = png_data_uri(rows.tolist(), low=low, high=high)
            shown = f'<img class="spectrogram" alt="log-mel spectrogram" src="{uri}">'
        return f'{shown}<audio controls preload="none" src="{data_uri(self.wav(), "audio/wav")}"></audio>'


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One omni turn: picture and spoken question in, text and speech out."""

    picture_png: bytes
    picture_label: str
    question: str
    question_note: str
    question_sound: Sound
    answer: str
    reply_sound: Sound
    timings: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A titled table of examples; cells are HTML made with `text`, `picture` or `Sound.player`."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything the page shows."""

    title: str
    lead: str
    turn: Turn
    figures: Sequence[Mapping[str, Any]]
    """Rows with what, name, value, baseline, baseline_name, better, n, interval, required, passed."""
    curves: Mapping[str, str]
    """Stage -> SVG."""
    sections: Sequence[Section] = ()
    tables: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    """Title -> rows, the first of which is the header."""
    attribution: str = ""


def text(value: object) -> str:
    """A value as escaped HTML text."""
    return html.escape(str(value))


def picture(payload: bytes, alt: str) -> str:
    """A PNG as an inline picture."""
    return f'<img alt="{html.escape(alt)}" src="{data_uri(payload, "image/png")}">'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the header is text, the cells are HTML."""
    head = "".join(f"<th>{text(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def number(value: float | None) -> str:
    """A figure as it is shown: three decimals below 10, else one; empty for None."""
    return "" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _figures(figures: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for figure in figures:
        interval = figure.get("interval")
        spread = f" [{number(interval[0])}, {number(interval[1])}]" if interval else ""
        arrow = "↓" if figure["better"] == "lower" else "↑"
        passed = figure.get("passed")
        verdict = (
            ""
            if passed is None
            else ('<span class="good">yes</span>' if passed else '<span class="bad">no</span>')
        )
        rows.append(
            (
                f"{text(figure['what'])} <span class=small>{arrow}</span>",
                f"<b>{number(figure['value'])}</b><span class=small>{spread}</span>",
                f"{number(figure['baseline'])} <span class=small>{text(figure['baseline_name'])}</span>",
                text(figure.get("required", "")),
                verdict,
                text(figure["n"]),
            )
        )
    return table(
        ("figure (arrow: the better direction)", "this model", "trivial baseline", "required", "met", "n"),
        rows,
    )


def _turn(turn: Turn) -> str:
    timings = " · ".join(f"{text(name)} {text(value)}" for name, value in turn.timings.items())
    source = data_uri(turn.picture_png, "image/png")
    image = f'<img class="picture" alt="{html.escape(turn.picture_label)}" src="{source}">'
    return (
        f'<div class="turn"><div>{image}<p class="small">truth: {text(turn.picture_label)}</p></div><div>'
        f'<p class="who">Asked, as sound ({text(turn.question_note)})</p><p>“{text(turn.question)}”</p>'
        f"{turn.question_sound.player()}"
        f'<p class="who">muomni answered</p><p class="answer">{text(turn.answer) or "(nothing)"}</p>'
        f'{turn.reply_sound.player()}<p class="small">{timings}</p></div></div>'
    )


def render(report: Report) -> str:
    """The page as text: no script, no external resource."""
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>{text(report.title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{text(report.title)}</h1><p class=lead>{text(report.lead)}</p>",
        "<h2>One omni turn</h2>",
        _turn(report.turn),
        "<h2>How well: held-out items only</h2>",
        "<p class=small>Every figure stands beside what a trivial method gets on the same items. "
        "Brackets: 95 % bootstrap interval.</p>",
        _figures(report.figures),
        "<h2>Training</h2><div class=plots>",
        *(f"<div>{svg}</div>" for svg in report.curves.values()),
        "</div>",
    ]
    for section in report.sections:
        parts.append(f"<h2>{text(section.title)}</h2><p class=small>{text(section.note)}</p>")
        parts.append(table(section.header, section.rows))
    for title, rows in report.tables.items():
        parts.append(f"<h2>{text(title)}</h2>")
        parts.append(table(rows[0], [[text(cell) for cell in row] for row in rows[1:]]))
    if report.attribution:
        parts.append(
            f"<h2>Data and licences</h2><pre class=small style='white-space:pre-wrap'>{text(report.attribution)}</pre>"
        )
    return "".join(parts) + "</body></html>\n"
