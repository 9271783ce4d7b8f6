"""Encoders of transformers that `peer_encoders` trains beside ours: their sizes, their batches, their own losses.

`CtcPeer`: ParakeetForCTC (a Fast Conformer: Rekesh et al., 2023) on the recordings of stage audio. `ClipPeer`:
CLIPModel (Radford et al., 2021) on the pairs of stage vision. Both with random weights, as wide and deep as our
encoders. Data, log-mel, augmentation and size of a batch are our stages'.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from muomni.config import ModelConfig
from muomni.data.audio import CTC_SYMBOLS, ctc_feasible, decode_ctc, encode_ctc
from muomni.data.batch import permutation
from muomni.data.image import to_float
from muomni.data.items import PictureItem
from muomni.errors import UserError
from muomni.tokens import HEARD, PAD
from muomni.train.stage import generator
from muomni.train.stages.audio import SPEEDS, AudioStage
from muomni.train.stages.vision import MAX_CAPTION, VisionStage

SUBSAMPLING = 4
"""Log-mel frames (100 Hz) per frame of the CTC peer: 25 Hz. At Parakeet's own 8 most transcripts have more characters
than frames."""
CHANNELS = 32
"""Of the CTC peer's convolutions before its blocks."""
CTC_WIDENING = 1.5
"""Hidden width of each of a Conformer block's two feed-forwards over its width: about as many parameters as ours."""
CLIP_WIDENING = 4
"""Hidden width of a feed-forward over its width, CLIP's own."""
END = HEARD
"""Ends a caption of the CLIP peer. CLIPTextModel takes a config whose end is 2, as EOS is, for one of before its
correction, and then pools elsewhere."""
JITTER = 0.1
"""Share by which clips may differ in length and yet change places when they are ordered by it."""
MAX_LOG_SCALE = math.log(100.0)
"""CLIP's bound of the inverse temperature, which the paper's training keeps and CLIPModel does not."""
AT_ONCE = 64
"""Pairs of one forward without gradients."""


class Peer(Protocol):
    """What is trained and measured."""

    model: Any

    def batches(self) -> Iterator[Any]:
        """Training batches, without an end."""
        ...

    def loss(self, batch: Any) -> torch.Tensor:
        """() the model's own mean loss."""
        ...

    def after_step(self) -> None:
        """Runs behind every update."""
        ...


def library() -> Any:
    """The module transformers. Raises UserError where it is missing."""
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise UserError(
            f"transformers cannot be imported ({error}); the peers need it: pip install 'muomni[bench]'."
        ) from None


def ctc_model(config: ModelConfig) -> Any:
    """A ParakeetForCTC of our audio encoder's width, depth and heads; random weights. Raises UserError."""
    audio = config.audio
    # Layers are not dropped: there are few. Attention has no dropout, like ours: that also keeps its fast kernel.
    encoder = {
        "model_type": "parakeet_encoder", "hidden_size": audio.d_model, "num_hidden_layers": audio.n_layers,
        "num_attention_heads": audio.n_heads, "intermediate_size": round(CTC_WIDENING * audio.d_model),
        "num_mel_bins": config.mel.n_mels, "subsampling_factor": SUBSAMPLING, "subsampling_conv_channels": CHANNELS,
        "dropout": audio.dropout, "activation_dropout": audio.dropout, "attention_dropout": 0.0, "layerdrop": 0.0,
    }  # fmt: skip
    parts = library()
    return parts.ParakeetForCTC(
        parts.ParakeetCTCConfig(vocab_size=len(CTC_SYMBOLS), pad_token_id=0, encoder_config=encoder)
    )


def clip_model(config: ModelConfig) -> Any:
    """A CLIPModel whose towers are both of our vision encoder's width, depth and heads; random weights.

    Raises UserError.
    """
    vision = config.vision
    shared = {
        "hidden_size": vision.d_model, "num_hidden_layers": vision.n_layers, "num_attention_heads": vision.n_heads,
        "intermediate_size": CLIP_WIDENING * vision.d_model, "projection_dim": vision.embed_dim,
    }  # fmt: skip
    text = shared | {
        "vocab_size": config.thinker.vocab_size, "max_position_embeddings": MAX_CAPTION + 1,
        "pad_token_id": PAD, "bos_token_id": None, "eos_token_id": END,
    }  # fmt: skip
    seen = shared | {"image_size": vision.image_size, "patch_size": vision.patch_size}
    parts = library()
    return parts.CLIPModel(
        parts.CLIPConfig(text_config=text, vision_config=seen, projection_dim=vision.embed_dim)
    )


def bucketed(
    lengths: Sequence[int], *, capacity: int, n_items: int, seed: int, epoch: int
) -> list[list[int]]:
    """The batches of an epoch, in random order, each of items that are about equally long: padding is little.

    A batch has at most n_items, and lengths of at most `capacity` in all.
    """
    draw = np.random.default_rng((seed, epoch, 1))
    keys = np.asarray(lengths) * draw.uniform(1.0 - JITTER, 1.0 + JITTER, len(lengths))
    rows: list[list[int]] = [[]]
    used = 0
    for item in np.argsort(keys, kind="stable").tolist():
        if rows[-1] and (len(rows[-1]) == n_items or used + lengths[item] > capacity):
            rows.append([])
            used = 0
        rows[-1].append(item)
        used += lengths[item]
    return [rows[i] for i in permutation(len(rows), seed=seed, epoch=epoch)]


