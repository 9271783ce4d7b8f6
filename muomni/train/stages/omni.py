"""Stage omni: the Thinker and its projectors learn to answer about pictures, clips and text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from muomni.config import RunConfig
from muomni.data.audio import CTC_SYMBOLS, audio_frames, decode_ctc, normalise_transcript
from muomni.data.batch import Media, Order, PackedBatch, pack, permutation
from muomni.data.examples import Clip, Example, Picture, Places, clips, documents, fitting, pictures
from muomni.data.image import augment, to_float
from muomni.data.items import Item, Kind, LineItem, SpeechItem, Split
from muomni.data.tasks import examples
from muomni.data.tasks_several import MAX_PICTURES
from muomni.data.template import Document, render_text
from muomni.data.text_sets import training_texts
from muomni.data.usable import Usable
from muomni.errors import UserError
from muomni.models.audio import AudioEncoder, CTCHead, log_probs
from muomni.models.fuse import Projector, place_features
from muomni.models.thinker import Thinker
from muomni.models.vision import VisionEncoder
from muomni.tokens import IGNORE_INDEX
from muomni.train.losses import n_targets
from muomni.train.stage import Figure, Parts, StageBase, freeze, generator, load_parent, part
from muomni.train.stages.omni_figures import figures
from muomni.train.stages.text import TEXTS_AT_ONCE, load_tokenizer
from muomni.train.stages.written_samples import omni_samples

KINDS: tuple[Kind, ...] = (
    "speech", "questions", "pictures", "lines", "conversations", "dialogues", "texts",
)  # fmt: skip
"""What examples are made of, and plain text."""
PLAIN_SHARE = 0.15
"""Of the training positions, how many are plain text in stage text's form: the Thinker is to write it still."""
HEARD_AT_ONCE = 32
"""Clips that the ear spells together."""
PLAIN = Example(task="plain text", question="", answer="")
"""Stands for a plain text among the training examples: it shows and plays nothing."""


