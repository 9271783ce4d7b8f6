"""Peers of bench_infer: the Thinker as a plain script decodes it, and transformers' Llama of its size.

The first computes what the Thinker computes, mixed inputs and late keys too. Llama is another model and has neither.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.train_peers import PLAIN, NotRun, PlainBlock, PlainModel
from muomni.config import ThinkerConfig
from muomni.models.thinker import Thinker

Decode = Callable[[int], Any]
"""decode(n): the prompts that were given, then n tokens of each by greedy choices, from the start at every call."""


@dataclass(frozen=True, kw_only=True)
class DecodeShape:
    """What an adapter is asked for: a text model of these dimensions with random weights, and prompts."""

    device: str
    precision: str
    """fp32 or bf16."""
    batch: int
    n_prompt: int
    """Tokens of each prompt."""
    n_new: int
    """Most tokens that will be asked for."""
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_ff: int


@dataclass
class _Past:
    """What earlier calls leave behind."""

    inputs: torch.Tensor
    """(B, mix_kernel - 1, D): the last inputs, zeros before the start."""
    caches: list[list[torch.Tensor]]
    """Of each block keys and values (B, Hkv, T, head_dim); late keys are one more, whose first is zero."""


class PlainDecoder:
    """Plain PyTorch of the same weights: a cache that is concatenated, attention without a mask, a token a call."""

    def __init__(self, thinker: Thinker, prompts: torch.Tensor) -> None:
        """prompts: (B, n) int64 on the device."""
        self._cfg, self._prompts = thinker.cfg, prompts
        weight = thinker.embedding
        self._model = PlainModel(thinker.cfg).to(weight.device, weight.dtype).take(thinker).eval()

    @torch.inference_mode()
    def decode(self, n: int) -> torch.Tensor:
        """(B, n) tokens."""
        past, ids, found = self._start(), self._prompts, []
        for _ in range(n):
            ids = self._forward(ids, past).argmax(-1, keepdim=True)
            found.append(ids)
        return torch.cat(found, dim=1)

    def _start(self) -> _Past:
        weight, n_past = self._model.embedding.weight, self._cfg.mix_kernel - 1
        inputs = weight.new_zeros(len(self._prompts), n_past, self._cfg.d_model)
        return _Past(inputs, [[] for _ in self._model.blocks])

    def _forward(self, ids: torch.Tensor, past: _Past) -> torch.Tensor:
        cfg, model, n_new = self._cfg, self._model, ids.shape[1]
        before = past.caches[0][1].shape[2] if past.caches[0] else 0
        x = model.embedding(ids) * model.scale
        if model.mix is not None:
            rows, n_past = torch.cat((past.inputs, x), dim=1), len(model.mix) - 1
            past.inputs = rows[:, -n_past:]
            x = x * model.mix[0]
            for j in range(1, n_past + 1):
                x = x + rows[:, n_past - j : n_past - j + n_new] * model.mix[j]
        positions = torch.arange(before, before + n_new, device=ids.device)
        exponents = torch.arange(cfg.head_dim // 2, device=ids.device, dtype=torch.float32)
        angles = positions[:, None].float() * cfg.rope_theta ** (exponents * (-2.0 / cfg.head_dim))
        angles = torch.cat((angles, angles), dim=-1)
        for block, cache in zip(model.blocks, past.caches, strict=True):
            assert isinstance(block, PlainBlock)
            q, k, v = block.project(x, angles.cos()[None], angles.sin()[None])
            if cache:
                k, v = torch.cat((cache[0], k), dim=2), torch.cat((cache[1], v), dim=2)
            elif block.late_keys:
                k = F.pad(k, (0, 0, 1, 0))
            cache[:] = [k, v]
            # The last of late keys waits for the next value. One query sees every other.
            k = k[:, :, : v.shape[2]]
            y = F.scaled_dot_product_attention(q, k, v, is_causal=before == 0, enable_gqa=True)
            x = block.finish(x, y)
        return F.linear(PLAIN.norm(x[:, -1], model.norm), model.embedding.weight)


def llama(
    cfg: ThinkerConfig, prompts: torch.Tensor, dtype: torch.dtype, *, most: int
) -> Callable[[int], torch.Tensor]:
    """transformers' Llama of the same dimensions with random weights, by its own `generate`: decode(n) -> (B, n).

    most: tokens that will be asked for. Raises NotRun where transformers is not installed.
    """
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise NotRun(f"not installed ({error.name})") from None
    config = transformers.LlamaConfig(
        vocab_size=cfg.vocab_size, hidden_size=cfg.d_model, intermediate_size=cfg.d_ff, head_dim=cfg.head_dim,
        num_hidden_layers=cfg.n_layers, num_attention_heads=cfg.n_heads, num_key_value_heads=cfg.n_kv_heads,
        max_position_embeddings=prompts.shape[1] + most, tie_word_embeddings=True, attention_bias=False,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(prompts.device, dtype).eval()

    @torch.inference_mode()
    def decode(n: int) -> torch.Tensor:
        out = model.generate(
            prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=n, min_new_tokens=n, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
        return out[:, prompts.shape[1] :]

    return decode
