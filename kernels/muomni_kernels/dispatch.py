"""The dispatch table: which backend was measured to be the fastest, by device, mode, op and shape.

`dispatch.json` is written by `python -m benchmarks.dispatch RESULTS`, never by hand. A device, an op or a width it does
not name takes the first backend in order of priority. This module imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("dispatch.json")
VERSION = 1
MODES = ("eager", "compiled")

Steps = list[tuple[int | None, str]]
"""(largest number of rows, backend), rising; None for no limit."""
Table = dict[str, dict[tuple[str, str], dict[int, Steps]]]
"""op -> (device key, mode) -> width -> steps."""


class DispatchError(RuntimeError):
    """The dispatch table cannot be read."""


active: Table = {}
"""The table in force. A plain dict, because torch.compile can guard on it; by op first, so that an op without an entry
costs one look-up. Changed only in this module."""

sources: dict[str, str] = {}
"""Device key -> what was measured, and where the rows are."""

Extents = tuple[int, int]
"""(rows, width) of a call: what its time depends on."""


def _first_tensor(x: Any, *_: Any) -> Extents:
    width = max(1, x.shape[-1])
    return x.numel() // width, width


def _cross_entropy(x: Any, weight: Any, *_: Any) -> Extents:
    return x.numel() // max(1, x.shape[-1]), weight.numel()


def _angles(x: Any, *_: Any) -> Extents:
    return x.numel() // max(1, x.shape[-1] * x.shape[-2]), x.shape[-1] * x.shape[-2]


def _codebooks(z: Any, codebooks: Any, *_: Any) -> Extents:
    return z.shape[0], codebooks.numel()


EXTENTS: dict[str, Callable[..., Extents]] = {
    "linear_cross_entropy": _cross_entropy,
    "rope": _angles,
    "attention": _angles,
    "attention_decode": _angles,
    "vq_nearest": _codebooks,
}
"""How an op's calls are told apart where it is not by the rows and columns of the first tensor."""


def extents(op: str, *arguments: Any) -> Extents:
    """(rows, width) of a call: rows and columns of the first tensor; heads * head_dim is the width of rope and
    attention, the number of the weight's entries that of linear_cross_entropy and vq_nearest."""
    return EXTENTS.get(op, _first_tensor)(*arguments)


def preferred(key: str, mode: str, op: str, arguments: tuple[Any, ...]) -> str | None:
    """The backend measured to be the fastest for a call, None when nothing was measured."""
    widths = active[op].get((key, mode)) if op in active else None
    if widths is None:
        return None
    rows, width = extents(op, *arguments)
    for limit, name in widths.get(width, ()):
        if limit is None or rows <= limit:
            return name
    return None


def parse(text: str, *, name: str) -> tuple[Table, dict[str, str]]:
    """(table, sources) of a dispatch file's text. Raises DispatchError with its name and the faulty place."""

    def demand(condition: bool, where: str, expected: str) -> None:
        if not condition:
            raise DispatchError(
                f"{name}: {where}: expected {expected}. Regenerate it with `python -m benchmarks.dispatch`."
            )

    try:
        data = json.loads(text)
    except ValueError as error:
        raise DispatchError(
            f"{name}: not JSON ({error}). Regenerate it with `python -m benchmarks.dispatch`."
        ) from None
    demand(isinstance(data, dict) and data.get("version") == VERSION, "version", str(VERSION))
    demand(isinstance(data.get("devices"), dict), "devices", "an object")
    table: Table = {}
    found: dict[str, str] = {}
    for key, device in data["devices"].items():
        demand(
            isinstance(device, dict)
            and device.keys() <= {"source", *MODES}
            and isinstance(device.get("source"), str),
            f"devices.{key}",
            "source, eager and compiled",
        )
        found[key] = device["source"]
        for mode in MODES:
            ops = device.get(mode, {})
            demand(isinstance(ops, dict), f"devices.{key}.{mode}", "an object of ops")
            for op, widths in ops.items():
                where = f"devices.{key}.{mode}.{op}"
                demand(
                    isinstance(widths, dict) and all(w.isdecimal() for w in widths),
                    where,
                    "an object of widths",
                )
                for width, steps in widths.items():
                    demand(_are_steps(steps), f"{where}.{width}", "rising [rows or null, backend] pairs")
                table.setdefault(op, {})[key, mode] = {
                    int(width): [(limit, backend) for limit, backend in steps]
                    for width, steps in widths.items()
                }
    return table, found


def _is_step(step: Any) -> bool:
    pair = isinstance(step, list) and len(step) == 2 and isinstance(step[1], str)
    return pair and (step[0] is None or type(step[0]) is int)


def _are_steps(steps: Any) -> bool:
    if not isinstance(steps, list) or not steps or not all(map(_is_step, steps)):
        return False
    limits = [limit for limit, _ in steps if limit is not None]
    only_the_last_is_open = all(limit is not None for limit, _ in steps[:-1])
    return only_the_last_is_open and all(a < b for a, b in zip(limits, limits[1:], strict=False))


def load(path: Path = PATH) -> None:
    """Make a file the table in force. Raises DispatchError for a missing or malformed one, which changes nothing."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DispatchError(f"{path}: cannot be read ({error}).") from None
    _replace(*parse(text, name=str(path)))


def _replace(table: Table, found: dict[str, str]) -> None:
    active.clear()
    active.update(table)
    sources.clear()
    sources.update(found)


@contextmanager
def use_table(path: Path | None) -> Iterator[None]:
    """Inside the block another file is in force, or with None no table: the order of priority.

    For the whole process, like `use_backend`. Raises DispatchError as `load` does.
    """
    before = dict(active), dict(sources)
    if path is None:
        _replace({}, {})
    else:
        load(path)
    try:
        yield
    finally:
        _replace(*before)
