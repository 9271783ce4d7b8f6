"""A WAV file written while its samples are made: whole or not at all, in bounded memory."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from muomni import files
from muomni.data.media import MediaError

MAX_SAMPLES = 2**31 - 64
"""Of 16 bits: a WAV counts its bytes in 32."""


@contextlib.contextmanager
def wav_writer(path: Path | str, sample_rate: int) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that adds (n_samples,) float32 in [-1, 1] to a 16-bit WAV; values outside are clipped.

    The file has its name when the block has ended, and not after an error in it. A link stays one. What is no regular
    file, such as a pipe, is given the whole at the end.
    Raises MediaError for a sample that is not finite and for more than 37 hours at 16 kHz; OSError with the path as its
    filename when it cannot be written.
    """
    path = Path(path)
    is_regular = path.is_file() or not path.exists()
    place = Path(os.path.realpath(path))
    # soundfile would do, but says of a full disk only that there was an error.
    with contextlib.ExitStack() as stack:
        with _named(path):
            folder = place.parent if is_regular else Path(stack.enter_context(tempfile.TemporaryDirectory()))
            aside = folder / f".{place.name}.{os.getpid()}"
            stack.callback(aside.unlink, missing_ok=True)
            raw = aside.open("wb")
        file = wave.Wave_write(raw)
        stack.callback(_give_up, file, raw)
        file.setparams((1, 2, sample_rate, 0, "NONE", "not compressed"))

        def write(pcm: np.ndarray) -> None:
            if not np.isfinite(pcm).all():
                raise MediaError(f"{path}: the waveform to write holds samples that are not finite.")
            if file.tell() + len(pcm) > MAX_SAMPLES:
                hours = MAX_SAMPLES / sample_rate / 3_600
                raise MediaError(f"{path}: a WAV holds at most {hours:.0f} hours; write several files.")
            # As libsndfile rounds, so that it is the file that `write_wav` writes.
            whole = np.clip(np.floor(pcm.astype(np.float64) * 32_768), -32_768, 32_767)
            with _named(path):
                file.writeframesraw(whole.astype("<i2").tobytes())
                raw.flush()

        yield write
        with _named(path):
            file.close()
            raw.close()
            files.sync(aside)
            if is_regular:
                aside.rename(place)
            else:
                with aside.open("rb") as source, path.open("wb") as out:
                    shutil.copyfileobj(source, out)


def _give_up(*opened: wave.Wave_write | BinaryIO) -> None:
    """Close what is open; what a full disk refused is refused once more, and has been told."""
    for file in opened:
        with contextlib.suppress(OSError):
            file.close()


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
