"""Pictures of written words for reading (OCR): people's sentences in many fonts, turned, bent, blurred and noisy."""

from __future__ import annotations

import functools
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from muomni.data.sources import chitchat, synthesis
from muomni.data.sources.adapter import Adapter, Found
from muomni.data.sources.fetch import Package, fetch
from muomni.data.splits import normalised

WIDTH, HEIGHT = 224, 64
"""Pixels of a picture."""
MAX_CHARACTERS = 30
"""Of a line: one of 224 pixels cannot be read beyond."""
MARGIN = 6
"""Pixels kept free around the words."""
SIZES = (30, 12)
"""Pixels of the largest and the smallest letters tried."""


def _font(name: str, version: str, sha256: str, n_bytes: int, licence: str) -> Package:
    return Package(
        registry="debian", name=name, version=version, sha256=sha256, licence=licence, n_bytes=n_bytes,
        attribution=f"{name}, its authors as the package names them", gives="letters of rendered lines",
    )  # fmt: skip


FONTS: tuple[Package, ...] = (
    _font(
        "fonts-dejavu-core", "2.37-6",
        "8892669e51aab4dc56682c8e39d8ddb7d70fad83c369344e1e240bf3ca22bb76", 1_067_728, "Bitstream-Vera",
    ),
    _font(
        "fonts-comic-neue", "2.51-4",
        "6f002dc90d62fde01a2b51f333c09dc6c21ffbfc6ca22d05a84cc049b083c826", 360_376, "OFL-1.1",
    ),
    _font(
        "fonts-inconsolata", "001.010-6",
        "bb5015c631cd47aa7d9d6e0ecd101f0e1234300f935e7719ea32ed9b640f0ac4", 61_384, "OFL-1.0",
    ),
    _font(
        "fonts-dancingscript", "1.2-2",
        "987b8182611e1f3d9e7b19a82787614470dd8c4ed894a4dedbebc2308703b216", 65_712, "OFL-1.1",
    ),
    _font(
        "fonts-breip", "1:0.5.1-3",
        "1f0ea903300b89cb55d107ee4a12be82118ada0384d8bd9db0aad8e1f8c1aa49", 37_692, "OFL-1.0",
    ),
    _font(
        "fonts-femkeklaver", "1.0-4",
        "93b34dc4752ac43634fffb93c985366a34dea16886287ae405d5b3e87cd9a7b4", 62_076, "CC-BY-SA-3.0",
    ),
    _font(
        "fonts-oldstandard", "2.2really-4",
        "c8c240cf91654f9ae5357b123436612c05820259dd5569f1c090185cb2ec1fdd", 389_404, "OFL-1.1",
    ),
    _font(
        "fonts-roboto-slab", "1.100263+20170512-2",
        "bbc315d672de850a7c980bc2283e41b4f322fd5a2b2bb2d00f07c15983b950b1", 165_688, "Apache-2.0",
    ),
    _font(
        "fonts-quicksand", "0.2016-2.1",
        "1175e5c64f116887b37ec3c8faea1f411bdef356580bc22298c3c9da75fac120", 128_024, "OFL-1.1",
    ),
    _font(
        "fonts-play", "1.002+20150307.1-0.1",
        "274f6e95f668f1fff3441056e968a4c947ac975b29000d9c513bd06bb7f7f9d4", 171_120, "OFL-1.1",
    ),
    _font(
        "fonts-junction", "20110525.18de841-1.1",
        "de4fcf631587812696a6939764c1ec4c005a848749a4e11dde39fd5b3060c6dd", 16_964, "OFL-1.1",
    ),
    _font(
        "fonts-cantarell", "0.303.1-1",
        "8fdf5687d9e2ce70456664519025a6b48fbaaadbc5b1cfbf8b09f72c2dc5f09b", 265_484, "OFL-1.1",
    ),
)  # fmt: skip
"""Serif, sans serif, monospaced, comic and handwritten."""


def pieces(sentence: str, draw: np.random.Generator) -> str:
    """One to all words of a sentence from a random place on, at most MAX_CHARACTERS."""
    words = sentence.split()
    start = int(draw.integers(len(words)))
    wanted = int(draw.integers(1, 7))
    chosen: list[str] = []
    for word in words[start : start + wanted]:
        if len(" ".join([*chosen, word])) > MAX_CHARACTERS:
            break
        chosen.append(word)
    return " ".join(chosen)


