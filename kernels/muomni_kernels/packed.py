"""Decoding on a CPU in C++: a matrix, or a whole stack of blocks, with weights kept in the order they are read.

Float32, on one thread or several; weights may be kept as int8 with a scale for each output, which a core reads four
times as fast and multiplies in float32. What a row gives depends neither on the rows beside it nor on the number of
threads, bit for bit: a batch gives what each sequence alone gives, and a prefill what single steps give.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from muomni_kernels import cpp

Weights = Literal["float32", "int8"]


def reason_against(*tensors: torch.Tensor) -> str | None:
    """None when tensors can be packed on this machine, else the reason against it."""
    for tensor in tensors:
        if tensor.device.type != "cpu":
            return f"needs CPU tensors, got {tensor.device.type}"
        if tensor.dtype != torch.float32:
            return f"needs float32, got {tensor.dtype}"
    return cpp.available()


def quantise(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(n_out, n_in) float -> int8 of the same shape and scales (n_out,): weight is about their product.

    Symmetric: an output's largest number becomes 127.
    """
    scales = weight.abs().amax(1) / 127.0
    return torch.round(weight / scales.clamp(min=1e-30)[:, None]).to(torch.int8), scales


def _simd() -> str:
    return os.environ.get(cpp.SIMD_ENVIRONMENT, "")


