"""Sampling: greedy, top-k, top-p and min-p against their definitions; seeds; rows that know nothing of one another."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from muomni.infer.sampling import Sampler, Sampling, gumbel, keep_likely

CPU = torch.device("cpu")


def _sampler(*settings: Sampling, seeds: tuple[int, ...] = (), forbidden: tuple[int, ...] = ()) -> Sampler:
    sampler = Sampler(len(settings), device=CPU, forbidden=forbidden)
    for row, own in enumerate(settings):
        sampler.replace(row, own, seed=seeds[row] if seeds else 0)
    return sampler


def _kept(logits: torch.Tensor, **settings: object) -> list[set[int]]:
    kept, ids = keep_likely(logits, **settings)  # type: ignore[arg-type]
    rows = zip(kept, ids.expand_as(kept), strict=True)
    return [set(own[torch.isfinite(values)].tolist()) for values, own in rows]


def test_greedy_is_argmax_without_forbidden_ids() -> None:
    logits = torch.tensor([[9.0, 1.0, 5.0, 2.0], [0.0, 3.0, 2.0, 8.0]])
    assert _sampler(Sampling(), Sampling(), forbidden=(0, 3))(logits).tolist() == [2, 1]
    assert logits[0, 0] == 9.0


def test_top_k_keeps_exactly_k_even_with_ties() -> None:
    (kept,) = _kept(torch.tensor([[1.0, 1.0, 1.0, 0.0]]), top_k=2)
    assert len(kept) == 2 and 3 not in kept


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    p = torch.tensor([[0.1, 0.5, 0.15, 0.25]])
    assert _kept(p.log(), top_p=0.7) == [{1, 3}]
    assert _kept(p.log(), top_p=1e-6) == [{1}]
    assert _kept(p.log(), top_p=1.0) == [{0, 1, 2, 3}]
    # Of the three that top-k leaves, 0.5 / 0.9 is the first to reach 0.55.
    assert _kept(p.log(), top_k=3, top_p=0.55) == [{1}]


def test_min_p_keeps_what_is_probable_beside_the_likeliest() -> None:
    p = torch.tensor([[0.1, 0.5, 0.15, 0.25], [0.04, 0.02, 0.9, 0.04]])
    least = torch.full((2, 1), math.log(0.3 - 1e-6))
    assert _kept(p.log(), least=least) == [{1, 2, 3}, {2}]
    assert _kept(p.log(), least=least, top_k=2) == [{1, 3}, {2}]


def test_ids_chosen_before_are_less_likely_in_their_own_row() -> None:
    logits = torch.tensor([[4.0, 3.0, -1.0], [-1.0, -1.5, -9.0]])
    sampler = _sampler(Sampling(repetition_penalty=2.0), Sampling(repetition_penalty=2.0))
    # 4 becomes 2 and is less than 3; 3 becomes 1.5, and 2 is the most again. -1 becomes -2, -1.5 becomes -3.
    assert [sampler(logits).tolist() for _ in range(4)] == [[0, 0], [1, 1], [0, 0], [0, 0]]
    assert logits[0, 0] == 4.0
    sampler.replace(0, Sampling(repetition_penalty=2.0), seed=0)
    assert [sampler(logits).tolist() for _ in range(2)] == [[0, 0], [1, 0]]
    assert _sampler(Sampling(), Sampling())(logits).tolist() == [0, 0]


def _drawn(sampler: Sampler, logits: torch.Tensor, n: int) -> torch.Tensor:
    chosen = torch.stack([sampler(logits) for _ in range(n)])
    return torch.stack([torch.bincount(own, minlength=logits.shape[1]) for own in chosen.T]) / n


def test_samples_follow_the_tempered_distribution_within_the_kept_ids() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    rows = 500
    sampler = _sampler(*[Sampling(temperature=0.5, top_k=3)] * rows, seeds=tuple(range(rows)))
    drawn = _drawn(sampler, logits.expand(rows, 4), 40)
    weights = torch.tensor([2.0, 1.0, 0.0]).mul(2).exp()
    # 20,000 choices: three standard deviations of a share of a half are 0.011.
    torch.testing.assert_close(drawn.mean(0)[:3], weights / weights.sum(), atol=0.011, rtol=0)
    assert drawn[:, 3].sum() == 0


def test_noise_is_gumbel_and_differs_for_every_seed_count_and_id() -> None:
    seeds, counts = torch.arange(50)[:, None], torch.zeros(50, 1, dtype=torch.int64)
    noise = torch.cat([gumbel(seeds, counts + count, torch.arange(200)[None]) for count in range(4)])
    # Mean: Euler's constant. Variance: pi^2 / 6. 40,000 numbers: four standard errors.
    assert abs(float(noise.mean()) - 0.577216) < 0.026
    assert abs(float(noise.var()) - math.pi**2 / 6) < 0.09
    assert len(noise.flatten().unique()) > 39_800
    flat = noise - noise.mean()
    for shift in ((0, 1), (1, 0), (50, 0)):
        assert abs(float((flat * flat.roll(shift, (0, 1))).mean())) < 0.04


def test_a_seed_repeats_its_choices_whatever_the_global_state() -> None:
    logits = torch.zeros(1, 50)

    def drawn(seed: int) -> list[int]:
        sampler = _sampler(Sampling(temperature=1.0), seeds=(seed,))
        return [int(sampler(logits)) for _ in range(200)]

    first = drawn(7)
    torch.rand(3)
    assert first == drawn(7)
    assert first != drawn(8)
    assert drawn(-1) == drawn((1 << 64) - 1) != drawn(1)


WAYS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.7, 1.3]),
    top_k=st.sampled_from([None, 1, 5, 400]),
    top_p=st.sampled_from([None, 0.3, 0.9]),
    min_p=st.sampled_from([None, 0.05]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
)


@given(ways=st.lists(WAYS, min_size=2, max_size=5), seed=st.integers(0, 1_000), data=st.data())
def test_a_row_chooses_what_it_chooses_alone(ways: list[Sampling], seed: int, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(seed)
    together = _sampler(*ways, seeds=tuple(range(len(ways))), forbidden=(2,))
    alone = [_sampler(own, seeds=(row,), forbidden=(2,)) for row, own in enumerate(ways)]
    for _ in range(4):
        rows = data.draw(st.lists(st.sampled_from(range(len(ways))), unique=True, min_size=1))
        logits = 3.0 * torch.randn(len(rows), 60, generator=generator)
        expected = [int(alone[row](own[None])) for row, own in zip(rows, logits, strict=True)]
        assert together(logits, rows).tolist() == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}, {"min_p": 0.0}, {"min_p": 1.1},
        {"repetition_penalty": 0.0},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        Sampling(**settings)
