"""What is unusual and sound is admitted: modes, depths, turned and animated pictures, lengths that pipes leave open."""

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
import media_files as made

from muomni.data.media import MediaError, read_audio, read_image, read_text


def decoded(payload: bytes) -> tuple[np.ndarray, int]:
    """(n, channels) float32 by one call, and Hz. (soundfile.read seeks before: an MP3 gets other last bits.)"""
    with soundfile.SoundFile(io.BytesIO(payload)) as file:
        return file.read(out=np.empty((file.frames, file.channels), np.float32)), file.samplerate


@pytest.mark.parametrize("name", made.good_recordings())
def test_every_format_gives_what_libsndfile_decodes_at_once(name: str) -> None:
    payload = made.good_recordings()[name]
    samples, rate = decoded(payload)
    np.testing.assert_array_equal(read_audio(payload, sample_rate=rate), samples.mean(axis=1))


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_a_recording_of_many_blocks_is_the_one_libsndfile_decodes_at_once(kind: str) -> None:
    payload = made.sound(made.tone(700_001), 48_000, kind)
    samples, _ = decoded(payload)
    np.testing.assert_array_equal(read_audio(payload, sample_rate=48_000), samples[:, 0])


def test_a_recording_that_is_decoded_twice_begins_at_its_beginning() -> None:
    samples = np.tile(made.tone(40_000), 230)
    for kind in ("FLAC", "OGG"):
        payload = made.sound(samples, 16_000, kind)
        expected, _ = decoded(payload)
        np.testing.assert_array_equal(read_audio(payload), expected[:, 0])


def test_the_ending_of_a_name_does_not_matter(tmp_path: Path) -> None:
    for name in ("a.raw", "b.png", "c", "d.flac", "e\n.wav", "f ü.wav"):
        (tmp_path / name).write_bytes(made.sound(made.tone()))
        assert len(read_audio(tmp_path / name)) == len(read_audio(str(tmp_path / name))) == 4_000
        (tmp_path / name).write_bytes(made.picture())
        assert read_image(tmp_path / name).size == (24, 16)


def test_a_wav_written_to_a_pipe_has_no_length() -> None:
    whole = made.sound(made.tone())
    for unknown in (0xFFFF_FFFF, 0x7FFF_FFFF):
        stated = struct.pack("<I", unknown)
        streamed = whole[:4] + stated + whole[8:40] + stated + whole[44:]
        np.testing.assert_array_equal(read_audio(streamed), read_audio(whole))


def test_a_wav_may_lack_the_byte_that_pads_it() -> None:
    odd = made.riff([made.wav_format(bits=8), (b"data", bytes(range(100, 200)) + b"\x80")])
    assert len(read_audio(odd)) == len(read_audio(odd[:-1])) == 101


def test_a_little_beyond_full_scale_is_kept() -> None:
    loud = (4.0 * made.tone()).astype(np.float32)
    np.testing.assert_array_equal(read_audio(made.sound(loud, subtype="FLOAT")), loud)


def test_what_stands_behind_a_tag_is_read() -> None:
    tagged = b"ID3\x04\0\0\0\0\x01\x00" + bytes(128) + made.good_recordings()["MP3 stereo"]
    assert len(read_audio(tagged)) == len(read_audio(made.good_recordings()["MP3 stereo"]))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_says(orientation: int) -> None:
    upright = np.asarray(made.drawing())
    # EXIF 2.3, table of orientations: where row 0 and column 0 of what is stored belong in what is seen.
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.swapaxes(0, 1), 6: np.rot90(upright, 1), 7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[274] = orientation
    payload = made.picture(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(np.asarray(read_image(payload)), upright)


@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"II*\0\xff\xff\xff\xff", b"\xff" * 40, b"MM\0*\0\0\0\x08\0\x01"]
)
def test_broken_exif_spoils_no_picture(exif: bytes) -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        assert read_image(made.picture(kind=kind, exif=exif)).size == (24, 16)


def test_an_orientation_that_is_none_is_ignored() -> None:
    for orientation in (0, 9, 65_535):
        exif = Image.Exif()
        exif[274] = orientation
        np.testing.assert_array_equal(
            np.asarray(read_image(made.picture(exif=exif))), np.asarray(made.drawing())
        )


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_picture_is_read(kind: str) -> None:
    red, blue = Image.new("RGB", (20, 10), "red"), Image.new("RGB", (20, 10), "blue")
    options = {"lossless": True} if kind == "WEBP" else {}
    moving = read_image(made.picture(red, kind, save_all=True, append_images=[blue], duration=50, **options))
    assert moving.getcolors() == [(200, (255, 0, 0))]


def test_cmyk_keeps_its_colours() -> None:
    rgb = Image.new("RGB", (16, 16), (200, 40, 90))
    seen = np.asarray(read_image(made.picture(rgb.convert("CMYK"), "JPEG", quality=95)), dtype=int)
    assert np.abs(seen - (200, 40, 90)).max() <= 4


@pytest.mark.parametrize(("colour", "n_values"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_become_eight(colour: int, n_values: int) -> None:
    pixel = [0x40_80, 0x80_40, 0xC0_01, 0xFF_FF][:n_values] if n_values != 2 else [0x40_80, 0xFF_FF]
    rows = zlib.compress((b"\0" + struct.pack(f">{n_values}H", *pixel) * 3) * 2)
    found = read_image(made.png(3, 2, rows, depth=16, colour=colour)).getpixel((2, 1))
    expected = (0x40, 0x80, 0xC0) if n_values > 2 else (0x40,) * 3
    assert found is not None and np.abs(np.subtract(found, expected)).max() <= 1


def test_a_picture_of_exactly_16_megapixels_is_read_and_one_row_more_is_not() -> None:
    row = bytes(1 + 4_000 // 8)
    assert read_image(made.png(4_000, 4_000, zlib.compress(row * 4_000), depth=1, colour=0)).size == (
        4_000,
        4_000,
    )
    with pytest.raises(MediaError, match="4000 x 4001 pixels"):
        read_image(made.png(4_000, 4_001, zlib.compress(row * 4_001), depth=1, colour=0))


def test_a_text_loses_the_mark_before_it_and_nothing_else() -> None:
    for text in (" x \n", "\ufffd", "a\ufeffb", "👩\u200d👧", "a\tb\r\n\x0c", "\U0010ffff", "e\u0301"):
        assert read_text(text, name="x") == read_text(text.encode(), name="x") == text
        assert read_text("\ufeff" + text, name="x") == read_text(text.encode("utf-8-sig"), name="x") == text
