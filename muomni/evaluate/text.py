"""Text: bits per byte of held-out conversations, against n-gram models of the training conversations."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional as F

from muomni.data import embedded
from muomni.data.batch import pack
from muomni.data.template import Document, render_text
from muomni.data.text import Tokenizer
from muomni.evaluate.figure import Figure, ratio
from muomni.metrics.ngram import NGramModel, bits_per_byte
from muomni.models.thinker import Thinker
from muomni.tokens import IGNORE_INDEX

ROW_TOKENS = 4_096
"""Positions of one packed forward."""


@torch.inference_mode()
def document_nats(thinker: Thinker, documents: list[Document], *, max_seq_len: int) -> np.ndarray:
    """Summed negative log-likelihood of every document's targets, nats, float64 (n_docs,). Text only."""
    device = next(thinker.parameters()).device
    totals = []
    for row in rows([len(d) for d in documents], capacity=max(ROW_TOKENS, max_seq_len)):
        batch = pack(
            [documents[i] for i in row], n_tokens=sum(len(documents[i]) for i in row), n_docs=len(row),
            max_seq_len=max_seq_len,
        ).to(device)  # fmt: skip
        hidden = thinker(thinker.embed(batch.input_ids), batch.positions, batch.cu_seqlens, batch.max_seqlen)
        nats = F.cross_entropy(thinker.logits(hidden).float(), batch.labels, ignore_index=IGNORE_INDEX, reduction="none")
        parts = nats.cpu().double().split([len(documents[i]) for i in row])
        totals += [float(part.sum()) for part in parts]
    return np.array(totals)


def rows(lengths: list[int], *, capacity: int) -> list[list[int]]:
    """Items in order, grouped so that the lengths of a group sum to at most capacity (or it is one item)."""
    groups: list[list[int]] = []
    used = capacity
    for i, length in enumerate(lengths):
        if used + length > capacity or not groups:
            groups.append([])
            used = 0
        groups[-1].append(i)
        used += length
    return groups


def evaluate_text(
    thinker: Thinker, tokenizer: Tokenizer, *, max_seq_len: int, split: embedded.Split, seed: int
) -> list[Figure]:
    """Bits per byte of the text stage's Thinker, once against each n-gram model. The item is a conversation."""
    held = [c.text for c in embedded.conversations(split)]
    documents = [render_text(ids, max_seq_len=max_seq_len) for ids in tokenizer.encode_batch(held)]
    flat = [d for pieces in documents for d in pieces]
    owner = np.repeat(np.arange(len(documents)), [len(pieces) for pieces in documents])
    nats = np.bincount(owner, weights=document_nats(thinker, flat, max_seq_len=max_seq_len))
    # The end of a document is predicted too, and counted as one byte by every model alike.
    n_bytes = np.array([len(text.encode()) + 1 for text in held])
    train = tokenizer.encode_batch([c.text for c in embedded.conversations("train")])
    targets = [
        d.labels[1:].tolist() for ids in train for d in render_text(ids, max_seq_len=max_seq_len) if len(d) > 1
    ]
    figures = []
    for order, name in ((1, "unigram"), (2, "bigram")):
        ngram = NGramModel(targets, order=order, vocab_size=tokenizer.vocab_size)
        trivial = sum(ngram.nll(d.labels[1:].tolist()) for d in flat)
        figures.append(
            ratio(
                f"text.bits_per_byte.{name}", f"text: bits per byte, against the {name} model",
                sums=nats / math.log(2), units=n_bytes, baseline=bits_per_byte(trivial, int(n_bytes.sum())),
                baseline_name=f"{name} of the training conversations", unit="bits/byte", seed=seed,
            )
        )  # fmt: skip
    return figures
