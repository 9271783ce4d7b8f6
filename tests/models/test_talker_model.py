"""The Talker: step by step equals teacher forcing, causality, condition, gradients."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from muomni import recipes
from muomni.models.script import Text
from muomni.models.talker import Talker
from muomni.tokens import IGNORE_INDEX

NANO = recipes.model("nano")
CODEC = dataclasses.replace(NANO.codec, codebook_size=32)
CFG = dataclasses.replace(NANO.talker, d_model=64, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=64, n_layers=2)


def _talker(delay: int = 1) -> tuple[Talker, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    talker = Talker(dataclasses.replace(CFG, delay=delay), 48, CODEC, 5).eval()
    return talker, torch.randint(0, 32, (2, 8, 9)), torch.randn(2, 9 + delay, 64)


def _logits(talker: Talker, out: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B, T, K, codebook_size), as `step` hands them to the sampler."""
    levels = out["queries"].unbind(2)
    return torch.stack([talker.codes.logits(q, k) for k, q in enumerate(levels)], dim=2)


@pytest.mark.parametrize("delay", [0, 1])
@torch.no_grad()
def test_steps_equal_the_teacher_forced_forward_and_undo_the_delay(delay: int) -> None:
    talker, codes, condition = _talker(delay)
    full = talker(codes, condition)
    logits = _logits(talker, full)
    assert logits.shape == (2, 9, 8, 32)
    state = talker.new_state(2, 9)
    for t in range(9 + delay):
        # In the order in which they are chosen: codebook 0 of this frame, then the others of the one that gets whole.
        due = [(0, t)] * (t < 9) + [(level, t - delay) for level in range(1, 8)] * (t >= delay)
        seen: list[torch.Tensor] = []

        def sample(logits: torch.Tensor, seen: list[torch.Tensor] = seen, due: list = due) -> torch.Tensor:
            seen.append(logits)
            level, frame = due[len(seen) - 1]
            return codes[:, level, frame]

        if t < 9:
            whole, advance = talker.step(condition[:, t], state, sample)
            expected = sum(
                n * share
                for n, share in enumerate(talker.advance(full["hidden"][:, t]).softmax(-1).unbind(-1))
            )
            assert torch.allclose(advance, expected, atol=1e-5)
        else:
            whole = talker.drain(condition[:, t], state, sample)
        assert len(seen) == len(due)
        for found, (level, frame) in zip(seen, due, strict=True):
            assert torch.allclose(found, logits[:, frame, level], atol=1e-5)
        if t < delay:
            assert whole is None
        else:
            assert whole is not None and torch.equal(whole, codes[:, :, t - delay])
    assert delay or talker.drain(condition[:, -1], state, lambda logits: logits.argmax(-1)) is None
    with pytest.raises(ValueError, match="do not fit"):
        talker.step(condition[:, 0], state, lambda logits: logits.argmax(-1))


@pytest.mark.parametrize("delay", [0, 1])
@torch.no_grad()
def test_codes_depend_on_those_made_before_them_and_no_others(delay: int) -> None:
    talker, codes, condition = _talker(delay)
    before = _logits(talker, talker(codes, condition))
    for level, frame in ((3, 5), (0, 5)):
        changed = codes.clone()
        changed[:, level, frame] = (codes[:, level, frame] + 1) % 32
        moved = (_logits(talker, talker(changed, condition)) - before).abs().amax((0, 3)) > 1e-6
        # The step in which each code is made; the other codes of its own frame see it where they come after it.
        made = torch.arange(9)[:, None] + delay * (torch.arange(8) > 0)
        expected = made > made[frame, level]
        expected[frame, level + 1 :] = True
        assert torch.equal(moved, expected), (level, frame)


@torch.no_grad()
def test_condition_of_a_frame_reaches_that_step_and_later_ones() -> None:
    talker, codes, condition = _talker()
    before = _logits(talker, talker(codes, condition))
    condition[:, 4] += 1.0
    moved = (_logits(talker, talker(codes, condition)) - before).abs().amax((0, 3)) > 1e-6
    assert moved[:, 0].tolist() == [False] * 4 + [True] * 5
    assert moved[:, 1:].all(1).tolist() == moved[:, 1:].any(1).tolist() == [False] * 3 + [True] * 6


