"""Photographs with sentences that people wrote about them: COCO captions and Flickr8k or Flickr30k."""

from __future__ import annotations

import csv
import functools
import json
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from muomni.data.items import Split
from muomni.data.sources.adapter import Adapter, Found
from muomni.data.sources.download import given
from muomni.data.sources.fetch import Package, SourceError, fetch


def _coco(path: str, gives: str) -> Package:
    return Package(
        registry="url", name=f"http://images.cocodataset.org/{path}", version="2017", sha256="", gives=gives,
        licence="CC-BY-4.0 (captions); the pictures' own, by Flickr's terms",
        attribution="Microsoft COCO, Lin et al., 2014 (cocodataset.org)",
    )  # fmt: skip


ANNOTATIONS = _coco("annotations/annotations_trainval2017.zip", "captions")
PICTURES: dict[Split, Package] = {
    "train": _coco("zips/train2017.zip", "118,287 photographs"),
    "test": _coco("zips/val2017.zip", "5,000 photographs, the official validation split"),
}
VALIDATION = 40
"""One training photograph of COCO in so many is kept for validation: its own validation split is our test."""
_FLICKR_LISTINGS = ("captions.txt", "Flickr8k.token.txt", "results_20130124.token", "results.csv")


def _file(path: Path) -> bytes:
    return path.read_bytes()


def _picture(name: str, key: str, split: Split | None, path: Path, captions: list[str]) -> Found:
    """A photograph; its first sentence is its label."""
    said = [" ".join(caption.split()) for caption in captions]
    return Found(
        kind="pictures", id=f"{name}/{key}", group=f"{name} {key}", split=split, suffix=path.suffix,
        payload=functools.partial(_file, path),
        fields={"label": said[0].rstrip(" .").lower(), "tags": [], "group": "photograph", "style": "photo",
                "captions": said},
    )  # fmt: skip


def _find_coco(cache: Path) -> Iterator[Found]:
    annotations = fetch(ANNOTATIONS, cache)
    for split, package in PICTURES.items():
        year = "train2017" if split == "train" else "val2017"
        listing = next(annotations.rglob(f"captions_{year}.json"), None)
        if listing is None:
            raise SourceError(f"{annotations}: has no captions_{year}.json; fetch COCO's annotations again.")
        found = json.loads(listing.read_text(encoding="utf-8"))
        folder = next(fetch(package, cache).rglob(year))
        captions: dict[int, list[str]] = defaultdict(list)
        for row in found["annotations"]:
            captions[row["image_id"]].append(row["caption"])
        for image in sorted(found["images"], key=lambda row: row["id"]):
            if captions[image["id"]]:
                held_out = split == "train" and zlib.crc32(f"coco {image['id']}".encode()) % VALIDATION == 0
                yield _picture(
                    "coco",
                    str(image["id"]),
                    "validation" if held_out else split,
                    folder / image["file_name"],
                    captions[image["id"]],
                )


def _find_flickr(cache: Path, *, name: str) -> Iterator[Found]:
    """Any of the listings that the two sets have been given out with: one caption a line."""
    folder = given(
        cache, name, what="the pictures and their captions (captions.txt or a .token file)",
        origin="https://shannon.cs.illinois.edu/DenotationGraph, whose form you fill in,",
    )  # fmt: skip
    listing = next((p for known in _FLICKR_LISTINGS for p in sorted(folder.rglob(known))), None)
    if listing is None:
        raise SourceError(f"{folder}: has none of {', '.join(_FLICKR_LISTINGS)}; put the captions there.")
    captions: dict[str, list[str]] = defaultdict(list)
    for picture, caption in _captions(listing):
        captions[picture].append(caption)
    files = {path.name: path for path in folder.rglob("*.jpg")}
    for picture in sorted(captions):
        if picture not in files:
            raise SourceError(
                f"{folder}: has captions of {picture} and not the picture; put all pictures there."
            )
        yield _picture(name, Path(picture).stem, None, files[picture], captions[picture])


def _captions(listing: Path) -> Iterator[tuple[str, str]]:
    lines = listing.read_text(encoding="utf-8").splitlines()
    if listing.suffix == ".csv":
        for row in csv.reader(lines[1:], delimiter="|"):
            yield row[0].strip(), row[-1].strip()
    elif listing.name == "captions.txt":
        for row in csv.reader(lines[1:]):
            yield row[0], ",".join(row[1:]).strip()
    else:
        for line in lines:
            picture, _, caption = line.partition("\t")
            yield picture.partition("#")[0], caption


ADAPTERS: tuple[Adapter, ...] = (
    Adapter(
        name="coco", title="123,287 photographs, five sentences each", stages=("vision", "omni"),
        licence=ANNOTATIONS.licence, packages=(ANNOTATIONS, *PICTURES.values()), find=_find_coco,
    ),
    *(
        Adapter(
            name=name, title=f"{count} photographs, five sentences each; download it yourself",
            stages=("vision", "omni"), licence="research and education, by Flickr's terms",
            find=functools.partial(_find_flickr, name=name), opt_in="for research and education alone",
        )
        for name, count in (("flickr8k", "8,000"), ("flickr30k", "31,000"))
    ),
)  # fmt: skip
