"""Packed batches of a fixed shape, and the stateless order they come in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Self, TypeVar

import numpy as np
import torch

from muomni.data.template import Document
from muomni.tokens import IGNORE_INDEX, PAD

HOST = MappingProxyType({"host": True})
"""Metadata of a batch's field that no device computation reads: a tensor stays on the CPU, what is no tensor may
differ between batches of one shape and is left out of a compiled function's arguments."""

Some = TypeVar("Some")


class Batch:
    """What batches share; each is a frozen dataclass of tensors."""

    def to(self, device: torch.device | str) -> Self:
        """The same batch on a device."""
        return to_device(self, device)

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory, from which a copy to a GPU does not wait; what is HOST as it was."""
        return _changed(self, lambda value: value.pin_memory())


def to_device(batch: Some, device: torch.device | str) -> Some:
    """A batch (a frozen dataclass) with its tensors on a device, those marked HOST left where they are."""
    return _changed(batch, lambda value: value.to(device, non_blocking=True))


def _changed(batch: Some, change: Callable[[torch.Tensor], torch.Tensor]) -> Some:
    if not dataclasses.is_dataclass(batch) or isinstance(batch, type):
        return batch
    changed: dict[str, Any] = {
        f.name: change(value)
        for f in dataclasses.fields(batch)
        if "host" not in f.metadata and isinstance(value := getattr(batch, f.name), torch.Tensor)
    }
    return dataclasses.replace(batch, **changed)


def traced(batch: Some) -> Some:
    """The batch with None for what is marked HOST and no tensor: all that is left is alike in every batch."""
    if not dataclasses.is_dataclass(batch) or isinstance(batch, type):
        return batch
    left_out: dict[str, Any] = {
        f.name: None
        for f in dataclasses.fields(batch)
        if "host" in f.metadata and not isinstance(getattr(batch, f.name), torch.Tensor)
    }
    return dataclasses.replace(batch, **left_out)


@dataclass(frozen=True, kw_only=True)
class Media:
    """The pictures and clips of one document, in the order of its placeholders."""

    images: tuple[torch.Tensor, ...] = ()
    """Each (3, S, S) float32."""
    clips: tuple[torch.Tensor, ...] = ()
    """Each (n_frames, factor * n_mels) float32."""


@dataclass(frozen=True, kw_only=True)
class PackedBatch(Batch):
    """One row of whole documents, with its media in fixed buffers. T is the number of positions."""

    input_ids: torch.Tensor
    """(T,) int64; PAD after the last document."""
    labels: torch.Tensor
    """(T,) int64: the target of each position, that is the token after it; IGNORE_INDEX for none."""
    positions: torch.Tensor
    """(T, 3) int64, starting at 0 in every document."""
    cu_seqlens: torch.Tensor
    """(n_docs + 1,) int32; the padding is spread over the entries after the documents, then T repeats."""
    max_seqlen: int
    """Longest document the row may hold."""
    n_tokens: int = field(metadata=HOST)
    """Positions that are not padding."""
    images: torch.Tensor | None = None
    """(n_images, 3, S, S); zeros after the last picture."""
    image_index: torch.Tensor | None = None
    """(n_images * n_image_tokens,) int64; T for padding."""
    audio_frames: torch.Tensor | None = None
    """(N, factor * n_mels); zeros after the last clip."""
    audio_cu_seqlens: torch.Tensor | None = None
    """(n_clips + 1,) int32, padded as cu_seqlens is."""
    audio_max_seqlen: int = 0
    """Longest clip in frames."""
    audio_index: torch.Tensor | None = None
    """(N,) int64; T for padding."""

    @property
    def fill_rate(self) -> float:
        """Share of the positions that is not padding."""
        return self.n_tokens / len(self.input_ids)


def cumulative(lengths: Sequence[int], *, n_max: int, total: int, longest: int) -> torch.Tensor:
    """cu_seqlens int32 (n_max + 1 + tail,) of segments whose padding is made of segments of its own.

    The tail of `total - sum(lengths)` padding positions is cut into segments of at most `longest`, so that
    every position belongs to exactly one segment and none reads another's; the entries left repeat `total`.
    The size depends on n_max, total and longest alone.
    Raises ValueError for too many segments, one that is too long, or more than total positions.
    """
    used = sum(lengths)
    if len(lengths) > n_max or used > total or max(lengths, default=0) > longest:
        raise ValueError(
            f"lengths: expected at most {n_max} of at most {longest} with a sum of at most {total}, got "
            f"{len(lengths)} of at most {max(lengths, default=0)} with a sum of {used}."
        )
    ends = [0, *np.cumsum(lengths).tolist()]
    while ends[-1] < total:
        ends.append(min(total, ends[-1] + longest))
    size = n_max + 1 + -(-total // longest)
    return torch.tensor(ends + [total] * (size - len(ends)), dtype=torch.int32)


def pack(
    documents: Sequence[Document],
    media: Sequence[Media] | None = None,
    *,
    n_tokens: int,
    n_docs: int,
    max_seq_len: int,
    n_images: int = 0,
    n_image_tokens: int = 1,
    image_shape: tuple[int, int, int] = (3, 0, 0),
    n_audio: int = 0,
    n_clips: int = 0,
    max_clip: int = 128,
    frame_width: int = 0,
) -> PackedBatch:
    """Lay whole documents one after another into a row of n_tokens positions.

    Labels are shifted here and nowhere else: position i learns the token at i + 1 of the same document.
    n_images, n_audio (frames), n_clips: sizes of the media buffers; 0 leaves a buffer out.
    Raises ValueError when documents or media do not fit, or media do not match the placeholders.
    """
    media = media if media is not None else [Media()] * len(documents)
    lengths = [len(document) for document in documents]
    cu_seqlens = cumulative(lengths, n_max=n_docs, total=n_tokens, longest=max_seq_len)
    used = sum(lengths)
    input_ids = torch.full((n_tokens,), PAD, dtype=torch.int64)
    labels = torch.full((n_tokens,), IGNORE_INDEX, dtype=torch.int64)
    positions = torch.zeros((n_tokens, 3), dtype=torch.int64)
    slots: dict[str, list[torch.Tensor]] = {"image": [], "audio": []}
    images, clips = [], []
    start = 0
    for document, own in zip(documents, media, strict=True):
        end = start + len(document)
        input_ids[start:end] = document.input_ids
        labels[start : end - 1] = document.labels[1:]
        positions[start:end] = document.positions
        n_frames = sum(len(clip) for clip in own.clips)
        if len(own.images) * n_image_tokens != len(document.image_slots) or n_frames != len(
            document.audio_slots
        ):
            raise ValueError(
                f"media: expected {len(document.image_slots)} image and {len(document.audio_slots)} audio features, "
                f"got {len(own.images) * n_image_tokens} and {n_frames}."
            )
        slots["image"].append(document.image_slots + start)
        slots["audio"].append(document.audio_slots + start)
        images.extend(own.images)
        clips.extend(own.clips)
        start = end
    fields: dict[str, object] = {}
    if n_images:
        fields["images"] = _filled(images, (n_images, *image_shape), stacked=True)
        fields["image_index"] = _index(slots["image"], n_images * n_image_tokens, n_tokens)
    elif images:
        raise ValueError(f"media: {len(images)} pictures but n_images is 0.")
    if n_audio:
        fields["audio_frames"] = _filled(clips, (n_audio, frame_width), stacked=False)
        fields["audio_cu_seqlens"] = cumulative(
            [len(c) for c in clips], n_max=n_clips, total=n_audio, longest=max_clip
        )
        fields["audio_max_seqlen"] = max_clip
        fields["audio_index"] = _index(slots["audio"], n_audio, n_tokens)
    elif clips:
        raise ValueError(f"media: {len(clips)} clips but n_audio is 0.")
    return PackedBatch(
        input_ids=input_ids,
        labels=labels,
        positions=positions,
        cu_seqlens=cu_seqlens,
        max_seqlen=max_seq_len,
        n_tokens=used,
        **fields,  # type: ignore[arg-type]
    )


def _filled(parts: Sequence[torch.Tensor], shape: tuple[int, ...], *, stacked: bool) -> torch.Tensor:
    buffer = torch.zeros(shape)
    if parts:
        value = torch.stack(list(parts)) if stacked else torch.cat(list(parts))
        if len(value) > shape[0]:
            raise ValueError(f"media: expected at most {shape[0]} rows, got {len(value)}.")
        buffer[: len(value)] = value
    return buffer


def _index(parts: Sequence[torch.Tensor], size: int, padding: int) -> torch.Tensor:
    index = torch.full((size,), padding, dtype=torch.int64)
    found = torch.cat(list(parts)) if parts else index[:0]
    index[: len(found)] = found
    return index


MOST_OPEN = 512
"""Rows that are filled at the same time; before one more is begun the fullest is closed as it is."""


def permutation(n: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order of n items in an epoch; a function of its arguments alone."""
    return np.random.default_rng((seed, epoch)).permutation(n)


