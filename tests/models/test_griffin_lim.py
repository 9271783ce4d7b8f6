"""Griffin-Lim: the stream, the mel inversion, and the round trip."""

import dataclasses

import pytest
import torch

from muomni import recipes
from muomni.data.audio import log_mel
from muomni.models.griffin_lim import GriffinLim

NANO = recipes.model("nano")


def _speech_like(n_samples: int) -> torch.Tensor:
    """A voice-like tone: harmonics of a gliding pitch under a moving envelope, with a little noise."""
    generator = torch.Generator().manual_seed(0)
    t = torch.arange(n_samples) / 16_000
    phase = 2 * torch.pi * (120 * t + 30 * t**2)
    wave = sum((torch.cos(k * phase) / k for k in range(1, 20)), torch.zeros(n_samples))
    wave = wave * (0.3 + 0.2 * torch.sin(2 * torch.pi * 3 * t))
    return 0.2 * wave + 0.003 * torch.randn(n_samples, generator=generator)


def _vocoder() -> GriffinLim:
    return GriffinLim(NANO.mel, NANO.griffin_lim)


def test_stream_in_blocks_equals_the_whole_clip_and_has_its_length() -> None:
    vocoder = _vocoder()
    mel = log_mel(_speech_like(16_000), NANO.mel)
    whole = vocoder(mel)
    state, parts = vocoder.new_state(), []
    for start in range(0, len(mel), 8):
        parts.append(vocoder.step(mel[start : start + 8], state))
    parts.append(vocoder.flush(state))
    assert torch.equal(torch.cat(parts), whole)
    assert len(whole) == 16_000
    assert [len(p) for p in parts[:3]] == [4 * 160, 8 * 160, 8 * 160]


def test_flush_inside_the_last_step_gives_the_same_samples() -> None:
    vocoder = _vocoder()
    mel = log_mel(_speech_like(16 * 160), NANO.mel)
    first, second = vocoder.new_state(), vocoder.new_state()
    a = torch.cat([vocoder.step(mel[:8], first), vocoder.step(mel[8:], first, flush=True)])
    b = torch.cat([vocoder.step(mel[:8], second), vocoder.step(mel[8:], second), vocoder.flush(second)])
    assert torch.equal(a, b)


def test_fitting_a_block_leaves_given_samples_as_they_are() -> None:
    vocoder = _vocoder()
    mel = log_mel(_speech_like(16 * 160), NANO.mel)
    state = vocoder.new_state()
    vocoder.step(mel[:8], state)
    given = state.wave[: len(state.wave) - state.n_pending * 160].clone()
    assert given.abs().max() > 1e-3
    vocoder._extend(state, vocoder.magnitudes(mel[8:]))
    vocoder._fit(state)
    assert torch.equal(state.wave[: len(given)], given)


def test_given_samples_do_not_depend_on_later_frames() -> None:
    vocoder = _vocoder()
    mel = log_mel(_speech_like(32 * 160), NANO.mel)
    changed = mel.clone()
    changed[16:] = -3.0
    n_given = (16 - NANO.griffin_lim.lookahead) * 160
    assert torch.equal(vocoder(mel)[:n_given], vocoder(changed)[:n_given])


def test_mel_inversion_reproduces_the_mel() -> None:
    vocoder = _vocoder()
    mel = log_mel(_speech_like(16_000), NANO.mel)
    magnitudes = vocoder.magnitudes(mel)
    back = (magnitudes.square() @ vocoder.filters.T).clamp(min=NANO.mel.floor).log()
    assert magnitudes.min() >= 0
    assert (back - mel).abs().mean() < 0.03


def test_round_trip_is_close_and_silence_stays_silent() -> None:
    vocoder = _vocoder()
    mel = log_mel(_speech_like(16_000), NANO.mel)
    error = (log_mel(vocoder(mel), NANO.mel) - mel)[4:].abs().mean()
    assert error < 0.4
    assert error < 0.25 * (mel - mel.mean(0)).abs().mean()
    silence = torch.full((32, 128), float(torch.tensor(NANO.mel.floor).log()))
    assert vocoder(silence).abs().max() < 0.01


def test_empty_clip_is_empty_and_wrong_arguments_are_errors() -> None:
    vocoder = _vocoder()
    assert len(vocoder(torch.zeros(0, 128))) == 0
    with pytest.raises(ValueError, match="log_mel"):
        vocoder.step(torch.zeros(8, 80), vocoder.new_state())
    with pytest.raises(ValueError, match="lookahead"):
        GriffinLim(NANO.mel, dataclasses.replace(NANO.griffin_lim, lookahead=9))
    with pytest.raises(ValueError, match="causal"):
        GriffinLim(dataclasses.replace(NANO.mel, padding="reflect"), NANO.griffin_lim)
