"""Picture sources on small files in their packages' own formats: words, concepts, pixels."""

import io
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
import made
from placed import found, place

from muomni.data.admit import Admitted, Refused, admit
from muomni.data.items import LineItem
from muomni.data.media import MediaError, read_image
from muomni.data.sources import chitchat, emoji, iconify, lines, openclipart, svg
from muomni.data.sources.adapter import Found, LeftOutError
from muomni.data.splits import normalised

WORDS = [
    {"emoji": "🚶", "hexcode": "1F6B6", "label": "Person Walking", "tags": ["walk"], "group": 1},
    {"emoji": "🚶‍♀️", "hexcode": "1F6B6-200D-2640-FE0F", "label": "Woman Walking", "tags": [], "group": 1},
    {"emoji": "❤️", "hexcode": "2764-FE0F", "label": "Red Heart", "tags": ["love"], "group": 0},
    {"emoji": "🏻", "hexcode": "1F3FB", "label": "light skin tone", "tags": [], "group": 2},
    {"emoji": "🇦", "hexcode": "1F1E6", "label": "regional indicator A", "tags": []},
]  # fmt: skip
SQUARE = '<path fill="#f00" d="M4 4h24v24H4z"/>'


@pytest.fixture
def style(cache: Path) -> Path:
    """A style that draws the walkers and the heart."""
    icons = {"width": 32, "height": 32, "icons": {"person-walking": {"body": SQUARE}, "red-heart": {"body": SQUARE},
                                                  "woman-walking": {"body": SQUARE}}}  # fmt: skip
    names = {"1f6b6": "person-walking", "1f6b6-200d-2640": "woman-walking", "2764": "red-heart"}
    place(emoji.WORDS, cache, {"package/en/data.json": json.dumps(WORDS)})
    for package in (iconify.NOTO, iconify.FLUENT_FLAT, iconify.FLUENT):
        files = {"package/icons.json": json.dumps(icons)}
        if package is not iconify.FLUENT:
            files["package/chars.json"] = json.dumps(names)
        place(package, cache, files)
    return cache


@pytest.mark.parametrize("name", ["emoji-noto", "emoji-fluent-flat", "emoji-fluent"])
def test_every_style_of_an_emoji_is_one_concept(name: str, style: Path) -> None:
    items = {one.id: one for one in found(name, style)}
    assert set(items) == {f"{name}/1F6B6", f"{name}/1F6B6-200D-2640-FE0F", f"{name}/2764-FE0F"}
    assert items[f"{name}/1F6B6"].group == items[f"{name}/1F6B6-200D-2640-FE0F"].group == "person walking"
    assert items[f"{name}/2764-FE0F"].fields["label"] == "red heart"


def test_a_drawing_is_rasterised_on_white(style: Path) -> None:
    pytest.importorskip("resvg_py", reason="resvg_py is not installed: muomni[data]")
    (one, *_) = found("emoji-noto", style)
    admitted = admit(one)
    assert isinstance(admitted, Admitted)
    pixels = np.asarray(read_image(admitted.payload)).astype(int)
    assert pixels.shape == (128, 128, 3)
    assert (pixels[:8, :8] > 245).all() and (abs(pixels[60:68, 60:68] - (255, 0, 0)) < 30).all()


@pytest.mark.parametrize(
    ("drawing", "error", "told"),
    [("<svg", MediaError, "is a broken drawing"), (None, LeftOutError, "nearly blank")],
)
def test_broken_drawings_are_bad_and_blank_ones_are_left_out(
    drawing: str | None, error: type[Exception], told: str
) -> None:
    pytest.importorskip("resvg_py", reason="resvg_py is not installed: muomni[data]")
    blank = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><path fill="#fff" d="M1 1h2v2z"/></svg>'
    )
    with pytest.raises(error, match=told):
        svg.rasterise(drawing or blank, name="x")


def test_icons_are_named_and_variants_are_left_out(cache: Path) -> None:
    icons = {"width": 512, "height": 512, "icons": {"crab-claw": {"body": SQUARE}, "dice-six-2": {"body": SQUARE},
                                                    "old-name": {"body": SQUARE, "hidden": True}}}  # fmt: skip
    place(iconify.GAME_ICONS, cache, {"icons.json": json.dumps(icons)})
    (one,) = found("game-icons", cache)
    assert (one.fields["label"], one.group, one.fields["style"]) == ("crab claw", "crab claw", "icon")


def _clip_art(title: str, subjects: tuple[str, ...] = (), description: str = "") -> str:
    listed = "".join(f"<rdf:li>{subject}</rdf:li>" for subject in subjects)
    return (f"<svg><metadata><dc:title>{title}</dc:title><dc:description>{description}</dc:description>{listed}"
            "<dc:creator><dc:title>somebody</dc:title></dc:creator></metadata></svg>")  # fmt: skip


