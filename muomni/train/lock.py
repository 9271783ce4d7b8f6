"""One trainer a stage's directory: another would delete its saves and mix its logs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from muomni import files
from muomni.errors import UserError


@contextlib.contextmanager
def only_one(root: Path, stage: str, *, main: bool) -> Iterator[None]:
    """Hold RUN/<stage>.lock inside the block.

    main: processes that train together have one that holds it. Raises UserError when another process does.
    """
    with contextlib.ExitStack() as held:
        try:
            if main:
                held.enter_context(files.locked(root / f"{stage}.lock"))
        except BlockingIOError:
            raise UserError(
                f"{root / stage}: another process trains this stage; wait for it, stop it, or use another --run."
            ) from None
        yield
