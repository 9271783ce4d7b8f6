"""Rebuild the embedded data set from its packages: `muomni data embed`."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from muomni.data.items import SAMPLE_RATE
from muomni.data.sources import asterisk, chitchat, emoji, questions, synthesis
from muomni.data.sources.fetch import Package
from muomni.data.sources.sound import encode_opus

PACKAGES: tuple[Package, ...] = (
    asterisk.SOUNDS,
    asterisk.TEXTS,
    emoji.FONT,
    emoji.WORDS,
    chitchat.CONVERSATIONS,
    synthesis.HIBARI,
    synthesis.FLITE,
    synthesis.FLITE_VOICES,
)
MIT = (
    "Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated",
    'documentation files (the "Software"), to deal in the Software without restriction, including without limitation',
    "the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and",
    "to permit persons to whom the Software is furnished to do so, subject to the following conditions:",
    "",
    "The above copyright notice and this permission notice shall be included in all copies or substantial portions of",
    "the Software.",
    "",
    'THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO',
    "THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE",
    "AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF",
    "CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS",
    "IN THE SOFTWARE.",
)


def write_tar(path: Path, records: list[dict[str, Any]], files: Iterable[tuple[str, bytes]]) -> None:
    """A tar of items.jsonl followed by the files; times and owners zeroed, so equal input gives equal bytes."""

    def add(tar: tarfile.TarFile, name: str, payload: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(payload)
        tar.addfile(info, io.BytesIO(payload))

    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        add(tar, "items.jsonl", lines.encode())
        for name, payload in files:
            add(tar, name, payload)


def attribution() -> str:
    """ATTRIBUTION.md: what comes from where, under which licence."""
    lines = [
        "# Attribution of the embedded data",
        "",
        "The code of muomni is under the MIT licence. The data in this folder keep their own:",
        "",
    ]
    for package in PACKAGES:
        lines += [
            f"## {package.name} {package.version} ({package.registry})",
            f"- licence: {package.licence}",
            f"- attribution: {package.attribution}",
            f"- used for: {package.gives}",
            f"- SHA-256 of the package: {package.sha256}",
            "",
        ]
    lines += [
        "Changes made: recordings trimmed, resampled to 16 kHz and encoded as Ogg Opus; transcripts normalised to",
        "lower-case words (the original is kept beside them); drawings rendered on white and encoded as WebP;",
        "conversations with a link, an address, a long number or a word of a short list (slurs, sexual words, drugs)",
        "left out whole: a simple filter, which does not judge meaning. speech.tar is a derivative of CC-BY-SA-3.0",
        "material and stays under CC-BY-SA-3.0 (https://creativecommons.org/licenses/by-sa/3.0/).",
        "The spoken questions are synthetic speech and are labelled so; no voice's model or code is included.",
        "",
        "OFL-1.1: https://openfontlicense.org. Apache-2.0: https://www.apache.org/licenses/LICENSE-2.0.",
        "",
        "## The MIT licence, as it applies to the MIT sources above with their copyright lines",
        *MIT,
    ]
    return "\n".join(lines) + "\n"


def _file_name(identifier: str, suffix: str) -> str:
    return identifier.replace("/", "_") + suffix


def build(
    out: Path, *, cache: Path | None = None, progress: Callable[[str], None] = lambda line: None
) -> None:
    """Write the whole set into out.

    cache: where packages are kept between rebuilds; default out/../embedded-cache.
    Raises SourceError when a package or a tool to read it is missing.
    """
    cache = cache or out.parent / "embedded-cache"
    out.mkdir(parents=True, exist_ok=True)
    spoken = (("speech", asterisk.items(cache)), ("questions", questions.items(cache)))
    for name, items in spoken:
        files = [(_file_name(record["id"], ".ogg"), encode_opus(waveform)) for record, waveform in items]
        write_tar(out / f"{name}.tar", [record for record, _ in items], files)
        progress(f"{name}: {len(items)} clips, {sum(len(w) for _, w in items) / SAMPLE_RATE / 60:.1f} min")
    pictures = emoji.items(cache)
    write_tar(
        out / "pictures.tar",
        [record for record, _ in pictures],
        [(_file_name(record["id"], ".webp"), payload) for record, payload in pictures],
    )
    progress(f"pictures: {len(pictures)}")
    conversations = chitchat.items(cache)
    text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in conversations)
    (out / "text.jsonl.xz").write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
    progress(f"text: {len(conversations)} conversations, {len(text) / 1e6:.2f} MB")
    (out / "ATTRIBUTION.md").write_text(attribution(), encoding="utf-8")
    names = ("speech.tar", "questions.tar", "pictures.tar", "text.jsonl.xz", "ATTRIBUTION.md")
    manifest = {
        "files": {
            name: {
                "sha256": hashlib.sha256((out / name).read_bytes()).hexdigest(),
                "bytes": (out / name).stat().st_size,
            }
            for name in names
        },
        "sources": [vars(package) for package in PACKAGES],
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
