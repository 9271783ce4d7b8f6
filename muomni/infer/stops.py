"""Where a text stops, found while it is still being written: at strings that are no part of it, and in a loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

LONGEST_PERIOD = 16
"""Tokens of what is repeated, at most."""
SHORTEST_LOOP = 16
"""Tokens of all repetitions together, at least: a word may well be said four times."""


class Loops:
    """Takes a text token by token and notices when it repeats itself."""

    def __init__(self, max_repeats: int) -> None:
        """max_repeats: how often the same tokens may come one after another; 0: as often as they like."""
        self._max_repeats = max_repeats
        self._last: deque[int] = deque(maxlen=LONGEST_PERIOD)
        # For each length, of how many tokens the one so many places before has been the same.
        self._same = [0] * LONGEST_PERIOD
        self.met = False
        """The last tokens are one sequence, max_repeats times over; its length and theirs are bounded as above."""

    def push(self, token: int) -> None:
        """The next token."""
        if not self._max_repeats:
            return
        for i, before in enumerate(reversed(self._last)):
            length = i + 1
            self._same[i] = self._same[i] + 1 if before == token else 0
            if self._same[i] + length >= max(self._max_repeats * length, SHORTEST_LOOP):
                self.met = True
        self._last.append(token)


class Stops:
    """Takes a text piece by piece and gives out what cannot belong to a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        """stops: not empty strings; none of them for a text that is given out as it comes."""
        self.strings, self._held = tuple(stop for stop in stops if stop), ""
        self.met = False
        """One of them was there: nothing comes after it."""

    def push(self, text: str) -> str:
        """The next piece -> what is now certain."""
        if self.met:
            return ""
        held = self._held + text
        found = [(held.find(stop) + len(stop), held.find(stop)) for stop in self.strings if stop in held]
        if found:
            # Whatever pieces the text comes in, the one that ends first, and of several the longest.
            self.met, self._held = True, ""
            return held[: min(found)[1]]
        # Of all that may become a stop string, the longest is kept back.
        longest = max((len(stop) for stop in self.strings), default=1) - 1
        n_kept = next(
            (
                n
                for n in range(min(longest, len(held)), 0, -1)
                if any(s.startswith(held[-n:]) for s in self.strings)
            ),
            0,
        )
        self._held = held[len(held) - n_kept :]
        return held[: len(held) - n_kept]

    def finish(self) -> str:
        """What was kept back in vain."""
        rest, self._held = self._held, ""
        return rest
