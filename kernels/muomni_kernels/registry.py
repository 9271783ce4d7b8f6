"""Which backend runs an op: the first in order of priority that gives no reason against it.

Force one with `use_backend(op, name)` or MUOMNI_BACKEND ("triton" for every op that has it, or
"rms_norm=reference,rope=triton"). A forced backend that cannot run raises; nothing falls back silently.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

ENVIRONMENT = "MUOMNI_BACKEND"

# A plain list, because torch.compile can guard on it; forcing is for the whole process.
_forced: list[tuple[str | None, str]] = []


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One way to run an op."""

    op: str
    name: str
    run: Callable[..., Any]
    supports: Callable[..., str | None]
    """Called with the op's arguments; None when it can run them, else the reason against it."""
    available: Callable[[], str | None]
    """None when this machine can run it at all, else the reason against it."""


_backends: dict[str, list[Backend]] = {}


def register(
    op: str,
    name: str,
    run: Callable[..., Any],
    *,
    supports: Callable[..., str | None],
    available: Callable[[], str | None],
) -> None:
    """Add a backend after those the op already has. Raises ValueError for a name the op has."""
    rows = _backends.setdefault(op, [])
    if any(row.name == name for row in rows):
        raise ValueError(f"{op}: backend {name!r} is registered already.")
    rows.append(Backend(op=op, name=name, run=run, supports=supports, available=available))


def backends(op: str) -> tuple[Backend, ...]:
    """The backends of an op in order of priority. Raises KeyError for an unknown op."""
    return tuple(_backends[op])


def ops() -> tuple[str, ...]:
    """Names of the registered ops."""
    return tuple(_backends)


@contextmanager
def use_backend(op: str | None, name: str) -> Iterator[None]:
    """Force a backend inside the block: for one op, or with None for every op that has one of that name.

    It holds for the whole process, not for a thread: meant for tests, benchmarks and diagnosis.
    """
    _forced.append((op, name))
    try:
        yield
    finally:
        _forced.pop()


def forced(op: str) -> str | None:
    """The backend name forced for an op, if any: the innermost `use_backend`, then the environment."""
    named = {row.name for row in _backends[op]}
    for wanted, name in reversed(_forced):
        if wanted == op or (wanted is None and name in named):
            return name
    setting = os.environ.get(ENVIRONMENT)
    if setting:
        for part in setting.split(","):
            wanted, equals, name = part.strip().partition("=")
            if equals and wanted == op:
                return name
            if not equals and wanted in named:
                return wanted
    return None


def select(op: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
    """The function that runs an op on these arguments.

    Raises RuntimeError when a forced backend cannot run them (with every backend's reason), or none can.
    """
    rows = _backends[op]
    name = forced(op)
    if name is None:
        for row in rows:
            if row.supports(*args, **kwargs) is None:
                return row.run
    else:
        for row in rows:
            if row.name == name and row.supports(*args, **kwargs) is None:
                return row.run
    reasons = "; ".join(f"{row.name}: {row.supports(*args, **kwargs) or 'can run'}" for row in rows)
    if name is None:
        raise RuntimeError(f"{op}: no backend can run this call ({reasons}).")
    known = name in {row.name for row in rows}
    problem = "cannot run" if known else "does not exist"
    raise RuntimeError(
        f"{op}: backend {name!r} was asked for but {problem} ({reasons}). Unset {ENVIRONMENT} or choose another."
    )
