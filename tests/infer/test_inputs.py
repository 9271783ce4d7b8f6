"""What a caller of a session may hand over, and how the rest is refused: one line, of MediaError."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from muomni.data.media import MediaError
from muomni.infer.request import RequestError
from muomni.infer.session import Session

TEXTS = {"lone surrogate": ("a\ud800", "is not UTF-8"), "NUL": ("a\0b", r"control character U\+0000"),
         "escape": ("\x1b[2J", r"U\+001B"), "long": ("a" * (2**24 + 1), "16.0 MiB of text, at most 16")}  # fmt: skip


def _opened(n_bytes: int | None, kind: str) -> Image.Image:
    """A picture whose pixels are not read yet, of the first bytes of a file."""
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, format=kind)
    return Image.open(io.BytesIO(file.getvalue()[:n_bytes]))


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_is_none_is_one_line(name: str, session: Session) -> None:
    text, expected = TEXTS[name]
    for call in (session.chat, session.speak):
        with pytest.raises(MediaError, match=f"^text: .*{expected}") as caught:
            call(text)
        assert "\n" not in str(caught.value)
    assert not session._conversation.turns


def test_a_blank_text_is_one_beside_a_picture_and_nothing_to_say(session: Session) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    assert session.chat(" \n", image=picture, speak=False, max_new_tokens=2).ended in ("end", "length")
    assert session.chat("\ufeffé\t\r\n", speak=False, max_new_tokens=2).ended in ("end", "length")
    for text in ("", " \n", "\ufeff"):
        with pytest.raises(RequestError, match="nothing to say"):
            session.speak(text)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_opened_picture_whose_file_is_cut_is_one_line(kind: str, session: Session) -> None:
    assert session.chat(image=_opened(None, kind), speak=False, max_new_tokens=2)
    with pytest.raises(MediaError, match=r"^image: is a broken picture \(.*truncated.*\)\.$"):
        session.chat(image=_opened(900, kind))


def test_a_closed_or_empty_picture_is_one_line(session: Session) -> None:
    closed = _opened(None, "PNG")
    closed.close()
    for picture in (closed, Image.new("RGB", (0, 3))):
        with pytest.raises(MediaError, match=r"^image: is a broken picture"):
            session.describe(picture)
