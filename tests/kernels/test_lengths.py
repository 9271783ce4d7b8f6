"""token_lengths against the convolutions each rule names; chunk_and_pad."""

import numpy as np
import pytest
import torch
from muomni_kernels import chunk_and_pad, mel_downsample, token_lengths
from torch.nn import functional as F

LENGTHS = [*range(18), 99, 100, 101, 108, 199, 200, 201, 1_000, 1_001, 3_000]


def halved(x: torch.Tensor) -> torch.Tensor:
    """A convolution of kernel 3, stride 2, padding 1; PyTorch refuses an empty input."""
    return F.conv1d(x, torch.ones(1, 1, 3), stride=2, padding=1) if x.shape[-1] else x


def convolved(n: int, rule: str) -> int:
    """Length of what the encoder's layers really give."""
    x = torch.zeros(1, 1, n)
    if rule == "whisper":
        return halved(x).shape[-1]
    if rule == "qwen2_audio":
        x = halved(x)
        return F.avg_pool1d(x, 2, stride=2).shape[-1] if x.shape[-1] > 1 else 0
    if rule == "conv8":
        return halved(halved(halved(x))).shape[-1]
    if rule == "qwen3_omni":
        return sum(halved(halved(halved(part))).shape[-1] for part in x.split(100, dim=2))
    if rule == "muomni":
        return len(mel_downsample(torch.zeros(n, 1)))
    # Seven frames every six from a start every six frames.
    return len(range(0, n, 6))


@pytest.mark.parametrize("rule", ["muomni", "whisper", "qwen2_audio", "qwen3_omni", "conv8", "lfr6"])
def test_a_rule_is_what_its_convolutions_give(rule: str) -> None:
    expected = [convolved(n, rule) for n in LENGTHS]
    assert [token_lengths(n, rule) for n in LENGTHS] == expected
    assert token_lengths(np.array(LENGTHS), rule).tolist() == expected
    found = token_lengths(torch.tensor(LENGTHS, dtype=torch.int32).view(2, -1), rule)
    assert found.dtype == torch.int32 and found.shape[0] == 2 and found.flatten().tolist() == expected


def test_a_thousand_frames_of_qwen3_omni_are_130_tokens() -> None:
    assert token_lengths(1_000, "qwen3_omni") == 130 and token_lengths(1_000, "conv8") == 125


@pytest.mark.parametrize(
    "bad", [-1, 1.5, True, np.array([1, -2]), torch.tensor([0.5]), torch.tensor([3, -1])]
)
def test_what_is_not_a_length_is_refused(bad: object) -> None:
    with pytest.raises(ValueError, match="n_frames: expected integers of at least 0"):
        token_lengths(bad, "whisper")  # type: ignore[type-var]


def test_an_unknown_rule_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="rule: expected one of muomni, whisper"):
        token_lengths(3, "wisper")


def test_chunks_hold_every_frame_once_and_zeros_behind() -> None:
    frames = torch.randn(253, 4, generator=torch.Generator().manual_seed(0))
    chunks, lengths = chunk_and_pad(frames, cu_frames=[0, 0, 230, 253], chunk=100)  # type: ignore[arg-type]
    assert lengths.tolist() == [100, 100, 30, 23] and chunks.shape == (4, 100, 4)
    assert torch.equal(torch.cat([c[:n] for c, n in zip(chunks, lengths.tolist(), strict=True)]), frames)
    assert all(not c[n:].any() for c, n in zip(chunks, lengths.tolist(), strict=True))
    assert int(token_lengths(lengths, "qwen3_omni").sum()) == token_lengths(230, "qwen3_omni") + 3


def test_a_short_clip_is_padded_to_its_longest_chunk_only_and_gradients_flow() -> None:
    frames = torch.randn(7, 3, requires_grad=True)
    chunks, lengths = chunk_and_pad(frames)
    assert chunks.shape == (1, 7, 3) and lengths.tolist() == [7]
    chunks.sum().backward()
    assert frames.grad is not None and (frames.grad == 1).all()
    empty, none = chunk_and_pad(torch.zeros(0, 3))
    assert empty.shape == (0, 0, 3) and none.shape == (0,)


def test_chunks_of_something_else_are_refused() -> None:
    with pytest.raises(ValueError, match="frames: expected"):
        chunk_and_pad(torch.zeros(3))
    with pytest.raises(ValueError, match="chunk: expected at least 1"):
        chunk_and_pad(torch.zeros(3, 2), chunk=0)
    with pytest.raises(ValueError, match="cu_frames: expected offsets"):
        chunk_and_pad(torch.zeros(3, 2), cu_frames=torch.tensor([0, 4]))
