"""The whole model: sizes, names, media into the unified space."""

import pytest
import torch

from muomni import recipes
from muomni.config import SIZES
from muomni.models.omni import OmniModel, parameter_table
from muomni.tokens import AUDIO, IMAGE

PARTS = [
    "thinker",
    "vision",
    "audio",
    "ctc_head",
    "vision_projector",
    "audio_projector",
    "codec",
    "talker",
    "vocoder",
]


@pytest.mark.parametrize("size", SIZES)
def test_parameter_table_names_every_part_and_adds_up(size: str) -> None:
    rows = parameter_table(recipes.model(size))
    assert [name for name, _ in rows] == [*PARTS, "total"]
    assert rows[-1][1] == sum(n for _, n in rows[:-1])


def test_base_is_about_120_million_parameters() -> None:
    assert 115e6 < dict(parameter_table(recipes.model("base")))["total"] < 125e6


@torch.no_grad()
def test_media_land_on_their_placeholders_and_padding_nowhere() -> None:
    torch.manual_seed(0)
    cfg = recipes.model("nano")
    model = OmniModel(cfg).eval()
    ids = torch.tensor([1, 3, IMAGE, AUDIO, AUDIO, AUDIO, 300, 301, 2, 0])
    images = torch.randn(2, 3, cfg.vision.image_size, cfg.vision.image_size)
    frames = torch.randn(5, cfg.audio.factor * cfg.mel.n_mels)
    cu = torch.tensor([0, 3, 5], dtype=torch.int32)
    embeds = model.fused_embeds(
        ids, images=images, image_index=torch.tensor([2, 10]), audio_frames=frames, audio_cu_seqlens=cu,
        audio_max_seqlen=128, audio_index=torch.tensor([3, 4, 5, 10, 10]),
    )  # fmt: skip
    plain = model.thinker.embed(ids)
    kept = [0, 1, 6, 7, 8, 9]
    assert torch.equal(embeds[kept], plain[kept])
    assert torch.allclose(embeds[2], model.image_features(images)[0], atol=1e-6)
    assert torch.allclose(embeds[3:6], model.audio_features(frames, cu, 128)[:3], atol=1e-6)
    # Media arrive at the scale of text, so that no modality drowns another.
    for vectors in (plain, embeds[2], embeds[3:6]):
        assert 0.3 < vectors.square().mean().sqrt() < 2.0
    with pytest.raises(ValueError, match="image_index"):
        model.fused_embeds(ids, images=images)


def test_every_parameter_of_the_fused_path_gets_a_gradient() -> None:
    torch.manual_seed(0)
    cfg = recipes.model("nano")
    model = OmniModel(cfg)
    ids = torch.tensor([1, 3, IMAGE, AUDIO, AUDIO, 300, 301, 2])
    embeds = model.fused_embeds(
        ids, images=torch.randn(1, 3, 112, 112), image_index=torch.tensor([2]),
        audio_frames=torch.randn(2, 1024), audio_cu_seqlens=torch.tensor([0, 2], dtype=torch.int32),
        audio_max_seqlen=128, audio_index=torch.tensor([3, 4]),
    )  # fmt: skip
    positions = torch.arange(8)[:, None].expand(-1, 3)
    hidden = model.thinker(embeds, positions, torch.tensor([0, 8], dtype=torch.int32), 512)
    torch.nn.functional.cross_entropy(model.thinker.logits(hidden[:-1]), ids[1:]).backward()
    for name in ("thinker", "vision", "audio", "vision_projector", "audio_projector"):
        for parameter, p in model.get_submodule(name).named_parameters():
            assert p.grad is not None, f"{name}.{parameter}"
            assert p.grad.abs().sum() > 0, f"{name}.{parameter}"
