"""The model behind sessions: encoders, the cache they share, batched decoding, and lanes to speak in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from muomni.data.audio import decode_ctc
from muomni.data.template import Document, Turn, render
from muomni.infer.batch import Batch
from muomni.infer.decoding import TextDecoder
from muomni.infer.lane import Lane
from muomni.infer.rows import Rows
from muomni.infer.sampling import Sampling
from muomni.models.fuse import place_features
from muomni.models.omni import OmniModel
from muomni.models.recording import Record, cuda_record
from muomni.models.thinker import Weights
from muomni.tokens import EOS, N_SPECIAL

POSITIONS_A_TOKEN = 32
"""Rotary positions there are for each position of the context: a film without sound takes time, not tokens."""


class Heard(NamedTuple):
    """A clip as the Thinker gets it."""

    features: Tensor
    """(n_frames, d_model) in the unified space."""
    text: str
    """What the ear spells, by greedy CTC."""


class Engine:
    """One OmniModel in eval mode, without gradients, for several conversations at once, all in one thread.

    A model has one engine: the next one packs its weights anew.
    """

    def __init__(
        self,
        model: OmniModel,
        *,
        n_ids: int,
        n_rows: int = 8,
        weights: Weights = "float32",
        record: Record | None = None,
    ) -> None:
        """Use the model where it is; on a CPU its decode steps are packed for C++ where that can be.

        n_ids: entries of the tokenizer, the model may have more; n_rows: answers that can be written at the same time,
        and conversations that are remembered without being read again; weights: of decode steps on a CPU, int8 for four
        times less memory to be read; record: how steps are recorded, by default as CUDA graphs on a GPU.
        """
        self.model = model.eval()
        self.config = model.config
        self.device = next(model.parameters()).device
        self.unpacked = self._pack(weights)
        """Why decode steps are not packed for C++; None when they are."""
        self._record = cuda_record() if record is None and self.device.type == "cuda" else record
        self.decoder = TextDecoder(
            model.thinker, n_rows=n_rows, max_len=self.config.max_seq_len, forbidden=self._forbidden(n_ids),
            record=self._record,
        )  # fmt: skip
        self.batch, self.rows = Batch(self.decoder), Rows(n_rows)
        self._lanes: list[Lane] = []

    def _pack(self, weights: Weights) -> str | None:
        config, talker = self.config, self.model.talker
        n_frames = config.max_audio_tokens + config.talker.delay
        reasons = (
            self.model.thinker.pack(weights=weights, n_positions=self.max_positions),
            talker.stack.pack(weights=weights, n_positions=n_frames),
            talker.depth.stack.pack(weights=weights),
        )
        return next((reason for reason in reasons if reason), None)

    def vacate(self, row: int | None) -> None:
        """Whatever was being written in a row is given up, and the row empty. None: nothing."""
        if row is not None:
            self.batch.vacate(row)
            self.decoder.cut(row, 0)

    def _forbidden(self, n_ids: int) -> list[int]:
        """Ids that are never written: control tokens but EOS, and entries beyond the tokenizer's."""
        controls = [i for i in range(N_SPECIAL) if i != EOS]
        return controls + list(range(n_ids, self.config.thinker.vocab_size))

    @property
    def max_positions(self) -> int:
        """Rotary positions there are."""
        return POSITIONS_A_TOKEN * self.config.max_seq_len

    def borrow(self, sampling: Sampling, *, seed: int) -> Lane:
        """A lane for one utterance, begun; `put_back` when it is over."""
        lane = self._lanes.pop() if self._lanes else Lane(
            self.model, max_frames=self.config.max_audio_tokens, record=self._record
        )  # fmt: skip
        lane.begin(sampling, seed=seed)
        return lane

    def put_back(self, lane: Lane) -> None:
        """The utterance is over: another one may use its lane."""
        self._lanes.append(lane)

    @torch.inference_mode()
    def see(self, images: Tensor) -> Tensor:
        """Pictures (n, 3, S, S) in [-1, 1] -> features in the unified space (n * n_image_tokens, d_model)."""
        return self.model.image_features(images.to(self.device))

    @torch.inference_mode()
    def hear(self, frames: Tensor) -> Heard:
        """One clip (N, factor * n_mels) as the Thinker gets it."""
        encoded = self.model.audio(*self._clip(frames))
        return Heard(self.model.audio_projector(encoded), self._spelled(encoded))

    @torch.inference_mode()
    def spell(self, frames: Tensor) -> str:
        """One clip (N, factor * n_mels) -> what was said, by greedy CTC."""
        return self._spelled(self.model.audio(*self._clip(frames)))

    def _spelled(self, encoded: Tensor) -> str:
        return decode_ctc(self.model.ctc_head(encoded).argmax(dim=-1).tolist())

    @torch.inference_mode()
    def embed(self, document: Document, images: Tensor | None = None, clips: Tensor | None = None) -> Tensor:
        """Embeddings of a whole document, media features on their placeholders: (T, d_model)."""
        embeds = self.model.thinker.embed(document.input_ids.to(self.device))
        for features, slots in ((images, document.image_slots), (clips, document.audio_slots)):
            if features is not None:
                embeds = place_features(embeds, features, slots.to(self.device))
        return embeds

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
        cache = self.model.thinker.new_cache(1, len(document))
        states = self.model.thinker.step(embeds[None], document.positions.to(self.device)[None], cache)[0]
        start, end = document.answers[0]
        return states[start:end], embeds[start:end]

    def _clip(self, frames: Tensor) -> tuple[Tensor, Tensor, int]:
        """One clip as a packed batch: frames, bounds, longest."""
        bounds = torch.tensor([0, len(frames)], dtype=torch.int32, device=self.device)
        return frames.to(self.device), bounds, len(frames)
