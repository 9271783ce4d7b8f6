"""The vocoder: exact for exact spectra, streaming equals offline, N frames give N hops, and how far it looks ahead."""

import dataclasses

import pytest
import torch

from muomni.models.vocoder import Vocoder
from muomni.recipes import nano

NANO = nano()
HOP, SIZE = NANO.mel.hop_length, NANO.vocoder.n_fft


@pytest.fixture
def vocoder() -> Vocoder:
    torch.manual_seed(0)
    made = Vocoder(NANO.mel, NANO.vocoder).eval()
    # Untrained biases are zero: every frame would begin with the same phase.
    torch.nn.init.normal_(made.head.bias, std=0.5)
    return made


def mels(n_frames: int, *, seed: int = 1) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n_frames, NANO.mel.n_mels, generator=draw) * NANO.mel.std + NANO.mel.mean


def test_the_spectra_of_a_wave_give_the_wave_back(vocoder: Vocoder) -> None:
    n_frames = 20
    wave = torch.randn(n_frames * HOP, generator=torch.Generator().manual_seed(2))
    padded = torch.cat([torch.zeros(SIZE - HOP), wave])
    # Frame t sees the SIZE samples before (t + 1) * HOP; numpy's transform and window are the oracle.
    frames = torch.stack([padded[t * HOP : t * HOP + SIZE] for t in range(n_frames)])
    spectra = torch.fft.rfft(frames * torch.hann_window(SIZE))
    made = vocoder._overlapped(vocoder.inverse(spectra)[None])[0]
    finished = made[SIZE - HOP : n_frames * HOP]
    torch.testing.assert_close(finished, wave[: len(finished)], rtol=0, atol=1e-5)


@pytest.mark.parametrize("n_frames", [1, 2, 3, 4, 37])
def test_every_frame_gives_one_hop_of_samples(n_frames: int, vocoder: Vocoder) -> None:
    assert vocoder(mels(n_frames)).shape == (n_frames * HOP,)
    assert vocoder(mels(0)).shape == (0,)


@pytest.mark.parametrize("pieces", [[1] * 40, [8] * 5, [3, 1, 9, 0, 27], [40]])
def test_streaming_equals_offline_in_any_pieces(pieces: list[int], vocoder: Vocoder) -> None:
    given = mels(40)
    whole = vocoder(given)
    state, n_given, parts = vocoder.new_state(), 0, []
    for part in given.split(pieces):
        parts.append(vocoder.step(part, state))
        n_given += len(part)
        assert sum(map(len, parts)) == max(0, n_given - vocoder.n_held) * HOP
    parts.append(vocoder.flush(state))
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-5)
    assert torch.equal(vocoder.step(given, vocoder.new_state(), flush=True), whole)


def test_a_frame_changes_no_sample_before_its_window(vocoder: Vocoder) -> None:
    given = mels(30)
    other = given.clone()
    other[15] += 1.0
    changed = (vocoder(given) != vocoder(other)).nonzero().flatten()
    first = 16 * HOP - SIZE
    # A Hann window begins with a zero.
    assert first < int(changed[0]) <= first + 2


def test_crops_are_the_samples_of_the_whole_where_nothing_is_before_them(vocoder: Vocoder) -> None:
    given = mels(40)
    crops = ((given - NANO.mel.mean) / NANO.mel.std)[None].expand(2, -1, -1)
    wave = vocoder.waveform(crops)
    assert wave.shape == (2, (40 - vocoder.n_held) * HOP)
    torch.testing.assert_close(wave[1], vocoder(given)[: wave.shape[1]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("n_fft", [320, 700])
def test_a_window_whose_squares_do_not_add_up_is_refused(n_fft: int) -> None:
    with pytest.raises(ValueError, match="n_fft: expected at least 3 times hop_length 160"):
        Vocoder(NANO.mel, dataclasses.replace(NANO.vocoder, n_fft=n_fft))


def test_another_spectrogram_is_refused(vocoder: Vocoder) -> None:
    with pytest.raises(ValueError, match="padding causal and log ln"):
        Vocoder(dataclasses.replace(NANO.mel, log="whisper"), NANO.vocoder)
    with pytest.raises(ValueError, match=r"log_mel: expected \(n, 128\)"):
        vocoder.step(torch.zeros(3, 80), vocoder.new_state())
