"""Residual vector quantisation and how its codebooks learn."""

import itertools

import pytest
import torch

from muomni.models.quantize import ResidualVQ


def _trained(n: int = 2_000, *, steps: int = 30, size: int = 32) -> tuple[ResidualVQ, torch.Tensor]:
    torch.manual_seed(0)
    vq = ResidualVQ(6, n_codebooks=4, codebook_size=size, ema_decay=0.9)
    z = torch.randn(n, 6) * torch.tensor([3.0, 2.0, 1.0, 1.0, 0.5, 0.2])
    for _ in range(steps):
        vq(z)
        vq.commit()
    return vq.eval(), z


def test_codes_are_greedy_over_the_residual_and_decode_inverts_them() -> None:
    vq, z = _trained()
    out = vq(z)
    residual = z.double()
    for level, codebook in enumerate(vq.codebooks.double()):
        best = (residual[:, None] - codebook).square().sum(-1).argmin(-1)
        assert (out.codes[:, level] == best).float().mean() > 0.999
        residual = residual - codebook[out.codes[:, level]]
    assert torch.allclose(vq.decode(out.codes), out.quantised, atol=1e-5)
    assert torch.equal(vq.encode(z), out.codes)


def test_each_level_reduces_the_error() -> None:
    vq, z = _trained()
    codes = vq.encode(z)
    errors = [(z - vq.decode(codes[:, :k])).square().mean().item() for k in range(1, 5)]
    errors = [z.square().mean().item(), *errors]
    assert all(after < 0.7 * before for before, after in itertools.pairwise(errors))


def test_gradient_is_straight_through_and_commitment_pulls_towards_the_codeword() -> None:
    vq, z = _trained()
    z = z[:50].clone().requires_grad_()
    out = vq(z, n_active=2)
    weight = torch.randn(50, 6)
    (out.quantised * weight).sum().backward()
    assert z.grad is not None
    assert torch.equal(z.grad, weight)
    z.grad = None
    vq(z, n_active=1).commitment.backward()
    word = vq.decode(out.codes[:, :1])
    assert torch.allclose(z.grad, 2 * (z - word) / 6, atol=1e-5)


def test_n_active_uses_exactly_the_first_levels() -> None:
    vq, z = _trained()
    for k in (1, 3):
        out = vq(z, n_active=k)
        assert torch.allclose(out.quantised, vq.decode(out.codes[:, :k]), atol=1e-5)
    with pytest.raises(ValueError, match="n_active"):
        vq(z, n_active=5)
    with pytest.raises(ValueError, match="codes"):
        vq.decode(torch.zeros(3, 5, dtype=torch.int64))


def test_commit_of_one_batch_equals_commit_of_its_micro_batches() -> None:
    vq, z = _trained(steps=3)
    state = {k: v.clone() for k, v in vq.state_dict().items()}
    results = []
    for sizes in ([2_000], [700, 1_300], [1] * 10 + [1_990]):
        vq.load_state_dict(state)
        vq.train()
        for part in z.split(sizes):
            vq(part, valid=torch.arange(len(part)) % 5 != 4 if len(part) == 0 else None)
        vq.commit()
        results.append(vq.codebooks.clone())
    assert (results[0] - state["codebooks"]).abs().max() > 1e-4
    for other in results[1:]:
        assert torch.allclose(results[0], other, atol=1e-5)


def test_commit_moves_codebooks_by_the_moving_average() -> None:
    vq, z = _trained(steps=5, size=4)
    counts, sums = vq.mean_counts.clone(), vq.mean_sums.clone()
    vq.train()
    codes = vq(z).codes[:, 0]
    vq.commit()
    for code in range(4):
        mine = z[codes == code]
        # Commit 5 of the warm-up keeps (1 + 5) / (20 + 5).
        count = 0.24 * counts[0, code] + 0.76 * len(mine)
        expected = (0.24 * sums[0, code] + 0.76 * mine.sum(0)) / count
        assert torch.allclose(vq.codebooks[0, code], expected, atol=1e-4)


def test_invalid_rows_count_for_nothing() -> None:
    vq, z = _trained(steps=3)
    state = {k: v.clone() for k, v in vq.state_dict().items()}
    vq.train()
    out = vq(z[:100])
    vq.commit()
    expected = vq.codebooks.clone()
    vq.load_state_dict(state)
    valid = torch.zeros(200, dtype=torch.bool)
    valid[50:150] = True
    padded = vq(torch.cat([z[500:550] * 9, z[:100], z[600:650] * 9]), valid=valid)
    vq.commit()
    assert torch.allclose(padded.commitment, out.commitment, rtol=1e-5)
    assert torch.allclose(vq.codebooks, expected, atol=1e-6)


def test_a_dead_code_is_replaced_by_a_vector_of_the_step_and_used_again() -> None:
    vq, z = _trained()
    vq.train()
    vq.codebooks[0, 7] = 1_000.0
    vq.mean_sums[0, 7] = 1_000.0 * vq.mean_counts[0, 7]
    for _ in range(40):
        codes = vq(z).codes[:, 0]
        vq.commit()
    assert vq.codebooks[0, 7].abs().max() < 20.0
    assert (codes == 7).sum() > 0
    assert vq.usage()["used"].min() == 1.0


def test_first_commit_starts_from_the_data_even_with_fewer_vectors_than_codes() -> None:
    torch.manual_seed(0)
    vq = ResidualVQ(4, n_codebooks=2, codebook_size=64, ema_decay=0.98)
    z = torch.randn(20, 4) + 50.0
    before = (vq(z).quantised - z).abs().mean()
    vq.commit()
    after = (vq.decode(vq.encode(z)) - z).abs().mean()
    assert before > 10.0
    assert after < 0.1
    assert vq.codebooks.isfinite().all()


def test_eval_mode_gathers_nothing_and_a_non_finite_vector_never_reaches_the_codebooks() -> None:
    vq, z = _trained()
    before = vq.codebooks.clone()
    vq(z)
    vq.commit()
    assert torch.equal(vq.codebooks, before)
    vq.train()
    bad = z.clone()
    bad[3] = float("nan")
    vq(bad)
    vq.commit()
    assert vq.codebooks.isfinite().all()


def test_perplexity_of_equal_use_is_the_number_of_codes() -> None:
    vq, _ = _trained()
    vq.mean_counts.fill_(3.0)
    assert torch.allclose(vq.usage()["perplexity"], torch.full((4,), 32.0), atol=1e-3)
