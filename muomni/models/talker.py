"""The Talker: a text and the Thinker's states over it -> codes frame by frame, and its own pace through the text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from muomni_kernels import linear_cross_entropy
from torch import nn
from torch.nn import functional as F

from muomni.config import CodecConfig, TalkerConfig
from muomni.models.script import MAX_ADVANCE, Script
from muomni.nn.block import Stack
from muomni.nn.cache import KVCache
from muomni.nn.init import linear, table
from muomni.nn.rope import Rotary
from muomni.tokens import IGNORE_INDEX

ROPE_THETA = 10_000.0
MAX_NAME = 64
"""Bytes of a voice's name."""

SampleFn = Callable[[torch.Tensor], torch.Tensor]
"""Logits (B, codebook_size) -> chosen codes (B,) int64."""


@dataclass
class TalkerState:
    """Streaming state: the caches of the backbone and, reused every frame, of the depth transformer; the last codes."""

    backbone: KVCache
    depth: KVCache
    first: torch.Tensor | None = None
    """(B,) codebook 0 of the frame before, None at the first."""
    frame: torch.Tensor | None = None
    """(B, K) the last whole frame, None before there is one."""


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
        self.queries = nn.Parameter(0.1 * torch.randn(self.n_levels, d, codec.latent_dim) / math.sqrt(d))

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
            hidden = self.stack.step(x, None, cache)[:, -1]
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

    def cross_entropy(
        self, queries: torch.Tensor, labels: torch.Tensor, *, start: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed nats and the number of labels that count, of each codebook, (k,) both; holds no logits.

        queries: (..., k, latent_dim), of codebooks start..start + k - 1; labels: (..., k) int64, IGNORE_INDEX for no
        target.
        """
        own = slice(start, start + labels.shape[-1])
        scaled = queries.flatten(0, -3) * self.scale[own, None]
        return linear_cross_entropy(
            scaled, self.books[own], labels.flatten(0, -2), bias=self.bias[own], ignore_index=IGNORE_INDEX
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
    """At step t it chooses codebook 0 of frame t and the other codebooks of frame t - delay.

    The input is condition[t] and what is known of the frames before, projected: the sum of the code vectors of the last
    whole frame, and, with a delay, codebook 0 of the frame after it; BOS at step 0. The condition is of a place in the
    text, and every step tells by how many characters the next one's is further on; past the end, speech is over.
    """

    def __init__(self, cfg: TalkerConfig, d_thinker: int, codec: CodecConfig, n_mels: int) -> None:
        """d_thinker: width of the unified space; n_mels: bands of the log-mel that a voice is told by."""
        super().__init__()
        self.cfg, self.n_codebooks, self.size = cfg, codec.n_codebooks, codec.codebook_size
        d = cfg.d_model
        self.script = Script(d_thinker, d)
        self.bos = table(1, d, std=1.0)
        self.codes = CodeSpace(codec)
        self.voices = Voices(cfg.n_voices, n_mels, d)
        self.from_latent = linear(codec.latent_dim, d)
        self.from_first = linear(codec.latent_dim, d) if cfg.delay else None
        self._rotary = Rotary(head_dim=cfg.head_dim, theta=ROPE_THETA)
        self.stack = Stack(
            d, n_layers=cfg.n_layers, n_heads=cfg.n_heads, n_kv_heads=cfg.n_kv_heads, head_dim=cfg.head_dim,
            d_ff=cfg.d_ff, causal=True, dropout=cfg.dropout, rotary=self._rotary,
        )  # fmt: skip
        self.query = linear(d, codec.latent_dim, scale=0.1)
        self.advance = linear(d, MAX_ADVANCE + 1, bias=True)
        self.depth = DepthTransformer(cfg, codec)

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

    def forward(self, codes: torch.Tensor, condition: torch.Tensor) -> dict[str, torch.Tensor]:
        """Teacher-forced training on padded clips.

        codes: (B, K, T) int64, any valid code behind a clip's end; condition: (B, T + delay, d_model).
        Outputs behind a clip's end are meaningless and to be left out of the loss; attention is causal, so no
        frame of a clip sees them.
        Returns queries (B, T, K, latent_dim), which `codes` scores against each frame's own codes, and hidden
        (B, T, d_model), from which `mean_advance` and `advance_cross_entropy` tell the pace.
        """
        n_batch, n_levels, n_frames = codes.shape
        if n_levels != self.n_codebooks:
            raise ValueError(
                f"codes: expected (B, {self.n_codebooks}, T) by CodecConfig, got {tuple(codes.shape)}."
            )
        n_steps, delay = n_frames + self.cfg.delay, self.cfg.delay
        rows = F.pad(codes, (0, delay)).transpose(1, 2).reshape(n_batch * n_steps, -1)
        positions = torch.arange(n_steps, device=codes.device).repeat(n_batch)
        cu_seqlens = torch.arange(n_batch + 1, device=codes.device, dtype=torch.int32) * n_steps
        out = self.packed(rows, rows, condition.flatten(0, 1), positions, cu_seqlens, n_steps)
        found = {"queries": torch.cat([out["first"], out["depth"]], dim=1), "hidden": out["hidden"]}
        return {name: value.unflatten(0, (n_batch, n_steps))[:, :n_frames] for name, value in found.items()}

    def packed(
        self,
        codes: torch.Tensor,
        told: torch.Tensor,
        condition: torch.Tensor,
        positions: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
        *,
        deep: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Teacher-forced training on utterances one after another, each of its frames and `delay` steps more.

        codes: (N, K) int64, of the frame of each step; told: (N, K), what later steps are told of it;
        condition: (N, d_model); positions: (N,) int64, starting at 0 in every utterance; cu_seqlens, max_seqlen: of
        steps; deep: (M,) int64, the steps whose codebooks 1.. are wanted, None for all.
        Returns first (N, 1, latent_dim) and depth (M, K - 1, latent_dim), the queries of codebook 0 and of the others,
        and hidden (N, d_model); of the steps behind an utterance's last frame they are meaningless.
        """
        whole = self.from_latent(self.codes.latents(told)[:, -1])
        at = positions[:, None]
        zero = whole.new_zeros(())
        before = torch.where(at == 0, self.bos.to(whole.dtype), zero)
        if self.from_first is None:
            before = torch.where(at >= 1, whole.roll(1, 0), before)
        else:
            first = self.from_first(self.codes.vectors(told[:, 0], 0))
            before = before + torch.where(at >= 1, first.roll(1, 0), zero)
            before = before + torch.where(at >= 2, whole.roll(2, 0), zero)
        hidden = self.stack(before + condition, *self._rotary.tables(positions), cu_seqlens, max_seqlen)
        states = hidden.roll(-self.cfg.delay, 0)
        if deep is not None:
            states, codes = states.index_select(0, deep), codes.index_select(0, deep)
        depth = self.depth(states, self.codes.latents(codes)[:, :-1])
        return {"first": self.query(hidden)[:, None], "depth": depth, "hidden": hidden}

    def mean_advance(self, hidden: torch.Tensor) -> torch.Tensor:
        """How many characters to move on by after each frame: (..., d_model) -> (...), means."""
        shares = self.advance(hidden).float().softmax(-1)
        return shares @ torch.arange(MAX_ADVANCE + 1, device=shares.device, dtype=shares.dtype)

    def advance_cross_entropy(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Summed nats of how far each frame moves on.

        hidden: (N, d_model); labels: (N,) int64 up to MAX_ADVANCE, IGNORE_INDEX for no target.
        """
        # Eight logits a frame: there is nothing to fuse.
        shares = self.advance(hidden).float().log_softmax(-1)
        nats = -shares.gather(1, labels.clamp(min=0)[:, None])[:, 0]
        return torch.where(labels == IGNORE_INDEX, 0.0, nats).sum()

    def new_state(self, batch: int, max_frames: int) -> TalkerState:
        """Empty caches for at most max_frames frames."""
        cfg, weight, depth = self.cfg, self.bos, self.depth
        device, dtype = weight.device, weight.dtype
        return TalkerState(
            KVCache(
                cfg.n_layers,
                batch,
                max_frames + cfg.delay,
                cfg.n_kv_heads,
                cfg.head_dim,
                device=device,
                dtype=dtype,
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
        self, condition: torch.Tensor, state: TalkerState, sample: SampleFn
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """One step; moves the state on.

        condition: (B, d_model) of this frame; sample: chooses a code from logits (B, codebook_size). Returns the codes
        (B, K) int64 of the frame that is now whole, None at the first step with a delay, and the number of characters
        (B,), a mean and so not whole, to move on by. Raises ValueError when the state is full.
        """
        hidden = self._hidden(condition, state)
        first = sample(self.codes.logits(self.query(hidden), 0))
        whole, state.first = self._whole(hidden, first, state, sample), first
        return whole, self.mean_advance(hidden)

    def drain(self, condition: torch.Tensor, state: TalkerState, sample: SampleFn) -> torch.Tensor | None:
        """The frame that is not whole yet after the last step, (B, K); None where there is none."""
        if not self.cfg.delay or state.first is None:
            return None
        return self._whole(self._hidden(condition, state), state.first, state, sample)

    def _hidden(self, condition: torch.Tensor, state: TalkerState) -> torch.Tensor:
        before = self.bos if state.first is None else torch.zeros_like(condition)
        if self.from_first is not None and state.first is not None:
            before = before + self.from_first(self.codes.vectors(state.first, 0))
        if state.frame is not None:
            before = before + self.from_latent(self.codes.latents(state.frame)[:, -1])
        x = (before + condition)[:, None]
        return self.stack.step(x, state.backbone.lengths.long()[:, None], state.backbone)[:, 0]

    def _whole(
        self, hidden: torch.Tensor, first: torch.Tensor, state: TalkerState, sample: SampleFn
    ) -> torch.Tensor | None:
        """Codebooks 1.. of this step's frame, or with a delay of the one before."""
        own = state.first if self.cfg.delay else first
        if own is not None:
            state.frame = self.depth.step(hidden, own, self.codes, state.depth, sample)
            return state.frame
        return None
