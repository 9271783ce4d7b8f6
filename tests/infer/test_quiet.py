"""Long recordings in pieces: all of them, in order, short enough, cut where it is quiet."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from muomni.infer.quiet import quiet_pieces
from muomni.infer.session import Session

RATE = 16_000


@given(n=st.integers(0, 9_000), most=st.integers(1, 3_000))
def test_pieces_are_the_recording_and_short_enough(n: int, most: int) -> None:
    waveform = np.random.default_rng(n).normal(0, 0.1, n).astype(np.float32)
    found = quiet_pieces(waveform, 1_000, most=most)
    assert np.array_equal(np.concatenate([*found, waveform[:0]]), waveform)
    assert all(0 < len(piece) <= most for piece in found)


def test_cuts_lie_in_pauses() -> None:
    noise = np.random.default_rng(0).normal(0, 0.2, 30 * RATE).astype(np.float32)
    pauses = [(4.0, 4.4), (9.0, 9.5), (17.0, 17.4), (20.0, 20.3), (24.1, 24.6)]
    for start, end in pauses:
        noise[int(start * RATE) : int(end * RATE)] *= 0.01
    ends = np.cumsum([len(piece) for piece in quiet_pieces(noise, RATE, most=10 * RATE)])[:-1] / RATE
    assert len(ends) == 3
    assert all(any(start < at < end for start, end in pauses) for at in ends), ends


def test_a_recording_of_any_length_is_transcribed_piece_by_piece(session: Session) -> None:
    waveform = np.random.default_rng(1).normal(0, 0.1, int(6.5 * RATE)).astype(np.float32)
    most = session.config.max_audio_samples
    assert len(waveform) > 2 * most
    parts = [session.transcribe(piece) for piece in quiet_pieces(waveform, RATE, most=most)]
    assert any(parts)
    assert session.transcribe(waveform) == " ".join(part for part in parts if part)
