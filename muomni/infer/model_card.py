"""The model card: README.md of a finished model, with the front matter that the Hugging Face hub reads."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muomni.config import ModelConfig
from muomni.errors import UserError
from muomni.infer.history import Trained
from muomni.models.omni import parameter_table

NAMES = re.compile(r"[a-z0-9][a-z0-9.+-]*")
"""Licence identifiers and language codes of the hub."""
FIGURE_KEYS = ("what", "value", "baseline", "baseline_name", "n", "unit")
PACKAGES = ("muomni", "torch", "safetensors", "tokenizers")


class CardError(UserError, ValueError):
    """A licence, language or file of figures that a card cannot show."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the author of a model says about it; the rest of the card is known."""

    license: str = "other"
    """The hub's identifier, such as cc-by-sa-4.0; other: the licences of the data are listed and decide."""
    languages: tuple[str, ...] = ("en",)
    """ISO 639-1 codes."""
    figures: tuple[Mapping[str, Any], ...] = ()
    """Held-out figures, rows of `muomni eval all --json`."""

    def __post_init__(self) -> None:
        """Reject what would break the front matter."""
        for name, value in (("license", self.license), *(("languages", one) for one in self.languages)):
            if not NAMES.fullmatch(value):
                raise CardError(f"{name}: expected an identifier such as mit or en, got {value!r}.")


def read_figures(path: Path) -> tuple[dict[str, Any], ...]:
    """Rows of a JSON file: of `muomni eval all --json`, or the `figures` of a metrics.json.

    Raises CardError when it is missing or is neither.
    """
    expected = "expected the output of `muomni eval all --json` or a metrics.json"
    if not path.is_file():
        raise CardError(f"{path}: no such file; {expected}.")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        rows = rows["figures"] if isinstance(rows, dict) else rows
        found = tuple({key: row[key] for key in FIGURE_KEYS} for row in rows)
        for row in found:
            row["value"], row["baseline"], row["n"] = (
                float(row["value"]),
                float(row["baseline"]),
                int(row["n"]),
            )
    except (ValueError, KeyError, TypeError) as error:
        raise CardError(f"{path}: has no figures ({type(error).__name__}); {expected}.") from None
    return found


def card_text(
    config: ModelConfig, history: Sequence[Trained], card: Card, *, vocoder: bool, dtype: str
) -> str:
    """README.md as text."""
    parts = parameter_table(config)
    total = parts[-1][1]
    if not vocoder:
        total -= dict(parts)["vocoder"]
        parts = [(name, total if name == "total" else n) for name, n in parts if name != "vocoder"]
    sections = [
        _front_matter(card),
        f"# muomni {config.size}: text, pictures and speech in, text and speech out\n\n"
        f"A model of {total:,} parameters, trained from random weights with muomni. Its weights are stored as {dtype}.",
        _gives(config, vocoder),
        _use(),
        "## Size\n\n" + _table(("part", "parameters"), [(name, f"{n:,}") for name, n in parts]),
        _data(history, card),
        _figures(card),
        _limits(config),
        "## Versions\n\n"
        + _table(("what", "version"), [("python", platform.python_version()), *map(_version, PACKAGES)]),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(card: Card) -> str:
    lines = ["---", f"license: {card.license}"]
    if card.license == "other":
        lines += ["license_name: see-training-data", "license_link: README.md"]
    lines += ["language:", *(f"- {json.dumps(one)}" for one in card.languages), "library_name: muomni"]
    tags = ("muomni", "omni", "speech", "vision")
    return "\n".join([*lines, "pipeline_tag: any-to-any", "tags:", *(f"- {tag}" for tag in tags), "---"])


def _gives(config: ModelConfig, vocoder: bool) -> str:
    seconds = config.max_audio_samples / config.mel.sample_rate
    wave = "a trained vocoder" if vocoder else "Griffin-Lim (no vocoder was trained)"
    return (
        "## What it takes and gives\n\n"
        f"- takes: text; pictures, seen at {config.vision.image_size} x {config.vision.image_size}; recordings of at "
        f"most {seconds:.2f} s, heard at {config.mel.sample_rate:,} Hz; {config.max_seq_len} positions in all\n"
        f"- gives: text, and speech at {config.mel.sample_rate:,} Hz by a codec of {config.frame_rate:g} frames a "
        f"second and {wave}"
    )


def _use() -> str:
    return (
        "## Use\n\n```python\nimport muomni\n\n"
        'session = muomni.from_pretrained("OWNER/NAME")  # or the path of this directory\n'
        'reply = session.chat("what is this?", image="picture.png")\n'
        'print(reply.text)\nreply.audio.save("reply.wav")\n```\n\n'
        "No code comes with the weights: the files are safetensors and JSON, and are checked against MANIFEST.json."
    )


def _data(history: Sequence[Trained], card: Card) -> str:
    stages = [(t.stage, f"{t.steps:,}", str(t.seed), _cell(t.data)) for t in history]
    used: dict[tuple[str, str], list[str]] = {}
    for trained in history:
        for one in trained.sets:
            used.setdefault((one.name, one.licence), []).append(trained.stage)
    sets = [(_cell(name), _cell(licence), ", ".join(stages)) for (name, licence), stages in used.items()]
    lead = (
        "The author of these weights names no licence for them. The licences of the data below apply to the data; "
        "whether they reach the weights is for you to judge."
        if card.license == "other"
        else f"The author of these weights gives them under `{card.license}`. The data keep their own licences."
    )
    return "\n\n".join(
        [
            "## Training data", lead, _table(("stage", "steps", "seed", "data"), stages),
            _table(("set", "licence", "stages that could draw on it"), sets),
        ]
    )  # fmt: skip


def _figures(card: Card) -> str:
    if not card.figures:
        return "## Figures\n\nNone were given when this card was written."
    rows = [
        (_cell(f"{row['what']} ({row['unit']})"), f"{row['value']:.3f}",
         f"{row['baseline']:.3f} ({_cell(str(row['baseline_name']))})", str(row["n"]))
        for row in card.figures
    ]  # fmt: skip
    return "## Figures\n\nHeld-out, each beside a trivial baseline.\n\n" + _table(
        ("what", "value", "baseline", "n"), rows
    )


def _limits(config: ModelConfig) -> str:
    return (
        "## Limits\n\n"
        "- It is small and knows little: expect wrong answers, above all about anything unlike its training data.\n"
        "- It had no safety training. Do not put it before people who do not know that.\n"
        "- Its speech imitates the voices of its training data. Do not pass it off as a person's.\n"
        f"- It forgets what no longer fits into {config.max_seq_len} positions."
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _version(name: str) -> tuple[str, str]:
    try:
        return name, importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return name, "not installed as a package"
