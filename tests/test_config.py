"""Frozen configuration: validation, strict conversion, overrides, and the token budget."""

import dataclasses
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from muomni import recipes
from muomni.config import SIZES, STAGES, ModelConfig, RunConfig, TokenBudgetError
from muomni.data.audio import audio_frames, log_mel, normalise
from muomni.settings import ConfigError, from_dict, override, shaping, to_dict


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stage", STAGES)
def test_every_recipe_survives_plain_types(size: str, stage: str) -> None:
    run = recipes.recipe(size, stage)
    assert from_dict(RunConfig, to_dict(run)) == run


def test_override_changes_one_setting_and_nothing_else() -> None:
    run = recipes.recipe("nano", "text")
    changed = override(run, ["optim.lr=3e-4", "model.thinker.rope_sections=1,2,1", "train.augment=false"])
    assert changed.optim.lr == 3e-4
    assert changed.model.thinker.rope_sections == (1, 2, 1)
    assert changed.train.augment is False
    assert dataclasses.replace(changed.optim, lr=run.optim.lr) == run.optim


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("optim.lrr=1", "did you mean optim.lr"),
        ("optim.lr=fast", "expected float"),
        ("optim.lr", "expected name=value"),
        ("optim=1", "is a group"),
        ("seed.x=1", "has no fields"),
        ("train.augment=perhaps", "expected true or false"),
        ("train.steps=0", "expected a positive number"),
        ("stage=cooking", "expected one of"),
        ("model.mel.padding=zero", "expected one of causal, reflect"),
        ("model.thinker.d_model=100", "multiple of 64"),
        ("model.vision.n_image_tokens=3", "k \\* k \\+ 1"),
        ("model.vision.image_size=100", "multiple of patch_size"),
        ("model.vision.patch_size=14", "multiple of 4 with cell_channels"),
        ("model.talker.depth_share=0", "a share above 0, at most 1"),
    ],
)
def test_bad_setting_is_one_clear_line(setting: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as error:
        override(recipes.recipe("nano", "text"), [setting])
    assert "\n" not in str(error.value)


def test_unknown_and_missing_keys_are_errors() -> None:
    values = to_dict(recipes.recipe("nano", "text"))
    with pytest.raises(
        ConfigError, match=r"train\.stepz is not a setting of TrainConfig; did you mean train\.steps"
    ):
        from_dict(RunConfig, {**values, "train": {**values["train"], "stepz": 1}})
    with pytest.raises(ConfigError, match="stage: missing"):
        from_dict(RunConfig, {k: v for k, v in values.items() if k != "stage"})


def test_unknown_size_and_stage_suggest() -> None:
    with pytest.raises(ConfigError, match="did you mean tiny"):
        recipes.model("tinny")
    with pytest.raises(ConfigError, match="did you mean vision"):
        recipes.recipe("nano", "visoin")


@given(seconds=st.floats(min_value=1e-4, max_value=10.24))
def test_audio_takes_ceil_of_12_5_tokens_a_second(seconds: float) -> None:
    config = recipes.model("tiny")
    n_samples = max(1, round(seconds * 16_000))
    tokens = config.audio_tokens(n_samples)
    # In whole numbers: floats make 109.00000000000001 of 109 frames.
    assert tokens == math.ceil(Fraction(n_samples * 25, 16_000 * 2))
    assert config.audio_tokens(109 * 1_280) == 109
    assert tokens <= 128


@given(
    n_text=st.integers(0, 600),
    n_images=st.integers(0, 4),
    clips=st.lists(st.integers(1, 200_000), max_size=4).map(tuple),
)
def test_budget_is_the_sum_or_an_error(n_text: int, n_images: int, clips: tuple[int, ...]) -> None:
    config = recipes.model("nano")
    expected = n_text + n_images + sum(math.ceil(n / 1280) for n in clips)
    too_long = any(math.ceil(n / 1280) > 128 for n in clips)
    if too_long or expected > 512:
        with pytest.raises(TokenBudgetError) as error:
            config.budget(n_text=n_text, n_images=n_images, audio_samples=clips)
        assert "\n" not in str(error.value)
    else:
        assert config.budget(n_text=n_text, n_images=n_images, audio_samples=clips).total == expected


def test_a_picture_is_one_token_and_a_clip_at_most_a_quarter() -> None:
    for size in SIZES:
        config = recipes.model(size)
        assert config.budget(n_text=0, n_images=1).total == 1
        assert config.max_audio_samples == 163_840
        assert config.frame_rate == 12.5
        assert config.mel.frame_rate == 100.0


def test_all_stages_of_all_sizes_have_one_definition_of_the_mel() -> None:
    """And the front end's defaults are that one: no stage can see another spectrogram than the others."""
    mels = {recipes.recipe(size, stage).model.mel for size in SIZES for stage in STAGES}
    assert len(mels) == 1
    wave = torch.randn(4_000)
    model = recipes.model("nano")
    rows = audio_frames(wave, model.mel, factor=model.codec.factor).reshape(-1, model.mel.n_mels)[:25]
    assert torch.equal(rows, normalise(log_mel(wave, model.mel), model.mel))


def test_what_shapes_a_model_is_all_but_what_training_alone_reads() -> None:
    values = to_dict(recipes.model("nano"))
    kept = shaping(values, ModelConfig)
    left_out = {
        f"{part}.{name}"
        for part, own in values.items() if isinstance(own, dict)
        for name in own if name not in kept[part]
    }  # fmt: skip
    assert left_out == {
        "thinker.balance_weight", "thinker.dropout", "audio.dropout", "talker.dropout", "talker.noise",
        "talker.depth_share",
        "codec.ema_decay", "codec.commitment_weight", "codec.scales_weight", "codec.adversarial_from",
        "codec.d_discriminator", "vocoder.adversarial_from", "vocoder.d_discriminator",
    }  # fmt: skip
    assert kept.keys() == values.keys()
    # What an older version wrote is kept as it is, so that it is told.
    assert shaping({"thinker": {"width": 3}, "gone": 1}, ModelConfig) == {"thinker": {"width": 3}, "gone": 1}
