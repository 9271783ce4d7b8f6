"""Sampling: greedy, top-k and top-p against their definitions; seeds; forbidden ids."""

import pytest
import torch

from muomni.infer.sampling import Sampler, Sampling, keep_likely

CPU = torch.device("cpu")


def test_greedy_is_argmax_without_forbidden_ids() -> None:
    logits = torch.tensor([[9.0, 1.0, 5.0, 2.0], [0.0, 3.0, 2.0, 8.0]])
    sampler = Sampler(Sampling(), seed=0, device=CPU, forbidden=[0, 3])
    assert sampler(logits).tolist() == [2, 1]
    assert logits[0, 0] == 9.0


def test_top_k_keeps_exactly_k_even_with_ties() -> None:
    kept = keep_likely(torch.tensor([1.0, 1.0, 1.0, 0.0]), top_k=2)
    assert torch.isfinite(kept).sum() == 2
    assert kept[3] == float("-inf")


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    p = torch.tensor([0.1, 0.5, 0.15, 0.25])
    kept = torch.isfinite(keep_likely(p.log(), top_p=0.7))
    assert kept.tolist() == [False, True, False, True]
    assert torch.isfinite(keep_likely(p.log(), top_p=1e-6)).tolist() == [False, True, False, False]
    assert torch.isfinite(keep_likely(p.log(), top_p=1.0)).all()


def test_min_p_keeps_what_is_probable_beside_the_likeliest() -> None:
    p = torch.tensor([[0.1, 0.5, 0.15, 0.25], [0.04, 0.02, 0.9, 0.04]])
    kept = torch.isfinite(keep_likely(p.log(), min_p=0.3 - 1e-6))
    assert kept.tolist() == [[False, True, True, True], [False, False, True, False]]
    # Beside top-k: what both leave.
    assert torch.isfinite(keep_likely(p.log(), min_p=0.25, top_k=2))[0].tolist() == [False, True, False, True]


def test_ids_chosen_before_are_less_likely_in_their_own_row() -> None:
    logits = torch.tensor([[4.0, 3.0, -1.0], [-1.0, -1.5, -9.0]])
    sampler = Sampler(Sampling(repetition_penalty=2.0), seed=0, device=CPU)
    # 4 becomes 2 and is less than 3; 3 becomes 1.5, and 2 is the most again. -1 becomes -2, -1.5 becomes -3.
    assert [sampler(logits).tolist() for _ in range(4)] == [[0, 0], [1, 1], [0, 0], [0, 0]]
    assert logits[0, 0] == 4.0
    assert Sampler(Sampling(), seed=0, device=CPU)(logits).tolist() == [0, 0]


def test_samples_follow_the_tempered_distribution_within_the_kept_ids() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    sampler = Sampler(Sampling(temperature=0.5, top_k=3), seed=1, device=CPU)
    drawn = torch.bincount(sampler(logits.expand(20_000, 4)), minlength=4) / 20_000
    weights = torch.tensor([2.0, 1.0, 0.0]).mul(2).exp()
    assert torch.allclose(drawn[:3], weights / weights.sum(), atol=0.01)
    assert drawn[3] == 0


def test_a_seed_repeats_its_choices_whatever_the_global_state() -> None:
    logits = torch.zeros(500, 50)
    first = Sampler(Sampling(temperature=1.0), seed=7, device=CPU)(logits)
    torch.rand(3)
    assert torch.equal(first, Sampler(Sampling(temperature=1.0), seed=7, device=CPU)(logits))
    assert not torch.equal(first, Sampler(Sampling(temperature=1.0), seed=8, device=CPU)(logits))


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
