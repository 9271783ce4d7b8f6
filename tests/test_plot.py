"""Drawings are well-formed and show what they were given."""

import base64
import math
import xml.etree.ElementTree as ET
import zlib

import pytest

from muomni.plot import line_plot, png_data_uri, svg_file


def test_line_plot_is_well_formed_and_draws_every_finite_point() -> None:
    svg = line_plot(
        {"train": [(0, 4.0), (1, float("nan")), (2, 1.0)], "a<b": [(0, 3.0)]},
        title="Loss & more",
        references={"u": 5},
    )
    root = ET.fromstring(svg)
    lines = [e.attrib["points"].split() for e in root.iter() if e.tag.endswith("polyline")]
    assert [len(points) for points in lines] == [2, 1]
    heights = [float(p.split(",")[1]) for p in lines[0]]
    assert heights[0] < heights[1], "a larger value is drawn higher"


def test_line_plot_without_a_finite_point_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one finite point"):
        line_plot({"x": [(0, math.inf)]}, title="t")


def test_plots_in_a_file_stand_below_one_another_in_the_svg_namespace() -> None:
    plots = [line_plot({"x": [(0, 1.0), (1, y)]}, title=f"plot {y}") for y in (2.0, 3.0)]
    root = ET.fromstring(svg_file(plots))
    inner = [e for e in root if e.tag == "{http://www.w3.org/2000/svg}svg"]
    assert [(e.get("y"), e.get("height"), e.get("aria-label")) for e in inner] == [
        ("0", "230", "plot 2.0"), ("230", "230", "plot 3.0"),
    ]  # fmt: skip
    assert root.get("viewBox") == "0 0 460 460"


def test_png_holds_the_pixels() -> None:
    uri = png_data_uri([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]], low=0.0, high=1.0)
    payload = base64.b64decode(uri.split(",", 1)[1])
    assert payload[:8] == b"\x89PNG\r\n\x1a\n"
    start = payload.index(b"IDAT") + 4
    length = int.from_bytes(payload[start - 8 : start - 4], "big")
    raw = zlib.decompress(payload[start : start + length])
    assert len(raw) == 3 * (1 + 2 * 3)
    assert raw[1:4] == raw[11:14], "value 0 has one colour wherever it stands"
