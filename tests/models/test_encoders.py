"""Audio and vision encoders and the contrastive text tower: isolation, shapes, gradients."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from muomni import recipes
from muomni.data.audio import CTC_SYMBOLS
from muomni.models.audio import N_CTC_SYMBOLS, AudioEncoder, CTCHead
from muomni.models.vision import CellPatch, ContrastModel, TextTower, VisionEncoder

NANO = recipes.model("nano")
AUDIO = dataclasses.replace(NANO.audio, d_model=64, n_layers=2, n_heads=2, d_ff=64)
VISION = dataclasses.replace(NANO.vision, image_size=64, n_layers=2, d_ff=64)


def _all_gradients(module: torch.nn.Module) -> None:
    for name, p in module.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


def test_ctc_head_has_one_output_for_each_symbol_of_the_data() -> None:
    assert len(CTC_SYMBOLS) == N_CTC_SYMBOLS


@pytest.mark.parametrize("downsample", ["stack", "conv"])
@pytest.mark.parametrize("kernel", [7, 0])
@torch.no_grad()
def test_audio_clips_do_not_see_each_other(downsample: str, kernel: int) -> None:
    torch.manual_seed(0)
    cfg = dataclasses.replace(AUDIO, downsample=downsample, conv_kernel=kernel)
    model = AudioEncoder(cfg, 16).eval()
    frames = torch.randn(20, 8 * 16)
    cu = torch.tensor([0, 6, 13, 13, 20], dtype=torch.int32)
    before = model(frames, cu, 16)
    frames[6:13] = torch.randn(7, 8 * 16)
    after = model(frames, cu, 16)
    assert torch.allclose(before[:6], after[:6], atol=1e-6, rtol=0)
    assert torch.allclose(before[13:], after[13:], atol=1e-6, rtol=0)
    alone = model(frames[6:13], torch.tensor([0, 7], dtype=torch.int32), 16)
    assert torch.allclose(after[6:13], alone, atol=1e-5)


@torch.no_grad()
def test_conv_downsampling_reads_into_the_frame_before() -> None:
    torch.manual_seed(0)
    model = AudioEncoder(dataclasses.replace(AUDIO, downsample="conv"), 16).eval()
    assert model.conv is not None
    frames, same = torch.randn(4, 8 * 16), torch.tensor([[0.0], [1.0], [1.0], [1.0]])
    before = model.conv(frames, same)
    frames[1, -16:] += 1.0
    changed = (model.conv(frames, same) - before).abs().amax(1)
    assert changed[0] == 0
    assert changed[1] > 0
    assert changed[2] > 0
    assert changed[3] == 0


@pytest.mark.parametrize("downsample", ["stack", "conv"])
def test_every_parameter_of_the_audio_encoder_gets_a_gradient_through_ctc(downsample: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.ModuleDict(
        {"audio": AudioEncoder(dataclasses.replace(AUDIO, downsample=downsample), 16), "head": CTCHead(64, 4)}
    )
    cu = torch.tensor([0, 6, 12], dtype=torch.int32)
    logits = model["head"](model["audio"](torch.randn(12, 8 * 16), cu, 16))
    assert logits.shape == (48, N_CTC_SYMBOLS)
    log_probs = logits.view(2, 24, -1).log_softmax(-1).transpose(0, 1)
    targets = torch.randint(1, N_CTC_SYMBOLS, (2, 9))
    F.ctc_loss(log_probs, targets, torch.tensor([24, 24]), torch.tensor([9, 9]), reduction="sum").backward()
    _all_gradients(model)


@pytest.mark.parametrize("n_tokens", [1, 5, 17])
@torch.no_grad()
def test_vision_tokens_are_cls_then_means_over_the_grid(n_tokens: int) -> None:
    torch.manual_seed(0)
    model = VisionEncoder(dataclasses.replace(VISION, n_image_tokens=n_tokens)).eval()
    images = torch.randn(3, 3, 64, 64)
    out = model(images)
    assert out.shape == (3, n_tokens, VISION.d_model)
    alone = model(images[1:2])
    assert torch.allclose(out[1:2], alone, atol=1e-5)


def test_patches_hold_the_pixels_of_their_square() -> None:
    model = VisionEncoder(VISION)
    images = torch.arange(3 * 64 * 64, dtype=torch.float32).view(1, 3, 64, 64)
    patch = model._patches(images)[0, 1 * 4 + 2].view(3, 16, 16)
    assert torch.equal(patch, images[0, :, 16:32, 32:48])


@torch.no_grad()
def test_patches_that_are_not_seen_change_nothing() -> None:
    torch.manual_seed(0)
    model = VisionEncoder(VISION).eval()
    images = torch.randn(2, 3, 64, 64)
    seen = torch.tensor([[5, 0, 9], [2, 1, 15]])
    found = model(images, seen)
    assert found.shape == (2, 1, VISION.d_model)
    blank = torch.full_like(images, 7.0)
    for i, own in enumerate(seen.tolist()):
        for patch in own:
            square = (
                i,
                slice(None),
                slice(patch // 4 * 16, patch // 4 * 16 + 16),
                slice(patch % 4 * 16, patch % 4 * 16 + 16),
            )
            blank[square] = images[square]
    torch.testing.assert_close(model(blank, seen), found)
    everything = torch.arange(16).flip(0).expand(2, -1)
    torch.testing.assert_close(model(images, everything), model(images)[:, :1], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model(images)[:, :1], found, atol=1e-2)


@torch.no_grad()
def test_a_patch_of_cells_is_two_convolutions() -> None:
    model = CellPatch(16, 24, channels=8)
    torch.nn.init.normal_(model.cell.bias)
    images = torch.randn(2, 3, 16, 16)
    cells = F.conv2d(images, model.cell.weight.view(8, 3, 4, 4), model.cell.bias, stride=4)
    weight = model.out.weight.view(24, 4, 4, 8).permute(0, 3, 1, 2)
    expected = F.conv2d(F.silu(cells), weight, model.out.bias).flatten(1)
    torch.testing.assert_close(model(images.flatten(1)), expected, atol=1e-5, rtol=1e-5)


def test_wrong_picture_size_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"expected \(n, 3, 64, 64\)"):
        VisionEncoder(VISION)(torch.zeros(1, 3, 32, 32))


@torch.no_grad()
def test_captions_do_not_see_each_other_nor_padding() -> None:
    torch.manual_seed(0)
    tower = TextTower(50, d_model=64, n_layers=2, n_heads=2, d_ff=64, embed_dim=32).eval()
    ids = torch.randint(0, 50, (16,))
    cu = torch.tensor([0, 4, 11, 11], dtype=torch.int32)
    before = tower(ids, cu, 8)
    ids[4:] = torch.randint(0, 50, (12,))
    after = tower(ids, cu, 8)
    assert before.shape == (3, 32)
    assert torch.allclose(before[0], after[0], atol=1e-6, rtol=0)
    assert (before[1] - after[1]).abs().max() > 1e-3
    for i, (start, stop) in enumerate(((0, 4), (4, 11))):
        alone = tower(ids[start:stop], torch.tensor([0, stop - start], dtype=torch.int32), 8)
        assert torch.allclose(after[i : i + 1], alone, atol=1e-5)
    assert after[2].abs().sum() == 0


def test_every_parameter_of_the_contrast_gets_a_gradient() -> None:
    torch.manual_seed(0)
    model = ContrastModel(VISION, vocab_size=40)
    cu = torch.tensor([0, 5, 9, 12], dtype=torch.int32)
    a, b, scale = model(torch.randn(3, 3, 64, 64), torch.randint(0, 40, (12,)), cu, 8)
    assert torch.allclose(a.norm(dim=-1), torch.ones(3), atol=1e-5)
    F.cross_entropy(scale * a @ b.T, torch.arange(3)).backward()
    _all_gradients(model)
