"""When each character of a text is said: the best path through CTC's outputs, and the Talker's walk along it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from muomni.models.audio import AudioEncoder, CTCHead, log_probs
from muomni.models.script import MAX_ADVANCE

_BLANK = 0
CLIPS_AT_ONCE = 32


@torch.no_grad()
def begins(
    encoder: AudioEncoder, head: CTCHead, clips: Sequence[torch.Tensor], spelled: Sequence[torch.Tensor]
) -> list[torch.Tensor | None]:
    """When each character of each clip's text is said, as CTC hears it; None for a text that does not fit its clip.

    clips: (n, factor * n_mels) normalised log-mel of each; spelled: (m,) int64 CTC symbol of each character, 0 for one
    that is not heard. Returns (m + 1,) int64 log-mel frames on the CPU, the last one the end of speech; see `walk`.
    """
    factor = encoder.cfg.factor
    result: list[torch.Tensor | None] = [None] * len(clips)
    able = [
        i for i, (clip, own) in enumerate(zip(clips, spelled, strict=True))
        if len(own) <= MAX_ADVANCE * (len(clip) - 1) and _fits(own[own != _BLANK], len(clip) * head.expand)
    ]  # fmt: skip
    # The best paths of clips of one length take the fewest steps.
    able.sort(key=lambda i: len(clips[i]))
    for chosen in (able[at : at + CLIPS_AT_ONCE] for at in range(0, len(able), CLIPS_AT_ONCE)):
        heard = log_probs(encoder, head, [clips[i] for i in chosen])
        paths = ctc_path(heard, [spelled[i][spelled[i] != _BLANK] for i in chosen])
        for i, path in zip(chosen, paths, strict=True):
            result[i] = _starts(spelled[i], path) * (factor // head.expand)
    return result


def _fits(targets: torch.Tensor, n_positions: int) -> bool:
    """Whether there are symbols, one position for each and one more between equal neighbours."""
    return 0 < len(targets) + int((targets[1:] == targets[:-1]).sum()) <= n_positions


@torch.no_grad()
def ctc_path(log_probs: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The likeliest alignment of each clip (Viterbi over CTC's states).

    log_probs: (T, n_symbols) of each clip, symbol 0 the blank; targets: (n,) int64, n > 0, of each.
    Returns (n + 1,) int64 on the CPU for each: the position of every symbol's first appearance, and the one behind the
    last symbol's last. Raises ValueError for a target that does not fit its clip.
    """
    lengths = torch.tensor([len(own) for own in log_probs])
    counts = torch.tensor([len(own) for own in targets])
    for own, wanted in zip(log_probs, targets, strict=True):
        if not _fits(wanted, len(own)):
            raise ValueError(f"targets: {len(wanted)} symbols do not fit {len(own)} positions.")
    emitted = nn.utils.rnn.pad_sequence([own.float().cpu() for own in log_probs])
    symbols = nn.utils.rnn.pad_sequence([own.cpu() for own in targets], batch_first=True)
    n_clips, n_states = len(lengths), 2 * symbols.shape[1] + 1
    # State 2 i + 1 is symbol i, even ones are blanks.
    states = symbols.new_zeros(n_clips, n_states)
    states[:, 1::2] = symbols
    may_skip = F.pad((states[:, 2:] != states[:, :-2]) & (states[:, 2:] != _BLANK), (2, 0))
    emitted = emitted.gather(2, states.expand(len(emitted), -1, -1))
    impossible = torch.tensor(-torch.inf)
    score = emitted[0].clone()
    score[:, 2:] = impossible
    steps = torch.zeros(emitted.shape, dtype=torch.uint8)
    for t in range(1, len(emitted)):
        one = F.pad(score[:, :-1], (1, 0), value=-torch.inf)
        two = torch.where(may_skip, F.pad(score[:, :-2], (2, 0), value=-torch.inf), impossible)
        best, step = torch.stack([score, one, two]).max(0)
        goes_on = (t < lengths)[:, None]
        score = torch.where(goes_on, best + emitted[t], score)
        steps[t] = torch.where(goes_on, step, 0)
    last = 2 * counts[:, None]
    at = last - (score.gather(1, last - 1) > score.gather(1, last)).long()
    path = torch.empty(len(emitted), n_clips, dtype=torch.int64)
    for t in reversed(range(len(emitted))):
        path[t] = at[:, 0]
        at = at - steps[t].gather(1, at).long()
    result: list[torch.Tensor] = []
    for own, length, count in zip(path.T.contiguous(), lengths.tolist(), counts.tolist(), strict=True):
        found = own[:length].contiguous()
        first = torch.searchsorted(found, 2 * torch.arange(count) + 1)
        result.append(torch.cat([first, torch.searchsorted(found, torch.tensor([2 * count]))]))
    return result


def _starts(spelled: torch.Tensor, path: torch.Tensor) -> torch.Tensor:
    """Positions (m + 1,) of characters, one that is not heard where the next one is, and of the end."""
    result = torch.full((len(spelled) + 1,), int(path[-1]))
    result[:-1][spelled != _BLANK] = path[:-1]
    return result.flip(0).cummin(0).values.flip(0)


def walk(times: torch.Tensor, n_frames: int, *, factor: int, shift: int = 0) -> torch.Tensor:
    """The place at every frame, (n_frames,) int64: the character being said in its middle, from 0 to m, the end.

    times: (m + 1,) of `begins`; factor: log-mel frames a frame; shift: log-mel frames by which the
    recording was moved back. It begins at 0, ends at m and moves on by at most MAX_ADVANCE.
    Raises ValueError when the frames are too few for that.
    """
    n_characters, frames = len(times) - 1, torch.arange(n_frames)
    if n_characters > MAX_ADVANCE * (n_frames - 1):
        raise ValueError(f"times: {n_characters} characters do not fit {n_frames} frames.")
    middles = frames * factor + factor // 2 - shift
    places = (torch.searchsorted(times, middles, right=True) - 1).clamp(min=0)
    places = torch.maximum(places, n_characters - MAX_ADVANCE * (n_frames - 1 - frames))
    return (places - MAX_ADVANCE * frames).clamp(max=0).cummin(0).values + MAX_ADVANCE * frames


def advances(places: torch.Tensor) -> torch.Tensor:
    """How far each frame's place is from the next one's, (n_frames,) int64; the last one goes 1 past the end."""
    return F.pad(places.diff(), (0, 1), value=1)
