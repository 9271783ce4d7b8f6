"""`muomni chat`: one turn from the options, or a conversation line by line. Imports wait until it runs."""

from __future__ import annotations

import contextlib
import difflib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Self

from tyro.conf import arg

from muomni.cli_options import (
    STDIN,
    Json,
    ModelOptions,
    check_out,
    checked_text,
    media,
    plain_warnings,
    reason,
    show,
    tell,
    visible,
)
from muomni.errors import UserError

if TYPE_CHECKING:
    from muomni.infer.session import Session
    from muomni.infer.stream import Reply
    from muomni.sound_out import Speaker

PROMPT = "> "
MEDIA = ("image", "audio", "video")
"""What a turn may hold besides text: an option, a command and a keyword of `Session.stream` each."""
HELP = """\
/image, /audio, /video PATH  attach to the next line (several may be; an empty line sends them alone)
/speak on|off              say answers too
/save PATH.wav             the last answer's speech
/voice NAME                who speaks
/temperature X, /seed N    how text is chosen
/reset                     forget the conversation
/quit                      end (as the end of input does); Ctrl-C stops an answer
//...                      a line that begins with one slash"""


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """How answers are written and said: keyword arguments of `Session.stream`."""

    voice: str | None = None
    """A voice it was trained on; default: the most frequent one."""
    temperature: float = 0.0
    """Of the text; 0: greedy."""
    top_k: int | None = None
    """Only the k most likely tokens."""
    top_p: float | None = None
    """Only the most likely tokens whose probabilities first sum to p."""
    min_p: float | None = None
    """Only tokens at least so probable, as a share of the likeliest one's probability."""
    repetition_penalty: float = 1.0
    """Makes tokens that were written before less likely; 1: not."""
    max_new_tokens: int = 96
    """Longest answer."""
    max_repeats: int = 4
    """Ends an answer that goes in circles: the same tokens so many times over, at least 16 in all; 0: never."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer and are no part of it."""
    seed: int = 0
    """Seed of sampling."""


def chat(
    *,
    model: Annotated[ModelOptions, arg(name="")],
    text: str | None = None,
    image: Annotated[tuple[Path, ...], arg(metavar="FILE ...")] = (),
    audio: Annotated[tuple[Path, ...], arg(metavar="FILE ...")] = (),
    video: Annotated[tuple[Path, ...], arg(metavar="FILE ...")] = (),
    out: Path | None = None,
    play: bool = False,
    how: Annotated[ChatOptions, arg(name="")],
    json_: Json = False,
) -> None:
    """Talk with a trained model: one turn from --text, --image, --audio and --video, or line by line without them.

    A conversation reads lines from standard input; /help lists its commands. Text is written as it comes. With --json
    every turn is one object: text, ended, truncated, unheard, audio, seconds (of speech), timings; a mistake is one
    with error.

    Args:
        text: What to say; - for standard input.
        image: Pictures; - for standard input.
        audio: Recordings of at most 10.24 s each; - for standard input.
        video: Films, of whose sound the first 10.24 s are heard; - for standard input. Needs muomni[video].
        out: Where the spoken answer goes (WAV); a conversation's later ones get -2, -3 and so on.
        play: Say answers through the sound device. Needs muomni[play].
    """
    check_out(out)
    given = {"image": image, "audio": audio, "video": video}
    once = text is not None or any(given.values())
    if [text, *map(str, (*image, *audio, *video))].count(str(STDIN)) > 1:
        raise UserError("chat: standard input (-) can be read once.")
    said = None if text is None else checked_text(text, name="--text")
    session = model.open()
    with ExitStack() as stack:
        speaker = None
        if play:
            from muomni.sound_out import Speaker

            speaker = stack.enter_context(Speaker(session.config.mel.sample_rate))
        talk = Talk(session, how, out=out, speaker=speaker, json_=json_)
        if once:
            talk.turn(said, {kind: [media(path) for path in paths] for kind, paths in given.items()})
        else:
            talk.converse(lines())