class CtcPeer:
    """A ParakeetForCTC on the clips of stage audio, padded to the longest of a batch."""

    def __init__(self, stage: AudioStage, model: Any) -> None:
        """stage: built."""
        self.stage, self.model = stage, model

    def batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """Clips at every speed once an epoch, augmented as ours; as many frames a batch as ours before padding."""
        copies, order = self.stage.order("train")
        lengths, (capacity,), seed = (
            order.lengths[:, 0].tolist(),
            order.capacity.tolist(),
            self.stage.run.seed,
        )
        epoch = position = 0
        while True:
            for row in bucketed(lengths, capacity=capacity, n_items=order.n_items, seed=seed, epoch=epoch):
                draw = generator(seed, 3, position)
                position += 1
                mels, texts = [], []
                for i in row:
                    if (mel := self.stage.mel(*copies[i])) is not None:
                        mels.append(self.stage.augment(mel, draw) if self.stage.run.train.augment else mel)
                        texts.append(copies[i][0].text)
                if mels:
                    yield self.collate(mels, texts)
            epoch += 1

    def collate(self, mels: Sequence[torch.Tensor], texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Normalised log-mels (n_frames, n_mels) and their transcripts as the model takes them."""
        lengths = torch.tensor([len(mel) for mel in mels])
        features = nn.utils.rnn.pad_sequence(list(mels), batch_first=True)
        spelled = [torch.tensor(encode_ctc(text)) for text in texts]
        return {
            "input_features": features,
            "attention_mask": (torch.arange(features.shape[1]) < lengths[:, None]).long(),
            "labels": nn.utils.rnn.pad_sequence(spelled, batch_first=True, padding_value=-100),
        }

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean CTC loss a character; a transcript that does not fit costs nothing."""
        return self.model(**batch).loss

    def after_step(self) -> None:
        """Nothing."""

    @torch.inference_mode()
    def spell(self, mel: torch.Tensor) -> str:
        """What is said in a clip of normalised log-mel (n_frames, n_mels): greedy CTC. The model is in eval mode."""
        return decode_ctc(self.model(input_features=mel[None]).logits[0].argmax(-1).tolist())

    def unfit(self) -> float:
        """Share of the training copies whose transcript has more characters than the peer has frames."""
        copies = self.stage.order("train")[0]
        hop = self.stage.config.mel.hop_length * SUBSAMPLING
        fit = [
            ctc_feasible(item.text, -(-int(item.n_samples / SPEEDS[speed]) // hop)) for item, speed in copies
        ]
        return 1.0 - sum(fit) / len(fit)


class ClipPeer:
    """A CLIPModel on the very batches of stage vision."""

    def __init__(self, stage: VisionStage, model: Any) -> None:
        """stage: built."""
        self.stage, self.model = stage, model

    def batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """Our batches, in our order, with our augmentation."""
        position = 0
        while True:
            (batch,) = self.stage.batch(position)
            position += 1
            bounds = batch.cu_seqlens.tolist()
            captions = [batch.input_ids[bounds[i] : bounds[i + 1]].tolist() for i in range(batch.n_pairs)]
            if captions:
                yield {"pixel_values": batch.images[: batch.n_pairs], "input_ids": self.collate(captions)}

    def collate(self, captions: Sequence[Sequence[int]]) -> torch.Tensor:
        """(n, longest + 1) int64: captions with END behind, then PAD, which causal attention does not see."""
        ids = [torch.tensor([*caption, END]) for caption in captions]
        return nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=PAD)

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean contrastive loss a pair, of both directions."""
        return self.model(**batch, return_loss=True).loss

    @torch.no_grad()
    def after_step(self) -> None:
        """Keep the inverse temperature within CLIP's bound."""
        self.model.logit_scale.clamp_(max=MAX_LOG_SCALE)

    def inputs(self, items: Sequence[PictureItem]) -> dict[str, torch.Tensor]:
        """Pictures and their captions as they are."""
        size = self.stage.config.vision.image_size
        pixels = [self.stage.source.picture(item, side=size) for item in items]
        captions = [self.stage.caption(item, self.stage.chosen(item, None)) for item in items]
        return {
            "pixel_values": to_float(torch.from_numpy(np.stack(pixels))),
            "input_ids": self.collate(captions),
        }

    @torch.inference_mode()
    def embed(self, items: Sequence[PictureItem]) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit rows (n, embed_dim) of pictures and of their captions. The model is in eval mode."""
        parts = [
            self.model(**self.inputs(items[start : start + AT_ONCE]))
            for start in range(0, len(items), AT_ONCE)
        ]
        return torch.cat([p.image_embeds for p in parts]), torch.cat([p.text_embeds for p in parts])
