"""Text: bits per byte of held-out conversations, against n-gram models of the training conversations."""

from __future__ import annotations

import math

import numpy as np

from muomni.data.items import Source, Split
from muomni.data.template import render_text
from muomni.data.text import Tokenizer
from muomni.evaluate.figure import Figure, ratio
from muomni.evaluate.score import score
from muomni.metrics.ngram import NGramModel, bits_per_byte
from muomni.models.thinker import Thinker


def evaluate_text(
    thinker: Thinker, tokenizer: Tokenizer, *, max_seq_len: int, source: Source, split: Split, seed: int
) -> list[Figure]:
    """Bits per byte of the text stage's Thinker against each n-gram model. The item is a conversation."""
    held = [c.text for c in source.conversations(split)]
    documents = [render_text(ids, max_seq_len=max_seq_len) for ids in tokenizer.encode_batch(held)]
    flat = [d for pieces in documents for d in pieces]
    owner = np.repeat(np.arange(len(documents)), [len(pieces) for pieces in documents])
    nats = np.bincount(owner, weights=score(thinker, flat).nats)
    # The end of a document is predicted too, and counted as one byte by every model alike.
    n_bytes = np.array([len(text.encode()) + 1 for text in held])
    train = tokenizer.encode_batch([c.text for c in source.conversations("train")])
    targets = [
        d.labels[1:].tolist()
        for ids in train
        for d in render_text(ids, max_seq_len=max_seq_len)
        if len(d) > 1
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
