"""Stage vision: a ViT and a small text tower agree on which words belong to which picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from muomni.config import RunConfig
from muomni.data.batch import HOST, Batch, Order, cumulative
from muomni.data.embedded import PICTURE_SIDE
from muomni.data.image import augment, to_float
from muomni.data.items import Item, PictureItem, Split
from muomni.data.usable import Usable
from muomni.metrics.retrieval import recall
from muomni.models.vision import ContrastModel
from muomni.tokens import BOS, PAD
from muomni.train.stage import Figure, StageBase, generator, parent_checkpoint
from muomni.train.stages.text import load_tokenizer
from muomni.train.stages.written_samples import vision_samples

MAX_CAPTION = 32
"""Tokens of a caption, BOS included; what is longer is cut."""
TAG_DROP = 0.3
"""Probability that a training caption leaves a tag, or its label, out."""


@dataclass(frozen=True, kw_only=True)
class PairBatch(Batch):
    """Pictures with their words. n, the room for pairs, is the same in every batch; an epoch's last holds fewer."""

    images: torch.Tensor
    """(n, 3, S, S) float32 in [-1, 1]; zeros after the last pair."""
    is_pair: torch.Tensor
    """(n,) bool."""
    input_ids: torch.Tensor
    """(n * MAX_CAPTION,) int64, captions one after another, PAD at the end."""
    cu_seqlens: torch.Tensor
    """int32; segment i < n_pairs is caption i, the rest is padding."""
    n_pairs: int = field(metadata=HOST)
    """Pairs that are not padding; they come first."""
    n_tokens: int = field(metadata=HOST)
    """Caption tokens that are not padding."""


