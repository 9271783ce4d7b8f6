"""Where a text stops: strings that end it and are not part of it, found while it is still being written."""

from __future__ import annotations

from collections.abc import Sequence


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
