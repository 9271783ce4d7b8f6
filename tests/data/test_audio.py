"""Transcripts as CTC targets, clips as stacked frames."""

from itertools import groupby

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from muomni.config import MelConfig
from muomni.data.audio import (
    BLANK,
    CTC_SYMBOLS,
    audio_frames,
    ctc_feasible,
    decode_ctc,
    denormalise,
    encode_ctc,
    log_mel,
    normalise,
    normalise_transcript,
)

TEXTS = st.text(CTC_SYMBOLS[1:], max_size=30)


def test_transcripts_become_words_of_letters_and_apostrophes() -> None:
    assert normalise_transcript("  Don’t STOP -- now, Zoë_1! ") == "don't stop now zo"
    with pytest.raises(ValueError, match="normalise_transcript"):
        encode_ctc("Press 1")
    with pytest.raises(ValueError, match="cannot be spelled"):
        encode_ctc("a_b")


@given(TEXTS, st.integers(1, 3))
def test_any_alignment_of_a_text_decodes_to_it(text: str, stretch: int) -> None:
    path: list[int] = []
    for symbol in encode_ctc(text):
        path += [BLANK, *[symbol] * stretch]
    assert decode_ctc([*path, BLANK, BLANK]) == " ".join(text.split())


@given(TEXTS, st.integers(0, 80))
def test_feasibility_is_where_torchs_ctc_loss_becomes_finite(text: str, n_positions: int) -> None:
    if not text or not n_positions:
        assert ctc_feasible(text, n_positions) == (n_positions >= len(text))
        return
    target = torch.tensor([encode_ctc(text)])
    scores = torch.zeros(n_positions, 1, len(CTC_SYMBOLS)).log_softmax(-1)
    loss = torch.nn.functional.ctc_loss(
        scores, target, torch.tensor([n_positions]), torch.tensor([len(text)]), blank=BLANK
    )
    assert ctc_feasible(text, n_positions) == bool(loss.isfinite())


@given(st.lists(st.integers(0, len(CTC_SYMBOLS) - 1), max_size=20))
def test_decoding_collapses_before_it_drops_blanks(indices: list[int]) -> None:
    expected = "".join(CTC_SYMBOLS[i] for i, _ in groupby(indices) if i != BLANK)
    assert decode_ctc(indices) == " ".join(expected.split())


@pytest.mark.parametrize("n_samples", [160, 1_279, 1_280, 1_281, 20_000])
def test_a_clip_is_one_stacked_frame_for_every_80_ms_begun(n_samples: int) -> None:
    mel = MelConfig()
    generator = np.random.default_rng(0)
    waveform = (0.1 * generator.standard_normal(n_samples)).astype(np.float32)
    frames = audio_frames(waveform, mel)
    mels = log_mel(waveform, mel)
    assert frames.shape == (-(-len(mels) // 8), 8 * mel.n_mels)
    assert len(frames) == -(-n_samples // 1_280)
    spread = denormalise(frames.reshape(-1, mel.n_mels), mel)
    torch.testing.assert_close(spread[: len(mels)], mels, rtol=1e-4, atol=1e-4)
    assert spread[len(mels) :].allclose(torch.tensor(float(np.log(mel.floor))), atol=1e-3), (
        "silence fills the tail"
    )


def test_normalising_is_undone_by_denormalising() -> None:
    mel = MelConfig()
    frames = torch.randn(7, mel.n_mels, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(denormalise(normalise(frames, mel), mel), frames, rtol=1e-5, atol=1e-5)
