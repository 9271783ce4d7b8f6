"""The Talker: Thinker states and text -> codes frame by frame, with a depth transformer over codebooks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from muomni_kernels import linear_cross_entropy
from torch import nn
from torch.nn import functional as F

from muomni.config import CodecConfig, TalkerConfig
from muomni.nn.block import Stack
from muomni.nn.cache import KVCache
from muomni.nn.init import linear, table
from muomni.nn.rope import rotary_tables
from muomni.tokens import IGNORE_INDEX

ROPE_THETA = 10_000.0
MAX_NAME = 64
"""Bytes of a voice's name."""

SampleFn = Callable[[torch.Tensor], torch.Tensor]
"""Logits (B, codebook_size) -> chosen codes (B,) int64."""


@dataclass
class TalkerState:
    """Streaming state: the caches of the backbone and, reused every frame, of the depth transformer."""

    backbone: KVCache
    depth: KVCache


class DepthTransformer(nn.Module):
    """Codebooks 1.. of a frame from its backbone state and what the codes before them add up to.

    Position 0 holds the projected backbone state, position k the latent of codes 0..k - 1; the output at
    position k gives the query of codebook k.
    """

    def __init__(self, cfg: TalkerConfig, codec: CodecConfig) -> None:
        """A learned vector and a projection for every codebook, so positions need no rotary angles."""
        super().__init__()
        d = cfg.depth_d_model
        self.n_levels = codec.n_codebooks - 1
        self.n_heads, self.head_dim = cfg.depth_heads, d // cfg.depth_heads
        self.enter = linear(cfg.d_model, d)
        self.from_latent = linear(codec.latent_dim, d)
        self.level = table(self.n_levels, d, std=0.5)
        self.stack = Stack(
            d, n_layers=cfg.depth_layers, n_heads=cfg.depth_heads, n_kv_heads=cfg.depth_heads,
            head_dim=self.head_dim, d_ff=cfg.depth_d_ff, causal=True, dropout=cfg.dropout,
        )  # fmt: skip
        self.queries = nn.Parameter(torch.randn(self.n_levels, d, codec.latent_dim) / math.sqrt(d))

    def _embed(self, latents: torch.Tensor, first: int) -> torch.Tensor:
        """Latents (N, k, latent_dim) after codebooks first..first + k - 1 -> (N, k, d)."""
        return self.from_latent(latents) + self.level[first : first + latents.shape[1]]

    def forward(self, states: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """states (N, d_model), latents (N, K - 1, latent_dim) teacher-forced -> queries (N, K - 1, latent_dim)."""
        n_rows, seq_len = len(states), self.n_levels + 1
        x = torch.cat([self.enter(states)[:, None], self._embed(latents, 0)], dim=1).reshape(
            n_rows * seq_len, -1
        )
        cu_seqlens = torch.arange(n_rows + 1, device=x.device, dtype=torch.int32) * seq_len
        states = self.stack(x, None, None, cu_seqlens, seq_len)
        hidden = states.view(n_rows, seq_len, -1)[:, 1:]
        return torch.bmm(hidden.transpose(0, 1), self.queries).transpose(0, 1)

    def step(
        self, state: torch.Tensor, first: torch.Tensor, codes: CodeSpace, cache: KVCache, sample: SampleFn
    ) -> torch.Tensor:
        """One frame: state (B, d_model), code 0 (B,) -> codes (B, K)."""
        cache.reset()
        chosen, latent = [first], codes.vectors(first, 0)
        x = torch.cat([self.enter(state)[:, None], self._embed(latent[:, None], 0)], dim=1)
        for level in range(self.n_levels):
            hidden = self.stack.step(x, None, None, cache)[:, -1]
            chosen.append(sample(codes.logits(hidden @ self.queries[level], level + 1)))
            if level + 1 < self.n_levels:
                latent = latent + codes.vectors(chosen[-1], level + 1)
                x = self._embed(latent[:, None], level + 1)
        return torch.stack(chosen, dim=1)


class CodeSpace(nn.Module):
    """The codec's codebooks as the Talker sees them: what codes mean going in, what they score coming out.

    A table of its own for every code could not be learned from minutes of speech; through the codebooks,
    codes that sound alike are alike from the first step. The codebooks are constants here; each code's bias
    is learned and starts at its logarithmic frequency.
    """

    books: torch.Tensor
    scale: torch.Tensor

    def __init__(self, codec: CodecConfig) -> None:
        """Random codebooks until `tie`."""
        super().__init__()
        books = torch.randn(codec.n_codebooks, codec.codebook_size, codec.latent_dim)
        self.register_buffer("books", books / math.sqrt(codec.n_codebooks))
        self.register_buffer("scale", torch.ones(codec.n_codebooks))
        self.bias = nn.Parameter(torch.zeros(codec.n_codebooks, codec.codebook_size))

    @torch.no_grad()
    def tie(self, books: torch.Tensor, counts: torch.Tensor) -> None:
        """Take the codec's codebooks (K, size, latent_dim) and how often each code occurs (K, size)."""
        # Latents, sums over the codebooks, have about unit scale; so have a codebook's vectors times its scale.
        self.books.copy_(books / books.square().mean((1, 2)).sum().sqrt())
        self.scale.copy_(self.books.square().mean((1, 2)).rsqrt())
        smooth = counts.float() + 0.5
        self.bias.copy_((smooth / smooth.sum(-1, keepdim=True)).log())

    def vectors(self, codes: torch.Tensor, level: int) -> torch.Tensor:
        """Codes (...) of one codebook -> (..., latent_dim)."""
        return F.embedding(codes, self.books[level])

    def latents(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (N, K) -> (N, K, latent_dim): after each codebook, the sum of the vectors so far."""
        n_levels, size, width = self.books.shape
        levels = torch.arange(n_levels, device=codes.device) * size
        return F.embedding(codes + levels, self.books.view(-1, width)).cumsum(1)

    def logits(self, queries: torch.Tensor, level: int) -> torch.Tensor:
        """Queries (B, latent_dim) -> (B, codebook_size)."""
        return queries @ self.books[level].T * self.scale[level] + self.bias[level]

    def cross_entropy(self, queries: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed nats and the number of labels that count, of each codebook, (K,) both; holds no logits.

        queries: (..., K, latent_dim); labels: (..., K) int64, IGNORE_INDEX for no target.
        """
        scaled = queries.flatten(0, -3) * self.scale[:, None]
        return linear_cross_entropy(
            scaled, self.books, labels.flatten(0, -2), bias=self.bias, ignore_index=IGNORE_INDEX
        )


class Voices(nn.Module):
    """Who speaks: a vector for each known speaker, one for nobody in particular, and one made from a recording."""

    names: torch.Tensor

    def __init__(self, n_voices: int, n_mels: int, d: int) -> None:
        """n_voices: known speakers at most. n_mels, d: widths of the log-mel and of a voice."""
        super().__init__()
        self.table = table(1 + n_voices, d, std=0.1)
        self.enter = linear(2 * n_mels, d, bias=True)
        self.out = linear(d, d, scale=0.1)
        # UTF-8, so that a voice is called by its name wherever the weights are.
        self.register_buffer("names", torch.zeros(n_voices, MAX_NAME, dtype=torch.uint8))

    def known(self) -> list[str]:
        """The speakers' names, the most frequent one first."""
        raw = [bytes(row).rstrip(b"\0").decode("utf-8", "ignore") for row in self.names.tolist()]
        return [name for name in raw if name]

    def name(self, speakers: Sequence[str]) -> None:
        """Give the first rows of the table to these speakers. Raises ValueError for more than there are rows."""
        if len(speakers) > len(self.names):
            raise ValueError(f"speakers: expected at most {len(self.names)}, got {len(speakers)}.")
        for row, speaker in zip(self.names, speakers, strict=False):
            said = speaker.encode()[:MAX_NAME]
            row[: len(said)] = torch.tensor(list(said), dtype=torch.uint8)

    def forward(self, number: torch.Tensor, heard: torch.Tensor) -> torch.Tensor:
        """Vectors (n, d).

        number: (n,) int64: 0 nobody in particular, i + 1 known speaker i, -1 whoever is heard.
        heard: (n, 2 * n_mels): `summary` of a recording; of no effect where number is not -1.
        """
        of_table = F.embedding(number.clamp(min=0), self.table)
        of_recording = self.out(F.silu(self.enter(heard)))
        return torch.where((number < 0)[:, None], of_recording, of_table.to(of_recording.dtype))


def summary(log_mel: torch.Tensor) -> torch.Tensor:
    """What a voice is told by: mean and deviation of each band, (T, n_mels) normalised log-mel -> (2 * n_mels,)."""
    return torch.cat([log_mel.mean(0), log_mel.std(0, unbiased=False)])


class Talker(nn.Module):
    """At frame t the input is the sum of frame t - 1's code vectors, projected (BOS at 0), and condition[t]."""

    def __init__(self, cfg: TalkerConfig, d_thinker: int, codec: CodecConfig, n_mels: int) -> None:
        """d_thinker: width of the unified space; n_mels: bands of the log-mel that a voice is told by."""
        super().__init__()
        self.cfg, self.n_codebooks, self.size = cfg, codec.n_codebooks, codec.codebook_size
        d = cfg.d_model
        self.from_state = linear(d_thinker, d)
        self.from_embed = linear(d_thinker, d)
        self.pad = table(1, d, std=1.0)
        self.bos = table(1, d, std=1.0)
        self.codes = CodeSpace(codec)
        self.voices = Voices(cfg.n_voices, n_mels, d)
        self.from_latent = linear(codec.latent_dim, d)
        self.stack = Stack(
            d, n_layers=cfg.n_layers, n_heads=cfg.n_heads, n_kv_heads=cfg.n_kv_heads, head_dim=cfg.head_dim,
            d_ff=cfg.d_ff, causal=True, dropout=cfg.dropout,
        )  # fmt: skip
        self.query = linear(d, codec.latent_dim)
        self.stop = linear(d, 1, bias=True)
        self.depth = DepthTransformer(cfg, codec)

    def condition(
        self,
        states: torch.Tensor,
        embeds: torch.Tensor,
        n_text: torch.Tensor,
        n_frames: int,
        voice: torch.Tensor,
    ) -> torch.Tensor:
        """What each frame is told: text position t at frame t, the pad condition once the text is used up; the voice.

        states, embeds: (B, n, d_thinker) Thinker states and token embeddings of the text's positions;
        n_text: (B,) int64 text positions; n_frames: T, text behind it is cut; voice: (B, d_model) of `voices`.
        Returns (B, T, d_model).
        """
        told = (self.from_state(states) + self.from_embed(embeds))[:, :n_frames]
        told = F.pad(told, (0, 0, 0, n_frames - told.shape[1]))
        is_text = torch.arange(n_frames, device=told.device) < n_text[:, None]
        return torch.where(is_text[..., None], told, self.pad.to(told.dtype)) + voice[:, None]

    def voice(self, name: str | None = None, log_mel: torch.Tensor | None = None) -> torch.Tensor:
        """A voice (1, d_model): by name, of whoever is heard in a normalised log-mel (T, n_mels), or nobody's.

        Raises ValueError for an unknown name.
        """
        known, number = self.voices.known(), 0
        if name is not None:
            if name not in known:
                raise ValueError(f"voice: {name!r} is not known; there are {', '.join(known) or 'none'}.")
            number = known.index(name) + 1
        heard = self.bos.new_zeros(1, self.voices.enter.in_features)
        if log_mel is not None:
            heard, number = summary(log_mel.to(heard))[None], -1
        return self.voices(torch.tensor([number], device=heard.device), heard)

    def forward(
        self, codes: torch.Tensor, condition: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Teacher-forced training on padded clips.

        codes: (B, K, T) int64, any valid code behind a clip's end; condition: (B, T, d_model);
        Outputs behind a clip's end are meaningless and to be left out of the loss; attention is causal, so no
        frame of a clip sees them.
        Returns queries (B, T, K, latent_dim), which `codes` scores against each frame's own codes, and stop (B, T):
        logits of "this frame is the last".
        """
        n_batch, n_levels, n_frames = codes.shape
        if n_levels != self.n_codebooks:
            raise ValueError(
                f"codes: expected (B, {self.n_codebooks}, T) by CodecConfig, got {tuple(codes.shape)}."
            )
        own = codes.transpose(1, 2)
        latents = self.codes.latents(own.reshape(n_batch * n_frames, -1))
        told = self.from_latent(latents[:, -1]).view(n_batch, n_frames, -1)
        before = torch.cat([self.bos.expand(n_batch, 1, -1), told[:, :-1]], dim=1)
        x = (before + condition).reshape(n_batch * n_frames, -1)
        positions = torch.arange(n_frames, device=x.device).repeat(n_batch)
        cu_seqlens = torch.arange(n_batch + 1, device=x.device, dtype=torch.int32) * n_frames
        hidden = self.stack(x, *self._tables(positions), cu_seqlens, n_frames)
        queries = torch.cat([self.query(hidden)[:, None], self.depth(hidden, latents[:, :-1])], dim=1)
        return {
            "queries": queries.view(n_batch, n_frames, n_levels, -1),
            "stop": self.stop(hidden).view(n_batch, n_frames),
        }

    def new_state(self, batch: int, max_frames: int) -> TalkerState:
        """Empty caches for at most max_frames frames."""
        cfg, weight, depth = self.cfg, self.bos, self.depth
        device, dtype = weight.device, weight.dtype
        return TalkerState(
            KVCache(
                cfg.n_layers, batch, max_frames, cfg.n_kv_heads, cfg.head_dim, device=device, dtype=dtype
            ),
            KVCache(
                cfg.depth_layers,
                batch,
                self.n_codebooks,
                depth.n_heads,
                depth.head_dim,
                device=device,
                dtype=dtype,
            ),
        )

    def step(
        self, prev_codes: torch.Tensor | None, condition: torch.Tensor, state: TalkerState, sample: SampleFn
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One frame.

        prev_codes: (B, K) of the frame before, None at the first; condition: (B, d_model) of this frame;
        sample: chooses a code from logits (B, codebook_size). Returns codes (B, K) int64 and the probability
        (B,) that this frame is the last. Raises ValueError when the state is full.
        """
        before = self.bos if prev_codes is None else self.from_latent(self.codes.latents(prev_codes)[:, -1])
        x = (before + condition)[:, None]
        cache = state.backbone
        hidden = self.stack.step(x, *self._tables(cache.lengths), cache)[:, 0]
        first = sample(self.codes.logits(self.query(hidden), 0))
        codes = self.depth.step(hidden, first, self.codes, state.depth, sample)
        return codes, self.stop(hidden)[:, 0].sigmoid()

    def _tables(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return rotary_tables(positions, head_dim=self.cfg.head_dim, theta=ROPE_THETA)
