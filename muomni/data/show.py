"""A self-contained page of a source: pictures with their words, players with transcripts, texts."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import soundfile
from PIL import Image

from muomni.data.items import (
    Conversation,
    Item,
    LineItem,
    PictureItem,
    QuestionItem,
    Source,
    SpeechItem,
    Split,
    TextItem,
)

THUMBNAIL = 112
"""Pixels a side of a picture on the page."""
MAX_CHARACTERS = 600
"""Of a text on the page."""
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#1a1a1a}"
    "figure{display:inline-block;margin:.4rem;width:7.5rem;vertical-align:top;font-size:.75rem}"
    "figure img{width:112px;height:112px;object-fit:contain;background:#fff;border:1px solid #ddd}"
    "td{padding:.3rem .8rem .3rem 0;vertical-align:top}pre{white-space:pre-wrap;background:#f6f6f6;padding:.6rem}"
    "@media(prefers-color-scheme:dark){body{background:#161616;color:#e6e6e6}pre{background:#222}}"
)

Some = TypeVar("Some", bound=Item)


def spread(items: Sequence[Some], n: int) -> list[Some]:
    """At most n items, evenly spaced: no choosing of good examples."""
    n = min(n, len(items))
    return [items[i * len(items) // n] for i in range(n)]


def page(source: Source, *, title: str, split: Split = "train", n: int = 60) -> str:
    """HTML with at most n items of each kind, evenly spaced over a split. Raises MediaError for a bad file."""
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>",
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>",
        f"<p>Split {split}; at most {n} items of each kind, evenly spaced.</p>",
    ]
    shown: list[PictureItem | LineItem] = [
        *spread(source.pictures(split), n),
        *spread(source.lines(split), n),
    ]
    if shown:
        parts += ["<h2>Pictures</h2>", *(_figure(source, item) for item in shown)]
    clips: list[SpeechItem | QuestionItem] = [
        *spread(source.speech(split), n // 2), *spread(source.questions(split), n // 2)
    ]  # fmt: skip
    if clips:
        parts += ["<h2>Recordings</h2><table>", *(_player(source, item) for item in clips), "</table>"]
    texts: list[Conversation | TextItem] = [
        *spread(source.conversations(split), n // 3), *spread(source.texts(split), n // 3)
    ]  # fmt: skip
    if texts:
        parts += ["<h2>Texts</h2>", *(_text(item) for item in texts)]
    return "\n".join(parts) + "\n"


def _data(payload: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(payload).decode()}"


def _figure(source: Source, item: PictureItem | LineItem) -> str:
    pixels = source.picture(item, side=2 * THUMBNAIL).transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "WEBP", quality=70)
    words = item.text if isinstance(item, LineItem) else "; ".join([item.label, *item.captions, *item.tags])
    return (
        f"<figure><img src='{_data(buffer.getvalue(), 'image/webp')}' alt=''>"
        f"<figcaption>{html.escape(words[:120])}</figcaption></figure>"
    )


def _player(source: Source, item: SpeechItem | QuestionItem) -> str:
    buffer = io.BytesIO()
    soundfile.write(buffer, source.waveform(item), 16_000, format="OGG", subtype="OPUS")
    who = f"{item.speaker if isinstance(item, SpeechItem) else item.voice}{', synthetic' if item.synthetic else ''}"
    answer = f" <b>{html.escape(item.answer)}</b>" if isinstance(item, QuestionItem) and item.answer else ""
    return (
        f"<tr><td><audio controls preload=none src='{_data(buffer.getvalue(), 'audio/ogg')}'></audio>"
        f"<td>{html.escape(item.text)}{answer}<td>{html.escape(who)}"
    )


def _text(item: Conversation | TextItem) -> str:
    cut = item.text[:MAX_CHARACTERS] + ("..." if len(item.text) > MAX_CHARACTERS else "")
    return f"<p>{html.escape(item.id)}<pre>{html.escape(cut)}</pre>"
