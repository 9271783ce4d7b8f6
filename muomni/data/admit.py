"""One found item through the gate: its file made, decoded once, measured, and put into a split. Runs in workers."""

from __future__ import annotations

import dataclasses
import errno
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from muomni.data.items import (
    Conversation,
    DialogueItem,
    Item,
    LineItem,
    PictureItem,
    QuestionItem,
    SpeechItem,
    Split,
    TextItem,
    read_item,
)
from muomni.data.media import MediaError, read_audio, read_image, read_text
from muomni.data.sources.adapter import Found, LeftOutError
from muomni.data.splits import picture_fingerprint, split_of, text_fingerprint
from muomni.data.usable import texts


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """An item ready to be stored."""

    item: Item
    payload: bytes
    suffix: str
    length: int
    """Samples of a clip at 16 kHz, bytes of a text; of a picture its pixels."""
    fingerprint: int


@dataclass(frozen=True, kw_only=True)
class Refused:
    """An item that is not stored."""

    id: str
    reason: str
    bad: bool
    """False: sound, but left out by a rule, so that it does not count as bad data."""


def admit(found: Found, held_out_speakers: tuple[str, ...] = ()) -> Admitted | Refused:
    """Make, decode and measure an item; what cannot be used comes back with the reason."""
    try:
        split: Split = found.split or split_of(found.kind, found.group)
        fields: dict[str, Any] = {**found.fields, "id": found.id, "split": split}
        payload, *files = (one() if callable(one) else one for one in (found.payload, *found.files))
        if found.kind == "dialogues":
            payload = b"".join(files)
            fields["sizes"] = [len(file) for file in files]
            played = {place for message in fields["messages"] for place in message.get("clips", ())}
            fields["n_samples"] = [len(read_audio(f)) if i in played else 0 for i, f in enumerate(files)]
        if found.kind in ("speech", "questions"):
            fields["n_samples"] = len(read_audio(payload))
        item = read_item(found.kind, fields)
        for text in (found.id, *texts(item)):
            read_text(text, name=found.id)
        length, fingerprint = _measured(item, payload, files)
    except LeftOutError as error:
        return Refused(id=found.id, reason=str(error), bad=False)
    except MediaError as error:
        # Bytes have no name of their own.
        return Refused(id=found.id, reason=re.sub(r"^<\d+ bytes>", lambda _: found.id, str(error)), bad=True)
    except (OSError, subprocess.CalledProcessError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        # A missing file, or a tool that does not get along with this one.
        return Refused(id=found.id, reason=f"{found.id}: {error}", bad=True)
    speaker = item.speaker if isinstance(item, SpeechItem) else ""
    if speaker in held_out_speakers and split == "train":
        return Refused(id=found.id, reason=f"a training sentence by {speaker}, who is held out", bad=False)
    return Admitted(item=item, payload=payload, suffix=found.suffix, length=length, fingerprint=fingerprint)


def _measured(item: Item, payload: bytes, files: Sequence[bytes]) -> tuple[int, int]:
    """Length and fingerprint. Raises MediaError for a file that cannot be used."""
    if isinstance(item, SpeechItem | QuestionItem):
        return item.n_samples, text_fingerprint(item.text)
    if isinstance(item, PictureItem | LineItem):
        picture = read_image(payload)
        own = picture_fingerprint(picture) if isinstance(item, PictureItem) else text_fingerprint(item.text)
        return picture.width * picture.height, own
    if isinstance(item, DialogueItem):
        pictures = {place for message in item.messages for place in message.images}
        clips = {place for message in item.messages for place in message.clips}
        if pictures & clips or pictures | clips != set(range(len(files))):
            raise MediaError(f"{item.id}: its messages do not use each of its {len(files)} files.")
        for place in pictures:
            read_image(files[place])
        said = "\n".join(message.text for message in item.messages)
        return len(said.encode()), text_fingerprint(said)
    text = item.text if isinstance(item, TextItem | Conversation) else ""
    return len(text.encode()), text_fingerprint(text)


def record(item: Item) -> dict[str, Any]:
    """An item as JSON, fields at their defaults left out."""
    said: dict[str, Any] = {}
    for field in dataclasses.fields(item):
        value = getattr(item, field.name)
        if field.default is dataclasses.MISSING or value != field.default:
            said[field.name] = value
    if isinstance(item, DialogueItem):
        said["messages"] = [
            {k: v for k, v in dataclasses.asdict(m).items() if v not in ("", ())} for m in item.messages
        ]
    return said