class Talk:
    """A conversation on standard output. What is said about it goes to standard error."""

    def __init__(
        self, session: Session, how: ChatOptions, *, out: Path | None, speaker: Speaker | None, json_: bool
    ) -> None:
        """Nothing said yet. Raises UserError for settings that cannot be."""
        self.session, self.speaker = session, speaker
        self.how: dict[str, Any] = asdict(how) | {"speak": out is not None or speaker is not None}
        self._out, self._json, self._n_spoken = out, json_, 0
        self._attached: dict[str, list[Path]] = {kind: [] for kind in MEDIA}
        self._last: Reply | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            **{f"/{kind}": lambda rest, kind=kind: self._attach(kind, rest) for kind in MEDIA},
            "/speak": self._speak,
            "/save": self._save,
            "/voice": lambda rest: self._set(voice=rest),
            "/temperature": lambda rest: self._number("temperature", rest, float, "a number"),
            "/seed": lambda rest: self._number("seed", rest, int, "a whole number"),
            "/reset": self._reset,
            "/help": lambda _: print(HELP, file=sys.stderr, flush=True),
        }
        self._set()

    def converse(self, given: Iterator[str | UserError]) -> None:
        """Every line is a command or a turn, until /quit or the end; a mistake costs its own line alone."""
        for line in given:
            if line == "/quit":
                return
            try:
                if isinstance(line, UserError):
                    raise line
                self._line(line)
            except (UserError, OSError) as error:
                if isinstance(error, BrokenPipeError):
                    raise
                tell(reason(error))
                if self._json:
                    show({"error": reason(error)})

    def turn(self, text: str | None, given: dict[str, Any], *, stoppable: bool = False) -> None:
        """One turn: the text as it comes, its sound to where it goes. stoppable: by Ctrl-C, which then is no error."""
        with plain_warnings(), Interrupt(active=stoppable) as interrupt:
            if self.speaker is not None:
                self.speaker.begin()
            stream = self.session.stream(text, **given, **self.how)
            for chunk in stream:
                if chunk.text and not self._json:
                    print(visible(chunk.text), end="", flush=True)
                if self.speaker is not None:
                    self.speaker.write(chunk.pcm)
                if interrupt.asked:
                    break
            if self.speaker is not None:
                self.speaker.wait(lambda: interrupt.asked)
            if interrupt.asked:
                heard = self.speaker.played_seconds if self.speaker and self.how["speak"] else None
                reply = stream.stop(heard)
            else:
                reply = stream.reply
        self._last = reply
        if not self._json:
            print(flush=True)
        self._finish(reply)

    def _finish(self, reply: Reply) -> None:
        saved = None
        if self._out is not None and len(reply.audio):
            self._n_spoken += 1
            n = self._n_spoken
            saved = self._out if n == 1 else self._out.with_stem(f"{self._out.stem}-{n}")
            reply.audio.save(saved)
        if reply.truncated:
            turns = "turn was" if reply.truncated == 1 else "turns were"
            tell(f"note: {reply.truncated} earlier {turns} forgotten to make room.")
        if self._json:
            show(
                {
                    "text": reply.text,
                    "ended": reply.ended,
                    "truncated": reply.truncated,
                    "unheard": reply.unheard,
                    "audio": str(saved) if saved else None,
                    "seconds": reply.audio.seconds,
                    "timings": reply.timings,
                }
            )

    def _line(self, line: str) -> None:
        if line.startswith("/") and not line.startswith("//"):
            command, rest = [*line.split(maxsplit=1), ""][:2]
            if command not in self._commands:
                near = difflib.get_close_matches(command, [*self._commands, "/quit"], n=1)
                hint = f"did you mean {near[0]}?" if near else "/help lists them, // begins a text."
                raise UserError(f"there is no command {command}; {hint}")
            self._commands[command](rest)
            return
        # A line that fails takes what was attached to it along: the next one is another question.
        given, self._attached = self._attached, {kind: [] for kind in MEDIA}
        if line or any(given.values()):
            text = checked_line(line.removeprefix("/")) if line else None
            self.turn(text, given, stoppable=True)

    def _attach(self, kind: str, rest: str) -> None:
        """Looked at now, so that a mistake is told before the question is typed."""
        from muomni.infer.inputs import read_clip, read_film, read_picture

        path = _path(rest, f"/{kind}")
        {"image": read_picture, "audio": read_clip, "video": read_film}[kind](path, self.session.config)
        self._attached[kind].append(path)

    def _speak(self, rest: str) -> None:
        if rest not in ("on", "off"):
            raise UserError(f"/speak: expected on or off, got {rest!r}.")
        self._set(speak=rest == "on")

    def _save(self, rest: str) -> None:
        path = _path(rest, "/save")
        if self._last is None or not len(self._last.audio):
            raise UserError("/save: the last answer was not spoken; say /speak on before the next one.")
        if path.suffix.lower() != ".wav":
            raise UserError(f"/save: expected a name that ends in .wav, got {path}.")
        self._last.audio.save(path)
        tell(f"{path}: {self._last.audio.seconds:.2f} s")

    def _number(self, name: str, rest: str, read: type[int] | type[float], what: str) -> None:
        try:
            value = read(rest)
        except ValueError:
            raise UserError(f"/{name}: expected {what}, got {rest!r}.") from None
        self._set(**{name: value})

    def _reset(self, rest: str) -> None:
        self.session.reset()
        self._attached = {kind: [] for kind in MEDIA}

    def _set(self, **changes: Any) -> None:
        """Take settings over once they are known to be possible."""
        from muomni.infer.request import TurnSettings

        how = TurnSettings(**(self.how | changes))
        if how.voice is not None and how.voice not in self.session.voices:
            raise UserError(
                f"voice: {how.voice!r} is not known; there are {', '.join(self.session.voices) or 'none'}."
            )
        self.how |= changes


