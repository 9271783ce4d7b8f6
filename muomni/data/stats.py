"""What a source holds, in figures: items, hours, lengths, speakers, words, and whether clips can be spelled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from muomni.config import ModelConfig
from muomni.data.audio import CTC_SYMBOLS, ctc_feasible
from muomni.data.batch import Order
from muomni.data.items import KINDS, SAMPLE_RATE, SPLITS, Item, PictureItem, Source, SpeechItem
from muomni.data.splits import normalised
from muomni.data.usable import texts

PERCENTILES = (5, 50, 95)
FILL_ROWS = 32
"""Longest clips that a row of a fill figure holds."""


def stats(source: Source, config: ModelConfig) -> list[dict[str, Any]]:
    """A row for each kind and split that has items: counts, lengths (5th, 50th and 95th percentile), words, speakers.

    Of recordings also how many fit the context of `config`, how many of those CTC can spell at its frame rate, and the
    share of a packed row that they fill.
    """
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        for split in SPLITS:
            items = source.items(kind, split)
            if items:
                row: dict[str, Any] = {"kind": kind, "split": split, "items": len(items)}
                row |= _words(items)
                if kind in ("speech", "questions"):
                    row |= _clips(items, config)
                if isinstance(items[0], PictureItem):
                    pictures = [item for item in items if isinstance(item, PictureItem)]
                    row["concepts"] = len({normalised(item.label) for item in pictures})
                    row["groups"] = len({item.group for item in pictures})
                rows.append(row)
    return rows


def _words(items: Sequence[Item]) -> dict[str, Any]:
    said = ["\n".join(texts(item)) for item in items]
    lengths = [len(text) for text in said]
    return {
        "characters": sum(lengths),
        "vocabulary": len({word for text in said for word in normalised(text).split()}),
        "characters_percentiles": np.percentile(lengths, PERCENTILES).round().astype(int).tolist(),
    }


def _clips(items: Sequence[Item], config: ModelConfig) -> dict[str, Any]:
    lengths = np.array([getattr(item, "n_samples") for item in items])  # noqa: B009
    seconds = lengths / SAMPLE_RATE
    row: dict[str, Any] = {
        "hours": round(float(seconds.sum()) / 3600, 4),
        "seconds_percentiles": np.percentile(seconds, PERCENTILES).round(2).tolist(),
        "fit_the_context": int((lengths <= config.max_audio_samples).sum()),
    }
    speech = [item for item in items if isinstance(item, SpeechItem)]
    if not speech:
        return row
    row["speakers"] = len({item.speaker for item in speech})
    row["synthetic"] = sum(item.synthetic for item in speech)
    fitting = [item for item in speech if item.n_samples <= config.max_audio_samples]
    row["ctc_feasible"] = sum(
        set(item.text) <= set(CTC_SYMBOLS[1:])
        and ctc_feasible(item.text, config.audio_tokens(item.n_samples) * config.audio.ctc_expand)
        for item in fitting
    )
    if fitting:
        tokens = [config.audio_tokens(item.n_samples) for item in fitting]
        capacity = FILL_ROWS * config.max_audio_tokens
        rows = Order(tokens, capacity=capacity, n_items=len(tokens)).epoch(0)
        row["fill"] = round(sum(tokens) / (len(rows) * capacity), 4)
    return row


def table(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Rows of `stats` as cells, a header first."""
    cells: list[tuple[str, ...]] = [
        ("kind", "split", "items", "hours", "seconds 5/50/95 %", "characters", "words", "speakers", "fit",
         "can be spelled", "fill")
    ]  # fmt: skip
    for row in rows:
        seconds = "/".join(f"{s:g}" for s in row.get("seconds_percentiles", ()))
        fill = f"{row['fill']:.1%}" if "fill" in row else ""
        named = (row.get(name, "") for name in ("speakers", "fit_the_context", "ctc_feasible"))
        cells.append(
            (row["kind"], row["split"], f"{row['items']:,}", f"{row['hours']:.2f}" if "hours" in row else "", seconds,
             f"{row['characters']:,}", f"{row['vocabulary']:,}", *map(str, named), fill)
        )  # fmt: skip
    return cells
