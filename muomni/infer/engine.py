"""The model behind a session: encoders, prefill into the KV cache, decode steps. It keeps no history."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from muomni.data.audio import decode_ctc
from muomni.data.template import Document, Turn, render
from muomni.models.fuse import place_features
from muomni.models.omni import OmniModel
from muomni.models.thinker import KVCache
from muomni.tokens import N_SPECIAL


class Engine:
    """Forward passes of one OmniModel in eval mode, batch 1, without gradients."""

    def __init__(self, model: OmniModel) -> None:
        """Use the model where it is."""
        self.model = model.eval()
        self.config = model.config
        self.device = next(model.parameters()).device

    def new_cache(self, max_len: int | None = None) -> KVCache:
        """Room for one sequence of max_len positions (the whole context by default)."""
        return self.model.thinker.new_cache(1, max_len or self.config.max_seq_len)

    @torch.inference_mode()
    def see(self, images: Tensor) -> Tensor:
        """Pictures (n, 3, S, S) in [-1, 1] -> features in the unified space (n * n_image_tokens, d_model)."""
        return self.model.image_features(images.to(self.device))

    @torch.inference_mode()
    def hear(self, frames: Tensor) -> Tensor:
        """One clip (N, factor * n_mels) -> features in the unified space (N, d_model)."""
        return self.model.audio_features(*self._clip(frames))

    @torch.inference_mode()
    def spell(self, frames: Tensor) -> str:
        """One clip (N, factor * n_mels) -> what was said, by greedy CTC."""
        logits = self.model.ctc_head(self.model.audio(*self._clip(frames)))
        return decode_ctc(logits.argmax(dim=-1).tolist())

    @torch.inference_mode()
    def embed(self, document: Document, images: Tensor | None = None, clips: Tensor | None = None) -> Tensor:
        """Embeddings of a whole document, media features on their placeholders: (T, d_model)."""
        embeds = self.model.thinker.embed(document.input_ids.to(self.device))
        for features, slots in ((images, document.image_slots), (clips, document.audio_slots)):
            if features is not None:
                embeds = place_features(embeds, features, slots.to(self.device))
        return embeds

    @torch.inference_mode()
    def extend(self, embeds: Tensor, positions: Tensor, cache: KVCache) -> Tensor:
        """Prefill: append (n, d_model) with positions (n, 3) to the cache -> hidden states (n, d_model)."""
        cache.reserve(len(embeds))
        return self.model.thinker.step(embeds[None], positions.to(self.device)[None], cache)[0]

    @torch.inference_mode()
    def step(self, token: int, position: int, cache: KVCache) -> tuple[Tensor, Tensor]:
        """Append one text token -> (hidden state, embedding), each (1, 1, d_model)."""
        embed = self.model.thinker.embed(torch.tensor([token], device=self.device))
        places = torch.full((1, 3), position, dtype=torch.int64)
        return self.extend(embed, places, cache)[None], embed[None]

    @torch.inference_mode()
    def spoken_states(self, asked: Sequence[int], ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """States and embeddings of an answer's text positions, both (n, d_model).

        asked: the ids of the question before it; ids: the text to be spoken, as the answer to it: what the
        Talker is trained on. Raises TokenBudgetError when they do not fit.
        """
        document = render(
            [Turn(text=asked, answer=ids)],
            n_image_tokens=self.config.vision.n_image_tokens,
            max_seq_len=self.config.max_seq_len,
        )
        embeds = self.embed(document)
        states = self.extend(embeds, document.positions, self.new_cache(len(document)))
        start, end = document.answers[0]
        return states[start:end], embeds[start:end]

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden state (d_model,) -> logits (vocab_size,)."""
        return self.model.thinker.logits(hidden)

    def forbidden(self, known: int, allowed: Sequence[int]) -> list[int]:
        """Ids that may never be written: control tokens but `allowed`, and entries beyond the tokenizer's."""
        controls = [i for i in range(N_SPECIAL) if i not in allowed]
        return controls + list(range(known, self.config.thinker.vocab_size))

    def _clip(self, frames: Tensor) -> tuple[Tensor, Tensor, int]:
        """One clip as a packed batch: frames, bounds, longest."""
        bounds = torch.tensor([0, len(frames)], dtype=torch.int32, device=self.device)
        return frames.to(self.device), bounds, len(frames)