@torch.no_grad()
def test_rows_of_a_batch_do_not_see_each_other() -> None:
    talker, codes, condition = _talker()
    both = _logits(talker, talker(codes, condition))
    alone = _logits(talker, talker(codes[1:, :, :6], condition[1:, :7]))
    assert torch.allclose(both[1:, :6], alone, atol=1e-5)


@torch.no_grad()
def test_cross_entropy_of_the_codes_equals_that_of_the_logits() -> None:
    talker, codes, condition = _talker()
    talker.codes.tie(torch.randn(8, 32, CODEC.latent_dim), torch.randint(0, 50, (8, 32)))
    out = talker(codes, condition)
    labels = codes.transpose(1, 2).clone()
    labels[1, 6:] = IGNORE_INDEX
    loss, count = talker.codes.cross_entropy(out["queries"], labels)
    assert count.tolist() == [9 + 6] * 8
    logits = _logits(talker, out)
    for k in range(8):
        expected = F.cross_entropy(
            logits[:, :, k].flatten(0, 1),
            labels[:, :, k].flatten(),
            reduction="sum",
            ignore_index=IGNORE_INDEX,
        )
        assert loss[k].item() == pytest.approx(expected.item(), rel=1e-5)


@torch.no_grad()
def test_the_loss_of_the_pace_is_that_of_its_logits() -> None:
    talker, _, _ = _talker()
    hidden, labels = torch.randn(9, 64), torch.randint(0, 8, (9,))
    labels[4] = IGNORE_INDEX
    expected = F.cross_entropy(talker.advance(hidden), labels, reduction="sum", ignore_index=IGNORE_INDEX)
    assert float(talker.advance_cross_entropy(hidden, labels)) == pytest.approx(float(expected), rel=1e-5)


def test_every_parameter_gets_a_gradient() -> None:
    talker, codes, _ = _talker()
    voice = talker.voices(torch.tensor([1, -1]), torch.randn(2, 10))
    texts = [Text.of(torch.randn(4, 48), torch.randn(4, 48), [b"I", b" am", b" here", b"."]) for _ in voice]
    places = torch.tensor([0, 0, 1, 4, 5, 6, 8, 9, 10, 10])
    told = torch.stack([talker.script(*text.at(places)) for text in texts]) + voice[:, None]
    out = talker(codes, told)
    loss, count = talker.codes.cross_entropy(out["queries"], codes.transpose(1, 2))
    advance = talker.advance_cross_entropy(out["hidden"].flatten(0, 1), torch.ones(18, dtype=torch.int64))
    ((loss / count).sum() + advance).backward()
    for name, p in talker.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


def test_a_voice_is_called_by_name_told_by_a_recording_or_nobodys() -> None:
    talker, _, _ = _talker()
    assert talker.voices.known() == []
    talker.voices.name(["ann", "bob with a ☕"])
    assert talker.voices.known() == ["ann", "bob with a ☕"]
    table = talker.voices.table
    assert torch.equal(talker.voice(), table[:1]) and torch.equal(talker.voice("bob with a ☕"), table[2:3])
    with pytest.raises(ValueError, match="voice: 'eve' is not known; there are ann, bob with a ☕"):
        talker.voice("eve")
    clip = torch.randn(7, 5)
    heard = torch.cat([clip.mean(0), clip.var(0, unbiased=False).sqrt()])
    hidden = F.silu(heard @ talker.voices.enter.weight.T + talker.voices.enter.bias)
    assert torch.allclose(talker.voice(log_mel=clip)[0], hidden @ talker.voices.out.weight.T, atol=1e-6)
    reloaded = Talker(talker.cfg, 48, CODEC, 5)
    reloaded.load_state_dict(talker.state_dict())
    assert reloaded.voices.known() == ["ann", "bob with a ☕"]
    with pytest.raises(ValueError, match="expected at most 16, got 17"):
        talker.voices.name([str(i) for i in range(17)])


def test_wrong_number_of_codebooks_is_an_error() -> None:
    talker, codes, condition = _talker()
    with pytest.raises(ValueError, match=r"expected \(B, 8, T\)"):
        talker(codes[:, :4], condition)