class PackedMatrix:
    """A copy of a matrix (n_out, n_in) that multiplies rows: y = x W^T."""

    def __init__(self, weight: torch.Tensor, *, weights: Weights = "float32") -> None:
        """Copy and pack a float32 matrix. Raises ValueError where it cannot be, saying why."""
        reason = reason_against(weight)
        if weight.ndim != 2 or reason:
            raise ValueError(f"weight: expected a matrix; {reason or f'got {tuple(weight.shape)}'}.")
        self.n_out, self.n_in = weight.shape
        weight = weight.detach().contiguous()
        if weights == "int8":
            numbers, scales = quantise(weight)
            self.packed = cpp.extension().PackedMatrix(
                numbers.data_ptr(), scales.data_ptr(), self.n_out, self.n_in
            )
        else:
            self.packed = cpp.extension().PackedMatrix(weight.data_ptr(), 0, self.n_out, self.n_in)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., n_in) float32 -> (..., n_out). Raises ValueError for another width, dtype or device."""
        if x.shape[-1] != self.n_in or x.dtype != torch.float32 or x.device.type != "cpu":
            raise ValueError(
                f"x: expected (..., {self.n_in}) float32 on the CPU, got {tuple(x.shape)} {x.dtype} on {x.device}."
            )
        x = x.contiguous()
        y = torch.empty((*x.shape[:-1], self.n_out))
        self.packed.multiply(
            x.data_ptr(), y.data_ptr(), x.numel() // self.n_in, self.n_in, torch.get_num_threads(), _simd()
        )
        return y


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """One block's weights: pre-norm attention with QK-norm, then SwiGLU; shapes as in nn.block.Block."""

    attention_norm: torch.Tensor
    q_norm: torch.Tensor
    k_norm: torch.Tensor
    ff_norm: torch.Tensor
    qkv: torch.Tensor
    out: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    late_keys: bool = False
    """The key beside a value is that of the position before, and neither keys nor queries are rotated."""

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All of them."""
        return (*self.vectors, *self.matrices)

    @property
    def vectors(self) -> tuple[torch.Tensor, ...]:
        """Weights of the norms."""
        return self.attention_norm, self.q_norm, self.k_norm, self.ff_norm

    @property
    def matrices(self) -> tuple[torch.Tensor, ...]:
        """Weights of the products."""
        return self.qkv, self.out, self.gate_up, self.down


class PackedStack:
    """Copies of a stack's weights, and its decode step over a cache."""

    def __init__(
        self,
        layers: Sequence[LayerWeights],
        norm: torch.Tensor,
        *,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        eps: float,
        tables: tuple[torch.Tensor, torch.Tensor] | None = None,
        axes: Sequence[int] = (),
        mix: torch.Tensor | None = None,
        weights: Weights = "float32",
    ) -> None:
        """Copy and pack.

        norm: weight of the norm behind the last block. mix: (taps, d_model) weights of an input's own position, the one
        before, and so on; None for the input alone. tables: cos and sin (n_positions, head_dim / 2) float32 of the
        positions that may be met, None without rotary positions; axes: (head_dim / 2,) which number of a position
        turns each angle. weights: how the matrices are kept.
        Raises ValueError where they cannot be packed, saying why.
        """
        taps = norm.new_zeros(0) if mix is None else mix
        reason = reason_against(norm, taps, *(tensor for layer in layers for tensor in layer.tensors))
        if reason:
            raise ValueError(f"weights: {reason}.")
        self.d_model, self._n_kv_heads, self._head_dim = len(norm), n_kv_heads, head_dim
        self._rotary = tables is not None
        cos, sin = ([], []) if tables is None else (t.flatten().tolist() for t in tables)
        self._stack = cpp.extension().DecodeStack(
            [
                (
                    *(vector.tolist() for vector in layer.vectors),
                    *(PackedMatrix(matrix, weights=weights).packed for matrix in layer.matrices),
                    layer.late_keys,
                )
                for layer in layers
            ],
            norm.tolist(), taps.flatten().tolist(), n_heads, n_kv_heads,
            head_dim, eps, cos, sin, list(axes) if self._rotary else [],
        )  # fmt: skip
        self._n_layers, self._mixes = len(layers), mix is not None

    def step(
        self,
        x: torch.Tensor,
        positions: torch.Tensor | None,
        k: torch.Tensor,
        v: torch.Tensor,
        inputs: torch.Tensor,
        *,
        rows: Sequence[int],
        lengths: Sequence[int],
    ) -> torch.Tensor:
        """New positions behind those a cache holds: keys, values and inputs are written, lengths are the caller's.

        x: (B, Tq, d_model) float32; positions: (B, Tq) or (B, Tq, 3) int64, None without rotary positions;
        k, v: (n_layers, batch, max_len + 1, n_kv_heads, head_dim) float32, contiguous, one place more than there may be
        positions; inputs: (batch, max_len, d_model) of a stack that mixes them, else not read; rows: the row of the
        cache of each of the B sequences, each once; lengths: how many positions each has. Returns normalised states
        (B, Tq, d_model). Raises ValueError when shapes, rows or lengths do not fit, IndexError for a position beyond
        the tables.
        """
        n_sequences, n_new, d_model = x.shape
        cache = (self._n_layers, k.shape[1], k.shape[2], self._n_kv_heads, self._head_dim)
        if d_model != self.d_model or k.shape != cache or v.shape != cache or len(rows) != n_sequences:
            raise ValueError(
                f"x, k, v: expected ({len(rows)}, Tq, {self.d_model}) and twice {cache}, got {tuple(x.shape)}, "
                f"{tuple(k.shape)}, {tuple(v.shape)}."
            )
        if self._mixes and inputs.shape != (k.shape[1], k.shape[2] - 1, d_model):
            raise ValueError(
                f"inputs: expected {(k.shape[1], k.shape[2] - 1, d_model)}, got {tuple(inputs.shape)}."
            )
        for name, tensor in (("x", x), ("k", k), ("v", v), ("inputs", inputs)):
            if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
                raise ValueError(
                    f"{name}: expected float32 on the CPU, got {tensor.dtype} on {tensor.device}."
                )
        if not (k.is_contiguous() and v.is_contiguous() and inputs.is_contiguous()):
            raise ValueError("k, v, inputs: expected contiguous caches.")
        places, n_axes = 0, 1
        if positions is not None:
            if positions.shape not in ((n_sequences, n_new), (n_sequences, n_new, 3)):
                raise ValueError(
                    f"positions: expected ({n_sequences}, {n_new}) or ({n_sequences}, {n_new}, 3), "
                    f"got {tuple(positions.shape)}."
                )
            positions = positions.to(torch.int64).contiguous()
            places, n_axes = positions.data_ptr(), 3 if positions.ndim == 3 else 1
        x = x.contiguous()
        y = torch.empty_like(x)
        self._stack.step(
            x.data_ptr(), y.data_ptr(), places, n_axes, rows, lengths, k.data_ptr(), v.data_ptr(),
            inputs.data_ptr() if self._mixes else 0, n_new, k.shape[1], k.shape[2] - 1, torch.get_num_threads(),
            _simd(),
        )  # fmt: skip
        return y