class OmniStage(StageBase):
    """Supervised answers; the encoders are frozen and in eval mode, the loss is on the answers alone."""

    name = "omni"
    parents = ("text", "audio", "vision")
    saved = ("thinker", "vision_projector", "audio_projector")
    slow_batches = True
    weights: Mapping[str, float] = {"answer": 1.0, "balance": 1.0}

    def build(self, run: RunConfig, root: Path) -> nn.Module:
        """The text stage's Thinker, the trained encoders (frozen), new projectors."""
        cfg = run.model
        model = Parts(
            thinker=Thinker(cfg.thinker),
            vision=VisionEncoder(cfg.vision),
            audio=AudioEncoder(cfg.audio, cfg.mel.n_mels),
            ctc_head=CTCHead(cfg.audio.d_model, cfg.audio.ctc_expand, len(CTC_SYMBOLS)),
            vision_projector=Projector(cfg.vision.d_model, cfg.thinker.d_model),
            audio_projector=Projector(cfg.audio.d_model, cfg.thinker.d_model),
        )
        for parent, *names in (("text", "thinker"), ("audio", "audio", "ctc_head"), ("vision", "vision")):
            load_parent(model, root, parent=parent, parts=names, child=self.name, run=run)
        for name in ("vision", "audio", "ctc_head"):
            freeze(model.get_submodule(name))
        self._model = model
        self.root = root
        self.side = cfg.vision.image_size
        self.tokenizer = load_tokenizer(root, cfg.thinker.vocab_size)
        self.data = Usable(self.quarantine, self.source, kinds=KINDS, read=self._read)
        self._clips: dict[str, tuple[Clip, ...]] = {}
        self._pictures: dict[str, tuple[Picture, ...]] = {}
        self._examples: dict[str, list[Example]] = {}
        self._heard: dict[str, dict[int, list[int]]] = {}
        self.need("questions with answers", self.examples)
        chosen = self.examples("train")
        found = self.documents("train", chosen)
        plain = self.plain(sum(map(len, found)) * PLAIN_SHARE / (1.0 - PLAIN_SHARE))
        chosen, found = [*chosen, *[PLAIN] * len(plain)], [*found, *plain]
        self._training = (chosen, found, self.order(chosen, found, shuffle=True))
        return model

    def examples(self, split: Split) -> list[Example]:
        """The examples of a split that fit the context; those for training are drawn with the run's seed."""
        if split not in self._examples:
            longest = self.config.max_audio_samples
            found = examples(split, max_audio_samples=longest, source=self.data, seed=self.run.seed)
            self._hear(split, found)
            self._examples[split] = fitting(found, self.tokenizer, **self._places(split))
            too_long = sum(item.n_samples > longest for item in self.clips(split))
            self.quarantine.dropped[split] = too_long + len(found) - len(self._examples[split])
        return self._examples[split]

    def documents(self, split: Split, chosen: list[Example], *, media: bool = True) -> list[Document]:
        """Examples of a split as documents."""
        return documents(chosen, self.tokenizer, **self._places(split), media=media)

    def plain(self, n_tokens: float) -> list[Document]:
        """Training texts as documents, drawn with the run's seed until they have n_tokens positions or none is left."""
        texts = [text for own in training_texts("train", self.data).values() for text in own]
        drawn = permutation(len(texts), seed=self.run.seed, epoch=0).tolist()
        found: list[Document] = []
        for at in range(0, len(drawn), TEXTS_AT_ONCE):
            for ids in self.tokenizer.encode_batch([texts[i] for i in drawn[at : at + TEXTS_AT_ONCE]]):
                if n_tokens <= 0:
                    return found
                pieces = render_text(ids, max_seq_len=self.config.max_seq_len)
                found += pieces
                n_tokens -= sum(map(len, pieces))
        return found

    def _places(self, split: Split) -> Places:
        return Places(
            clip_tokens=[self.config.audio_tokens(c.n_samples) for c in self.clips(split)],
            heard=self._heard[split],
            n_image_tokens=self.config.vision.n_image_tokens,
            max_seq_len=self.config.max_seq_len,
        )

    def _hear(self, split: Split, chosen: list[Example]) -> None:
        """What stands behind each clip of these examples, found once: what the ear, which is frozen, spells of it.

        Behind a recording that is trained on it is the transcript: what an ear misspells would teach to distrust it,
        and whoever is to write what he hears had better write that.
        """
        played, known = self.clips(split), self._heard.setdefault(split, {})
        wanted = sorted(
            {i for e in chosen for i in e.all_clips} - set(known), key=lambda i: played[i].n_samples
        )
        texts: dict[int, str] = {}
        for i in wanted:
            item = played[i]
            if split == "train" and isinstance(item, SpeechItem):
                texts[i] = normalise_transcript(item.text)
        ear = part(self._model, "audio", AudioEncoder), part(self._model, "ctc_head", CTCHead)
        rest = [i for i in wanted if i not in texts]
        # Those of one length take the least: attention on a CPU goes by the longest of them.
        for at in range(0, len(rest), HEARD_AT_ONCE):
            read = {i: self.data.value(played[i]) for i in rest[at : at + HEARD_AT_ONCE]}
            frames = {i: one for i, one in read.items() if one is not None}
            if frames:
                best = [one.argmax(-1).tolist() for one in log_probs(*ear, list(frames.values()))]
                texts |= dict(zip(frames, map(decode_ctc, best), strict=True))
        known |= dict(zip(texts, self.tokenizer.encode_batch([*texts.values()]), strict=True))

    def clips(self, split: Split) -> tuple[Clip, ...]:
        """Every clip of a split that can be used: recordings, then spoken questions."""
        if split not in self._clips:
            self._clips[split] = clips(split, self.data)
        return self._clips[split]

    def pictures(self, split: Split) -> tuple[Picture, ...]:
        """Every picture of a split that can be used: of things, then of written words."""
        if split not in self._pictures:
            self._pictures[split] = pictures(split, self.data)
        return self._pictures[split]

    def pixels(self, split: Split, picture: int) -> torch.Tensor:
        """A picture, (3, side, side) uint8. Raises UserError for a bad one."""
        return self._value(self.pictures(split)[picture])

    def frames(self, split: Split, clip: int) -> torch.Tensor:
        """A clip as the encoder sees it, (n_frames, factor * n_mels). Raises UserError for a bad one."""
        return self._value(self.clips(split)[clip])

    def _value(self, item: Item) -> torch.Tensor:
        found = self.data.value(item)
        if found is None:
            raise UserError(f"{item.id}: cannot be read any more; run `muomni data verify`.")
        return found

    def _readable(self, example: Example) -> bool:
        """Whether a training example's media can be read; those of held-out ones have been."""
        shown, played = self.pictures("train"), self.clips("train")
        used = [*(shown[i] for i in example.all_pictures), *(played[i] for i in example.all_clips)]
        return all(self.data.value(item) is not None for item in used)

    def _read(self, item: Item) -> torch.Tensor | None:
        """A picture's pixels or a clip's frames; None for a clip that no example uses."""
        if isinstance(item, Picture):
            return torch.from_numpy(self.source.picture(item, side=self.side))
        if not isinstance(item, Clip) or item.n_samples > self.config.max_audio_samples:
            return None
        return audio_frames(self.source.waveform(item), self.config.mel, factor=self.config.audio.factor)

    def order(self, chosen: list[Example], found: list[Document], *, shuffle: bool) -> Order:
        """Examples and their documents packed by positions, image positions, audio frames and clips."""
        lengths = [
            (len(d), len(d.image_slots), len(d.audio_slots), len(e.all_clips) if len(d.audio_slots) else 0)
            for e, d in zip(chosen, found, strict=True)
        ]
        n_items = self.run.train.batch_items
        return Order(lengths, capacity=self._capacity(), n_items=n_items, seed=self.run.seed, shuffle=shuffle)

    def batch(self, position: int, parts: int = 1) -> list[PackedBatch]:
        """Packed documents with their media; pictures are augmented."""
        chosen, found, order = self._training
        row = [i for i in order.at(position) if self._readable(chosen[i])]
        draw = generator(self.run.seed, 3, position) if self.run.train.augment else None
        own = dict(
            zip(
                row, self.media("train", [chosen[i] for i in row], [found[i] for i in row], draw), strict=True
            )
        )
        room = order.room(parts)
        return [
            self._packed([found[i] for i in piece], [own[i] for i in piece], room)
            for piece in order.pieces(row, parts)
        ]

    def held_out(self, split: Split) -> Iterator[PackedBatch]:
        """Every example once."""
        chosen = self.examples(split)
        found = self.documents(split, chosen)
        for row in self.order(chosen, found, shuffle=False).epoch(0):
            yield self.collate(split, [chosen[i] for i in row], [found[i] for i in row])

    def media(
        self,
        split: Split,
        chosen: list[Example],
        found: list[Document],
        draw: torch.Generator | None = None,
    ) -> list[Media]:
        """What each example shows and plays, where its document has a place for it; pictures moved with `draw`."""
        size = self.config.vision.image_size
        shown = [i for e, d in zip(chosen, found, strict=True) if len(d.image_slots) for i in e.all_pictures]
        images = torch.zeros(0, 3, size, size)
        if shown:
            pixels = torch.stack([self.pixels(split, picture) for picture in shown])
            images = to_float(pixels)
            if draw is not None:
                written = torch.tensor([isinstance(self.pictures(split)[i], LineItem) for i in shown])
                # What is written can be read neither mirrored nor cut off.
                images = torch.where(written[:, None, None, None], images, augment(pixels, draw))
        rest = iter(images)
        return [
            Media(
                images=tuple(next(rest) for _ in e.all_pictures) if len(d.image_slots) else (),
                clips=tuple(self.frames(split, clip) for clip in e.all_clips) if len(d.audio_slots) else (),
            )
            for e, d in zip(chosen, found, strict=True)
        ]

    def collate(
        self, split: Split, chosen: list[Example], found: list[Document], *, media: bool = True
    ) -> PackedBatch:
        """Pack some examples. media: False leaves the media buffers out, for documents without placeholders."""
        own, n_items = self.media(split, chosen, found), self.run.train.batch_items
        return self._packed(found, own, (self._capacity(), n_items), media=media)

    def _packed(
        self, found: list[Document], own: list[Media], room: tuple[list[int], int], *, media: bool = True
    ) -> PackedBatch:
        (n_tokens, n_slots, n_audio, n_clips), n_items = room
        size, per_image = self.config.vision.image_size, self.config.vision.n_image_tokens
        return pack(
            found, own, n_tokens=n_tokens, n_docs=n_items, max_seq_len=self.config.max_seq_len,
            n_images=n_slots // per_image if media else 0, n_image_tokens=per_image, image_shape=(3, size, size),
            n_audio=n_audio if media else 0, n_clips=n_clips, max_clip=self.config.max_audio_tokens,
            frame_width=self.config.mel.n_mels * self.config.audio.factor,
        )  # fmt: skip

    def _capacity(self) -> list[int]:
        """Positions, image positions, audio frames and clips of a batch."""
        train = self.run.train
        n_images = max(train.batch_items, MAX_PICTURES)
        return [
            train.batch_tokens, n_images * self.config.vision.n_image_tokens, train.batch_tokens, train.batch_items,
        ]  # fmt: skip

    def counts(self, batch: PackedBatch) -> dict[str, torch.Tensor | int]:
        """Answer tokens, and positions for the balance loss."""
        return {"answer": n_targets(batch.labels), "balance": len(batch.input_ids)}

    def embeds(self, model: nn.Module, batch: PackedBatch) -> torch.Tensor:
        """A batch in the unified space, (T, d_model): tokens, and media on their places, encoded without gradients."""
        embeds = part(model, "thinker", Thinker).embed(batch.input_ids)
        if batch.images is not None and batch.image_index is not None:
            with torch.no_grad():
                seen = part(model, "vision", VisionEncoder)(batch.images).flatten(0, 1)
            embeds = place_features(
                embeds, part(model, "vision_projector", Projector)(seen), batch.image_index
            )
        if batch.audio_frames is not None and batch.audio_index is not None:
            with torch.no_grad():
                heard = part(model, "audio", AudioEncoder)(
                    batch.audio_frames, batch.audio_cu_seqlens, batch.audio_max_seqlen
                )
            embeds = place_features(
                embeds, part(model, "audio_projector", Projector)(heard), batch.audio_index
            )
        return embeds

    def hidden(self, model: nn.Module, batch: PackedBatch) -> torch.Tensor:
        """The Thinker's states over a batch, (T, d_model)."""
        embeds = self.embeds(model, batch)
        return part(model, "thinker", Thinker)(embeds, batch.positions, batch.cu_seqlens, batch.max_seqlen)

    def losses(self, model: nn.Module, batch: PackedBatch, phase: str) -> dict[str, torch.Tensor]:
        """Summed cross entropy of the answers."""
        thinker = part(model, "thinker", Thinker)
        answer, _ = thinker.cross_entropy(self.hidden(model, batch), batch.labels)
        return {"answer": answer, "balance": thinker.balance_loss() * len(batch.input_ids)}

    def fill(self, batch: PackedBatch) -> tuple[int, int]:
        """Positions that are not padding, and all."""
        return batch.n_tokens, len(batch.input_ids)

    @torch.no_grad()
    def score(
        self, model: nn.Module, split: Split, chosen: list[Example], *, media: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of each example's answer: summed nats, tokens, and whether every token is the likeliest one.

        The last says whether greedy decoding gives exactly this answer. Returns three (n,) tensors.
        """
        found = self.documents(split, chosen, media=media)
        nats, tokens, exact = (torch.zeros(len(chosen)) for _ in range(3))
        device = self.device(model)
        for row in self.order(chosen, found, shuffle=False).epoch(0):
            batch = self.collate(split, [chosen[i] for i in row], [found[i] for i in row], media=media).to(
                device
            )
            hidden = self.hidden(model, batch)
            loss, right = part(model, "thinker", Thinker).cross_entropy(
                hidden, batch.labels, reduction="none"
            )
            target = batch.labels != IGNORE_INDEX
            ends = batch.cu_seqlens[: len(row) + 1].tolist()
            for i, start, end in zip(row, ends, ends[1:], strict=False):
                nats[i] = loss[start:end].sum()
                tokens[i] = target[start:end].sum()
                exact[i] = bool((right | ~target)[start:end].all())
        return nats, tokens, exact

    def evaluate(self, model: nn.Module, split: Split) -> list[Figure]:
        """Answer losses by task, against the text-only model and against swapped media; see omni_figures."""
        return figures(self, model, split)

    def samples(self, model: nn.Module, split: Split, folder: Path) -> dict[str, float]:
        """Answers to held-out questions; see written_samples."""
        return omni_samples(self, model, split, folder)
