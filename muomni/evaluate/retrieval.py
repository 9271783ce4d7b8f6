"""Pictures: captions of unseen concepts among 64, and groups by their names, against chance and nearest pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from muomni.data.embedded import PICTURE_SIDE
from muomni.data.image import to_float
from muomni.data.items import PictureItem, Source
from muomni.data.text import Tokenizer
from muomni.evaluate.family import Case, HeldOut, Measured, spread, worst
from muomni.evaluate.figure import ratio
from muomni.metrics.answers import confusions
from muomni.metrics.nearest import nearest
from muomni.metrics.retrieval import equal, recall
from muomni.models.vision import ContrastModel
from muomni.tokens import BOS

MAX_CAPTION = 32
"""Tokens of a caption, BOS included; what is longer is cut, as in training."""
GROUP = 64
"""Candidates a query chooses from."""
FIRST = (1, 5)
"""The right one is among so many."""
BATCH = 64
"""Pictures of one forward."""
MAX_PICTURES = 512
"""Held-out pictures, at most; a caption is chosen from all of them."""
MAX_KNOWN = 4_000
"""Training pictures, spread over the split, among which the nearest one is looked for."""
NEAREST_SIDE = 16
"""Pixels a side of the raw colours that are compared."""
NEAREST = f"nearest training picture by raw {NEAREST_SIDE} x {NEAREST_SIDE} colours"
_CONFUSED = 10


@torch.inference_mode()
def embedded_pictures(model: ContrastModel, items: Sequence[PictureItem], source: Source) -> Tensor:
    """Unit rows (n, embed_dim)."""
    device, size = next(model.parameters()).device, model.vision.cfg.image_size
    parts = []
    for start in range(0, len(items), BATCH):
        own = items[start : start + BATCH]
        pixels = torch.stack([torch.from_numpy(source.picture(item, side=size)) for item in own])
        parts.append(model.embed_images(to_float(pixels).to(device)))
    return torch.cat(parts)


@torch.inference_mode()
def embedded_captions(
    model: ContrastModel, tokenizer: Tokenizer, captions: Sequence[Sequence[str]]
) -> Tensor:
    """Captions, each in pieces that are encoded on their own, as unit rows (n, embed_dim)."""
    device = next(model.parameters()).device
    ids = [
        [BOS, *(token for piece in tokenizer.encode_batch(list(caption)) for token in piece)][:MAX_CAPTION]
        for caption in captions
    ]
    bounds = torch.tensor([0, *np.cumsum([len(own) for own in ids])], dtype=torch.int32, device=device)
    flat = torch.tensor([token for own in ids for token in own], device=device)
    return model.embed_texts(flat, bounds, MAX_CAPTION)


def evaluate_retrieval(held: HeldOut) -> Measured:
    """R@1 and R@5 of captions in both directions, exact over all choices of distractors; groups by their names.

    Pictures of one thing in several styles have the same caption, which is then nobody's distractor.
    """
    out, model = Measured(), held.contrast
    names = [
        f"retrieval.{name}"
        for name in ("picture_to_caption", "caption_to_picture", "zero_shot_label", "zero_shot_group")
    ]
    items = spread(held.source.pictures(held.split), MAX_PICTURES)
    if len(items) < 2:
        out.skip(f"the data has {len(items)} pictures in split {held.split}, at least 2 are needed", *names)
        return out
    if isinstance(model, str):
        out.skip(model, *names)
        _groups(held, out, items, None, None)
        return out
    tokenizer = held.session.tokenizer
    pictures = embedded_pictures(model, items, held.source)
    captions = embedded_captions(model, tokenizer, [(item.label, *item.tags) for item in items])
    scores = _cosines(pictures, captions)
    alike = equal([(item.label, item.tags) for item in items])
    for name, matrix in (("picture to caption", scores), ("caption to picture", scores.T)):
        for k in FIRST:
            found = recall(matrix, k=k, group=GROUP, alike=alike)
            at = "at first" if k == 1 else f"among the first {k}"
            out.figures.append(
                ratio(
                    f"retrieval.{name.replace(' ', '_')}" + ("" if k == 1 else f".at_{k}"),
                    f"pictures: {name}, right {at} of {found.group}, unseen concepts",
                    sums=found.per_query, baseline=found.chance, baseline_name="chance",
                    better="higher", unit="share", seed=held.seed,
                )
            )  # fmt: skip
    labels = embedded_captions(model, tokenizer, [(item.label,) for item in items])
    found = recall(_cosines(pictures, labels), group=GROUP, alike=equal([item.label for item in items]))
    out.figures.append(
        ratio(
            "retrieval.zero_shot_label",
            f"pictures: label alone, right at first of {found.group}, unseen concepts",
            sums=found.per_query, baseline=found.chance, baseline_name="chance", better="higher",
            unit="share", seed=held.seed,
        )
    )  # fmt: skip
    right, first = np.diagonal(scores), scores.argmax(axis=1)
    out.cases["Pictures farthest from their captions"] = worst(
        Case(
            item=item.id, expected=item.label, given=items[first[i]].label,
            error=float(scores[i, first[i]] - right[i]), pictures=(held.source.file(item),),
        )
        for i, item in enumerate(items)
    )  # fmt: skip
    _groups(held, out, items, model, pictures)
    return out


def _groups(
    held: HeldOut,
    out: Measured,
    items: Sequence[PictureItem],
    model: ContrastModel | None,
    pictures: Tensor | None,
) -> None:
    """Which group a picture is of: by the groups' names in the contrast's space, and by the nearest picture."""
    grouped = [i for i, item in enumerate(items) if item.group]
    known = spread([item for item in held.source.pictures("train") if item.group], MAX_KNOWN)
    if not grouped or not known:
        out.skip("the pictures have no groups", "retrieval.zero_shot_group", "retrieval.nearest_group")
        return
    truth = [items[i].group for i in grouped]
    floor = nearest_groups([items[i] for i in grouped], known, held.source)
    common = Counter(item.group for item in known).most_common(1)[0][0]
    share = float(np.mean([group == common for group in truth]))

    def figure(name: str, what: str, given: Sequence[str], baseline: float, baseline_name: str) -> None:
        right = [g == t for g, t in zip(given, truth, strict=True)]
        out.figures.append(
            ratio(
                f"retrieval.{name}", f"pictures: group of an unseen concept, {what}", sums=np.array(right, float),
                baseline=baseline, baseline_name=baseline_name, better="higher", unit="share", seed=held.seed,
            )
        )  # fmt: skip

    if model is not None and pictures is not None:
        groups = sorted({item.group for item in known} | set(truth))
        names = embedded_captions(model, held.session.tokenizer, [(group,) for group in groups])
        chosen = [groups[k] for k in _cosines(pictures[grouped], names).argmax(axis=1)]
        right = float(np.mean([g == t for g, t in zip(floor, truth, strict=True)]))
        figure("zero_shot_group", f"by the {len(groups)} groups' names", chosen, right, NEAREST)
        rows = [[e, g, str(n)] for e, g, n in confusions(truth, chosen)[:_CONFUSED]]
        out.tables["Groups taken for others, by their names"] = [["group", "taken for", "times"], *rows]
    figure("nearest_group", f"a floor: the {NEAREST}", floor, share, "most common group")


def nearest_groups(items: Sequence[PictureItem], known: Sequence[PictureItem], source: Source) -> list[str]:
    """The group of the known picture whose colours are nearest, of each item."""

    def colours(item: PictureItem) -> np.ndarray:
        cell = PICTURE_SIDE // NEAREST_SIDE
        pixels = source.picture(item, side=PICTURE_SIDE)
        return pixels.reshape(3, NEAREST_SIDE, cell, NEAREST_SIDE, cell).mean(axis=(2, 4)).ravel()

    found = nearest(np.stack([*map(colours, items)]), np.stack([*map(colours, known)]))
    return [known[i].group for i in found.tolist()]


def _cosines(pictures: Tensor, texts: Tensor) -> np.ndarray:
    return (pictures @ texts.T).float().cpu().numpy()
