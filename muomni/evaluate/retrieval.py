"""Pictures: which caption belongs to a picture of an unseen concept, among 64; against chance."""

from __future__ import annotations

import numpy as np
import torch

from muomni.data.embedded import PICTURE_SIDE
from muomni.data.image import to_float
from muomni.data.items import PictureItem, Source, Split
from muomni.data.text import Tokenizer
from muomni.evaluate.figure import Figure, ratio
from muomni.metrics.retrieval import recall_at_1
from muomni.models.vision import ContrastModel
from muomni.tokens import BOS

MAX_CAPTION = 32
"""Tokens of a caption, BOS included; what is longer is cut, as in training."""
GROUP = 64
"""Candidates a query chooses from."""
BATCH = 64
"""Pictures of one forward."""


@torch.inference_mode()
def similarity(
    model: ContrastModel, tokenizer: Tokenizer, items: list[PictureItem], source: Source
) -> np.ndarray:
    """Cosine of every picture (row) with every caption (column), float32 (n, n)."""
    device = next(model.parameters()).device
    size = model.vision.cfg.image_size
    side = max(PICTURE_SIDE, size)
    images = torch.stack([torch.from_numpy(source.picture(item, side=side)) for item in items])
    pictures = torch.cat(
        [model.embed_images(to_float(part, size).to(device)) for part in images.split(BATCH)]
    )
    words = [tokenizer.encode_batch([item.label, *(f" {tag}" for tag in item.tags)]) for item in items]
    captions = [[BOS, *(token for word in caption for token in word)][:MAX_CAPTION] for caption in words]
    ids = torch.tensor([token for caption in captions for token in caption], device=device)
    bounds = torch.tensor([0, *np.cumsum([len(c) for c in captions])], dtype=torch.int32, device=device)
    return (pictures @ model.embed_texts(ids, bounds, MAX_CAPTION).T).float().cpu().numpy()


def evaluate_retrieval(
    model: ContrastModel, tokenizer: Tokenizer, *, source: Source, split: Split, seed: int
) -> list[Figure]:
    """R@1 in both directions, the expectation over all choices of distractors."""
    scores = similarity(model, tokenizer, source.pictures(split), source)
    figures = []
    for name, matrix in (("picture to caption", scores), ("caption to picture", scores.T)):
        recall = recall_at_1(matrix, group=GROUP)
        figures.append(
            ratio(
                f"retrieval.{name.replace(' ', '_')}",
                f"pictures: {name}, right at first of {recall.group}, unseen concepts",
                sums=recall.per_query, baseline=recall.chance, baseline_name="chance",
                better="higher", unit="share", seed=seed,
            )
        )  # fmt: skip
    return figures
