"""The shapes that are timed: what the sizes nano, tiny and base have, then the grid of rows and widths."""

from __future__ import annotations

from dataclasses import dataclass

ROWS = (1_024, 4_096, 16_384, 65_536, 262_144)
WIDTHS = (64, 128, 192, 256, 384, 512, 768, 1_024)
SMOKE_ROWS = 24


@dataclass(frozen=True, kw_only=True)
class Heads:
    """An attention layer's heads."""

    n_heads: int
    n_kv_heads: int
    head_dim: int

    @property
    def packed(self) -> int:
        """Columns of packed q, k and v."""
        return (self.n_heads + 2 * self.n_kv_heads) * self.head_dim


MODEL_ROWS = 16_384
"""Positions of a text batch of tiny and base (muomni/recipes.py)."""
MODEL_WIDTHS = (256, 512, 128, 192, 384)
"""d_model: Thinker of tiny, base and nano; audio encoder of tiny; Talker of base."""
MODEL_HEADS = (
    Heads(n_heads=8, n_kv_heads=4, head_dim=32),
    Heads(n_heads=8, n_kv_heads=4, head_dim=64),
    Heads(n_heads=4, n_kv_heads=2, head_dim=32),
)
"""Thinkers of tiny, base and nano."""
HEADS = (*MODEL_HEADS, Heads(n_heads=4, n_kv_heads=2, head_dim=64))
MODEL_FF = (768, 1_536, 384)
"""d_ff of the same Thinkers."""
MODEL_HEAD = ((8_192, 256), (32_768, 512), (1_024, 128))
"""(vocab_size, d_model) of the same Thinkers."""


def grid(model_widths: tuple[int, ...], widths: tuple[int, ...] = WIDTHS) -> list[tuple[int, int, bool]]:
    """(rows, width, belongs to the model), the important ones first: the model's, then by distance from its rows.

    Rows are thinned for the model's extremes: a narrow tensor of few rows is all launch latency.
    """
    first = [(MODEL_ROWS, width, True) for width in model_widths] + [(4_096, model_widths[0], True)]
    by_distance = sorted(ROWS, key=lambda rows: abs(rows.bit_length() - MODEL_ROWS.bit_length()))
    rest = [(rows, width, False) for rows in by_distance for width in widths]
    seen = {(rows, width) for rows, width, _ in first}
    return first + [entry for entry in rest if entry[:2] not in seen]
