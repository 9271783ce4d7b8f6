"""Small self-contained drawings for reports: line plots as SVG, spectrograms as PNG data URIs.

Standard library only, so that a report needs no plotting package and no network.
"""

from __future__ import annotations

import base64
import html
import math
import struct
import zlib
from collections.abc import Mapping, Sequence

STYLE = (
    "text{font:11px sans-serif;fill:#334155}.title{font-weight:bold;font-size:13px}"
    ".tick{font-size:10px;fill:#64748b}.grid{stroke:#e2e8f0}"
)
"""How a plot that stands in a file of its own looks; a report brings its own style."""
COLOURS: tuple[str, ...] = ("#2563eb", "#dc2626", "#059669", "#9333ea", "#d97706", "#475569")


def _ticks(low: float, high: float, n: int = 4) -> list[float]:
    raw = (high - low) / max(n, 1)
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= raw)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def line_plot(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    x_label: str = "step",
    y_label: str = "",
    references: Mapping[str, float] | None = None,
    width: int = 460,
    height: int = 230,
) -> str:
    """An SVG line plot.

    series:     name -> (x, y) points; non-finite points are left out.
    references: name -> y of a dashed horizontal line, for example a baseline.
    Returns the SVG element as text. Raises ValueError when no finite point is given.
    """
    clean = {
        name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
        for name, points in series.items()
    }
    flat = [point for points in clean.values() for point in points]
    if not flat:
        raise ValueError("series: expected at least one finite point, got none.")
    levels = dict(references or {})
    xs, ys = [p[0] for p in flat], [p[1] for p in flat] + list(levels.values())
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
    x1, y1 = (x1 if x1 > x0 else x0 + 1), (y1 if y1 > y0 else y0 + 1)
    left, right, top, bottom = 52, 10, 26, 34

    def at(x: float, y: float) -> tuple[float, float]:
        px = left + (x - x0) / (x1 - x0) * (width - left - right)
        return px, top + (y1 - y) / (y1 - y0) * (height - top - bottom)

    parts = [
        f'<svg viewBox="0 0 {width} {height}" class="plot" role="img" aria-label="{html.escape(title)}">',
        f'<text x="{left}" y="15" class="title">{html.escape(title)}</text>',
    ]
    for tick in _ticks(y0, y1):
        _, y = at(x0, tick)
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{left - 5}" y="{y + 3:.1f}" class="tick" text-anchor="end">{tick:g}</text>')
    for tick in _ticks(x0, x1):
        x, _ = at(tick, y0)
        parts.append(f'<text x="{x:.1f}" y="{height - 20}" class="tick" text-anchor="middle">{tick:g}</text>')
    parts.append(
        f'<text x="{(left + width - right) / 2}" y="{height - 5}" class="tick" text-anchor="middle">'
        f"{html.escape(x_label)}{', ' + html.escape(y_label) if y_label else ''}</text>"
    )
    for points, colour in zip(clean.values(), COLOURS * 3, strict=False):
        line = " ".join(f"{px:.1f},{py:.1f}" for px, py in (at(x, y) for x, y in points))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    for name, level in levels.items():
        _, y = at(x0, level)
        parts.append(
            f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#64748b" '
            f'stroke-dasharray="5 4"/>'
            f'<text x="{width - right - 4}" y="{y - 4:.1f}" class="tick" text-anchor="end">'
            f"{html.escape(name)}</text>"
        )
    if len(clean) > 1:
        for i, (name, colour) in enumerate(zip(clean, COLOURS * 3, strict=False)):
            y = top + 12 + 13 * i
            parts.append(f'<rect x="{width - 140}" y="{y - 8}" width="9" height="9" fill="{colour}"/>')
            parts.append(f'<text x="{width - 127}" y="{y}" class="tick">{html.escape(name)}</text>')
    return "".join(parts) + "</svg>"


def svg_file(plots: Sequence[str], *, width: int = 460, height: int = 230) -> str:
    """Plots of `line_plot`, all of one width and height, below one another as one SVG file that a browser shows."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height * len(plots)}" width="{2 * width}">',
        f'<style>{STYLE}</style><rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for i, plot in enumerate(plots):
        place = f'<svg y="{i * height}" width="{width}" height="{height}" '
        parts.append(place + plot.removeprefix("<svg "))
    return "".join(parts) + "</svg>\n"


def png_data_uri(rows: Sequence[Sequence[float]], *, low: float, high: float) -> str:
    """`png` as a data URI."""
    return data_uri(png(rows, low=low, high=high), "image/png")


def png(rows: Sequence[Sequence[float]], *, low: float, high: float) -> bytes:
    """A heat map as a PNG file: rows top to bottom, values low..high from dark blue to yellow."""
    n_rows, n_columns = len(rows), len(rows[0])
    scale = 1.0 / max(high - low, 1e-9)
    raw = bytearray()
    for row in rows:
        raw.append(0)
        for value in row:
            t = min(1.0, max(0.0, (value - low) * scale))
            raw += bytes(
                (round(255 * t**1.2), round(230 * t**1.6), round(90 + 120 * t * (1 - t) * 2 - 70 * t))
            )

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", n_columns, n_rows, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(raw), 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


def data_uri(payload: bytes, media_type: str) -> str:
    """Bytes as a data URI."""
    return f"data:{media_type};base64,{base64.b64encode(payload).decode('ascii')}"
