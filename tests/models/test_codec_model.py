"""The codec: causality, streaming, prefixes of codebooks, gradients."""

import dataclasses
import itertools

import pytest
import torch

from muomni import recipes
from muomni.models.codec import Codec

NANO = recipes.model("nano")
CFG = dataclasses.replace(NANO.codec, d_model=64, latent_dim=16, codebook_size=32, n_layers=3)
MEL = dataclasses.replace(NANO.mel, n_mels=16)


def _codec() -> tuple[Codec, torch.Tensor]:
    torch.manual_seed(0)
    codec, frames = Codec(CFG, MEL), torch.randn(2, 12, 8 * 16)
    codec(frames)
    codec.commit()
    return codec.eval(), frames


@torch.no_grad()
def test_encoder_and_decoder_are_causal() -> None:
    codec, frames = _codec()
    codes, out = codec.encode(frames), codec.decode(codec.encode(frames))
    later = frames.clone()
    later[:, 7:] = torch.randn(2, 5, 8 * 16)
    codes_later = codec.encode(later)
    assert torch.equal(codes[:, :, :7], codes_later[:, :, :7])
    assert not torch.equal(codes[:, :, 7:], codes_later[:, :, 7:])
    assert torch.allclose(out[:, :7], codec.decode(codes_later)[:, :7], atol=1e-6)


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("sizes", [[1] * 12, [5, 1, 6]])
@torch.no_grad()
def test_streaming_decode_equals_offline(k: int, sizes: list[int]) -> None:
    codec, frames = _codec()
    codes = codec.encode(frames)[:, :k]
    state = codec.new_state(2)
    parts = [codec.decode_step(part, state) for part in codes.split(sizes, dim=2)]
    assert torch.allclose(torch.cat(parts, dim=1), codec.decode(codes), atol=1e-5)


@torch.no_grad()
def test_training_forward_equals_encode_then_decode_of_the_active_codebooks() -> None:
    codec, frames = _codec()
    for k in (1, 8):
        out = codec(frames, n_active=k)
        assert torch.equal(out.codes, codec.encode(frames))
        assert torch.allclose(out.frames, codec.decode(out.codes[:, :k]), atol=1e-5)


@torch.no_grad()
def test_padding_at_the_end_changes_no_valid_frame_nor_the_codebooks() -> None:
    codec, frames = _codec()
    valid = torch.arange(12)[None] < torch.tensor([[12], [8]])
    codec.train()
    out = codec(frames, valid)
    state = {k: v.clone() for k, v in codec.state_dict().items()}
    codec.commit()
    moved = codec.quantizer.codebooks.clone()
    codec.load_state_dict(state)
    frames[1, 8:] = 77.0
    padded = codec(frames, valid)
    codec.commit()
    assert torch.allclose(out.frames[valid], padded.frames[valid], atol=1e-6)
    assert torch.allclose(out.commitment, padded.commitment)
    assert torch.allclose(moved, codec.quantizer.codebooks, atol=1e-6)


def test_every_parameter_gets_a_gradient() -> None:
    codec, frames = _codec()
    codec.train()
    out = codec(frames)
    ((out.frames - frames).square().sum() + 0.25 * out.commitment).backward()
    for name, p in codec.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


def test_learns_to_reconstruct_with_each_codebook_helping() -> None:
    torch.manual_seed(0)
    codec = Codec(dataclasses.replace(CFG, n_layers=1), MEL)
    # Frames of four latent directions: learnable, unlike white noise.
    basis = torch.randn(4, 8 * 16)
    frames = torch.randn(16, 24, 4) @ basis
    optimizer = torch.optim.AdamW(codec.parameters(), lr=3e-3)
    for step in range(120):
        out = codec(frames, n_active=1 + step % 8)
        loss = (out.frames - frames).square().mean() + 0.25 * out.commitment / (16 * 24)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        codec.commit()
    codec.eval()
    codes = codec.encode(frames)
    errors = [(codec.decode(codes[:, :k]) - frames).square().mean().item() for k in (1, 2, 4, 8)]
    assert errors[0] < 0.6 * frames.square().mean().item()
    assert all(after < before for before, after in itertools.pairwise(errors))
    assert codec.quantizer.usage()["used"].min() > 0.5
