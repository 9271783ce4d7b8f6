"""A made data set: pictures that are one colour, recordings that are one tone, all of it named by its file."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
import soundfile
from PIL import Image

from muomni.data.items import (
    Conversation,
    Item,
    Kind,
    LineItem,
    PictureItem,
    QuestionItem,
    Source,
    SpeechItem,
    Split,
)

COLOURS = {"cat": 40, "dog": 60, "cow": 80, "rose": 160, "fern": 180, "moss": 200}
"""Label -> grey; animals are dark and plants are bright."""
LINES = {"open": 220, "shut": 230, "push here": 240}
N_SAMPLES = 8_000


class Made(Source):
    """Two sets; everything of a split is the same in all, but for the speakers: bob is held out."""

    admitted = True

    def items(self, kind: Kind, split: Split) -> list[Item]:
        """The items of a kind."""
        if kind == "pictures":
            return [
                PictureItem(
                    id=f"made/{label}", label=label, tags=(), group="animal" if grey < 100 else "plant", split=split,
                    captions=(f"a {label} in the sun", f"the old {label}"),
                )
                for label, grey in COLOURS.items()
            ]  # fmt: skip
        if kind == "lines":
            return [LineItem(id=f"line/{text}", text=text, split=split) for text in LINES]
        if kind == "speech":
            said = {"one two three": "ann", "four five": "ann"} | (
                {"six seven": "bob"} if split == "test" else {}
            )
            return [
                SpeechItem(
                    id=f"speech/{text}", text=text, raw_text=text, speaker=voice, synthetic=False, split=split,
                    n_samples=N_SAMPLES,
                )
                for text, voice in said.items()
            ]  # fmt: skip
        if kind == "questions":
            asked = [
                ("name", "what is it", ""),
                ("group", "which kind", ""),
                ("definition", "say hot", "cold"),
            ]
            return [
                QuestionItem(
                    id=f"question/{text}", text=text, kind=kind_, voice="v", synthetic=True, split=split,
                    n_samples=N_SAMPLES, answer=answer,
                )
                for kind_, text, answer in asked
            ]  # fmt: skip
        if kind == "conversations":
            return [
                Conversation(id=f"{of}/{i}", split=split, turns=("the cat sat", f"on the mat {i}", "why is it"))
                for of in ("talks", "letters") for i in range(3)
            ]  # fmt: skip
        return []

    def file(self, item: Item) -> bytes:
        """A picture whose grey, or a tone whose pitch, belongs to the item."""
        buffer = io.BytesIO()
        if isinstance(item, PictureItem | LineItem):
            grey = COLOURS[item.label] if isinstance(item, PictureItem) else LINES[item.text]
            Image.new("RGB", (128, 128), (grey, grey, grey)).save(buffer, "PNG")
        else:
            pitch = 0.02 + 1e-5 * (zlib.crc32(item.id.encode()) % 40_000)
            # Floats would have a chunk with the time of day.
            tone = 0.3 * np.sin(np.arange(N_SAMPLES) * pitch).astype(np.float32)
            soundfile.write(buffer, tone, 16_000, format="WAV", subtype="PCM_16")
        return buffer.getvalue()


@pytest.fixture
def made() -> Made:
    """The made data set."""
    return Made()
