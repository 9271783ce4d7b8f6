"""`muomni say`, `transcribe`, `describe` and `read`. As in cli.py, a verb imports what it needs when it runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from muomni.cli_options import (
    EXIT_USER_ERROR,
    STDIN,
    Json,
    ModelOptions,
    check_out,
    checked_text,
    media,
    plain_warnings,
    show,
    tell,
    visible,
)
from muomni.errors import UserError

Model = Annotated[ModelOptions, arg(name="")]
Pictures = Annotated[tuple[Path, ...], arg(help="Pictures; - for standard input.", metavar="FILE ...")]
Recordings = Annotated[
    tuple[Path, ...],
    arg(
        help="Recordings of at most 64 MiB of PCM (frames x channels x 4 bytes): 17 minutes mono at 16 kHz, 3 minutes "
        "stereo at 44.1 kHz; - for standard input.",
        metavar="FILE ...",
    ),
]

SAY_OUT = Path("say.wav")
"""Where speech goes when nothing else is said."""


def say(
    text: Positional[str | None] = None,
    *,
    model: Model,
    file: Path | None = None,
    out: Path | None = None,
    play: bool = False,
    voice: str | None = None,
    voice_from: Path | None = None,
    temperature: float = 0.2,
    seed: int = 0,
    json_: Json = False,
) -> None:
    """Speak a text with the Talker: into a WAV file, through the loudspeaker, or both.

    Args:
        text: What to say; - or nothing: standard input.
        file: A file with the text instead.
        out: Where the WAV goes; default: say.wav, and no file with --play.
        play: To the sound device, while it is being made. Needs muomni[play].
        voice: A voice it was trained on; default: the most frequent one.
        voice_from: A recording of a voice to imitate: best effort, only its mean spectrum is taken from it.
        temperature: 0: greedy.
        seed: Seed of sampling.
    """
    where = out or (None if play else SAY_OUT)
    check_out(where)
    said = _text(text, file)
    session = model.open()
    from muomni.data.wav import wav_writer

    rate = session.config.mel.sample_rate
    with ExitStack() as stack:
        speaker = None
        if play:
            from muomni.sound_out import Speaker

            speaker = stack.enter_context(Speaker(rate))
        stack.enter_context(plain_warnings())
        started, n_samples = time.perf_counter(), 0
        pieces = session.speak_stream(
            said, voice=voice, voice_from=voice_from, temperature=temperature, seed=seed
        )
        with wav_writer(where, rate) if where else nullcontext() as write:
            for pcm in pieces:
                n_samples += len(pcm)
                if write is not None:
                    write(pcm)
                if speaker is not None:
                    speaker.write(pcm)
        took, seconds = time.perf_counter() - started, n_samples / rate
        if speaker is not None:
            speaker.wait()
    if json_:
        rtf = round(took / seconds, 5) if seconds else None
        show(
            {
                "audio": str(where) if where else None,
                "seconds": seconds,
                "rtf": rtf,
                "characters": len(said),
            }
        )
    elif where is not None:
        print(f"{where}: {seconds:.2f} s")


def _text(text: str | None, file: Path | None) -> str:
    """What is to be said, from one place. Raises UserError for none or two of them, MediaError."""
    from muomni.data.media import read_bytes, read_text

    if file is not None:
        if text is not None:
            raise UserError("say: give a text or --file, not both.")
        if file != STDIN:
            return read_text(read_bytes(file, what="a text"), name=str(file)).strip()
    elif text is None and sys.stdin.isatty():
        raise UserError("say: nothing to say; give a text, --file, or a pipe.")
    return checked_text(str(STDIN) if text is None else text, name="text")


def transcribe(files: Positional[Recordings] = (), *, model: Model, json_: Json = False) -> None:
    """Write what is said in recordings (greedy CTC, lower-case words), a line each.

    Of several files, each line begins with the file's name and a tab. A file that cannot be read costs a line on
    standard error; the others are transcribed all the same, and the exit code is 2.
    """
    session = model.open()
    from muomni.infer.inputs import read_recording

    def answer(source: Path | bytes) -> dict[str, Any]:
        text = session.transcribe(source)
        if not json_:
            return {"text": text}
        n_samples = len(read_recording(source, session.config))
        return {"text": text, "seconds": n_samples / session.config.mel.sample_rate}

    _each(files, answer, verb="transcribe", json_=json_)


def describe(
    files: Positional[Pictures] = (), *, model: Model, max_new_tokens: int = 96, json_: Json = False
) -> None:
    """Describe pictures and films (mp4, mov, webm, mkv), a line each; files and exit code as in transcribe.

    Args:
        max_new_tokens: Longest description.
    """
    session = model.open()
    from muomni.data.film import is_film

    def answer(source: Path | bytes) -> dict[str, Any]:
        kind = "video" if is_film(source) else "image"
        return {"text": session.describe(**{kind: source}, max_new_tokens=max_new_tokens)}

    _each(files, answer, verb="describe", json_=json_)


def read(
    files: Positional[Pictures] = (), *, model: Model, max_new_tokens: int = 96, json_: Json = False
) -> None:
    """Read the words in pictures, as well as the model was trained to, a line each; files as in transcribe.

    Args:
        max_new_tokens: Longest text.
    """
    session = model.open()

    def answer(source: Path | bytes) -> dict[str, Any]:
        return {"text": session.read(source, max_new_tokens=max_new_tokens)}

    _each(files, answer, verb="read", json_=json_)


def _each(
    files: Sequence[Path], answer: Callable[[Path | bytes], dict[str, Any]], *, verb: str, json_: bool
) -> None:
    """Every file's answer as it comes, and the bad ones' errors; exits 2 after them all if there was one."""
    if not files and sys.stdin.isatty():
        raise UserError(f"{verb}: no files; give some, or a pipe.")
    files = files or (STDIN,)
    if files.count(STDIN) > 1:
        raise UserError(f"{verb}: standard input (-) can be read once.")
    failed = False
    for file in files:
        try:
            record = {"file": str(file), **answer(media(file))}
        except UserError as error:
            failed = True
            tell(str(error))
            record = {"file": str(file), "error": str(error)}
        if json_:
            show(record)
        elif "error" not in record:
            text = " ".join(visible(record["text"]).split())
            print(f"{file}\t{text}" if len(files) > 1 else text, flush=True)
    if failed:
        sys.exit(EXIT_USER_ERROR)


VERBS = (say, transcribe, describe, read)
"""What cli.py registers."""