class Order:
    """Which items make up batch number `position`: a stateless function, so a position is all a resume needs.

    Items of one epoch are permuted, then packed best-fit into batches of at most n_tokens and n_items.
    """

    def __init__(
        self,
        lengths: Sequence[int] | Sequence[Sequence[int]],
        *,
        capacity: int | Sequence[int],
        n_items: int,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        """Describe the items.

        lengths: what each item takes of each resource (tokens, or tokens, images and audio frames).
        capacity: what a batch holds of each.
        Raises ValueError for no items or an item that fits no batch.
        """
        self.lengths = np.asarray(lengths, dtype=np.int64).reshape(len(lengths), -1)
        self.capacity = np.asarray(capacity, dtype=np.int64).reshape(-1)
        self.n_items, self.seed, self.shuffle = n_items, seed, shuffle
        if not len(lengths) or (self.lengths > self.capacity).any():
            longest = self.lengths.max(axis=0).tolist() if len(lengths) else "no items"
            raise ValueError(f"lengths: expected items of at most {self.capacity.tolist()}, got {longest}.")
        self._plans: dict[int, list[list[int]]] = {}
        self._n_batches: dict[int, int] = {}

    def epoch(self, epoch: int) -> list[list[int]]:
        """All batches of an epoch, every item exactly once."""
        if epoch not in self._plans:
            n = len(self.lengths)
            order = permutation(n, seed=self.seed, epoch=epoch) if self.shuffle else np.arange(n)
            # Only the last plan is kept: plans are cheap to make again.
            self._plans = {epoch: self._pack(order.tolist())}
        return self._plans[epoch]

    def at(self, position: int) -> list[int]:
        """Batch number `position` of the endless row of epochs."""
        epoch = 0
        while position >= (n_batches := self._length(epoch)):
            position -= n_batches
            epoch += 1
        return self.epoch(epoch)[position]

    def room(self, parts: int = 1) -> tuple[list[int], int]:
        """What a piece of a batch holds of each resource, and how many items: enough for `pieces` of any batch."""
        if parts == 1:
            return self.capacity.tolist(), self.n_items
        longest = self.lengths.max(axis=0)
        return np.minimum(self.capacity, self.capacity // parts + longest).tolist(), -(-self.n_items // parts)

    def pieces(self, row: Sequence[int], parts: int = 1) -> list[list[int]]:
        """A batch cut into pieces that each fit `room(parts)`, its items in order."""
        capacity, n_items = self.room(parts)
        pieces: list[list[int]] = [[]]
        used = np.zeros_like(self.capacity)
        for item in row:
            used = used + self.lengths[item]
            if len(pieces[-1]) == n_items or (used > capacity).any():
                pieces.append([])
                used = self.lengths[item]
            pieces[-1].append(item)
        return pieces

    def _length(self, epoch: int) -> int:
        if epoch not in self._n_batches:
            self._n_batches[epoch] = len(self.epoch(epoch))
        return self._n_batches[epoch]

    def _pack(self, order: list[int]) -> list[list[int]]:
        done: list[list[int]] = []
        rows: list[list[int]] = []
        room = np.zeros((MOST_OPEN, len(self.capacity)), np.int64)
        smallest, nowhere = self.lengths[:, 0].min(), self.capacity[0] + 1
        for item in order:
            left = room[: len(rows)] - self.lengths[item]
            fits = left[:, 0] >= 0 if left.shape[1] == 1 else (left >= 0).all(axis=1)
            # The fullest row that holds it; of equal ones the oldest.
            best = int(np.where(fits, -left[:, 0], -nowhere).argmax()) if len(rows) else -1
            if best < 0 or not fits[best]:
                if len(rows) == MOST_OPEN:
                    done.append(_close(rows, room, int((-room[:, 0]).argmax())))
                best = len(rows)
                rows.append([])
                room[best] = self.capacity
            rows[best].append(item)
            room[best] -= self.lengths[item]
            if len(rows[best]) == self.n_items or room[best, 0] < smallest:
                done.append(_close(rows, room, best))
        return done + rows


def _close(rows: list[list[int]], room: np.ndarray, index: int) -> list[int]:
    """Take a row out, the order of the others kept."""
    room[index : len(rows) - 1] = room[index + 1 : len(rows)]
    return rows.pop(index)
