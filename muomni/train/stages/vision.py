"""Stage vision: a ViT and a small text tower agree on which words belong to which picture."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from muomni.config import RunConfig
from muomni.data.batch import HOST, Batch, Order, cumulative
from muomni.data.image import augment, to_float
from muomni.data.items import Item, PictureItem, Split
from muomni.data.usable import Usable
from muomni.metrics.retrieval import equal, recall
from muomni.models.vision import ContrastModel
from muomni.tokens import BOS, PAD
from muomni.train.stage import Figure, StageBase, generator, parent_checkpoint
from muomni.train.stages.text import load_tokenizer
from muomni.train.stages.written_samples import vision_samples

MAX_CAPTION = 32
"""Tokens of a caption, BOS included; what is longer is cut."""
CAPTION_ROOM = 16
"""Tokens a caption that a training batch has room for: its longest ones are cut until all fit."""
TAG_DROP = 0.3
"""Probability that a training caption leaves a tag, or its label, out."""
GROUP_ALONE = 0.1
"""Probability that a training caption is the name of the picture's group alone."""
PATCHES_SEEN = 0.5
"""Share of a training picture's patches that are looked at."""


@dataclass(frozen=True, kw_only=True)
class PairBatch(Batch):
    """Pictures with their words. n, the room for pairs, is the same in every batch; an epoch's last holds fewer."""

    images: torch.Tensor
    """(n, 3, S, S) float32 in [-1, 1]; zeros after the last pair."""
    is_pair: torch.Tensor
    """(n,) bool."""
    also: torch.Tensor
    """(n, n) bool: caption j, another's, says nothing that is not said of picture i too."""
    input_ids: torch.Tensor
    """(n * CAPTION_ROOM,) int64, of held-out pairs n * MAX_CAPTION; captions one after another, PAD at the end."""
    cu_seqlens: torch.Tensor
    """int32; segment i < n_pairs is caption i, the rest is padding."""
    n_pairs: int = field(metadata=HOST)
    """Pairs that are not padding; they come first."""
    n_tokens: int = field(metadata=HOST)
    """Caption tokens that are not padding."""
    seen: torch.Tensor | None = None
    """(n, m) int64, the patches that are looked at; None for all."""


