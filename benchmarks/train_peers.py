"""A text model in plain PyTorch, as one would write it without this package, and other peers of a training step.

`PlainModel` computes what the Thinker computes, from parts of torch.nn: rms_norm of torch.nn.functional, explicit
rotary positions, scaled_dot_product_attention, SwiGLU and cross_entropy over all logits; what was before, in mixed
inputs and late keys, by shifted copies. `bench_train` checks its loss and its gradient against ours before it times it.
`load_adapter` brings another repository's step; docs/training.md has an example.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from muomni.config import OptimConfig, ThinkerConfig
from muomni.data.batch import PackedBatch
from muomni.errors import UserError
from muomni.models.thinker import LOGIT_STD, Thinker
from muomni.tokens import IGNORE_INDEX

MOST_MASKED = 4_096
"""Positions of a row beyond which a mask of all pairs is not made: a person would choose other batches."""
EPS = 1e-6
LIGER = "liger_kernel.transformers.functional"


class NotRun(RuntimeError):
    """Why a peer cannot be timed."""


@dataclass(frozen=True, kw_only=True)
class Ops:
    """What a plain model may take from elsewhere."""

    norm: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """x (..., D), weight (D,) -> RMSNorm."""
    rotate: Callable[
        [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]
    ]
    """q (B, H, T, D), k (B, Hkv, T, D), cos and sin (B, T, D) -> both turned."""
    swiglu: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """gate, up -> silu(gate) * up."""
    loss: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    """States (N, D), table (V, D), labels (N,) -> mean nats ()."""


def _rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    # Of one dtype: PyTorch's fused kernel takes no others.
    return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), EPS)


def _rotate(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    def turned(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return (x * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]).to(x.dtype)

    return turned(q), turned(k)


def _cross_entropy(states: torch.Tensor, table: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(F.linear(states, table), labels, ignore_index=IGNORE_INDEX)


PLAIN = Ops(norm=_rms_norm, rotate=_rotate, swiglu=lambda gate, up: F.silu(gate) * up, loss=_cross_entropy)


def liger_ops(device: torch.device) -> Ops:
    """Liger-Kernel's ops. Raises NotRun where they cannot run."""
    if device.type != "cuda":
        raise NotRun("needs CUDA")
    try:
        liger: Any = importlib.import_module(LIGER)
    except ImportError:
        raise NotRun("not installed") from None

    def rotate(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        found = liger.liger_rope(q, k, cos.to(q.dtype), sin.to(q.dtype))
        return found[0], found[1]

    def loss(states: torch.Tensor, table: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        # It has no autocast rule of its own.
        half = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else states.dtype
        found = liger.liger_fused_linear_cross_entropy(
            states.to(half), table.to(half), labels, ignore_index=IGNORE_INDEX
        )
        return found[0] if isinstance(found, tuple) else found

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return liger.liger_rms_norm(x, weight, EPS)

    return Ops(norm=norm, rotate=rotate, swiglu=liger.liger_swiglu, loss=loss)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A batch as plain code wants it: B rows of T positions."""

    ids: torch.Tensor
    """(B, T) int64."""
    labels: torch.Tensor
    """(B, T) int64."""
    positions: torch.Tensor
    """(B, T) int64, from 0 in each document."""
    mask: torch.Tensor | None
    """(1, 1, T, T) bool, True where a position may look, or None: causal within each row."""


def rows_of(batch: PackedBatch) -> Rows:
    """A packed batch as one row a document where all are equally long, else as one row under a block mask.

    Raises NotRun where that mask would have more than MOST_MASKED positions a side.
    """
    bounds, n = batch.cu_seqlens.tolist(), len(batch.input_ids)
    lengths = {b - a for a, b in zip(bounds, bounds[1:], strict=False) if b > a}
    if len(lengths) == 1 and n % max(lengths) == 0:
        shape, mask = (-1, max(lengths)), None
    else:
        if n > MOST_MASKED:
            raise NotRun(f"a mask of {n} x {n} positions")
        shape = (1, n)
        document = torch.searchsorted(
            batch.cu_seqlens, torch.arange(n, dtype=torch.int32, device=batch.cu_seqlens.device), right=True
        )
        mask = (document[:, None] == document[None, :]).tril()[None, None]
    return Rows(
        ids=batch.input_ids.view(shape), labels=batch.labels.view(shape),
        positions=batch.positions[:, 0].view(shape), mask=mask,
    )  # fmt: skip


def later(x: torch.Tensor, positions: torch.Tensor, *, by: int) -> torch.Tensor:
    """x (..., T, D) `by` positions later, zeros at the start of each document; positions (..., T), from 0 in each."""
    return F.pad(x, (0, 0, by, 0))[..., : x.shape[-2], :] * (positions >= by)[..., None]


class PlainBlock(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, cfg: ThinkerConfig, ops: Ops, *, late_keys: bool = False) -> None:
        """Projections packed, as fast plain code has them.

        late_keys: a value stands beside the key before its own, and nothing is rotated.
        """
        super().__init__()
        self.late_keys = late_keys
        self.ops, self.heads, self.kv_heads, self.width = ops, cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
        packed = (cfg.n_heads + 2 * cfg.n_kv_heads) * cfg.head_dim
        self.qkv = nn.Linear(cfg.d_model, packed, bias=False)
        self.out = nn.Linear(cfg.n_heads * cfg.head_dim, cfg.d_model, bias=False)
        self.gate_up = nn.Linear(cfg.d_model, 2 * cfg.d_ff, bias=False)
        self.down = nn.Linear(cfg.d_ff, cfg.d_model, bias=False)
        self.q_weight, self.k_weight = (nn.Parameter(torch.ones(cfg.head_dim)) for _ in range(2))
        self.attention_norm, self.ff_norm = (nn.Parameter(torch.ones(cfg.d_model)) for _ in range(2))

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, rows: Rows) -> torch.Tensor:
        """x (B, T, D); cos, sin (B, T, head_dim) -> (B, T, D)."""
        q, k, v = self.project(x, cos, sin)
        mask = rows.mask
        if self.late_keys:
            k = later(k, rows.positions[:, None], by=1)
        grouped = self.heads != self.kv_heads
        if grouped and mask is not None:
            # Under a mask only kernels without grouped keys avoid holding all scores.
            k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=1) for t in (k, v))
            grouped = False
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped
        )
        return self.finish(x, y)

    def project(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries (B, H, T, head_dim), keys and values (B, Hkv, T, head_dim)."""
        ops, (n_rows, length, _) = self.ops, x.shape
        sizes = [self.heads, self.kv_heads, self.kv_heads]
        packed = self.qkv(ops.norm(x, self.attention_norm)).view(n_rows, length, -1, self.width)
        q, k, v = packed.split(sizes, dim=2)
        q, k = ops.norm(q, self.q_weight).transpose(1, 2), ops.norm(k, self.k_weight).transpose(1, 2)
        v = v.transpose(1, 2)
        if not self.late_keys:
            q, k = ops.rotate(q, k, cos, sin)
        return q.to(v.dtype), k.to(v.dtype), v

    def finish(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x (B, T, D) and what its heads gathered (B, H, T, head_dim) -> (B, T, D)."""
        x = x + self.out(y.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.ops.norm(x, self.ff_norm)).chunk(2, dim=-1)
        return x + self.down(self.ops.swiglu(gate, up))


class PlainModel(nn.Module):
    """The Thinker over rows of text, dense, without this package's layers and kernels."""

    def __init__(self, cfg: ThinkerConfig, ops: Ops = PLAIN) -> None:
        """Weights are for `take`. Raises NotRun for a mixture of experts."""
        super().__init__()
        if cfg.n_experts:
            raise NotRun("dense models only")
        self.cfg, self.ops = cfg, ops
        self.embedding = nn.Embedding(cfg.vocab_size, cfg.d_model)
        self.mix = nn.Parameter(torch.ones(cfg.mix_kernel, cfg.d_model)) if cfg.mix_kernel > 1 else None
        self.blocks = nn.ModuleList(
            PlainBlock(cfg, ops, late_keys=cfg.late_keys and i == 0) for i in range(cfg.n_layers)
        )
        self.norm = nn.Parameter(torch.ones(cfg.d_model))
        self.scale = math.sqrt(cfg.d_model) / LOGIT_STD

    def take(self, thinker: Thinker) -> PlainModel:
        """Copy a Thinker's weights, and return self."""
        names = {
            "attention_norm.weight": "attention_norm", "attention.qkv.weight": "qkv.weight",
            "attention.q_weight": "q_weight", "attention.k_weight": "k_weight",
            "attention.out.weight": "out.weight", "ff_norm.weight": "ff_norm",
            "ff.gate_up.weight": "gate_up.weight", "ff.down.weight": "down.weight",
        }  # fmt: skip
        state = {"embedding.weight": thinker.embedding, "norm": thinker.stack.norm.weight}
        if thinker.stack.mix is not None:
            state["mix"] = thinker.stack.mix.weight
        for i, block in enumerate(thinker.stack.blocks):
            state |= {f"blocks.{i}.{names[name]}": value for name, value in block.state_dict().items()}
        self.load_state_dict(state)
        return self

    def forward(self, rows: Rows) -> torch.Tensor:
        """Mean nats a target, ()."""
        cfg = self.cfg
        x = self.embedding(rows.ids) * self.scale
        if self.mix is not None:
            mixed = x * self.mix[0]
            for j in range(1, len(self.mix)):
                mixed = mixed + later(x, rows.positions, by=j) * self.mix[j]
            x = mixed
        exponents = torch.arange(cfg.head_dim // 2, device=x.device, dtype=torch.float32)
        angles = rows.positions[..., None].float() * cfg.rope_theta ** (exponents * (-2.0 / cfg.head_dim))
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos(), angles.sin()
        for block in self.blocks:
            x = block(x, cos, sin, rows)
        x = self.ops.norm(x, self.norm)
        return self.ops.loss(x.flatten(0, 1), self.embedding.weight, rows.labels.flatten())


class PlainStep:
    """A training step as a plain script has it: autocast, backward, clipping, fused AdamW."""

    def __init__(
        self, model: PlainModel, config: OptimConfig, *, half: bool, backend: str | None = None
    ) -> None:
        """The model is on its device. half: bfloat16 autocast over float32 weights.

        backend: of torch.compile, None for eager steps.
        """
        self.model, self.config, self.half = model, config, half
        self.device = model.norm.device
        decayed = [p for n, p in model.named_parameters() if p.ndim >= 2 and "embed" not in n]
        others = [p for n, p in model.named_parameters() if p.ndim < 2 or "embed" in n]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=config.lr, betas=(config.beta1, config.beta2), fused=True,
        )  # fmt: skip
        self.loss: Callable[[Rows], torch.Tensor] = (
            torch.compile(model, fullgraph=True, dynamic=False, backend=backend) if backend else model
        )

    def __call__(self, rows: Rows, lr: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean nats () before the update, and the gradient's norm () before clipping; both on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            loss = self.loss(rows)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.optimizer.step()
        return loss.detach(), norm


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What an adapter is asked for: a step of a text model of these dimensions."""

    device: str
    precision: str
    """bf16 or fp32: of the arithmetic; weights and moments are float32."""
    batch: int
    """Rows of a step."""
    seq_len: int
    """Positions of a row, none of them padding."""
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_ff: int
    lr: float


Foreign = tuple[Callable[[], Any], int]
"""A call that takes one optimizer step and returns its loss (a number or tensor ()), and its positions."""


def load_adapter(spec: str) -> tuple[str, Callable[[Any], Any]]:
    """A peer's name and function from `path/to/adapter.py:function`.

    Called as function(shape), it builds its model with its own classes: for a Shape it gives a Foreign, for a
    `infer_peers.DecodeShape` a Decode. Raises UserError for a path or a name that is not there, and whatever the file
    raises when it is run.
    """
    path, separator, name = spec.rpartition(":")
    if not separator or not path.endswith(".py") or not Path(path).is_file():
        raise UserError(f"--peer: expected path/to/adapter.py:function, got {spec!r}; see docs/training.md.")
    found = importlib.util.spec_from_file_location(f"muomni_peer_{Path(path).stem}", path)
    assert found is not None and found.loader is not None
    module: ModuleType = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    if not callable(getattr(module, name, None)):
        raise UserError(f"--peer: {path} has no function {name!r}.")
    return f"{Path(path).stem}:{name}", getattr(module, name)
