"""Which backend runs an op: the one the dispatch table found fastest for the call's device, mode and shape, else the
first in order of priority; in both cases one that gives no reason against it.

Force one with `use_backend(op, name)` or MUOMNI_BACKEND ("triton" for every op that has it, or
"rms_norm=reference,rope=triton"). A forced backend that cannot run raises, and so does a wish that names no op
or no backend; nothing falls back silently.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from muomni_kernels import dispatch

ENVIRONMENT = "MUOMNI_BACKEND"

# A plain list, because torch.compile can guard on it; forcing is for the whole process.
_forced: list[tuple[str | None, str]] = []

# Settings of ENVIRONMENT found sound, so that a call costs one look-up.
_sound: set[str] = set()


class BackendError(RuntimeError):
    """A backend was asked for that cannot run or does not exist, or no backend can run a call."""


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


def anywhere(*_: object) -> None:
    """No reason against a backend that runs wherever PyTorch does."""


def register(
    op: str,
    name: str,
    run: Callable[..., Any],
    *,
    supports: Callable[..., str | None] = anywhere,
    available: Callable[[], str | None] = anywhere,
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


def load() -> None:
    """Register the backends of every op: each registers its own when its module is first imported."""
    for module in ("ops", "head", "attend", "quantise", "mel", "downsample", "mel_fused"):
        import_module(f"muomni_kernels.{module}")


def _check_wish(op: str | None, name: str, *, source: str) -> None:
    """Raises BackendError for an op that does not exist, or for a name that no op has as a backend."""
    load()
    if op is not None:
        if op not in _backends:
            raise BackendError(f"{source}: {op!r} is not an op; they are {', '.join(sorted(_backends))}.")
        return  # A name this op lacks is reported where the op runs, with the reasons of those it has.
    names = sorted({row.name for rows in _backends.values() for row in rows})
    if name not in names:
        raise BackendError(f"{source}: no op has a backend {name!r}; they are {', '.join(names)}.")


def _wishes(setting: str) -> list[tuple[str | None, str]]:
    """The (op or None for every op, backend) pairs of a setting of ENVIRONMENT."""
    pairs = (part.strip().partition("=") for part in setting.split(","))
    return [(first, name) if equals else (None, first) for first, equals, name in pairs if first]


@contextmanager
def use_backend(op: str | None, name: str) -> Iterator[None]:
    """Force a backend inside the block: for one op, or with None for every op that has one of that name.

    It holds for the whole process, not for a thread: meant for tests, benchmarks and diagnosis.
    Raises BackendError for an op that does not exist, or a name no op has as a backend.
    """
    _check_wish(op, name, source="use_backend")
    _forced.append((op, name))
    try:
        yield
    finally:
        _forced.pop()


def forced(op: str) -> str | None:
    """The backend name forced for an op, if any: the innermost `use_backend`, then the environment.

    Raises BackendError when the environment names an op or a backend that does not exist.
    """
    setting = os.environ.get(ENVIRONMENT)
    if not (_forced or setting):
        return None
    named = {row.name for row in _backends[op]}
    for wanted, name in reversed(_forced):
        if wanted == op or (wanted is None and name in named):
            return name
    if not setting:
        return None
    wishes = _wishes(setting)
    # Looking at every op imports modules, which torch.compile cannot trace; an eager call says it instead.
    if setting not in _sound and not torch.compiler.is_compiling():
        for wanted, name in wishes:
            _check_wish(wanted, name, source=ENVIRONMENT)
        _sound.add(setting)
    for wanted, name in wishes:
        if wanted == op or (wanted is None and name in named):
            return name
    return None


# Of each CUDA device, so that an eager call does not ask the driver.
_capabilities: dict[int, str] = {}


def device_key(x: torch.Tensor) -> str:
    """The name of a tensor's device in the dispatch table: sm_90, or its type where it is not CUDA."""
    if x.device.type != "cuda":
        return x.device.type
    key = _capabilities.get(x.device.index)
    if key is None:
        properties = torch.cuda.get_device_properties(x.device)
        key = f"sm_{properties.major}{properties.minor}"
        if not torch.compiler.is_compiling():
            _capabilities[x.device.index] = key
    return key


def _measured(op: str, args: tuple[Any, ...]) -> str | None:
    """The backend the dispatch table names for a call; its first argument is a tensor."""
    mode = "compiled" if torch.compiler.is_compiling() else "eager"
    return dispatch.preferred(device_key(args[0]), mode, op, args)


def select(op: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
    """The function that runs an op on these arguments.

    The dispatch table is a preference: where the backend it names cannot run them, the order of priority decides.
    Raises BackendError when a forced backend cannot run them (with every backend's reason), or none can.
    """
    rows = _backends[op]
    name = forced(op)
    if name is None:
        if op in dispatch.active:
            fastest = _measured(op, args)
            for row in rows:
                if row.name == fastest and row.supports(*args, **kwargs) is None:
                    return row.run
        for row in rows:
            if row.supports(*args, **kwargs) is None:
                return row.run
    else:
        for row in rows:
            if row.name == name and row.supports(*args, **kwargs) is None:
                return row.run
    reasons = "; ".join(f"{row.name}: {row.supports(*args, **kwargs) or 'can run'}" for row in rows)
    if name is None:
        raise BackendError(f"{op}: no backend can run this call ({reasons}).")
    known = name in {row.name for row in rows}
    problem = "cannot run" if known else "does not exist"
    raise BackendError(
        f"{op}: backend {name!r} was asked for but {problem} ({reasons}). Unset {ENVIRONMENT} or choose another."
    )


dispatch.load()
