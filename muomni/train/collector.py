"""Python's cycle collector kept out of training steps: a full pass stops the host while the device waits.

Objects that live as long as the run are frozen after the first steps, automatic collection is off, and cycles
are collected where a run stops anyway.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

FIRST_STEPS = 3
"""Steps before the freeze: caches and optimizer state are made in them."""
COLLECT_EVERY = 1_000
"""Steps between collections at the latest: a run may not save for long."""


class Collector:
    """Tells the collector when; made by `quiet`."""

    def __init__(self) -> None:
        """Nothing is changed before FIRST_STEPS steps."""
        self._n_steps = 0
        self.frozen = False

    def step_done(self) -> None:
        """Count a step of this process; freeze after the first ones, collect now and then."""
        self._n_steps += 1
        # What a caller froze would be released with ours: gc knows one frozen set only.
        if self._n_steps == FIRST_STEPS and not gc.get_freeze_count():
            gc.collect()
            gc.freeze()
            gc.disable()
            self.frozen = True
        elif self._n_steps % COLLECT_EVERY == 0:
            self.collect()

    def collect(self) -> None:
        """Free cycles made since the freeze; for a moment when the run waits anyway, such as a save."""
        if self.frozen:
            gc.collect()


@contextmanager
def quiet() -> Iterator[Collector]:
    """A Collector for one run; afterwards the collector is as it was, also after an error."""
    enabled = gc.isenabled()
    collector = Collector()
    try:
        yield collector
    finally:
        if collector.frozen:
            gc.unfreeze()
            if enabled:
                gc.enable()