class Interrupt:
    """While it is entered, Ctrl-C is a wish that is looked at between chunks; the second one is an interruption."""

    def __init__(self, *, active: bool) -> None:
        """active: False leaves Ctrl-C alone."""
        self.asked = False
        self._active = active and threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Self:
        """Take Ctrl-C over, unless it is ignored or somebody else's."""
        self._active = self._active and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._active:
            signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        """Give it back."""
        if self._active:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def lines() -> Iterator[str | UserError]:
    """Lines of standard input, white space around them removed; those too long to be read are errors instead."""
    from muomni.data.media import MAX_TEXT_BYTES, MediaError

    if sys.stdin.isatty() and sys.stdout.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (gives `input` its line editing)
        while True:
            try:
                yield input(PROMPT).strip()
            except UnicodeDecodeError as error:
                yield MediaError(f"line: is not UTF-8 ({error.reason}).")
            except EOFError:
                print(flush=True)
                return
    while True:
        if sys.stdin.isatty():
            print(PROMPT, end="", file=sys.stderr, flush=True)
        line = sys.stdin.buffer.readline(MAX_TEXT_BYTES)
        if not line:
            return
        if len(line) < MAX_TEXT_BYTES:
            # What is not UTF-8 becomes surrogates, which the gate finds.
            yield line.decode("utf-8", "surrogateescape").removeprefix("\ufeff").strip()
            continue
        while line and not line.endswith(b"\n"):
            line = sys.stdin.buffer.readline(MAX_TEXT_BYTES)
        yield MediaError(f"line: longer than {MAX_TEXT_BYTES >> 20} MiB; make it shorter.")


def checked_line(line: str) -> str:
    """A line as text. Raises MediaError for what is none."""
    from muomni.data.media import read_text

    return read_text(line, name="line")


def _path(rest: str, command: str) -> Path:
    """A path as it is typed or dropped: quotes around it are no part of it, ~ is home."""
    if len(rest) > 1 and rest[0] == rest[-1] and rest[0] in "'\"":
        rest = rest[1:-1]
    if not rest:
        raise UserError(f"{command}: which file? Give its path.")
    return Path(os.path.expanduser(rest))
