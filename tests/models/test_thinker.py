"""The Thinker: isolation of documents, prefill and decode, gradients, mixture of experts."""

import dataclasses

import pytest
import torch

from muomni import recipes
from muomni.config import ThinkerConfig
from muomni.models.fuse import place_features
from muomni.models.thinker import Thinker
from muomni.tokens import IGNORE_INDEX

CFG = ThinkerConfig(vocab_size=300, d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=128)
MOE = dataclasses.replace(CFG, n_experts=4, n_active_experts=2)


def _row(lengths: list[int], *, cfg: ThinkerConfig = CFG) -> dict[str, torch.Tensor]:
    positions = torch.cat([torch.arange(n) for n in lengths])
    return {
        "ids": torch.randint(0, cfg.vocab_size, (sum(lengths),)),
        "positions": positions[:, None].expand(-1, 3),
        "cu_seqlens": torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()] + [sum(lengths)] * 2).int(),
    }


def _hidden(model: Thinker, row: dict[str, torch.Tensor], max_seqlen: int = 64) -> torch.Tensor:
    return model(model.embed(row["ids"]), row["positions"], row["cu_seqlens"], max_seqlen)


@pytest.mark.parametrize("cfg", [CFG, MOE], ids=["dense", "moe"])
@torch.no_grad()
def test_changing_one_document_changes_no_logit_of_another(cfg: ThinkerConfig) -> None:
    torch.manual_seed(0)
    model, row = Thinker(cfg).eval(), _row([17, 30, 9])
    before = model.logits(_hidden(model, row))
    row["ids"][17:47] = torch.randint(0, cfg.vocab_size, (30,))
    after = model.logits(_hidden(model, row))
    assert torch.allclose(before[:17], after[:17], atol=1e-6, rtol=0)
    assert torch.allclose(before[47:], after[47:], atol=1e-6, rtol=0)
    assert (before[17:47] - after[17:47]).abs().max() > 0.1


@torch.no_grad()
def test_packed_documents_equal_each_document_alone() -> None:
    torch.manual_seed(0)
    model, row = Thinker(CFG).eval(), _row([5, 33, 12])
    packed = _hidden(model, row)
    for start, stop in ((0, 5), (5, 38), (38, 50)):
        cu = torch.tensor([0, stop - start], dtype=torch.int32)
        alone = model(model.embed(row["ids"][start:stop]), row["positions"][start:stop], cu, 64)
        assert torch.allclose(packed[start:stop], alone, atol=1e-5)


@torch.no_grad()
def test_a_later_token_changes_no_earlier_state() -> None:
    torch.manual_seed(0)
    model, row = Thinker(CFG).eval(), _row([24])
    before = _hidden(model, row)
    row["ids"][15] = (row["ids"][15] + 1) % CFG.vocab_size
    after = _hidden(model, row)
    assert torch.allclose(before[:15], after[:15], atol=1e-6, rtol=0)
    assert (before[15:] - after[15:]).abs().amax(1).min() > 1e-4


@pytest.mark.parametrize("cfg", [CFG, MOE], ids=["dense", "moe"])
@torch.no_grad()
def test_prefill_and_decode_equal_the_full_forward_with_media_positions(cfg: ThinkerConfig) -> None:
    torch.manual_seed(0)
    model, row = Thinker(cfg).eval(), _row([26], cfg=cfg)
    # A picture of CLS and a 2 x 2 grid at positions 4..8, as the template writes it.
    places = [(t, t, t) for t in range(5)] + [(5, 5 + r, 5 + c) for r in range(2) for c in range(2)]
    places += [(t, t, t) for t in range(7, 24)]
    positions = torch.tensor(places)
    features = torch.randn(5, cfg.d_model)
    embeds = place_features(model.embed(row["ids"]), features, torch.arange(4, 9))
    full = model(embeds, positions, torch.tensor([0, 26], dtype=torch.int32), 512)
    for prefill in (1, 7, 25):
        cache = model.new_cache(1, 26)
        parts = [model.step(embeds[None, :prefill], positions[None, :prefill], cache)]
        for t in range(prefill, 26):
            parts.append(model.step(embeds[None, t : t + 1], positions[None, t : t + 1], cache))
        assert torch.allclose(torch.cat(parts, dim=1)[0], full, atol=1e-5)
        with pytest.raises(ValueError, match="do not fit"):
            model.step(embeds[None, :1], positions[None, :1], cache)


