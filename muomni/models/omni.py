"""The whole model: every part under one name, media into the unified space, and the table of parameters."""

from __future__ import annotations

import torch
from torch import nn

from muomni.config import ModelConfig
from muomni.models.audio import AudioEncoder, CTCHead
from muomni.models.codec import Codec
from muomni.models.fuse import Projector, place_features
from muomni.models.griffin_lim import GriffinLim
from muomni.models.streaming import StreamingVocoder
from muomni.models.talker import Talker
from muomni.models.thinker import Thinker
from muomni.models.vision import VisionEncoder
from muomni.models.vocoder import Vocoder


class OmniModel(nn.Module):
    """Thinker, encoders with their projectors, CTC head, codec, Talker, vocoder."""

    vocoder: StreamingVocoder

    def __init__(self, cfg: ModelConfig, *, vocoder: bool = True) -> None:
        """Untrained parts of the given sizes. vocoder: False for Griffin-Lim in its place, which needs no training."""
        super().__init__()
        self.config = cfg
        self.thinker = Thinker(cfg.thinker)
        self.vision = VisionEncoder(cfg.vision)
        self.audio = AudioEncoder(cfg.audio, cfg.mel.n_mels)
        self.ctc_head = CTCHead(cfg.audio.d_model, cfg.audio.ctc_expand)
        self.vision_projector = Projector(cfg.vision.d_model, cfg.thinker.d_model)
        self.audio_projector = Projector(cfg.audio.d_model, cfg.thinker.d_model)
        self.codec = Codec(cfg.codec, cfg.mel)
        self.talker = Talker(cfg.talker, cfg.thinker.d_model, cfg.codec, cfg.mel.n_mels)
        self.vocoder = (
            Vocoder(cfg.mel, cfg.vocoder) if vocoder
            else GriffinLim(cfg.mel, cfg.griffin_lim, block=cfg.codec.factor)
        )  # fmt: skip

    def image_features(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 3, S, S) -> (n * n_image_tokens, d_thinker) in the unified space."""
        return self.vision_projector(self.vision(images)).flatten(0, 1)

    def audio_features(self, frames: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int) -> torch.Tensor:
        """Packed clips (N, factor * n_mels) -> (N, d_thinker) in the unified space."""
        return self.audio_projector(self.audio(frames, cu_seqlens, max_seqlen))

    def fused_embeds(
        self,
        input_ids: torch.Tensor,
        *,
        images: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        audio_frames: torch.Tensor | None = None,
        audio_cu_seqlens: torch.Tensor | None = None,
        audio_max_seqlen: int = 0,
        audio_index: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Token ids (T,) with media on their placeholders -> (T, d_thinker).

        The arguments are the fields of data.batch.PackedBatch of the same names; an index of T is padding.
        Raises ValueError when media come without their index, or counts differ.
        """
        embeds = self.thinker.embed(input_ids)
        if images is not None:
            if image_index is None:
                raise ValueError("image_index: images need the positions they go to.")
            embeds = place_features(embeds, self.image_features(images), image_index)
        if audio_frames is not None:
            if audio_index is None or audio_cu_seqlens is None:
                raise ValueError(
                    "audio_index, audio_cu_seqlens: clips need the positions they go to, and their bounds."
                )
            features = self.audio_features(audio_frames, audio_cu_seqlens, audio_max_seqlen)
            embeds = place_features(embeds, features, audio_index)
        return embeds


def parameter_table(cfg: ModelConfig) -> list[tuple[str, int]]:
    """(part, parameters) for every part of a model of this size, then ("total", sum). Allocates nothing.

    The codec's codebooks are learned, though not by gradients, and counted.
    """
    with torch.device("meta"):
        model = OmniModel(cfg)
    rows = [(name, sum(p.numel() for p in part.parameters())) for name, part in model.named_children()]
    books = model.codec.quantizer.codebooks.numel()
    rows = [(name, n + books if name == "codec" else n) for name, n in rows]
    return [*rows, ("total", sum(n for _, n in rows))]
