"""Mutants of good recordings, pictures, texts and films against the gate: `python fuzz_media.py [CASES] [SEED]`.

Every mutant must be admitted or refused by a MediaError, within 5 s of CPU and 512 MiB. A worker says the number of
each case before it reads it, so that whatever ends the worker has a number; it goes on behind it. One case alone:
`python fuzz_media.py audio 1 SEED NUMBER`.
"""

from __future__ import annotations

import importlib.util
import math
import random
import resource
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import media_files
import numpy as np

from muomni.data.film import MAX_SIDE, read_video
from muomni.data.media import MAX_PCM_BYTES, MAX_PIXELS, MediaError, read_audio, read_image, read_text

CPU_SECONDS, WALL_SECONDS = 5, 300
"""Of one case: the first ends a loop, the second what waits for something."""
MEMORY_BYTES = 512 * 2**20
"""Address space beyond that of the worker when it starts."""
NUMBERS = (
    0,
    1,
    2,
    7,
    8,
    16,
    127,
    128,
    255,
    256,
    4_000,
    32_767,
    32_768,
    65_535,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
)


def _audio(payload: bytes, rng: random.Random) -> None:
    samples = read_audio(payload)
    assert samples.dtype == np.float32 and samples.ndim == 1 and np.isfinite(samples).all()
    # The lowest rate admitted is half of 16 kHz.
    assert 0 < samples.nbytes <= 2 * MAX_PCM_BYTES + 64


def _image(payload: bytes, rng: random.Random) -> None:
    picture = read_image(payload)
    assert picture.mode == "RGB" and 0 < picture.width * picture.height <= MAX_PIXELS
    picture.tobytes()


def _text(payload: bytes, rng: random.Random) -> None:
    source = payload if rng.random() < 0.5 else payload.decode("utf-8", "surrogateescape")
    text = read_text(source, name="x")
    assert text.strip() and payload.decode("utf-8").removeprefix("\ufeff") == text


def _film(payload: bytes, rng: random.Random) -> None:
    video = read_video(payload, n_frames=lambda seconds: min(4, max(1, int(seconds))), max_sound=10.24)
    assert video.seconds is not None and 0 <= video.seconds <= 3_600 and len(video.frames) >= 1
    assert all(math.isfinite(time) and time >= 0 for time in video.frame_times)
    assert all(frame.mode == "RGB" and 0 < max(frame.size) <= MAX_SIDE for frame in video.frames)
    if video.waveform is not None:
        assert len(video.waveform) and np.isfinite(video.waveform).all()


def _films() -> dict[str, bytes]:
    # Made by PyAV, which only the films need.
    import film_files

    return film_files.small_films()


Reader = Callable[[bytes, random.Random], None]
KINDS: dict[str, tuple[Callable[[], dict[str, bytes]], Reader]] = {
    "audio": (media_files.good_recordings, _audio),
    "image": (media_files.good_pictures, _image),
    "text": (media_files.good_texts, _text),
}
if importlib.util.find_spec("av"):
    KINDS["film"] = (_films, _film)