def line(text: str, font: Path, seed: int) -> bytes:
    """A text rendered as WebP, WIDTH x HEIGHT, distorted as the seed says."""
    draw = np.random.default_rng(seed)
    paper, ink = _colours(draw)
    size, face, box = SIZES[0], None, (0, 0, 0, 0)
    for size in range(int(draw.integers(20, SIZES[0] + 1)), SIZES[1] - 1, -1):
        face = ImageFont.truetype(str(font), size)
        box = tuple(round(edge) for edge in face.getbbox(text))
        if box[2] - box[0] <= WIDTH - 2 * MARGIN:
            break
    assert face is not None
    width, height = box[2] - box[0], box[3] - box[1]
    left = MARGIN + int(draw.integers(max(1, WIDTH - 2 * MARGIN - width)))
    top = MARGIN + int(draw.integers(max(1, HEIGHT - 2 * MARGIN - height)))
    picture = Image.new("RGB", (WIDTH, HEIGHT), paper)
    ImageDraw.Draw(picture).text((left - box[0], top - box[1]), text, font=face, fill=ink)
    picture = picture.transform(
        picture.size, Image.Transform.PERSPECTIVE, _bend(draw), Image.Resampling.BICUBIC, fillcolor=paper
    )
    picture = picture.filter(ImageFilter.GaussianBlur(float(draw.uniform(0.0, 0.8))))
    noise = draw.normal(0.0, draw.uniform(0.0, 12.0), (HEIGHT, WIDTH, 1))
    shown = Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    shown.save(buffer, "WEBP", quality=72, method=4)
    return buffer.getvalue()


def _colours(draw: np.random.Generator) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Light paper with dark ink, or in one picture of five the other way round."""
    light, dark = draw.integers(190, 256, 3), draw.integers(0, 90, 3)
    one, other = (dark, light) if draw.random() < 0.2 else (light, dark)
    return (int(one[0]), int(one[1]), int(one[2])), (int(other[0]), int(other[1]), int(other[2]))


def _bend(draw: np.random.Generator) -> list[float]:
    """Coefficients of a small rotation with shear and perspective about the middle, for Image.transform."""
    angle, shear = np.radians(draw.uniform(-4, 4)), draw.uniform(-0.12, 0.12)
    a, b, d, e = np.cos(angle), np.sin(angle) + shear, -np.sin(angle), np.cos(angle)
    g, h = draw.uniform(-2e-4, 2e-4, 2)
    x, y = WIDTH / 2, HEIGHT / 2
    return [float(v) for v in (a, b, x - a * x - b * y, d, e, y - d * x - e * y, g, h)]


def _find(cache: Path, *, n: int, name: str) -> Iterator[Found]:
    fonts = [font for package in FONTS for font in _faces(fetch(package, cache))]
    spoken = synthesis.sentences(cache)
    seen: set[str] = set()
    number = 0
    while len(seen) < n:
        seed = zlib.crc32(f"line {number}".encode())
        draw = np.random.default_rng(seed)
        sentence, split = spoken[number % len(spoken)]
        text = pieces(sentence, draw)
        font = fonts[int(draw.integers(len(fonts)))]
        number += 1
        if not (key := normalised(text)) or key in seen:
            continue
        seen.add(key)
        yield Found(
            kind="lines", id=f"{name}/{len(seen):06d}", group=key, split=split, suffix=".webp",
            fields={"text": text}, payload=functools.partial(line, text, font, seed),
        )  # fmt: skip


def _faces(folder: Path) -> list[Path]:
    return sorted([*folder.rglob("*.ttf"), *folder.rglob("*.otf")])


def _adapter(name: str, n: int) -> Adapter:
    return Adapter(
        name=name, title=f"rendered words and lines, {n:,}", stages=("omni",), licence="the fonts' own, free",
        packages=(chitchat.CONVERSATIONS, *FONTS), find=functools.partial(_find, n=n, name=name), version=4,
    )  # fmt: skip


ADAPTERS: tuple[Adapter, ...] = (_adapter("lines", 2_000), _adapter("lines-20k", 20_000))
