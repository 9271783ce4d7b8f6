"""What the Talker is told of a text: the character it is at, those around it, the Thinker's state of its subword."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from muomni.nn.init import linear, table

BEFORE, AFTER = 3, 4
"""Characters told before and after the one that is being said."""
WINDOW = BEFORE + 1 + AFTER
MAX_ADVANCE = 7
"""Characters at most that a frame (80 ms) moves on."""
MAX_WAITED = 15
"""Frames at one character above which the Talker no longer counts them."""


def as_characters(spelled: bytes) -> torch.Tensor:
    """UTF-8 -> (m,) int64, a number above 0 for each byte, ASCII letters in lower case."""
    return torch.tensor(list(spelled.lower()), dtype=torch.int64) + 1


def windows(characters: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The characters around places: (m,) int64 and (N,) int64 in 0..m -> (N, WINDOW), 0 outside the text."""
    padded = F.pad(characters, (BEFORE, AFTER + 1))
    return padded[places[:, None] + torch.arange(WINDOW, device=places.device)]


def waited(places: torch.Tensor) -> torch.Tensor:
    """Frames that the place has been the same for, before each of (N,) places; at most MAX_WAITED."""
    steps = torch.arange(len(places), device=places.device)
    moved = F.pad(places.diff() != 0, (1, 0), value=True)
    return (steps - torch.where(moved, steps, 0).cummax(0).values).clamp(max=MAX_WAITED)


@dataclass(frozen=True, kw_only=True)
class Text:
    """A whole text that is said."""

    states: torch.Tensor
    """(n, d_thinker) Thinker states over its subwords."""
    embeds: torch.Tensor
    """(n, d_thinker) token embeddings of the same."""
    characters: torch.Tensor
    """(m,) int64 of `as_characters`."""
    owners: torch.Tensor
    """(m,) int64: the subword of each character."""

    @classmethod
    def of(cls, states: torch.Tensor, embeds: torch.Tensor, spelled: Sequence[bytes]) -> Text:
        """From the UTF-8 of every subword."""
        lengths = torch.tensor([len(own) for own in spelled])
        return cls(
            states=states,
            embeds=embeds,
            characters=as_characters(b"".join(spelled)).to(states.device),
            owners=torch.arange(len(spelled)).repeat_interleave(lengths).to(states.device),
        )

    def at(self, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """What `Script` takes of the places (N,) int64 of an utterance's frames."""
        places = places.to(self.characters.device)
        inside = (places < len(self.characters))[:, None]
        owners = F.pad(self.owners, (0, 1))[places]
        states, embeds = (torch.where(inside, value[owners], 0.0) for value in (self.states, self.embeds))
        return states, embeds, windows(self.characters, places), waited(places)


class Script(nn.Module):
    """Text at a place -> condition of a frame. The place behind the last character is the end: silence, then nothing.

    A subword's pronunciation could be learnt only where it is frequent; spelled, rare ones sound like their letters.
    """

    def __init__(self, d_thinker: int, d: int) -> None:
        """d_thinker: width of the unified space. Characters start without effect: one never trained on has none."""
        super().__init__()
        self.from_state = linear(d_thinker, d)
        self.from_embed = linear(d_thinker, d)
        self.characters = nn.Parameter(torch.zeros(WINDOW, 257, d))
        self.waiting = table(MAX_WAITED + 1, d, std=0.1)

    def forward(
        self, states: torch.Tensor, embeds: torch.Tensor, around: torch.Tensor, waited: torch.Tensor
    ) -> torch.Tensor:
        """Conditions (N, d).

        states, embeds: (N, d_thinker) Thinker state and token embedding of the subword at each place, zeros at the end;
        around: (N, WINDOW) int64 of `windows`; waited: (N,) int64 of `waited`.
        """
        offsets = torch.arange(WINDOW, device=around.device) * self.characters.shape[1]
        spelled = F.embedding(around + offsets, self.characters.flatten(0, 1)).sum(1)
        return self.from_state(states) + self.from_embed(embeds) + spelled + F.embedding(waited, self.waiting)


class Reading:
    """A text while it is said, one utterance: what is known of it so far, and the place."""

    def __init__(self, script: Script) -> None:
        """Nothing is known yet."""
        weight = script.from_state.weight
        self._script = script
        # Subword 0 stands for the end, which none says.
        self._states, self._embeds = [weight.new_zeros(weight.shape[1])], [weight.new_zeros(weight.shape[1])]
        self._spelled, self._owners = b"", list[int]()
        # Steps move it on by a mean number of characters; half a one ahead, rounding down is rounding.
        self._place, self._waited = 0.5, 0
        self._whole = False

    def add(self, state: torch.Tensor, embed: torch.Tensor, spelled: bytes) -> None:
        """A subword more: Thinker state and token embedding, (d_thinker,) both, and its UTF-8."""
        self._owners += [len(self._states)] * len(spelled)
        self._states.append(state)
        self._embeds.append(embed)
        self._spelled += spelled

    def end(self) -> None:
        """No more subwords will come."""
        self._whole = True

    @property
    def ready(self) -> bool:
        """Whether the next frame can be said: what it is told of the text is known, and there is some of it left."""
        known = self._whole or int(self._place) + AFTER < len(self._spelled)
        return known and not self.over

    @property
    def over(self) -> bool:
        """Whether the end is past."""
        return self._whole and int(self._place) > len(self._spelled)

    @property
    def place(self) -> int:
        """The character the next frame is at: the number of characters when that is the end, or past."""
        return min(int(self._place), len(self._spelled))

    def condition(self) -> torch.Tensor:
        """(1, d) of `Script` at the place; at the end when that is past."""
        place = self.place
        owner = self._owners[place] if place < len(self._spelled) else 0
        device = self._states[0].device
        around = windows(as_characters(self._spelled), torch.tensor([place]))
        return self._script(
            self._states[owner][None],
            self._embeds[owner][None],
            around.to(device),
            torch.tensor([self._waited], device=device),
        )

    def advance(self, n: float) -> None:
        """Move on by so many characters, a mean as `Talker.step` gives it."""
        before = int(self._place)
        self._place += n
        self._waited = min(self._waited + 1, MAX_WAITED) if int(self._place) == before else 0
