"""Figures as a Markdown table, for pages that are committed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

HEADER = ("| figure | this model | baseline | n |", "|---|---|---|---|")


def table(figures: Iterable[Mapping[str, Any]]) -> list[str]:
    """Lines of a table of figures as eval.json holds them; one that beats its baseline is set in bold."""
    return [*HEADER, *(_row(figure) for figure in figures)]


def _row(figure: Mapping[str, Any]) -> str:
    own, low, high, other = (
        _number(value, str(figure["unit"]))
        for value in (figure["value"], *figure["interval"], figure["baseline"])
    )
    value = f"**{own}**" if figure["beats_baseline"] else own
    better = "less" if figure["better"] == "lower" else "more"
    return (
        f"| {figure['what']} ({better} is better) | {value} [{low}, {high}] | {other} ({figure['baseline_name']}) "
        f"| {figure['n']} |"
    )


def _number(value: float, unit: str) -> str:
    return f"{100 * value:.1f} %" if unit.startswith(("errors", "share", "F1")) else f"{value:.3f}"
