"""Drawings of any size -> small WebP on white, by resvg."""

from __future__ import annotations

import io

from PIL import Image

from muomni.data.media import MediaError, read_image
from muomni.data.sources.adapter import LeftOutError
from muomni.data.sources.fetch import build_tool

SIDE = 128
"""Pixels of the longer side."""
LEAST_INK = 0.01
"""Share of pixels that differ from white; less is near-blank."""


def rasterise(svg: str, *, name: str) -> bytes:
    """An SVG document as a WebP of at most SIDE x SIDE pixels. Raises MediaError for a broken
    one, LeftOutError for one that is near-blank.
    """
    try:
        png = build_tool("resvg_py").svg_to_bytes(
            svg_string=svg, width=SIDE, background="#ffffff", skip_system_fonts=True
        )
    except ValueError as error:
        raise MediaError(f"{name}: is a broken drawing ({error}).") from None
    return shrunk(bytes(png), name=name)


def shrunk(payload: bytes, *, name: str) -> bytes:
    """A picture as WebP of at most SIDE x SIDE pixels, on white. Raises MediaError for a broken
    one, LeftOutError for one that is near-blank.
    """
    picture = read_image(payload)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    histogram = picture.convert("L").histogram()
    if sum(histogram[:240]) < LEAST_INK * picture.width * picture.height:
        raise LeftOutError("nearly blank")
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=72, method=6)
    return buffer.getvalue()
