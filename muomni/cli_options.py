"""What the talking verbs share: the model they load, standard input, and lines on standard error."""

from __future__ import annotations

import io
import json
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from muomni.errors import UserError

if TYPE_CHECKING:
    from muomni.infer.session import Session

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 75

DEFAULT_RUN = Path("out/demo/model")
SHIPPED_NAME = "nano"
"""Who talks where there is no model of one's own."""
STDIN = Path("-")
"""As a path: what standard input gives."""
OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters that a terminal obeys; a model may write any byte."""

Json = Annotated[bool, arg(name="json", help="Print JSON, one object a line.")]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model to talk with."""

    run: Path = DEFAULT_RUN
    """Directory of the trained stages, or a shipped model's name; without the default one: nano."""
    device: str | None = None
    """cpu, cuda or cuda:N; default: cuda where there is one."""
    threads: int = 1
    """Threads of the CPU. Decoding is many tiny operations, which seldom gain by a second one."""
    int8: bool = False
    """Decode with 8-bit weights (on a CPU)."""

    def open(self) -> Session:
        """Load it, and tell what was passed over. Raises UserError with the command that trains what is missing."""
        if self.threads < 1:
            raise UserError(f"--threads: expected at least 1, got {self.threads}.")
        if (self.run / "model").is_dir() and not (self.run / "text").is_dir():
            raise UserError(f"{self.run}: holds no trained stages; did you mean --run {self.run / 'model'}?")
        run = self.run
        if run == DEFAULT_RUN and not run.exists():
            run = Path(SHIPPED_NAME)
            tell(
                f"note: no model of yours is at {DEFAULT_RUN}; this is {SHIPPED_NAME}, which comes with muomni."
            )
        import torch

        import muomni

        torch.set_num_threads(self.threads)
        session = muomni.load(run, device=self._device(), weights="int8" if self.int8 else "float32")
        if self.int8 and session.engine.unpacked:
            raise UserError(f"--int8: cannot be used here: {session.engine.unpacked}; leave it out.")
        for note in session.notes:
            tell(f"note: {note}")
        if isinstance(sys.stdout, io.TextIOWrapper):
            # An answer may hold characters that this terminal's encoding lacks.
            sys.stdout.reconfigure(errors="backslashreplace")
        return session

    def _device(self) -> str | None:
        import torch

        if self.device is None:
            return None
        kind, mark, index = self.device.partition(":")
        if kind not in ("cpu", "cuda") or (mark and not (kind == "cuda" and index.isdecimal())):
            raise UserError(f"--device: expected cpu, cuda or cuda:N, got {self.device!r}.")
        if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
            raise UserError(
                f"--device {self.device}: there are {torch.cuda.device_count()} CUDA devices here; leave it out."
            )
        return self.device


def tell(line: str) -> None:
    """A line on standard error, where answers do not go."""
    print(f"muomni: {line}", file=sys.stderr, flush=True)


def show(record: dict[str, Any]) -> None:
    """One JSON object as one line of standard output."""
    print(json.dumps(record), flush=True)


def visible(text: str) -> str:
    """A model's text for a terminal: a control character is shown, not obeyed."""
    return OBEYED.sub(lambda found: rf"\x{ord(found[0]):02x}", text)


def reason(error: UserError | OSError) -> str:
    """One line on what went wrong."""
    if isinstance(error, UserError):
        return str(error)
    where = f" {error.filename}" if error.filename else ""
    return f"cannot write or read{where}: {error.strerror}; choose another path or free space."


@contextmanager
def plain_warnings() -> Iterator[None]:
    """What the model warns of inside becomes one line each, without a place in the code."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for one in caught:
        if issubclass(one.category, UserWarning):
            tell(f"note: {one.message}")


def stdin_bytes(what: str) -> bytes:
    """All of standard input, bounded. Raises MediaError when it is empty or too large."""
    from muomni.data.media import read_stream

    return read_stream(sys.stdin.buffer, name="standard input", what=what)


def checked_text(text: str, *, name: str) -> str:
    """A text of the command line; `-`: standard input's. Raises MediaError, beginning with its name."""
    from muomni.data.media import read_text

    if text == str(STDIN):
        return read_text(stdin_bytes("a text"), name="standard input").strip()
    return read_text(text, name=name)


def media(path: Path) -> Path | bytes:
    """A file of the command line, `-` for standard input: what the model's own gate then checks."""
    return stdin_bytes("a recording or picture") if path == STDIN else path


def check_out(path: Path | None) -> None:
    """Before the work: whether a WAV could be written there. Raises UserError."""
    if path is None:
        return
    if path.suffix.lower() not in ("", ".wav"):
        raise UserError(f"--out: {path} would be written as wav; give it a name that ends in .wav.")
    if path.is_dir():
        raise UserError(f"--out: {path} is a directory; give the path of a file.")
    if not path.parent.is_dir():
        raise UserError(
            f"--out: cannot write {path}: there is no directory {path.parent}; choose another path."
        )
