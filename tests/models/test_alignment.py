"""When characters are said: the best CTC path against all of them, characters that are not heard, the walk."""

import itertools

import pytest
import torch

from muomni import recipes
from muomni.models.alignment import advances, begins, ctc_path, walk
from muomni.models.audio import AudioEncoder, CTCHead
from muomni.models.script import MAX_ADVANCE

NANO = recipes.model("nano")


def _all_paths(target: list[int], length: int) -> list[tuple[int, ...]]:
    """Every row of symbols and blanks that CTC reads as the target."""
    symbols = sorted({0, *target})
    found = itertools.product(symbols, repeat=length)
    return [p for p in found if [s for s, _ in itertools.groupby(p) if s] == target]


@pytest.mark.parametrize("target", [[1], [1, 2], [2, 2], [1, 2, 1], [1, 1, 2, 2], [3, 1, 2, 3, 1]])
def test_the_path_is_the_likeliest_of_all(target: list[int]) -> None:
    generator = torch.Generator().manual_seed(len(target))
    for _ in range(5):
        log_probs = (2 * torch.randn(7, 4, generator=generator)).log_softmax(-1)
        best = max(_all_paths(target, 7), key=lambda p: float(log_probs[range(7), p].sum()))
        expected: list[int] = []
        end = 0
        for t, symbol in enumerate(best):
            if symbol:
                end = t + 1
                if t == 0 or best[t - 1] != symbol:
                    expected.append(t)
        (found,) = ctc_path([log_probs], [torch.tensor(target)])
        assert found.tolist() == [*expected, end], best


def test_clips_of_other_lengths_do_not_change_a_path() -> None:
    generator = torch.Generator().manual_seed(0)
    clips = [torch.randn(n, 6, generator=generator).log_softmax(-1) for n in (9, 30, 4, 17)]
    targets = [torch.randint(1, 6, (n,), generator=generator) for n in (3, 12, 1, 5)]
    together = ctc_path(clips, targets)
    for clip, target, found in zip(clips, targets, together, strict=True):
        assert torch.equal(ctc_path([clip], [target])[0], found)
        assert (
            len(found) == len(target) + 1 and bool((found.diff() > 0).all()) and int(found[-1]) <= len(clip)
        )


@pytest.mark.parametrize("target", [[], [1, 1, 1], [1, 2, 1, 2, 1]])
def test_a_target_that_does_not_fit_is_an_error(target: list[int]) -> None:
    with pytest.raises(ValueError, match=f"{len(target)} symbols do not fit 4 positions"):
        ctc_path([torch.zeros(4, 3)], [torch.tensor(target, dtype=torch.int64)])


def _heard(symbols: list[int]) -> tuple[AudioEncoder, CTCHead, torch.Tensor]:
    """An encoder and a head that hear these symbols, one at each position, whatever the clip."""
    torch.manual_seed(0)
    encoder, head = AudioEncoder(NANO.audio, 128).eval(), CTCHead(NANO.audio.d_model, 4)
    torch.nn.init.zeros_(head.out.weight)
    n_frames = len(symbols) // 4
    table = torch.full((n_frames, 4, head.n_symbols), -9.0)
    table.view(-1, head.n_symbols)[range(len(symbols)), symbols] = 9.0

    def forward(x: torch.Tensor) -> torch.Tensor:
        return table.repeat(len(x) // n_frames, 1, 1).view(-1, head.n_symbols)

    head.forward = forward  # type: ignore[method-assign]
    return encoder, head, torch.randn(n_frames, 8 * 128)


def test_a_character_that_is_not_heard_begins_with_the_next() -> None:
    #               0  1  2  3  4  5  6  7  8  9 10 11
    encoder, head, clip = _heard([0, 5, 5, 0, 6, 0, 0, 7, 7, 0, 0, 0])
    said = torch.tensor([5, 0, 6, 0, 0, 7, 0])
    (found,) = begins(encoder, head, [clip], [said])
    assert found is not None
    # In log-mel frames: two for each of the four positions of a frame.
    assert found.tolist() == [2, 8, 8, 14, 14, 14, 18, 18]


def test_clips_whose_text_does_not_fit_are_told() -> None:
    encoder, head, clip = _heard([0, 5, 0, 6, 0, 0, 0, 7])
    fits = torch.tensor([5, 6, 7])
    never_heard, too_much = torch.zeros(5, dtype=torch.int64), torch.tensor([1, 2] * 5)
    many = torch.tensor([5, *[0] * MAX_ADVANCE])
    found = begins(encoder, head, [clip] * 5, [fits, never_heard, too_much, many, fits])
    assert [one is None for one in found] == [False, True, True, True, False]
    assert found[0] is not None and found[4] is not None and torch.equal(found[0], found[4])
    assert found[0].tolist() == [2, 6, 14, 16]


def _walked(times: list[int], n_frames: int, shift: int) -> list[int]:
    """By its definition, frame after frame."""
    m, places = len(times) - 1, []
    for t in range(n_frames):
        middle = 8 * t + 4 - shift
        place = max(sum(b <= middle for b in times) - 1, 0)
        place = max(place, m - MAX_ADVANCE * (n_frames - 1 - t))
        places.append(min(place, places[-1] + MAX_ADVANCE if places else 0))
    return places


def test_the_walk_is_what_its_definition_says() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        n_frames = int(torch.randint(2, 20, (), generator=generator))
        m = int(torch.randint(1, MAX_ADVANCE * (n_frames - 1) + 1, (), generator=generator))
        times = torch.randint(8 * n_frames, (m + 1,), generator=generator).sort().values
        shift = int(torch.randint(8, (), generator=generator))
        places = walk(times, n_frames, factor=8, shift=shift)
        assert places.tolist() == _walked(times.tolist(), n_frames, shift)
        assert places[0] == 0 and places[-1] == m
        moved = advances(places)
        assert moved.tolist() == [*places.diff().tolist(), 1]
        assert int(moved.min()) >= 0 and int(moved.max()) <= MAX_ADVANCE


def test_a_walk_through_too_few_frames_is_an_error() -> None:
    with pytest.raises(ValueError, match="15 characters do not fit 3 frames"):
        walk(torch.arange(16), 3, factor=8)
