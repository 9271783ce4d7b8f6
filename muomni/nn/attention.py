"""Self-attention with GQA, QK-norm and rotary positions, packed for training and cached for decoding."""

from __future__ import annotations

import torch
from muomni_kernels import attention, attention_decode, qk_norm_rope
from torch import nn

from muomni.nn.cache import CacheLayer
from muomni.nn.conv import later
from muomni.nn.init import linear


class Attention(nn.Module):
    """softmax(norm(q) norm(k)^T / sqrt(head_dim)) v, one packed projection for q, k and v."""

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        causal: bool,
        out_scale: float = 1.0,
        late_keys: bool = False,
    ) -> None:
        """out_scale: factor on the initial weights of the output projection.

        late_keys: the key beside a value is that of the row before, zero at the start of a document. Queries begin as
        keys, so that a row asks what followed rows like itself: an induction head (Olsson et al., 2022) within
        one layer, by which copying is learnt in hundreds of steps. Nothing is rotated: whether rows are alike does not
        depend on how far apart they are.
        """
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim, self.causal = n_heads, n_kv_heads, head_dim, causal
        self.late_keys = late_keys
        self.qkv = linear(d_model, (n_heads + 2 * n_kv_heads) * head_dim)
        if late_keys:
            q, k, _ = self.qkv.weight.detach().split(
                [n * head_dim for n in (n_heads, n_kv_heads, n_kv_heads)]
            )
            heads = k.unflatten(0, (n_kv_heads, head_dim))
            q.copy_(heads.repeat_interleave(n_heads // n_kv_heads, dim=0).flatten(0, 1))
        self.q_weight = nn.Parameter(torch.ones(head_dim))
        self.k_weight = nn.Parameter(torch.ones(head_dim))
        self.out = linear(n_heads * head_dim, d_model, scale=out_scale)

    def _project(
        self, x: torch.Tensor, cos: torch.Tensor | None, sin: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x (T, D) -> q (T, H, hd), k and v (T, Hkv, hd), q and k normalised, and rotated unless keys are late."""
        if self.late_keys:
            cos = sin = None
        return qk_norm_rope(
            self.qkv(x),
            self.q_weight,
            self.k_weight,
            cos,
            sin,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
        )

    def forward(
        self,
        x: torch.Tensor,
        cos: torch.Tensor | None,
        sin: torch.Tensor | None,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
        earlier: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Packed rows.

        x: (T, d_model); cos, sin: (T, head_dim / 2) float32, or None for no rotary positions;
        cu_seqlens: (n_docs + 1,) int32; max_seqlen: longest document; earlier: `conv.earlier_rows` of the batch, for
        late keys. Returns (T, d_model). Raises ValueError when it is missing.
        """
        q, k, v = self._project(x, cos, sin)
        if self.late_keys:
            if earlier is None:
                raise ValueError("earlier: late keys need conv.earlier_rows of the batch.")
            k = later(k.flatten(1), earlier, 1).view_as(k)
        y = attention(q, k, v, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen, causal=self.causal)
        return self.out(y.reshape(x.shape[0], -1))

    def step(
        self, x: torch.Tensor, cos: torch.Tensor | None, sin: torch.Tensor | None, cache: CacheLayer
    ) -> torch.Tensor:
        """Causal attention of new positions over the cache and themselves; writes them into the cache.

        x: (B, Tq, d_model); cos, sin: (B * Tq, head_dim / 2) or None. Returns (B, Tq, d_model).
        """
        n_batch, n_new, d_model = x.shape
        q, k, v = (t.unflatten(0, (n_batch, n_new)) for t in self._project(x.reshape(-1, d_model), cos, sin))
        lengths = cache.append(k, v, late_keys=self.late_keys)
        y = attention_decode(q, cache.k, cache.v, lengths=lengths)
        return self.out(y.reshape(n_batch, n_new, -1))