@pytest.mark.parametrize("cfg", [CFG, MOE], ids=["dense", "moe"])
def test_every_parameter_gets_a_gradient(cfg: ThinkerConfig) -> None:
    torch.manual_seed(0)
    model, row = Thinker(cfg), _row([40, 60])
    logits = model.logits(_hidden(model, row))
    loss = torch.nn.functional.cross_entropy(logits, row["ids"].roll(-1)) + 0.01 * model.balance_loss()
    loss.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name
    if cfg.n_experts:
        for name, p in model.named_parameters():
            if name.endswith(("ff.gate_up", "ff.down")):
                assert p.grad is not None
                assert (p.grad.flatten(1).abs().sum(1) > 0).all(), f"an expert of {name} got no gradient"


@torch.no_grad()
def test_cross_entropy_equals_that_of_the_logits() -> None:
    torch.manual_seed(0)
    model, row = Thinker(CFG), _row([40, 60])
    hidden, labels = _hidden(model, row), row["ids"].roll(-1)
    labels[30:45] = IGNORE_INDEX
    logits, target = model.logits(hidden), labels != IGNORE_INDEX
    labels[:5] = logits[:5].argmax(-1)
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORE_INDEX)
    loss, count = model.cross_entropy(hidden, labels)
    assert loss.item() == pytest.approx(expected.sum().item(), rel=1e-5) and count.item() == 85
    losses, likeliest = model.cross_entropy(hidden, labels, reduction="none")
    assert torch.allclose(losses, expected, atol=1e-5)
    assert torch.equal(likeliest, target & (logits.argmax(-1) == labels)) and likeliest.sum() >= 5


def test_balance_loss_is_zero_when_dense_and_about_one_at_the_start_with_experts() -> None:
    torch.manual_seed(0)
    assert Thinker(CFG).balance_loss().item() == 0.0
    model = Thinker(MOE)
    _hidden(model, _row([64]))
    assert 0.9 < model.balance_loss().item() < 2.0


@pytest.mark.parametrize("size", ["nano", "tiny"])
@torch.no_grad()
def test_initial_loss_is_near_that_of_a_uniform_guess(size: str) -> None:
    torch.manual_seed(0)
    cfg = recipes.model(size).thinker
    model, row = Thinker(cfg), _row([128], cfg=cfg)
    hidden = _hidden(model, row, 128)
    loss = torch.nn.functional.cross_entropy(model.logits(hidden)[:-1], row["ids"][1:]).item()
    uniform = torch.tensor(float(cfg.vocab_size)).log().item()
    assert uniform - 0.2 < loss < uniform + 1.0
    assert model.embed(row["ids"]).square().mean().sqrt().item() == pytest.approx(1.0, abs=0.1)


def _copying(cfg: ThinkerConfig, *, steps: int) -> float:
    """Nats a token of the second half of documents whose halves are the same 6 to 19 random tokens, after training."""
    torch.manual_seed(0)
    model = Thinker(cfg)
    optimizer, loss = torch.optim.AdamW(model.parameters(), lr=5e-3), torch.zeros(())
    for _ in range(steps):
        halves = [torch.randperm(64)[:n] for n in torch.randint(6, 20, (16,)).tolist()]
        lengths = [2 * len(half) for half in halves]
        ids = torch.cat([half.repeat(2) for half in halves])
        blank = torch.full((20,), IGNORE_INDEX)
        labels = torch.cat([torch.cat([blank[: len(half)], half[1:], blank[:1]]) for half in halves])
        cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
        positions = torch.cat([torch.arange(n) for n in lengths])[:, None].expand(-1, 3)
        total, n_targets = model.cross_entropy(model(model.embed(ids), positions, cu, 40), labels)
        optimizer.zero_grad()
        (loss := total / n_targets).backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize(
    ("changes", "learnt"),
    [({"mix_kernel": 1}, True), ({"late_keys": False}, True), ({"late_keys": False, "mix_kernel": 1}, False)],
    ids=["late keys", "mixed inputs", "neither"],
)
def test_copying_is_learnt_in_a_hundred_and_fifty_steps_by_either_and_not_without(
    changes: dict[str, int], learnt: bool
) -> None:
    cfg = ThinkerConfig(vocab_size=64, d_model=64, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=32, d_ff=128)
    found = _copying(dataclasses.replace(cfg, **changes), steps=150)
    assert found < 0.3 if learnt else found > 3.0