class VisionStage(StageBase):
    """Image-caption contrast. The loss compares within a batch: splitting a batch changes it."""

    name = "vision"
    parents = ("text",)
    saved = ("vision", "text_tower", "image_projection", "log_scale")
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
        side = max(PICTURE_SIDE, self.config.vision.image_size)
        return torch.from_numpy(self.source.picture(item, side=side))

    def read(self, items: Sequence[PictureItem]) -> tuple[list[PictureItem], torch.Tensor]:
        """Those pictures that can be read, and their pixels, uint8 (n, 3, side, side)."""
        read = [(item, value) for item in items if (value := self.data.value(item)) is not None]
        side = max(PICTURE_SIDE, self.config.vision.image_size)
        empty = torch.zeros(0, 3, side, side, dtype=torch.uint8)
        return [item for item, _ in read], torch.stack([v for _, v in read]) if read else empty

    def words(self, item: PictureItem) -> list[list[int]]:
        """A picture's words as ids, the label's first, then each tag's."""
        if item.id not in self._words:
            self._words[item.id] = self.tokenizer.encode_batch([item.label, *(f" {t}" for t in item.tags)])
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
        pictures = to_float(images, self.config.vision.image_size)
        draw = generator(self.run.seed, 3, position) if self.run.train.augment else None
        captions = [self.caption(self.words(item), draw) for item in row]
        if draw is not None:
            pictures = augment(pictures, draw)
        n_items = order.room(parts)[1]
        # One piece also where no picture can be read: other processes wait for it.
        return [
            collate(pictures[start : start + n_items], captions[start : start + n_items], n_items=n_items)
            for start in range(0, max(1, len(row)), n_items)
        ]

    def held_out(self, split: Split) -> Iterator[PairBatch]:
        """Every pair once, as it is."""
        items, order = self.data.pictures(split), self.order(split)
        for row in order.epoch(0):
            read, images = self.read([items[i] for i in row])
            pictures = to_float(images, self.config.vision.image_size)
            yield collate(pictures, [self.caption(self.words(i), None) for i in read], n_items=order.n_items)

    def caption(self, words: list[list[int]], draw: torch.Generator | None) -> list[int]:
        """BOS, the label, then the tags: in a random order and some left out when `draw` is given."""
        label, tags = words[0], words[1:]
        if draw is not None:
            kept = torch.rand(len(words), generator=draw)
            tags = [tags[i] for i in torch.randperm(len(tags), generator=draw).tolist() if kept[i] > TAG_DROP]
            label = label if kept[-1] > TAG_DROP or not tags else []
        return [BOS, *label, *(t for tag in tags for t in tag)][:MAX_CAPTION]

    def counts(self, batch: PairBatch) -> dict[str, torch.Tensor | int]:
        """Pairs."""
        return {"contrast": batch.n_pairs}

    def embeddings(
        self, model: nn.Module, batch: PairBatch
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows of pictures and captions (n, d), unit where there is a pair, and the inverse temperature."""
        pictures, captions, scale = model(batch.images, batch.input_ids, batch.cu_seqlens, MAX_CAPTION)
        return pictures, captions[: len(batch.images)], scale

    def losses(self, model: nn.Module, batch: PairBatch, phase: str) -> dict[str, torch.Tensor]:
        """Summed symmetric InfoNCE of the pairs."""
        pictures, captions, scale = self.embeddings(model, batch)
        return {"contrast": paired_loss(pictures, captions, batch.is_pair, scale=scale)}

    def fill(self, batch: PairBatch) -> tuple[int, int]:
        """Caption tokens and patches, and all there is room for."""
        patches = self.config.vision.n_patches + 1
        used = batch.n_tokens + batch.n_pairs * patches
        return used, len(batch.input_ids) + len(batch.images) * patches

    def evaluate(self, model: nn.Module, split: Split) -> list[Figure]:
        """R@1 among 64: which caption belongs to a picture of an unseen concept; exact over all distractors."""
        rows = []
        for batch in self.held_out(split):
            sides = self.embeddings(model, batch.to(self.device(model)))[:2]
            rows.append([side[: batch.n_pairs] for side in sides])
        pictures, captions = (torch.cat(part).float().cpu() for part in zip(*rows, strict=True))
        found = recall((pictures @ captions.T).numpy())
        return [
            Figure(
                name="picture to caption R@1 of 64", value=found.value, baseline=found.chance,
                baseline_name="chance", better="higher", n=found.n,
            )
        ]  # fmt: skip

    def samples(self, model: nn.Module, split: Split, folder: Path) -> dict[str, float]:
        """The nearest captions of held-out pictures; see written_samples."""
        return vision_samples(self, model, split, folder)


def collate(images: torch.Tensor, captions: list[list[int]], *, n_items: int) -> PairBatch:
    """Pack captions one after another into buffers with room for n_items pairs."""
    n_pairs, total = len(captions), n_items * MAX_CAPTION
    ids = torch.tensor([token for caption in captions for token in caption], dtype=torch.int64)
    input_ids = torch.full((total,), PAD, dtype=torch.int64)
    input_ids[: len(ids)] = ids
    lengths = [len(caption) for caption in captions]
    room = images.new_zeros(n_items, *images.shape[1:])
    room[:n_pairs] = images
    return PairBatch(
        images=room, is_pair=torch.arange(n_items) < n_pairs, input_ids=input_ids, n_pairs=n_pairs,
        cu_seqlens=cumulative(lengths, n_max=n_items, total=total, longest=MAX_CAPTION), n_tokens=len(ids),
    )  # fmt: skip


def paired_loss(
    a: torch.Tensor, b: torch.Tensor, is_pair: torch.Tensor, *, scale: torch.Tensor
) -> torch.Tensor:
    """`losses.contrastive_loss` of the rows that are pairs, in a shape that does not depend on how many they are.

    a, b: (n, d); is_pair: (n,) bool; scale: () positive. Other rows are nobody's distractor and cost nothing.
    """
    logits = (scale * a @ b.T).float()
    there = logits.masked_fill(~is_pair, float("-inf")).logsumexp(1)
    back = logits.masked_fill(~is_pair[:, None], float("-inf")).logsumexp(0)
    each = 0.5 * (there + back) - logits.diagonal()
    return torch.where(is_pair, each, 0.0).sum()
