"""Stage text: the tokenizer, then the Thinker on next-token prediction over packed documents."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import nn

from muomni.config import RunConfig
from muomni.data.batch import Order, PackedBatch, pack, permutation
from muomni.data.items import Split
from muomni.data.repeats import repeat
from muomni.data.template import Document, Turn, length, render, render_text, spelled
from muomni.data.text import Tokenizer, train_tokenizer
from muomni.data.text_mix import mix
from muomni.data.text_sets import held_texts, training_texts
from muomni.data.usable import Usable
from muomni.metrics.ngram import NGramModel, bits_per_byte
from muomni.models.thinker import Thinker
from muomni.models.weights import CheckpointError
from muomni.train.losses import n_targets
from muomni.train.stage import Figure, Parts, StageBase, part
from muomni.train.stages.written_samples import text_samples


def tokenizer_path(root: Path) -> Path:
    """Where a run's tokenizer is."""
    return root / "tokenizer.json"


def load_tokenizer(root: Path, vocab_size: int) -> Tokenizer:
    """The run's tokenizer. Raises CheckpointError when its vocabulary is not the model's."""
    tokenizer = Tokenizer.load(tokenizer_path(root))
    if tokenizer.vocab_size != vocab_size:
        raise CheckpointError(
            f"{tokenizer_path(root)}: has {tokenizer.vocab_size} entries, this run's model {vocab_size}; "
            f"use the size it was trained with, or another --run."
        )
    return tokenizer


TEMPERATURE = 1.5
"""Of the mix of several prepared sets: small ones are read more often than their size says."""
TECHNICAL_SHARE = 0.25
"""Most of the tokens that may be documentation and descriptions of software, if there is other text."""


COPIED_SHARE = 0.15
"""Of the positions in training, those of texts to be repeated, where there are enough."""
COPIED_CHARACTERS = 120
"""Of a text that is to be repeated, at most."""
TEXTS_AT_ONCE = 256
"""Texts that are tokenized together where not all are wanted."""


def opening(text: str) -> str:
    """A text, or the words of one that are whole within its first COPIED_CHARACTERS; these where there are none."""
    whole = text[: COPIED_CHARACTERS + 1].rpartition(" ")[0].rstrip()
    return text if len(text) <= COPIED_CHARACTERS else whole or text[:COPIED_CHARACTERS]


def mixed(
    by_set: Mapping[str, Sequence[Document]], technical: Collection[str], *, seed: int
) -> list[Document]:
    """About as many tokens as there are, each set by its share of the mix: whole copies, and a drawn part."""
    sizes = {name: sum(map(len, documents)) for name, documents in by_set.items()}
    shares = mix(sizes, technical, temperature=TEMPERATURE, technical_share=TECHNICAL_SHARE)
    found: list[Document] = []
    for number, (name, documents) in enumerate(by_set.items()):
        copies, left = divmod(shares[name] * sum(sizes.values()), sizes[name])
        found += [*documents] * int(copies)
        for i in permutation(len(documents), seed=seed, epoch=number).tolist():
            if left < len(documents[i]) / 2:
                break
            found.append(documents[i])
            left -= len(documents[i])
    return found