def test_clip_art_has_its_title_subjects_and_description(cache: Path) -> None:
    drawings = {
        "animals/fox": _clip_art(
            "Red_Fox 02 by anna", ("animal", "Red Fox"), "A red fox that stands in the snow"
        ),
        "animals/nameless": _clip_art("0815"),
        "computer/icons/disk": _clip_art("disk"),
        "shapes/stars/star": _clip_art("gramastar"),
        "animals/no-picture": _clip_art("dog"),
    }
    place(openclipart.DRAWINGS, cache, {f"openclipart/svg/{n}.svg": text for n, text in drawings.items()})
    place(openclipart.PICTURES, cache,
          {f"openclipart/png/{n}.png": made.drawing(3, side=300) for n in drawings if "no-pic" not in n})  # fmt: skip
    (one,) = found("openclipart", cache)
    assert one.id == "openclipart/animals/fox" and one.group == "red fox"
    assert one.fields == {
        "label": "red fox", "tags": ["animal"], "group": "animals", "style": "drawing",
        "captions": ["A red fox that stands in the snow"],
    }  # fmt: skip
    admitted = admit(one)
    assert isinstance(admitted, Admitted) and read_image(admitted.payload).size == (128, 128)


def test_a_nearly_blank_or_too_large_picture_is_left_out_and_not_counted_as_bad(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (200, 100), (255, 255, 250)).save(buffer, "PNG")
    (cache / "x.png").write_bytes(buffer.getvalue())
    fields = {"label": "x", "tags": [], "group": "y"}
    payload = partial(openclipart._small, cache / "x.png", "x")
    one = Found(kind="pictures", id="x", group="x", fields=fields, payload=payload)
    assert admit(one) == Refused(id="x", reason="nearly blank", bad=False)
    monkeypatch.setattr(openclipart, "MAX_PIXELS", 19_999)
    assert admit(one) == Refused(id="x", reason="larger than the gate lets pass", bad=False)


@pytest.mark.parametrize(
    ("title", "cleaned"),
    [("Cat_02.svg", "cat"), ("Tree (version 3) by J. Doe", "tree"), ("caf&#233; au lait", "café au lait"), ("99", ""),
     ("a dog icon", "a dog")],
)  # fmt: skip
def test_titles_become_plain_words(title: str, cleaned: str) -> None:
    assert openclipart.clean(title) == cleaned


@pytest.fixture
def letters(cache: Path) -> Path:
    """Sentences, and one font in every package: matplotlib-free, the machine's own would do as well."""
    talk = {"messages": [[{"text": f"The {w} house is on the hill by the river."}] for w in made.WORDS]}
    place(chitchat.CONVERSATIONS, cache, {"dataset.json": json.dumps({"one": talk})})
    from PIL import ImageFont

    default = ImageFont.load_default(20)
    assert isinstance(default, ImageFont.FreeTypeFont)
    payload = default.font_bytes
    for package in lines.FONTS:
        place(package, cache, {"usr/share/fonts/letters.ttf": payload})
    return cache


def test_lines_are_written_words_in_any_place_and_colour(
    letters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from itertools import islice

    items = list(islice(lines._find(letters, n=30, name="lines"), 12))
    assert len({one.fields["text"] for one in items}) == 12
    for one in items:
        assert one.group == normalised(one.fields["text"]) and len(one.fields["text"]) <= lines.MAX_CHARACTERS
        first, again = admit(one), admit(one)
        assert (
            isinstance(first, Admitted) and isinstance(again, Admitted) and isinstance(first.item, LineItem)
        )
        assert first.payload == again.payload
        pixels = np.asarray(read_image(first.payload).convert("L")).astype(int)
        assert pixels.shape == (lines.HEIGHT, lines.WIDTH)
        # Ink differs from paper, and there is more paper.
        paper = np.median(pixels)
        ink = (abs(pixels - paper) > 60).mean()
        assert 0.002 < ink < 0.4


def test_an_emoji_newer_than_the_font_is_not_looked_for(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(emoji.WORDS, cache, {"en/data.json": json.dumps(WORDS)})
    place(emoji.FONT, cache, {"NotoColorEmoji.ttf": "font"})
    monkeypatch.setattr(emoji.ImageFont, "truetype", lambda path, size: "font")
    picture = Image.new("RGB", (128, 128), (200, 0, 0))
    monkeypatch.setattr(emoji, "render", lambda symbol, font: None if symbol.startswith("❤") else picture)
    items = found("emoji", cache)
    assert [one.id for one in items] == ["emoji/1F6B6", "emoji/1F6B6-200D-2640-FE0F"]
    assert isinstance(admit(items[0]), Admitted)
    monkeypatch.setattr(emoji, "render", lambda symbol, font: None)
    refused = admit(items[0])
    assert isinstance(refused, Refused) and refused.bad