class VisionStage(StageBase):
    """Image-caption contrast. The loss compares within a batch: splitting a batch changes it."""

    name = "vision"
    parents = ("text",)
    saved = ("vision", "text_tower", "image_projection", "log_scale")
    slow_batches = True
    weights: Mapping[str, float] = {"contrast": 1.0}

    def build(self, run: RunConfig, root: Path) -> nn.Module:
        """Start both towers from the seed; the text stage gives the tokenizer alone."""
        parent_checkpoint(root, parent="text", child=self.name, config=run.model)
        self.tokenizer = load_tokenizer(root, run.model.thinker.vocab_size)
        self.data = Usable(self.quarantine, self.source, kinds=("pictures",), read=self._pixels)
        self.need("pictures", self.data.pictures)
        self._words: dict[str, list[list[int]]] = {}
        self._orders: dict[str, Order] = {}
        return ContrastModel(run.model.vision, vocab_size=run.model.thinker.vocab_size)

    def _pixels(self, item: Item) -> torch.Tensor:
        assert isinstance(item, PictureItem)
        return torch.from_numpy(self.source.picture(item, side=self.config.vision.image_size))

    def read(self, items: Sequence[PictureItem]) -> tuple[list[PictureItem], torch.Tensor]:
        """Those pictures that can be read, and their pixels, uint8 (n, 3, side, side)."""
        read = [(item, value) for item in items if (value := self.data.value(item)) is not None]
        side = self.config.vision.image_size
        empty = torch.zeros(0, 3, side, side, dtype=torch.uint8)
        return [item for item, _ in read], torch.stack([v for _, v in read]) if read else empty

    def words(self, item: PictureItem) -> list[list[int]]:
        """What is said of a picture, as ids."""
        if item.id not in self._words:
            label, *others, group = said(item)
            self._words[item.id] = self.tokenizer.encode_batch([label, *others, group])
        return self._words[item.id]

    def order(self, split: Split) -> Order:
        """Pairs, in random order in training."""
        if split not in self._orders:
            n = len(self.data.pictures(split))
            n_items = min(self.run.train.batch_items, n)
            self._orders[split] = Order(
                [1] * n, capacity=n_items, n_items=n_items, seed=self.run.seed, shuffle=split == "train"
            )
        return self._orders[split]

    def batch(self, position: int, parts: int = 1) -> list[PairBatch]:
        """Pairs, each with its tags shuffled and the picture moved and tinted."""
        items, order = self.data.pictures("train"), self.order("train")
        row, images = self.read([items[i] for i in order.at(position)])
        draw = generator(self.run.seed, 3, position) if self.run.train.augment else None
        chosen = [self.chosen(item, draw) for item in row]
        n_items, n_patches = order.room(parts)[1], self.config.vision.n_patches
        pictures, seen = to_float(images) if draw is None else augment(images, draw), None
        if draw is not None:
            shuffled = torch.rand(parts * n_items, n_patches, generator=draw).argsort(1)
            seen = shuffled[:, : max(1, round(PATCHES_SEEN * n_patches))]
        # One piece also where no picture can be read: other processes wait for it.
        return [
            self.pairs(
                row[at], pictures[at], chosen[at], n_items=n_items, seen=None if seen is None else seen[at]
            )
            for at in (slice(start, start + n_items) for start in range(0, max(1, len(row)), n_items))
        ]

    def held_out(self, split: Split) -> Iterator[PairBatch]:
        """Every pair once, as it is."""
        items, order = self.data.pictures(split), self.order(split)
        for indices in order.epoch(0):
            row, images = self.read([items[i] for i in indices])
            chosen = [self.chosen(item, None) for item in row]
            yield self.pairs(row, to_float(images), chosen, n_items=order.n_items, room=MAX_CAPTION)

    def pairs(
        self,
        items: Sequence[PictureItem],
        images: torch.Tensor,
        chosen: Sequence[Sequence[int]],
        *,
        n_items: int,
        room: int = CAPTION_ROOM,
        seen: torch.Tensor | None = None,
    ) -> PairBatch:
        """A batch of pictures (n, 3, S, S) and those of their words that are chosen; see PairBatch, collate."""
        captions = [self.caption(item, own) for item, own in zip(items, chosen, strict=True)]
        also = described(items, chosen)
        return collate(images, captions, n_items=n_items, room=room, also=also, seen=seen)

    def chosen(self, item: PictureItem, draw: torch.Generator | None) -> list[int]:
        """Which of a picture's words its caption has: the label, then the tags.

        With `draw` the tags are in a random order and some, or the label, are left out; or the group is alone.
        """
        n_tags = len(item.tags)
        if draw is None:
            return [*range(1 + n_tags)]
        *kept, label, group = torch.rand(n_tags + 2, generator=draw).tolist()
        if item.group and group < GROUP_ALONE:
            return [1 + n_tags]
        tags = [1 + i for i in torch.randperm(n_tags, generator=draw).tolist() if kept[i] > TAG_DROP]
        return [0, *tags] if label > TAG_DROP or not tags else tags

    def caption(self, item: PictureItem, chosen: Sequence[int]) -> list[int]:
        """BOS, then the chosen ones of a picture's words."""
        words = self.words(item)
        return [BOS, *(token for i in chosen for token in words[i])][:MAX_CAPTION]

    def counts(self, batch: PairBatch) -> dict[str, torch.Tensor | int]:
        """Pairs."""
        return {"contrast": batch.n_pairs}

    def embeddings(
        self, model: nn.Module, batch: PairBatch
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows of pictures and captions (n, d), unit where there is a pair, and the inverse temperature."""
        pictures, captions, scale = model(
            batch.images, batch.input_ids, batch.cu_seqlens, MAX_CAPTION, batch.seen
        )
        return pictures, captions[: len(batch.images)], scale

    def losses(self, model: nn.Module, batch: PairBatch, phase: str) -> dict[str, torch.Tensor]:
        """Summed symmetric InfoNCE of the pairs."""
        pictures, captions, scale = self.embeddings(model, batch)
        return {"contrast": paired_loss(pictures, captions, batch.is_pair, scale=scale, also=batch.also)}

    def fill(self, batch: PairBatch) -> tuple[int, int]:
        """Caption tokens and patches, and all there is room for."""
        patches = (self.config.vision.n_patches if batch.seen is None else batch.seen.shape[1]) + 1
        used = batch.n_tokens + batch.n_pairs * patches
        return used, len(batch.input_ids) + len(batch.images) * patches

    def evaluate(self, model: nn.Module, split: Split) -> list[Figure]:
        """R@1 among 64: which caption belongs to a picture of an unseen concept; exact over all distractors."""
        rows, words = [], []
        for batch in self.held_out(split):
            bounds = itertools.pairwise(batch.cu_seqlens[: batch.n_pairs + 1].tolist())
            words += [tuple(batch.input_ids[a:b].tolist()) for a, b in bounds]
            sides = self.embeddings(model, batch.to(self.device(model)))[:2]
            rows.append([side[: batch.n_pairs] for side in sides])
        pictures, captions = (torch.cat(part).float().cpu() for part in zip(*rows, strict=True))
        found = recall((pictures @ captions.T).numpy(), alike=equal(words))
        return [
            Figure(
                name="picture to caption R@1 of 64", value=found.value, baseline=found.chance,
                baseline_name="chance", better="higher", n=found.n,
            )
        ]  # fmt: skip

    def samples(self, model: nn.Module, split: Split, folder: Path) -> dict[str, float]:
        """The nearest captions of held-out pictures; see written_samples."""
        return vision_samples(self, model, split, folder)


def said(item: PictureItem) -> list[str]:
    """What is said of a picture: its label, its tags, its group."""
    return [item.label, *item.tags, item.group]


def described(items: Sequence[PictureItem], chosen: Sequence[Sequence[int]]) -> torch.Tensor:
    """(n, n) bool: whether all that the caption of another item j says is said of item i as well.

    chosen: which of each item's `said` its caption says. So are the same thing in another style, or with fewer words.
    """
    everything = [frozenset(said(item)) for item in items]
    captions = [{said(item)[k] for k in own} for item, own in zip(items, chosen, strict=True)]
    also = torch.tensor([[caption <= own for caption in captions] for own in everything], dtype=torch.bool)
    return also.reshape(len(items), len(items)).fill_diagonal_(False)


def collate(
    images: torch.Tensor,
    captions: list[list[int]],
    *,
    n_items: int,
    room: int = MAX_CAPTION,
    also: torch.Tensor | None = None,
    seen: torch.Tensor | None = None,
) -> PairBatch:
    """Pack captions one after another into buffers with room for n_items pairs of `room` tokens on average.

    The longest captions are cut until all fit. also (n, n), seen (n, m): as in PairBatch; without: False, and all.
    """
    n_pairs, total = len(captions), n_items * room
    longest = MAX_CAPTION
    while sum(min(len(caption), longest) for caption in captions) > total:
        longest -= 1
    captions = [caption[:longest] for caption in captions]
    ids = torch.tensor([token for caption in captions for token in caption], dtype=torch.int64)
    input_ids = torch.full((total,), PAD, dtype=torch.int64)
    input_ids[: len(ids)] = ids
    lengths = [len(caption) for caption in captions]
    if n_pairs < n_items:
        images = torch.cat([images, images.new_zeros(n_items - n_pairs, *images.shape[1:])])
    others = torch.zeros(n_items, n_items, dtype=torch.bool)
    if also is not None:
        others[:n_pairs, :n_pairs] = also
    if seen is not None:
        # An empty place looks at the first patches of its empty picture.
        seen = torch.cat([seen[:n_pairs], torch.arange(seen.shape[1]).expand(n_items - n_pairs, -1)])
    return PairBatch(
        images=images, is_pair=torch.arange(n_items) < n_pairs, also=others, input_ids=input_ids, n_pairs=n_pairs,
        cu_seqlens=cumulative(lengths, n_max=n_items, total=total, longest=MAX_CAPTION), n_tokens=len(ids), seen=seen,
    )  # fmt: skip


def paired_loss(
    a: torch.Tensor,
    b: torch.Tensor,
    is_pair: torch.Tensor,
    *,
    scale: torch.Tensor,
    also: torch.Tensor | None = None,
) -> torch.Tensor:
    """`losses.contrastive_loss` of the rows that are pairs, in a shape that does not depend on how many they are.

    a, b: (n, d); is_pair: (n,) bool; scale: () positive. Other rows are nobody's distractor and cost nothing.
    also: (n, n) bool, False on the diagonal: b[j] fits a[i] too, and neither is a distractor of the other.
    """
    logits = (scale * a @ b.T).float()
    others = logits if also is None else logits.masked_fill(also, float("-inf"))
    there = others.masked_fill(~is_pair, float("-inf")).logsumexp(1)
    back = others.masked_fill(~is_pair[:, None], float("-inf")).logsumexp(0)
    each = 0.5 * (there + back) - logits.diagonal()
    return torch.where(is_pair, each, 0.0).sum()
