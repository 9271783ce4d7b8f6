"""The media gate: good files become checked arrays, everything else one clear line."""

import contextlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from muomni.data.media import MediaError, read_audio, read_image, write_wav


def wav(samples: np.ndarray, rate: int, kind: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def tone(rate: int, seconds: float = 0.5, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 44_100, 48_000])
def test_any_rate_becomes_16_khz_with_the_tone_where_it_was(rate: int) -> None:
    waveform = read_audio(wav(tone(rate), rate))
    assert abs(len(waveform) - 8_000) <= 2
    spectrum = np.abs(np.fft.rfft(waveform[1000:7000]))
    assert abs(spectrum.argmax() * 16_000 / 6000 - 440.0) < 4.0


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
def test_formats_and_channels_are_mixed_to_mono(kind: str) -> None:
    stereo = np.stack([tone(16_000), 0.0 * tone(16_000)], axis=1)
    waveform = read_audio(wav(stereo, 16_000, kind))
    assert waveform.ndim == 1
    assert 0.2 < np.abs(waveform).max() < 0.3


def test_wav_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a b.wav"
    write_wav(path, tone(16_000), 16_000)
    assert np.abs(read_audio(path) - tone(16_000)).max() < 1 / 32_000


BAD_AUDIO = {
    "empty": b"",
    "text": b"this is not sound at all",
    "zero seconds": wav(np.zeros(0, np.float32), 16_000),
    "nan": wav(np.full(100, np.nan, np.float32), 16_000, subtype="FLOAT"),
    "1 Hz": wav(tone(16_000), 1),
    "16 channels": wav(np.zeros((100, 16), np.float32), 16_000),
    "half a header": wav(tone(16_000), 16_000)[:30],
    "picture": b"\x89PNG\r\n\x1a\n" + b"0" * 64,
}


@pytest.mark.parametrize("name", BAD_AUDIO)
def test_bad_audio_is_one_line(name: str) -> None:
    with pytest.raises(MediaError) as error:
        read_audio(BAD_AUDIO[name])
    assert "\n" not in str(error.value) and str(error.value).startswith("<")


def test_a_forged_length_is_refused_before_reading() -> None:
    header = bytearray(wav(np.zeros((16, 2), np.float32), 16_000))
    header[40:44] = (2**31).to_bytes(4, "little")
    header[4:8] = (2**31 + 36).to_bytes(4, "little")
    try:
        waveform = read_audio(bytes(header))
    except MediaError:
        return
    assert len(waveform) == 16, "libsndfile may correct the length from the file's size; nothing more is read"


def test_long_recordings_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "long.flac"
    path.write_bytes(wav(np.zeros(17 * 2**20, np.int16), 16_000, "FLAC"))
    with pytest.raises(MediaError, match="64 MiB"):
        read_audio(path)
    with pytest.raises(MediaError, match=r"at most 10\.24 s"):
        read_audio(wav(np.zeros(16_000 * 11, np.float32), 16_000), max_seconds=10.24)


def test_missing_file_folder_and_unreadable(tmp_path: Path) -> None:
    for read in (read_audio, read_image):
        with pytest.raises(MediaError, match="no such file"):
            read(tmp_path / "none.wav")
        with pytest.raises(MediaError, match="is not a file"):
            read(tmp_path)
    if os.geteuid():
        locked = tmp_path / "locked.wav"
        locked.write_bytes(b"x")
        locked.chmod(0)
        with pytest.raises(MediaError, match="permissions"):
            read_audio(locked)


def png(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_transparency_becomes_white_and_modes_become_rgb() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert read_image(png(clear)).getpixel((0, 0)) == (255, 255, 255)
    for mode in ("L", "1", "P", "I;16"):
        assert read_image(png(Image.new(mode, (5, 3)))).mode == "RGB"


@pytest.mark.parametrize(
    "payload", [b"", b"hello", b"\x89PNG\r\n\x1a\nbroken", png(Image.new("RGB", (64, 64)))[:60]]
)
def test_bad_pictures_are_one_line(payload: bytes) -> None:
    with pytest.raises(MediaError) as error:
        read_image(payload)
    assert "\n" not in str(error.value)


def test_formats_outside_the_list_and_huge_pictures_are_refused() -> None:
    with pytest.raises(MediaError, match="expected png"):
        read_image(png(Image.new("RGB", (4, 4)), "TIFF"))
    bomb = png(Image.new("1", (20_000, 20_000)))
    with pytest.raises(MediaError, match="megapixels"):
        read_image(bomb)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["png", "wav", "ogg"]), st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
def test_mutants_never_crash(kind: str, position: int, patch: bytes) -> None:
    good = {"png": png(Image.new("RGB", (24, 24), (9, 99, 200))), "wav": wav(tone(16_000, 0.05), 16_000),
            "ogg": wav(tone(16_000, 0.05), 16_000, "OGG")}[kind]  # fmt: skip
    at = position % len(good)
    mutant = good[:at] + patch + good[at + len(patch) :]
    complaint = ""
    try:
        if kind == "png":
            assert read_image(mutant).mode == "RGB"
        else:
            assert np.isfinite(read_audio(mutant)).all()
    except MediaError as error:
        complaint = str(error)
    assert "\n" not in complaint


def test_a_header_that_points_before_the_start_prints_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    good = wav(tone(16_000, 0.2), 16_000, "AIFF")
    for at in range(20, 60):
        with contextlib.suppress(MediaError):
            read_audio(good[:at] + b"\xff\xff\xff\xff" + good[at + 4 :])
    assert "Traceback" not in capfd.readouterr().err


def test_16_bit_grey_keeps_its_shades() -> None:
    shades = np.array([[0, 0x4000, 0x8000, 0xFFFF]], dtype=np.uint16)
    assert np.asarray(read_image(png(Image.fromarray(shades))))[0, :, 0].tolist() == [0, 0x40, 0x80, 0xFF]
