"""A conversation line by line: commands, mistakes, interruption, memory and sound, against the session's own calls."""

import io
import json
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from muomni.cli import main
from muomni.data import embedded
from muomni.infer.session import Session, load
from muomni.infer.stream import Chunk
from muomni.infer.turn import TurnStream

SHORT = ("--max-new-tokens", "8")
Talk = Callable[..., tuple[int, str, str]]


class Terminal(io.TextIOWrapper):
    """Standard input that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def talk(run_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Talk:
    """talk(lines, *options) -> exit code, standard output, standard error."""

    def call(
        given: str | bytes, *options: object, stdin: type[io.TextIOWrapper] = io.TextIOWrapper
    ) -> tuple[int, str, str]:
        payload = given.encode() if isinstance(given, str) else given
        monkeypatch.setattr(sys, "stdin", stdin(io.BytesIO(payload), encoding="utf-8"))
        code = 0
        try:
            main(["chat", "--run", str(run_root), *map(str, options)])
        except SystemExit as stop:
            code = int(stop.code or 0)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a picture.webp"
    path.write_bytes(embedded.SET.file(embedded.SET.pictures("test")[0]))
    return path


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Ctrl-C is an interruption, also where this process was begun with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Twelve grey pictures."""
    av = pytest.importorskip("av")
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=6)
        stream.width = stream.height = 32
        for i in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 * i, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.wav"
    soundfile.write(path, np.sin(np.arange(9_600) * 0.1).astype(np.float32) * 0.3, 16_000)
    return path


def texts(shown: str) -> list[str]:
    return [record["text"] for record in map(json.loads, shown.splitlines()) if "text" in record]


def test_lines_are_the_turns_of_one_conversation_until_it_is_reset(talk: Talk, session: Session) -> None:
    code, shown, error = talk("who is it\r\n\n/reset\n//help\nand then\n", *SHORT, "--json")
    assert (code, error) == (0, "")
    how = {"speak": False, "max_new_tokens": 8}
    first = session.chat("who is it", **how).text
    session.reset()
    assert texts(shown) == [first, session.chat("/help", **how).text, session.chat("and then", **how).text]


def test_attached_media_go_with_the_next_line_alone(
    talk: Talk, session: Session, picture: Path, clip: Path
) -> None:
    given = f"/image {picture}\n/image '{picture}'\n/audio {clip}\nwho\n/audio {clip}\n\nthen\n/quit\nnever\n"
    code, shown, error = talk(given, *SHORT, "--json")
    assert (code, error) == (0, "")
    how = {"speak": False, "max_new_tokens": 8}
    assert texts(shown) == [
        session.chat("who", image=[picture, picture], audio=clip, **how).text,
        session.chat(audio=clip, **how).text,
        session.chat("then", **how).text,
    ]


def test_a_film_is_attached_as_pictures_and_sounds_are(talk: Talk, session: Session, film: Path) -> None:
    code, shown, error = talk(f"/video {film}\nwho\n", *SHORT, "--json")
    assert (code, error) == (0, "")
    assert texts(shown) == [session.chat("who", video=film, speak=False, max_new_tokens=8).text]
    assert json.loads(shown.splitlines()[0])["unheard"] == 0.0


