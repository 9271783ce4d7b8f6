"""A WAV as it comes: against soundfile's writing and reading; an error leaves what was there."""

from __future__ import annotations

import os
import resource
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from muomni.data import wav
from muomni.data.media import MediaError, write_wav
from muomni.data.wav import wav_writer


def _noise(n: int) -> np.ndarray:
    """(n,) float32, some of it beyond full scale."""
    return np.random.default_rng(n).normal(0, 0.5, n).astype(np.float32)


def _write(path: Path, *pieces: int | BaseException) -> None:
    with wav_writer(path, 16_000) as write:
        for piece in pieces:
            if isinstance(piece, BaseException):
                raise piece
            write(_noise(piece))


def test_pieces_are_the_file_that_the_whole_makes(tmp_path: Path) -> None:
    whole = np.concatenate([_noise(40_000), np.array([-1, 1, 0, -2, 2, 1e-9, -1e-9], np.float32)])
    with wav_writer(tmp_path / "pieces.wav", 16_000) as write:
        for piece in np.split(whole, [0, 1, 1_281, 1_281, 39_000]):
            write(piece)
    write_wav(tmp_path / "whole.wav", whole, 16_000)
    found = [soundfile.read(tmp_path / name, dtype="int16") for name in ("pieces.wav", "whole.wav")]
    assert np.array_equal(found[0][0], found[1][0]) and found[0][1] == 16_000
    assert soundfile.info(tmp_path / "pieces.wav").subtype == "PCM_16"
    assert {path.name for path in tmp_path.iterdir()} == {"pieces.wav", "whole.wav"}


def test_no_samples_are_a_file_without_any(tmp_path: Path) -> None:
    with wav_writer(tmp_path / "a.wav", 16_000):
        pass
    assert soundfile.info(tmp_path / "a.wav").frames == 0


@pytest.mark.parametrize("error", [MediaError("x"), OSError(5, "of a loudspeaker"), KeyboardInterrupt()])
def test_an_error_in_between_leaves_what_was_there_and_is_itself(
    error: BaseException, tmp_path: Path
) -> None:
    path = tmp_path / "a.wav"
    for before in (None, b"old"):
        if before is not None:
            path.write_bytes(before)
        with pytest.raises(type(error)) as caught:
            _write(path, 5_000, error)
        assert caught.value is error
        assert [file.read_bytes() for file in tmp_path.iterdir()] == ([] if before is None else [before])


def test_a_full_disk_is_an_os_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        with pytest.raises(OSError, match="File too large") as caught:
            _write(path, *[5_000] * 5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.filename == str(path) and not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError) as caught, wav_writer(tmp_path / "no" / "a.wav", 16_000):
        pass
    assert caught.value.filename == str(tmp_path / "no" / "a.wav")


def test_samples_that_are_not_finite_or_too_many_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MediaError, match="not finite"), wav_writer(tmp_path / "a.wav", 16_000) as write:
        write(np.array([0, np.nan], np.float32))
    monkeypatch.setattr(wav, "MAX_SAMPLES", 10)
    with pytest.raises(MediaError, match="at most 0 hours"):
        _write(tmp_path / "a.wav", 10, 1)


def test_a_link_stays_one_and_a_pipe_gets_the_whole(tmp_path: Path) -> None:
    link, target, pipe = tmp_path / "link.wav", tmp_path / "target.wav", tmp_path / "pipe"
    link.symlink_to(target)
    os.mkfifo(pipe)
    heard: list[bytes] = []
    reader = threading.Thread(target=lambda: heard.append(pipe.read_bytes()))
    reader.start()
    for path in (link, pipe):
        with wav_writer(path, 16_000) as write:
            write(_noise(3_000))
    reader.join()
    assert link.is_symlink() and pipe.is_fifo() and heard == [target.read_bytes()]
    assert len(heard[0]) == 44 + 6_000