def _edit(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One change of one of eight kinds; half of them near the beginning, where the fields are."""
    near = min(len(data), 128) if rng.random() < 0.5 else len(data)
    at, n = rng.randrange(near + 1), rng.randrange(1, 64)
    match rng.randrange(8):
        case 0:
            bits = bytearray(data or b"\0")
            for _ in range(rng.randrange(1, 9)):
                bits[rng.randrange(len(bits))] ^= 1 << rng.randrange(8)
            return bytes(bits)
        case 1:
            return data[:at]
        case 2:
            return data[:at] + other[rng.randrange(len(other) + 1) :]
        case 3:
            return data[: at + n] + data[at : at + n] * rng.randrange(1, 9) + data[at + n :]
        case 4:
            number = rng.choice((*NUMBERS, len(data), len(data) - 8, 2 * len(data)))
            form = rng.choice(("<I", ">I", "<H", ">H", "<Q", ">Q", "B"))
            patch = struct.pack(form, number & ((1 << 8 * struct.calcsize(form)) - 1))
            return data[:at] + patch + data[at + len(patch) :]
        case 5:
            head = rng.randrange(4, 64)
            return other[:head] + data[head:]
        case 6:
            return data[:at] + data[at + n :]
        case _:
            return data[:at] + rng.randbytes(n) + data[at + n :]


def mended(data: bytes) -> bytes:
    """The same with right checksums (PNG, Ogg) and the right length (RIFF, AIFF): reaches what is behind them."""
    if data[:4] in (b"RIFF", b"FORM") and len(data) >= 8:
        return data[:4] + struct.pack("<I" if data[0] == ord("R") else ">I", len(data) - 8) + data[8:]
    if data[:4] == b"OggS":
        return b"".join(
            media_files.ogg_signed(b"OggS" + page) for page in data.split(b"OggS")[1:] if len(page) > 22
        )
    if data[:8] != media_files.PNG_MAGIC:
        return data
    at, out = 8, [data[:8]]
    while at + 12 <= len(data):
        end = min(len(data) - 4, at + 8 + int.from_bytes(data[at : at + 4], "big"))
        body = data[at + 4 : end]
        out.append(struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)))
        at = end + 4
    return b"".join(out)


def mutant(kind: str, seed: int, number: int) -> tuple[bytes, random.Random]:
    """The mutant of this number, and the generator to go on with: the same wherever the encoders are."""
    rng = random.Random(f"{kind} {seed} {number}")
    corpus = list(KINDS[kind][0]().values())
    data = rng.choice(corpus)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = _edit(data, rng.choice(corpus), rng)
    return (mended(data) if rng.random() < 0.5 else data), rng


def work(kind: str, n_cases: int, seed: int, first: int) -> None:
    """Read n_cases mutants; say each number before and a (admitted) or r (refused) behind it."""
    read = KINDS[kind][1]
    for good in KINDS[kind][0]().values():
        read(good, random.Random(0))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    bound = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    for number in range(first, first + n_cases):
        print(number, flush=True)
        # Both signals end the process, also within a decoder.
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        signal.alarm(WALL_SECONDS)
        payload, rng = mutant(kind, seed, number)
        reason = ""
        try:
            read(payload, rng)
        except MediaError as error:
            reason = str(error)
        assert not reason or reason.isprintable(), repr(reason)
        print("r" if reason else "a", flush=True)


@dataclass
class Hunt:
    """What came of the mutants of one kind."""

    n_cases: int = 0
    admitted: int = 0
    refused: int = 0
    cpu_seconds: float = 0.0
    findings: list[str] = field(default_factory=list)


def hunt(kind: str, n_cases: int, seed: int, script: Path = Path(__file__), most: int = 20) -> Hunt:
    """Mutants 0 to n_cases - 1 by workers, a new one behind each finding; ends after `most` findings."""
    found, first = Hunt(), 0
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    while first < n_cases and len(found.findings) < most:
        count = min(10_000, n_cases - first)
        call = [sys.executable, str(script), kind, str(count), str(seed), str(first)]
        run = subprocess.run(call, capture_output=True, text=True, errors="replace")
        lines = run.stdout.split()
        found.admitted, found.refused = found.admitted + lines.count("a"), found.refused + lines.count("r")
        first += count
        if run.returncode:
            if not any(line.isdigit() for line in lines):
                raise RuntimeError(f"the worker did not begin: {run.stderr[-2_000:]}")
            first = int(next(line for line in reversed(lines) if line.isdigit()))
            ended = signal.Signals(-run.returncode).name if run.returncode < 0 else run.stderr[-1_500:]
            found.findings.append(f"{kind}, seed {seed}, case {first}: {ended}")
            first += 1
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found.n_cases = first
    found.cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return found


def main() -> None:
    """Every kind; exit code 1 when there was a finding."""
    if len(sys.argv) == 5:
        work(sys.argv[1], *map(int, sys.argv[2:]))
        return
    n_cases, seed = (int(x) for x in (*sys.argv[1:], *("100000", "0")[len(sys.argv) - 1 :]))
    findings: list[str] = []
    for kind in KINDS:
        start = time.monotonic()
        found = hunt(kind, n_cases, seed)
        print(
            f"{kind}: {found.n_cases} mutants, {found.admitted} admitted, {found.refused} refused, "
            f"{len(found.findings)} findings, {found.cpu_seconds:.0f} s of CPU, {time.monotonic() - start:.0f} s",
            *found.findings, sep="\n", flush=True,
        )  # fmt: skip
        findings += found.findings
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