MISTAKES = {
    "/imge x.png": "there is no command /imge; did you mean /image?",
    "/xyzzy": "there is no command /xyzzy; /help lists them",
    "/image": "/image: which file?",
    "/image nowhere.png": "nowhere.png: no such file",
    "/audio nowhere.wav": "nowhere.wav: no such file",
    "/save": "/save: which file?",
    "/save a.wav": "/save: the last answer was not spoken; say /speak on",
    "/speak loudly": "/speak: expected on or off, got 'loudly'",
    "/voice bob": "voice: 'bob' is not known; there are",
    "/seed many": "/seed: expected a whole number, got 'many'",
    "/temperature hot": "/temperature: expected a number, got 'hot'",
    "/temperature -1": "temperature: expected 0, or at least 0.0001, got -1.0",
    "/temperature nan": "temperature: expected 0, or at least 0.0001, got nan",
    "who is it then? " * 80: "at most 128 fit; remove",
    "ding \x07": "line: holds the control character U+0007",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_costs_its_own_line_and_the_conversation_goes_on(
    line: str, talk: Talk, session: Session
) -> None:
    code, shown, error = talk(f"hello\n{line}\nagain\n", *SHORT, "--json")
    assert code == 0
    assert error.startswith(f"muomni: {MISTAKES[line]}" if line[0] == "/" else "muomni: ")
    assert error.count("\n") == 1 and MISTAKES[line] in error
    first, mistake, second = map(json.loads, shown.splitlines())
    assert f"muomni: {mistake['error']}\n" == error and list(mistake) == ["error"]
    how = {"speak": False, "max_new_tokens": 8}
    assert [first["text"], second["text"]] == [
        session.chat("hello", **how).text,
        session.chat("again", **how).text,
    ]


def test_bytes_that_are_no_text_cost_their_own_line(talk: Talk) -> None:
    code, shown, error = talk(b"\xef\xbb\xbf/reset\n\xff\xfe\nhello\n", *SHORT, "--json")
    assert code == 0 and len(texts(shown)) == 1
    assert error == "muomni: line: is not UTF-8 (surrogates not allowed at 0).\n"


def test_a_line_too_long_to_be_read_costs_itself_alone(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muomni.data.media.MAX_TEXT_BYTES", 64)
    code, shown, error = talk("x" * 150 + "\nhello\n", *SHORT, "--json")
    assert code == 0 and len(texts(shown)) == 1
    assert error.startswith("muomni: line: longer than")


def test_settings_hold_from_the_next_line_on(talk: Talk, session: Session) -> None:
    code, shown, _ = talk("who\n/temperature 2\n/seed 5\nwho\n", *SHORT, "--json")
    assert code == 0
    how = {"speak": False, "max_new_tokens": 8}
    assert texts(shown) == [
        session.chat("who", **how).text,
        session.chat("who", temperature=2.0, seed=5, **how).text,
    ]


def test_speech_is_kept_where_it_was_asked_for(talk: Talk, session: Session, tmp_path: Path) -> None:
    out, kept = tmp_path / "reply.wav", tmp_path / "kept one.wav"
    given = f"hello\nagain\n/save {kept}\n/save {tmp_path}/no/a.wav\n/speak off\nmore\n"
    code, shown, error = talk(given, *SHORT, "--out", out, "--json")
    assert code == 0
    records = [json.loads(line) for line in shown.splitlines()]
    said = [session.chat(text, max_new_tokens=8).audio for text in ("hello", "again")]
    assert [r.get("audio", "error") for r in records] == [
        str(out),
        str(tmp_path / "reply-2.wav"),
        "error",
        None,
    ]
    for path, audio in zip((out, tmp_path / "reply-2.wav", kept), (*said, said[1]), strict=True):
        assert np.allclose(soundfile.read(path)[0], audio.waveform, atol=2**-14)
    assert error == f"muomni: {kept}: {said[1].seconds:.2f} s\nmuomni: {records[2]['error']}\n"
    assert "another path" in records[2]["error"]


def test_forgotten_turns_are_told(talk: Talk, session: Session) -> None:
    line = "the cat sat on the mat"
    code, shown, error = talk(f"{line}\n" * 6, "--max-new-tokens", "24", "--json")
    assert code == 0
    expected = [session.chat(line, speak=False, max_new_tokens=24).truncated for _ in range(6)]
    assert [json.loads(r)["truncated"] for r in shown.splitlines()] == expected
    told = [int(told.split()[2]) for told in error.splitlines()]
    assert told == [n for n in expected if n] and told


def interrupt_at(n: int, monkeypatch: pytest.MonkeyPatch, *, times: int = 1) -> None:
    """Ctrl-C, once `n` chunks of this process have been given out."""
    given, following = iter(range(1, 1 << 30)), TurnStream.__next__

    def interrupted(self: TurnStream) -> Chunk:
        chunk = following(self)
        if next(given) == n:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return chunk

    monkeypatch.setattr(TurnStream, "__next__", interrupted)


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on_from_what_was_given_out(
    talk: Talk, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = session.stream("who is it", speak=False, max_new_tokens=32)
    for _ in range(3):
        next(stream)
    half = stream.stop().text
    second = session.chat("and then", speak=False, max_new_tokens=32, max_repeats=0).text
    interrupt_at(3, monkeypatch)
    code, shown, error = talk(
        "who is it\nand then\n", "--max-new-tokens", "32", "--max-repeats", "0", "--json"
    )
    assert (code, error) == (0, "")
    first, last = map(json.loads, shown.splitlines())
    assert (first["text"], first["ended"]) == (half, "interrupted")
    assert (last["text"], last["ended"]) == (second, "length")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(("options", "times"), [(("--text", "who is it"), 1), ((), 2)])
def test_ctrl_c_in_a_single_turn_or_twice_ends(
    options: tuple[str, ...], times: int, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at(3, monkeypatch, times=times)
    code, _, error = talk("who is it\nand then\n", *options)
    assert (code, error) == (75, "muomni: interrupted\n")


def test_ctrl_c_at_the_prompt_ends(talk: Talk) -> None:
    class Interrupted(io.BytesIO):
        def readline(self, size: int | None = -1, /) -> bytes:
            raise KeyboardInterrupt

    class Source(io.TextIOWrapper):
        buffer = Interrupted()  # type: ignore[assignment]

    assert talk("", stdin=Source) == (75, "", "muomni: interrupted\n")


def test_a_prompt_is_for_terminals_and_never_among_the_answers(talk: Talk) -> None:
    code, shown, error = talk("hello\n/help\n", *SHORT, "--json", stdin=Terminal)
    assert code == 0 and len(shown.splitlines()) == 1 and json.loads(shown)
    assert error.startswith("> > /image, /audio") and error.endswith("> ")
    code, piped, error = talk("hello\n", *SHORT)
    assert (code, error) == (0, "") and "> " not in piped.splitlines()[0][:2]


def test_text_comes_as_it_is_written(talk: Talk, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [c.text for c in session.stream("who", speak=False, max_new_tokens=8) if c.text]
    seen: list[str] = []

    class Watched(io.StringIO):
        def flush(self) -> None:
            seen.append(self.getvalue())

    monkeypatch.setattr("muomni.cli_chat.visible", lambda text: text)
    monkeypatch.setattr(sys, "stdout", Watched())
    talk("who\n", *SHORT)
    whole = ["".join(pieces[: i + 1]) for i in range(len(pieces))]
    assert len(pieces) > 2
    assert seen[: len(pieces)] == whole


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[np.ndarray]]:
    """A sound device whose thread takes samples as fast as they come: what it took."""
    taken: list[np.ndarray] = []

    class OutputStream:
        latency = 0.0

        def __init__(self, *, samplerate: float, channels: int, dtype: str, callback: Callable) -> None:
            assert (samplerate, channels, dtype) == (16_000, 1, "float32")
            self._callback, self._ended = callback, threading.Event()
            self._thread = threading.Thread(target=self._run)

        def start(self) -> None:
            self._thread.start()

        def _run(self) -> None:
            while not self._ended.wait(0.001):
                out = np.full((700, 1), np.nan, np.float32)
                self._callback(out, 700, None, None)
                taken.append(out[:, 0].copy())

        def stop(self) -> None:
            self._ended.set()
            self._thread.join()

        def close(self) -> None:
            assert not self._thread.is_alive()

    module = types.ModuleType("sounddevice")
    module.OutputStream, module.PortAudioError = OutputStream, type("PortAudioError", (Exception,), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    before = threading.active_count()
    yield taken
    assert threading.active_count() == before


def sounding(samples: list[np.ndarray]) -> np.ndarray:
    """Without the silence in which nothing was waiting: a made sample is never exactly 0."""
    whole = np.concatenate(samples)
    return whole[whole != 0]


def test_answers_are_played_whole(talk: Talk, session: Session, device: list[np.ndarray]) -> None:
    code, _, error = talk("hello\nagain\n", *SHORT, "--play")
    assert (code, error) == (0, "")
    said = [session.chat(text, max_new_tokens=8).audio.waveform for text in ("hello", "again")]
    assert np.array_equal(sounding(device), sounding(said))


def test_say_plays_what_it_would_write(
    run_root: Path,
    session: Session,
    device: list[np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["say", "the cat", "--run", str(run_root), "--play"])
    assert np.array_equal(sounding(device), sounding([session.speak("the cat").waveform]))
    assert not list(tmp_path.iterdir())


def test_of_a_stopped_answer_no_more_is_remembered_than_was_heard(
    talk: Talk, run_root: Path, device: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at(30, monkeypatch)
    code, shown, error = talk(
        "who is it\n", "--max-new-tokens", "64", "--max-repeats", "0", "--play", "--json"
    )
    assert (code, error) == (0, "")
    record = json.loads(shown)
    whole = load(run_root, device="cpu").chat("who is it", max_new_tokens=64, max_repeats=0)
    assert record["ended"] == "interrupted" and whole.text.startswith(record["text"])
    assert len(record["text"]) < len(whole.text)
    assert record["seconds"] <= len(sounding(device)) / 16_000 + 700 / 16_000


@pytest.mark.parametrize("why", ["package", "library", "device"])
def test_no_way_to_play_is_one_line(why: str, talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {"package": "muomni[play]", "library": "libportaudio2", "device": "no sound device"}[why]
    if why == "package":
        monkeypatch.setitem(sys.modules, "sounddevice", None)
    elif why == "library":
        monkeypatch.setattr(sys, "meta_path", [NoLibrary(), *sys.meta_path])
    else:
        module = types.ModuleType("sounddevice")
        module.PortAudioError = type("PortAudioError", (Exception,), {})  # type: ignore[attr-defined]

        def absent(**_: object) -> None:
            raise module.PortAudioError("Error querying device -1")

        module.OutputStream = absent  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "sounddevice", module)
    code, shown, error = talk("hello\n", "--play")
    assert (code, shown) == (2, "")
    assert error.count("\n") == 1 and error.startswith("muomni: play: ") and expected in error
    assert "--out" in error


class NoLibrary:
    """The package is there, and the library it loads is not."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "sounddevice":
            raise OSError("PortAudio library not found")
