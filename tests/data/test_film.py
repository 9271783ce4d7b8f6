"""Films: the frames of the right times, the sound at its place, and one line for each bad one."""

import io
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muomni.data import film
from muomni.data.film import MAX_SIDE, read_video
from muomni.data.media import MediaError

pytest.importorskip("av", reason="PyAV is not installed: muomni[video]")
sys.path.insert(0, str(Path(__file__).parent))
import bad_films
import film_files


def _seconds(seconds: float) -> int:
    return max(1, int(seconds))


def _colour(frame: object) -> tuple[np.ndarray, np.ndarray]:
    """Mean colours of the left and the right half."""
    pixels = np.asarray(frame).astype(float)
    middle = pixels.shape[1] // 2
    return pixels[:, : middle - 4].mean(axis=(0, 1)), pixels[:, middle + 4 :].mean(axis=(0, 1))


@pytest.mark.parametrize("name", film_files.KINDS)
def test_each_frame_is_the_one_seen_in_the_middle_of_its_part(name: str) -> None:
    video = read_video(film_files.good_films()[name], n_frames=_seconds)
    assert video.seconds == pytest.approx(4.0, abs=0.15)
    assert [*video.frame_times] == pytest.approx([0.5, 1.5, 2.5, 3.5], abs=0.15)
    for frame, colour in zip(video.frames, film_files.COLOURS, strict=False):
        left, right = _colour(frame)
        # Coding and the matrix of colours change them by a little; neighbours differ by more than 150.
        np.testing.assert_allclose(left, colour, atol=25)
        np.testing.assert_allclose(right, np.array(colour) / 2, atol=40 if name == "gif" else 25)


@pytest.mark.parametrize("name", [n for n in film_files.KINDS if n not in ("gif", "mp4 without sound")])
def test_the_tone_is_heard_in_its_second(name: str) -> None:
    waveform = read_video(film_files.good_films()[name], n_frames=_seconds).waveform
    assert waveform is not None and waveform.dtype == np.float32
    assert len(waveform) == pytest.approx(64_000, abs=400)
    loud = np.abs(waveform) > 0.1
    first, last = np.flatnonzero(loud)[[0, -1]] / 16_000
    assert first == pytest.approx(1.0, abs=0.03) and last == pytest.approx(2.0, abs=0.03)
    spectrum = np.abs(np.fft.rfft(waveform[17_600:30_400]))
    assert spectrum.argmax() * 16_000 / 12_800 == pytest.approx(film_files.TONE_HZ, abs=2)


@pytest.mark.parametrize("name", ["gif", "mp4 without sound"])
def test_a_film_without_sound_has_none(name: str) -> None:
    assert read_video(film_files.good_films()[name], n_frames=_seconds).waveform is None


def test_sound_that_begins_late_stays_at_its_time() -> None:
    file = film_files.film("matroska", audio="pcm_s16le", sound_format="s16", sound_from=0.7)
    waveform = read_video(file, n_frames=_seconds).waveform
    assert waveform is not None
    assert np.flatnonzero(np.abs(waveform) > 0.1)[0] / 16_000 == pytest.approx(1.0, abs=0.01)


def test_sound_is_decoded_no_further_than_wanted() -> None:
    file = film_files.film(seconds=6.0)
    waveform = read_video(file, n_frames=_seconds, max_sound=2.0).waveform
    assert waveform is not None and 2.0 < len(waveform) / 16_000 < 2.2


@pytest.mark.parametrize("gop", [1, 7, 1_000])
def test_frames_are_those_of_a_whole_decoding_wherever_key_frames_are(gop: int) -> None:
    import av

    file = film_files.film(seconds=12.0, gop=gop, audio=None)
    with av.open(io.BytesIO(file)) as container:
        whole = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    video = read_video(file, n_frames=lambda seconds: 9)
    for time, frame in zip(video.frame_times, video.frames, strict=True):
        shown = next(pixels for at, pixels in reversed(whole) if at is not None and at <= time)
        assert np.array_equal(np.asarray(frame), shown)


def test_little_of_a_long_film_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[film._Film] = []

    class Watched(film._Film):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(film, "_Film", Watched)
    # 900 pictures of 64 x 48 with a key frame each second; a wanted one needs those before it and what B-frames delay.
    read_video(film_files.film(seconds=90.0, audio=None), n_frames=lambda seconds: 8)
    assert 8 <= made[0].n_decoded / (64 * 48) <= 8 * 14


def test_a_film_with_too_few_key_frames_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    file = film_files.film(seconds=8.0, gop=1_000, audio=None)
    monkeypatch.setattr(film, "MAX_DECODED_PIXELS", 20 * 64 * 48)
    with pytest.raises(MediaError, match="too few key frames"):
        read_video(file, n_frames=_seconds)


@pytest.mark.parametrize(
    ("rotation", "corner"), [(90, (-1, 0)), (-90, (0, -1)), (180, (-1, -1)), (0, (0, 0))]
)
def test_a_film_is_turned_as_it_says(rotation: int, corner: tuple[int, int]) -> None:
    """The bright half is on the left as stored: counterclockwise by 90 degrees it is at the bottom."""
    frame = np.asarray(
        read_video(film_files.film(rotation=rotation, audio=None), n_frames=_seconds).frames[0]
    )
    assert frame.shape[:2] == ((64, 48) if abs(rotation) == 90 else (48, 64))
    opposite = tuple(-1 - c for c in corner)
    assert frame[corner].astype(int).sum() > 1.5 * frame[opposite].astype(int).sum()


def test_a_large_frame_is_kept_small() -> None:
    file = film_files.film(width=1_920, height=1_080, seconds=0.3, audio=None)
    assert read_video(file, n_frames=_seconds).frames[0].size == (MAX_SIDE, MAX_SIDE * 1_080 // 1_920)


@pytest.mark.parametrize("case", bad_films.CASES)
def test_a_bad_film_is_one_line_that_names_it_and_costs_little(
    case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    reason, make = bad_films.CASES[case]
    path = tmp_path / "a b.x"
    path.write_bytes(make())
    capfd.readouterr()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    with pytest.raises(MediaError) as caught:
        read_video(path, n_frames=_seconds)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 1.0
    said = str(caught.value)
    assert said.startswith(f"{path}: ") and said.isprintable() and len(said) < 200 + len(str(path))
    assert re.search(reason, said.removeprefix(str(path))), said
    assert capfd.readouterr() == ("", ""), "FFmpeg talks"


def test_there_are_enough_bad_films() -> None:
    assert len(bad_films.CASES) >= 15


def test_a_missing_film_and_a_folder_are_one_line(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.mp4"):
        with pytest.raises(MediaError, match=r"is not a file|no such file"):
            read_video(path, n_frames=_seconds)


def test_without_pyav_the_line_says_what_to_install() -> None:
    code = "import sys; sys.modules['av'] = None\n"
    code += "from muomni.data.film import read_video\nfrom muomni.data.media import MediaError\n"
    code += "try: read_video(b'x', n_frames=int)\nexcept MediaError as error: print(error)\n"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "<1 bytes>: films are read by PyAV; pip install 'muomni[video]'.\n"
