"""Rows of the log to TensorBoard, trackio or Weights & Biases; none is needed, and none is sent anywhere unasked."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from muomni.config import RunConfig
from muomni.errors import UserError
from muomni.settings import to_dict

PROJECT = "muomni"


class TrackerError(UserError, RuntimeError):
    """A tracker that does not exist or cannot be loaded."""


class Tracker(Protocol):
    """Takes the numbers of a stage's log."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The finite numbers of one row; steps may go back after a return to a checkpoint."""
        ...

    def close(self) -> None:
        """Write what is still held."""
        ...


class _TensorBoard:
    """Event files in <stage>/tensorboard; `tensorboard --logdir RUN` shows all stages."""

    def __init__(self, module: Any, directory: Path, run: RunConfig, *, after: int) -> None:
        # What a resume repeats is hidden.
        purge = after + 1 if after else None
        self._writer = module.SummaryWriter(log_dir=str(directory / "tensorboard"), purge_step=purge)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Trackio:
    """A local project, shown by `trackio show --project muomni`."""

    def __init__(self, module: Any, directory: Path, run: RunConfig, *, after: int) -> None:
        self._run = module.init(
            project=PROJECT, name=_name(directory), config=to_dict(run), resume="allow" if after else "never"
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _Wandb:
    """A run in <stage>/wandb, offline unless WANDB_MODE says otherwise; `wandb sync` sends it later."""

    def __init__(self, module: Any, directory: Path, run: RunConfig, *, after: int) -> None:
        self._run = module.init(
            project=PROJECT, name=_name(directory), group=directory.parent.name, dir=str(directory),
            config=to_dict(run), mode=os.environ.get("WANDB_MODE", "offline"),
        )  # fmt: skip
        # Its own counter of steps only ever grows.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def close(self) -> None:
        self._run.finish()


_TRACKERS: Mapping[str, tuple[str, Callable[..., Tracker]]] = MappingProxyType(
    {
        "tensorboard": ("torch.utils.tensorboard", _TensorBoard),
        "trackio": ("trackio", _Trackio),
        "wandb": ("wandb", _Wandb),
    }
)
"""The module each needs, and what talks to it."""


def check(names: Sequence[str]) -> None:
    """Load what the trackers need. Raises TrackerError naming the one that is missing and the command that adds it."""
    for name in names:
        _module(name)


@contextmanager
def tracking(
    names: Sequence[str], directory: Path, run: RunConfig, *, after: int = 0
) -> Iterator[tuple[Tracker, ...]]:
    """The trackers of one stage, closed at the end of the block.

    directory: the stage's, RUN/<stage>; after: the step the stage goes on from. Raises TrackerError.
    """
    with ExitStack() as stack:
        opened: list[Tracker] = []
        for name in names:
            tracker = _TRACKERS[name][1](_module(name), directory, run, after=after)
            stack.callback(tracker.close)
            opened.append(tracker)
        yield tuple(opened)


def _module(name: str) -> Any:
    if name not in _TRACKERS:
        raise TrackerError(f"track: {name!r} is no tracker; there are {', '.join(_TRACKERS)}.")
    try:
        return importlib.import_module(_TRACKERS[name][0])
    except ImportError as error:
        raise TrackerError(
            f"track: {name} cannot be loaded ({error}); pip install 'muomni[{name}]'."
        ) from error


def _name(directory: Path) -> str:
    return f"{directory.parent.name}-{directory.name}"
