"""Text: bits per byte of held-out texts, against n-gram models of the training texts over the same tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from muomni.data.template import Document, render_text
from muomni.data.text import Tokenizer
from muomni.data.text_sets import held_texts, training_texts
from muomni.evaluate.family import Case, HeldOut, Measured, spread, worst
from muomni.evaluate.figure import Figure, ratio
from muomni.evaluate.score import score
from muomni.metrics.ngram import NGramModel, bits_per_byte
from muomni.models.thinker import Thinker

MAX_TRAIN_BYTES = 20_000_000
"""Text that an n-gram model is made from at most, spread over the sets: its tables are in memory."""
MAX_HELD = 400
"""Held-out texts, at most: scoring is cheap, and more of them than of other items are needed."""
ORDER = 5
SHOWN_CHARACTERS = 160


@dataclass(frozen=True, kw_only=True)
class _Texts:
    """Held-out texts as documents."""

    texts: list[str]
    documents: list[Document]
    owner: np.ndarray
    """Of each document, the text it is a piece of."""

    @classmethod
    def of(cls, texts: list[str], tokenizer: Tokenizer, max_seq_len: int) -> _Texts:
        pieces = [render_text(ids, max_seq_len=max_seq_len) for ids in tokenizer.encode_batch(texts)]
        return cls(
            texts=texts,
            documents=list(chain.from_iterable(pieces)),
            owner=np.repeat(np.arange(len(pieces)), [len(own) for own in pieces]),
        )

    @property
    def n_bytes(self) -> np.ndarray:
        """The end of a text is predicted too, and counted as one byte by every model alike."""
        return np.array([len(text.encode()) + 1 for text in self.texts])

    def bits(self, thinker: Thinker) -> np.ndarray:
        """Of each text."""
        return np.bincount(self.owner, weights=score(thinker, self.documents).nats) / math.log(2)

    def trivial(self, model: NGramModel) -> np.ndarray:
        """Bits of each text under an n-gram model."""
        nats = [model.nll(d.labels[1:].tolist()) for d in self.documents]
        return np.bincount(self.owner, weights=nats) / math.log(2)


def evaluate_text(held: HeldOut) -> Measured:
    """Bits per byte of the text stage's Thinker, and of the Thinker that speaks, against n-gram models.

    The unigram and the bigram are of the training conversations, the 5-gram of all texts that stage text is trained on,
    each once. The item is a text.
    """
    out, thinker = Measured(), held.text_thinker
    tokenizer, longest = held.session.tokenizer, held.session.config.max_seq_len
    by_set = {name: spread(texts, MAX_HELD) for name, texts in held_texts(held.split, held.source).items()}
    if not by_set:
        out.skip(f"the data has no text in split {held.split}", "text.bits_per_byte")
        return out
    own = _Texts.of(spread(list(chain.from_iterable(by_set.values())), MAX_HELD), tokenizer, longest)
    train = _bounded([*chain.from_iterable(training_texts("train", held.source).values())])
    if not train:
        out.skip("the data has no training text to make an n-gram model from", "text.bits_per_byte")
        return out
    talks = _bounded([c.text for c in held.source.conversations("train")]) or train
    targets = _targets([*train, *talks], tokenizer, longest)
    five = NGramModel(_of(targets, train), order=ORDER, vocab_size=tokenizer.vocab_size)
    floor = own.trivial(five)
    name_of_five = f"modified Kneser-Ney {ORDER}-gram of the training texts, over the same tokens"
    after = own.bits(held.session.engine.model.thinker)
    if isinstance(thinker, str):
        out.skip(thinker, *(f"text.bits_per_byte.{name}" for name in ("unigram", "bigram", f"{ORDER}gram")))
        bits = after
    else:
        bits = own.bits(thinker)
        for order, name in ((1, "unigram"), (2, "bigram")):
            ngram = NGramModel(_of(targets, talks), order=order, vocab_size=tokenizer.vocab_size)
            trivial = own.trivial(ngram)
            what = f"text: bits per byte, against the {name} model"
            of = "texts" if talks is train else "conversations"
            out.figures.append(_figure(held, name, what, bits, own, trivial, f"{name} of the training {of}"))
        what = f"text: bits per byte, against a {ORDER}-gram model"
        out.figures.append(_figure(held, f"{ORDER}gram", what, bits, own, floor, name_of_five))
    what = "text: bits per byte of the Thinker that speaks, after stage omni"
    out.figures.append(_figure(held, "after_omni", what, after, own, floor, name_of_five))
    for name, texts in by_set.items() if len(by_set) > 1 else ():
        one = _Texts.of(spread(texts, held.n), tokenizer, longest)
        mine = one.bits(held.session.engine.model.thinker if isinstance(thinker, str) else thinker)
        what = f"text: bits per byte of {name}"
        out.figures.append(_figure(held, f"set.{name}", what, mine, one, one.trivial(five), name_of_five))
    rates, floors = bits / own.n_bytes, floor / own.n_bytes
    out.cases["Texts that cost the most against the 5-gram model"] = worst(
        Case(
            item=f"text {i}", expected=text[:SHOWN_CHARACTERS], error=float(rate - trivial),
            given=f"{rate:.2f} bits per byte, {ORDER}-gram {trivial:.2f}",
        )
        for i, (text, rate, trivial) in enumerate(zip(own.texts, rates, floors, strict=True))
    )  # fmt: skip
    return out


def _figure(
    held: HeldOut, name: str, what: str, bits: np.ndarray, own: _Texts, trivial: np.ndarray, baseline: str
) -> Figure:
    n_bytes = own.n_bytes
    return ratio(
        f"text.bits_per_byte.{name}", what, sums=bits, units=n_bytes,
        baseline=bits_per_byte(float(trivial.sum()) * math.log(2), int(n_bytes.sum())), baseline_name=baseline,
        unit="bits/byte", seed=held.seed,
    )  # fmt: skip


def _bounded(texts: list[str]) -> list[str]:
    """All texts, or as many of them, evenly spaced, as have about MAX_TRAIN_BYTES."""
    size = sum(len(text.encode()) for text in texts)
    return spread(texts, len(texts) * MAX_TRAIN_BYTES // size) if size > MAX_TRAIN_BYTES else texts


def _targets(texts: Sequence[str], tokenizer: Tokenizer, max_seq_len: int) -> dict[str, list[list[int]]]:
    """Text -> what is to be predicted in each of its pieces. Each text is encoded once."""
    every = list(dict.fromkeys(texts))
    return {
        text: [d.labels[1:].tolist() for d in render_text(ids, max_seq_len=max_seq_len) if len(d) > 1]
        for text, ids in zip(every, tokenizer.encode_batch(every), strict=True)
    }


def _of(targets: Mapping[str, list[list[int]]], texts: Sequence[str]) -> list[list[int]]:
    return [piece for text in texts for piece in targets[text]]