class TextStage(StageBase):
    """Next-token prediction; every document keeps to itself."""

    name = "text"
    saved = ("thinker",)
    weights: Mapping[str, float] = {"token": 1.0, "balance": 1.0}

    def build(self, run: RunConfig, root: Path) -> nn.Module:
        """Train the tokenizer if the run has none, and start a Thinker from its seed."""
        self.data = Usable(self.quarantine, self.source)
        self.need("text", lambda split: training_texts(split, self.data))
        path = tokenizer_path(root)
        if not path.is_file():
            root.mkdir(parents=True, exist_ok=True)
            texts = chain.from_iterable(training_texts("train", self.data).values())
            train_tokenizer(texts, run.model.thinker.vocab_size).save(path)
        self.tokenizer = load_tokenizer(root, run.model.thinker.vocab_size)
        self._orders: dict[str, tuple[list[Document], Order]] = {}
        self._n_plain = 0
        self._order("train")
        self._baselines: dict[int, NGramModel] = {}
        return Parts(thinker=Thinker(run.model.thinker))

    def held_texts(self, split: Split) -> list[str]:
        """What is measured on: conversations; prose where there are none, and words where there is neither."""
        return list(chain.from_iterable(held_texts(split, self.data).values()))

    def documents(self, split: Split) -> list[Document]:
        """Plain text: all there is for training; held out that of `held_texts`, a whole number of pieces."""
        if split != "train":
            return self._documents(self.held_texts(split))
        by_set = {name: self._documents(texts) for name, texts in training_texts(split, self.data).items()}
        if not self.data.admitted:
            return list(chain.from_iterable(by_set.values()))
        technical = {i.id.partition("/")[0] for i in self.data.texts(split) if i.technical}
        return mixed(by_set, technical, seed=self.run.seed)

    def _documents(self, texts: list[str]) -> list[Document]:
        longest = self.config.max_seq_len
        return [
            d for ids in self.tokenizer.encode_batch(texts) for d in render_text(ids, max_seq_len=longest)
        ]

    def copies(self, n_tokens: float) -> list[Document]:
        """Training texts to be repeated, drawn with the run's seed, of n_tokens positions.

        Plain text alone teaches a small model too little of copying, without which it can neither say what it is told
        nor write what it hears.
        """
        texts = chain.from_iterable(training_texts("train", self.data).values())
        said = list(dict.fromkeys(opening(text) for text in texts))
        drawn = permutation(len(said), seed=self.run.seed, epoch=1).tolist()
        found: list[Document] = []
        for at in range(0, len(drawn), TEXTS_AT_ONCE):
            own = [
                repeat(said[i], np.random.default_rng((self.run.seed, i)))
                for i in drawn[at : at + TEXTS_AT_ONCE]
            ]
            parts = ([o.heard for o in own], [o.question for o in own], [o.answer for o in own])
            for heard, asked, answer in zip(*map(self.tokenizer.encode_batch, parts), strict=True):
                turn = Turn(text=[*spelled(heard), *asked], answer=answer)
                if n_tokens <= 0:
                    return found
                if length([turn], 1) <= self.config.max_seq_len:
                    found.append(render([turn], n_image_tokens=1, max_seq_len=self.config.max_seq_len))
                    n_tokens -= len(found[-1])
        return found

    def _order(self, split: Split) -> tuple[list[Document], Order]:
        if split not in self._orders:
            documents, train = self.documents(split), self.run.train
            if split == "train":
                self._n_plain = len(documents)
                documents += self.copies(sum(map(len, documents)) * COPIED_SHARE / (1.0 - COPIED_SHARE))
            order = Order(
                [len(d) for d in documents], capacity=train.batch_tokens, n_items=train.batch_items,
                seed=self.run.seed, shuffle=split == "train",
            )  # fmt: skip
            self._orders[split] = (documents, order)
        return self._orders[split]

    def batch(self, position: int, parts: int = 1) -> list[PackedBatch]:
        """Rows of whole documents."""
        documents, order = self._order("train")
        return [
            self._packed([documents[i] for i in piece], order, parts)
            for piece in order.pieces(order.at(position), parts)
        ]

    def held_out(self, split: Split) -> Iterator[PackedBatch]:
        """Every document once."""
        documents, order = self._order(split)
        for row in order.epoch(0):
            yield self._packed([documents[i] for i in row], order)

    def _packed(self, chosen: list[Document], order: Order, parts: int = 1) -> PackedBatch:
        (n_tokens,), n_docs = order.room(parts)
        return pack(chosen, n_tokens=n_tokens, n_docs=n_docs, max_seq_len=self.config.max_seq_len)

    def counts(self, batch: PackedBatch) -> dict[str, torch.Tensor | int]:
        """Target tokens, and positions for the balance loss."""
        return {"token": n_targets(batch.labels), "balance": len(batch.input_ids)}

    def losses(self, model: nn.Module, batch: PackedBatch, phase: str) -> dict[str, torch.Tensor]:
        """Summed cross entropy; the experts' balance loss a position."""
        thinker = part(model, "thinker", Thinker)
        hidden = thinker(thinker.embed(batch.input_ids), batch.positions, batch.cu_seqlens, batch.max_seqlen)
        token, _ = thinker.cross_entropy(hidden, batch.labels)
        return {"token": token, "balance": thinker.balance_loss() * len(batch.input_ids)}

    def fill(self, batch: PackedBatch) -> tuple[int, int]:
        """Positions that are not padding, and all."""
        return batch.n_tokens, len(batch.input_ids)

    def evaluate(self, model: nn.Module, split: Split) -> list[Figure]:
        """Bits per byte of held-out texts, against unigram and bigram models of the training text."""
        nats = sum(
            float(self.losses(model, b.to(self.device(model)), "main")["token"]) for b in self.held_out(split)
        )
        held_out = self.held_texts(split)
        # The end of a document is predicted too, and counted as one byte by every model alike.
        n_bytes = sum(len(text.encode()) + 1 for text in held_out)
        figure = bits_per_byte(nats, n_bytes)
        held = [d.labels[1:].tolist() for d in self.documents(split)]
        figures = []
        for order, name in ((1, "unigram"), (2, "bigram")):
            if order not in self._baselines:
                train = [d.labels[1:].tolist() for d in self._order("train")[0][: self._n_plain]]
                self._baselines[order] = NGramModel(train, order=order, vocab_size=self.tokenizer.vocab_size)
            baseline = self._baselines[order]
            nll = sum(baseline.nll(d) for d in held)
            figures.append(
                Figure(
                    name=f"text bits per byte vs {name}", value=figure, n=len(held_out),
                    baseline=bits_per_byte(nll, n_bytes), baseline_name=f"{name} of the same tokens",
                )
            )  # fmt: skip
        return figures

    def samples(self, model: nn.Module, split: Split, folder: Path) -> dict[str, float]:
        """Continuations of held-out texts; see written_samples."""
        return text_samples(self, model, split, folder)
