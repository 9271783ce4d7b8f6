"""Log-likelihood of documents under a Thinker, many at a time, each on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from muomni.data.template import Document
from muomni.models.thinker import Thinker
from muomni.tokens import IGNORE_INDEX

ROW_TOKENS = 4_096
"""Positions of one packed forward."""


@dataclass(frozen=True)
class Scores:
    """Of each document, (n,) each."""

    nats: np.ndarray
    """Summed negative log-likelihood of its targets, float64."""
    n_targets: np.ndarray
    """Targets, int64."""
    exact: np.ndarray
    """Whether every target is the likeliest token: greedy decoding would give exactly this, bool."""


@torch.inference_mode()
def score(thinker: Thinker, documents: Sequence[Document], embeds: Sequence[Tensor] | None = None) -> Scores:
    """Score every document's targets.

    embeds: (T_i, d_model) of each document, media already on their placeholders; None: text only.
    """
    device = next(thinker.parameters()).device
    nats, n_targets, exact = [], [], []
    for row in rows([len(d) for d in documents], capacity=ROW_TOKENS):
        chosen = [documents[i] for i in row]
        if embeds is None:
            inputs = thinker.embed(torch.cat([d.input_ids for d in chosen]).to(device))
        else:
            inputs = torch.cat([embeds[i] for i in row])
        lengths = [len(d) for d in chosen]
        cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=device)
        positions = torch.cat([d.positions for d in chosen]).to(device)
        hidden = thinker(inputs, positions, cu_seqlens, max(lengths))
        # The label of a position is the next token of its own document; the last position has none.
        labels = torch.cat([F.pad(d.labels[1:], (0, 1), value=IGNORE_INDEX) for d in chosen]).to(device)
        losses, likeliest = thinker.cross_entropy(hidden, labels, reduction="none")
        target = labels != IGNORE_INDEX
        missed = target & ~likeliest
        nats += [float(part.double().sum()) for part in losses.cpu().split(lengths)]
        n_targets += [int(part.sum()) for part in target.cpu().split(lengths)]
        exact += [not bool(part.any()) for part in missed.cpu().split(lengths)]
    return Scores(np.array(nats), np.array(n_targets, dtype=np.int64), np.array(exact, dtype=bool))


def rows(lengths: Sequence[int], *, capacity: int) -> list[list[int]]:
    """Items in order, grouped so that a group's lengths sum to at most capacity, or it is one item."""
    groups: list[list[int]] = []
    used = capacity
    for i, length in enumerate(lengths):
        if used + length > capacity or not groups:
            groups.append([])
            used = 0
        groups[-1].append(i)
        used += length
    return groups
