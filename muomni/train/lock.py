"""One trainer a stage's directory: another would delete its saves and mix its logs."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from muomni.errors import UserError


@contextlib.contextmanager
def only_one(root: Path, stage: str, *, main: bool) -> Iterator[None]:
    """Hold RUN/<stage>.lock inside the block; the system lets go of it when the process ends, however it does.

    main: processes that train together have one that holds it. Raises UserError when another process does.
    """
    if not main:
        yield
        return
    root.mkdir(parents=True, exist_ok=True)
    with (root / f"{stage}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{root / stage}: another process trains this stage; wait for it, stop it, or use another --run."
            ) from None
        yield
