"""chat, say, transcribe, describe and read: what they print is what the session gives; a mistake is one line."""

import io
import json
import os
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from muomni.cli import main
from muomni.config import STAGES
from muomni.data import embedded
from muomni.data.media import MediaError
from muomni.infer.session import Session, load

Stdin = Callable[[bytes], None]
QUIET = {"speak": False, "max_new_tokens": 8}


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Stdin:
    """stdin(payload): what a pipe gives."""

    def give(payload: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(payload), encoding="utf-8"))

    give(b"")
    return give


@pytest.fixture
def run(
    run_root: Path, capsys: pytest.CaptureFixture[str], stdin: Stdin
) -> Callable[..., tuple[int, str, str]]:
    """run(verb, ..., given=what comes through the pipe) -> exit code, standard output, standard error."""

    def call(
        verb: str, *arguments: object, given: bytes = b"", root: Path | None = run_root
    ) -> tuple[int, str, str]:
        stdin(given)
        code = 0
        try:
            main([verb, *map(str, arguments), *(("--run", str(root)) if root else ())])
        except SystemExit as stop:
            code = int(stop.code or 0)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """Files by name; `missing` is none."""
    found = {"tmp": tmp_path, "missing": tmp_path / "nowhere.png", "note": tmp_path / "note.txt"}
    found["note"].write_text("the cat sat on the mat\n")
    found["picture"] = tmp_path / "a picture.webp"
    found["picture"].write_bytes(embedded.SET.file(embedded.SET.pictures("test")[0]))
    for name, seconds in (("clip", 1.0), ("other", 0.5), ("long", 11.0)):
        found[name] = tmp_path / f"{name}.wav"
        tone = np.sin(np.arange(round(seconds * 16_000)) * 0.1).astype(np.float32) * 0.3
        soundfile.write(found[name], tone, 16_000)
    for name, payload in (
        ("empty", b""),
        ("bytes", b"\xff\xfe\xff"),
        ("blank", b" \n"),
        ("bell", b"ding \x07"),
    ):
        found[name] = tmp_path / name
        found[name].write_bytes(payload)
    return found


MISTAKES: dict[str, tuple[tuple[str, ...], bytes, tuple[str, ...]]] = {
    "picture that is not there": (("chat", "--image", "{missing}"), b"", ("nowhere.png", "no such file")),
    "second picture is none": (
        ("chat", "--image", "{picture}", "{note}"),
        b"",
        ("note.txt", "is not a picture"),
    ),
    "picture as recording": (("chat", "--audio", "{picture}"), b"", ("a picture.webp", "not a readable")),
    "recording too long": (("chat", "--audio", "{long}"), b"", ("11.00 s", "2.56 s", "shorten it")),
    "folder as picture": (("chat", "--image", "{tmp}"), b"", ("is not a file",)),
    "empty pipe": (("chat", "--image", "-"), b"", ("standard input: is empty",)),
    "pipe read twice": (("chat", "--image", "-", "--audio", "-"), b"x", ("standard input", "once")),
    "empty text": (("chat", "--text", ""), b"", ("--text: is empty",)),
    "surrogate in text": (("chat", "--text", "a\udcff"), b"", ("--text: is not UTF-8",)),
    "over-long prompt": (("chat", "--text", "{words}"), b"", ("at most 128 fit", "remove", "tokens")),
    "temperature": (("chat", "--text", "hi", "--temperature", "-1"), b"", ("temperature", "expected 0")),
    "top_p": (("chat", "--text", "hi", "--top-p", "1.5"), b"", ("top_p", "(0, 1]")),
    "no token": (("chat", "--text", "hi", "--max-new-tokens", "0"), b"", ("max_new_tokens", "at least 1")),
    "no thread": (("chat", "--text", "hi", "--threads", "0"), b"", ("--threads", "at least 1")),
    "device": (("chat", "--text", "hi", "--device", "gpu"), b"", ("--device", "cuda:N", "'gpu'")),
    "absent device": (
        ("chat", "--text", "hi", "--device", "cuda:99"),
        b"",
        ("CUDA devices here", "leave it out"),
    ),
    "voice": (("chat", "--text", "hi", "--voice", "bob"), b"", ("voice: 'bob'", "there are")),
    "mp3 out": (("chat", "--text", "hi", "--out", "{tmp}/a.mp3"), b"", ("--out", "ends in .wav")),
    "folder as out": (("say", "hi", "--out", "{tmp}"), b"", ("--out", "is a directory")),
    "out in no folder": (("say", "hi", "--out", "{tmp}/no/a.wav"), b"", ("cannot write", "another path")),
    "text and file": (("say", "hi", "--file", "{note}"), b"", ("not both",)),
    "text file that is not there": (("say", "--file", "{missing}"), b"", ("no such file", "a text")),
    "text file of bytes": (("say", "--file", "{bytes}"), b"", ("bytes", "is not UTF-8")),
    "blank text file": (("say", "--file", "{blank}"), b"", ("blank", "expected text")),
    "control character": (("say", "--file", "{bell}"), b"", ("control character U+0007",)),
    "nothing piped": (("say",), b"", ("standard input: is empty; expected a text",)),
    "two voices": (("say", "hi", "--voice-from", "{note}"), b"", ("note.txt", "not a readable recording")),
    "empty recording": (("transcribe", "{empty}"), b"", ("empty", "is empty; expected a recording")),
    "nothing to transcribe": (("transcribe",), b"", ("standard input: is empty",)),
    "text to describe": (("describe", "{note}"), b"", ("note.txt", "is not a picture")),
    "recording to read": (("read", "{clip}"), b"", ("clip.wav", "is not a picture")),
    "pipe twice": (("describe", "-", "-"), b"x", ("describe", "once")),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(
    name: str, run: Callable[..., tuple[int, str, str]], places: dict[str, Path]
) -> None:
    arguments, given, expected = MISTAKES[name]
    filled = [a.format(words="who is it then? " * 80, **places) for a in arguments]
    code, shown, error = run(*filled, given=given)
    assert (code, shown) == (2, "")
    assert error.startswith("muomni: ") and error.count("\n") == 1 and error.endswith("\n"), error
    for part in expected:
        assert part in error


def test_an_over_long_prompt_says_by_how_many_tokens(
    run: Callable[..., tuple[int, str, str]], session: Session
) -> None:
    text = "who is it then? " * 40
    _, _, error = run("chat", "--text", text)
    n_over = int(error.split("remove ")[1].split()[0])
    ids = session.tokenizer.encode(text)
    # Exactly so many fewer fit.
    shorter = session.tokenizer.decode(ids[: len(ids) - n_over])
    assert len(session.tokenizer.encode(shorter)) == len(ids) - n_over
    assert run("chat", "--text", shorter)[0] == 0


@pytest.mark.parametrize("stage", STAGES)
def test_a_missing_stage_is_named_with_the_command_that_trains_it(
    stage: str, run: Callable[..., tuple[int, str, str]], run_root: Path, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    shutil.copytree(run_root, root)
    shutil.rmtree(root / stage)
    code, _, error = run("chat", "--text", "hi", "--max-new-tokens", 2, root=root)
    assert error.count("\n") == 1
    assert f"stage {stage} is not trained" in error and f"muomni train --stage {stage} --run {root}" in error
    # Without a vocoder there is a model all the same.
    assert code == (0 if stage == "vocoder" else 2)


def test_without_a_model_of_ones_own_the_shipped_one_talks(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, shown, error = run("chat", "--text", "hi", "--max-new-tokens", 4, root=None)
    assert code == 0 and shown.strip()
    assert error.startswith("muomni: note: no model of yours is at out/demo/model; this is nano")


def test_the_folder_above_a_run_is_told_from_it(
    run: Callable[..., tuple[int, str, str]], run_root: Path, tmp_path: Path
) -> None:
    (tmp_path / "model").symlink_to(run_root)
    code, _, error = run("describe", "x.png", root=tmp_path)
    assert code == 2 and f"did you mean --run {tmp_path / 'model'}" in error


def test_one_turn_is_the_sessions(
    run: Callable[..., tuple[int, str, str]], places: dict[str, Path], session: Session
) -> None:
    how = {
        "temperature": 1.5, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2, "seed": 7,
        "max_new_tokens": 12,
    }  # fmt: skip
    options = [part for name, value in how.items() for part in (f"--{name.replace('_', '-')}", value)]
    out = places["tmp"] / "reply.wav"
    code, shown, error = run(
        "chat", "--text", "who", "--image", places["picture"], places["picture"], "--audio", places["clip"],
        places["other"], "--out", out, "--json", *options,
    )  # fmt: skip
    assert (code, error) == (0, "")
    expected = session.chat(
        "who", image=[places["picture"]] * 2, audio=[places["clip"], places["other"]], **how
    )
    record = json.loads(shown)
    assert record["text"] == expected.text and record["ended"] == expected.ended
    assert record["truncated"] == 0 and record["audio"] == str(out)
    assert record["seconds"] == expected.audio.seconds
    assert np.allclose(soundfile.read(out)[0], expected.audio.waveform, atol=2**-14)


def test_media_and_text_come_through_the_pipe(
    run: Callable[..., tuple[int, str, str]], places: dict[str, Path], session: Session
) -> None:
    payload = places["picture"].read_bytes()
    _, shown, _ = run("chat", "--image", "-", "--max-new-tokens", 8, "--json", given=payload)
    assert json.loads(shown)["text"] == session.chat(image=payload, **QUIET).text
    session.reset()
    _, shown, _ = run("chat", "--text", "-", "--max-new-tokens", 8, "--json", given=b"the cat\n")
    assert json.loads(shown)["text"] == session.chat("the cat", **QUIET).text
    _, shown, _ = run("transcribe", "-", "--json", given=places["clip"].read_bytes())
    assert json.loads(shown)["text"] == session.transcribe(places["clip"])


def test_a_pipe_is_read_no_further_than_a_file_would_be(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("muomni.data.media.MAX_FILE_BYTES", 1 << 20)
    code, _, error = run("describe", "-", given=bytes((1 << 20) + 1))
    assert (code, error) == (
        2,
        "muomni: standard input: more than 1 MiB, which is the most that is read.\n",
    )


def test_a_stop_string_ends_the_answer(run: Callable[..., tuple[int, str, str]], session: Session) -> None:
    whole = session.chat("who", speak=False, max_new_tokens=32).text
    stop = whole[4:7]
    _, shown, _ = run("chat", "--text", "who", "--max-new-tokens", 32, "--stop", stop, "--json")
    assert json.loads(shown) | {"timings": 0} == {
        "text": whole[: whole.index(stop)], "ended": "stop", "truncated": 0, "unheard": 0.0, "audio": None,
        "seconds": 0.0, "timings": 0,
    }  # fmt: skip


def test_a_terminal_is_not_given_control_characters(
    run: Callable[..., tuple[int, str, str]], run_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from muomni.infer.stops import Stops

    # The text that a model writes, replaced where it is given out.
    monkeypatch.setattr(Stops, "push", lambda self, text: "\x1b[2Jé\x9b\n" if text else "")
    monkeypatch.setattr(Stops, "finish", lambda self: "")
    _, shown, _ = run("chat", "--text", "hi", "--max-new-tokens", 1)
    assert shown.startswith(r"\x1b[2Jé\x9b" + "\n") and "\x1b" not in shown


@pytest.mark.parametrize("verb", ["transcribe", "describe", "read"])
def test_files_are_answered_a_line_each_and_a_bad_one_costs_its_own_alone(
    verb: str, run: Callable[..., tuple[int, str, str]], places: dict[str, Path], session: Session
) -> None:
    good = places["clip" if verb == "transcribe" else "picture"]
    text = getattr(session, verb)(good)
    code, shown, error = run(verb, good, places["note"], good, "--json")
    assert code == 2 and error.count("\n") == 1 and "note.txt" in error
    first, bad, last = map(json.loads, shown.splitlines())
    assert first == last and first["file"] == str(good) and first["text"] == text
    assert bad["file"] == str(places["note"]) and f"muomni: {bad['error']}\n" == error
    assert first.get("seconds") == (1.0 if verb == "transcribe" else None)
    code, shown, error = run(verb, good, good)
    assert (code, error) == (0, "")
    assert [line.split("\t")[0] for line in shown.splitlines()] == [str(good)] * 2
    code, shown, _ = run(verb, good)
    assert code == 0 and "\t" not in shown and shown.count("\n") == 1


def test_say_takes_a_file_or_a_pipe_and_tells_what_it_made(
    run: Callable[..., tuple[int, str, str]], places: dict[str, Path], session: Session
) -> None:
    out = places["tmp"] / "said.wav"
    expected = session.speak("the cat sat on the mat", seed=3)
    text = places["note"].read_bytes()
    for arguments, given in ((("--file", places["note"]), b""), (("-",), text), ((), text)):
        code, shown, _ = run("say", *arguments, "--out", out, "--seed", 3, "--json", given=given)
        record = json.loads(shown)
        assert code == 0
        assert record | {"rtf": 0} == {
            "audio": str(out),
            "seconds": expected.seconds,
            "characters": 22,
            "rtf": 0,
        }
        assert record["rtf"] > 0
        assert np.allclose(soundfile.read(out)[0], expected.waveform, atol=2**-14)
        out.unlink()


def test_say_keeps_no_more_than_a_piece_and_an_end_halfway_leaves_no_file(
    run: Callable[..., tuple[int, str, str]], places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, kept, most = places["tmp"] / "said.wav", list[weakref.ref[np.ndarray]](), list[int]()

    def speak(self: Session, text: str, **_: object) -> Iterator[np.ndarray]:
        for i in range(9):
            pcm = np.full(1_280, i / 10, np.float32)
            kept.append(weakref.ref(pcm))
            yield pcm
            del pcm
            most.append(sum(one() is not None for one in kept))
            assert not out.exists()
        if text == "broken":
            raise MediaError("the talker: is broken.")

    monkeypatch.setattr(Session, "speak_stream", speak)
    assert run("say", "broken", "--out", out)[::2] == (2, "muomni: the talker: is broken.\n")
    assert not out.exists() and not list(places["tmp"].glob(".said*"))
    assert run("say", "whole", "--out", out)[:2] == (0, f"{out}: 0.72 s\n")
    assert np.allclose(soundfile.read(out)[0], np.repeat(np.arange(9) / 10, 1_280), atol=2**-14)
    # The one that the caller still names.
    assert max(most) == 1


def test_what_the_talker_warns_of_is_one_line(
    run: Callable[..., tuple[int, str, str]], places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import warnings

    def warned(self: Session, text: str, **_: object) -> list[np.ndarray]:
        warnings.warn("speak: 'hi' is cut after 2.56 s.", stacklevel=1)
        return [np.zeros(160, np.float32)]

    monkeypatch.setattr(Session, "speak_stream", warned)
    code, _, error = run("say", "hi", "--out", places["tmp"] / "a.wav")
    assert (code, error) == (0, "muomni: note: speak: 'hi' is cut after 2.56 s.\n")


def test_int8_answers_and_is_refused_where_it_cannot_be(
    run: Callable[..., tuple[int, str, str]], run_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, shown, error = run("chat", "--text", "hi", "--int8", "--max-new-tokens", 8, "--json")
    if code == 0:
        light = load(run_root, device="cpu", weights="int8")
        assert json.loads(shown)["text"] == light.chat("hi", **QUIET).text
    from muomni.infer.engine import Engine

    monkeypatch.setattr(Engine, "_pack", lambda self, weights: "no compiled extension")
    code, _, error = run("chat", "--text", "hi", "--int8")
    assert code == 2 and "--int8" in error and "no compiled extension" in error


@pytest.mark.parametrize("verb", ["chat", "transcribe"])
def test_a_reader_that_leaves_is_no_traceback(verb: str, run_root: Path, tmp_path: Path) -> None:
    clip = tmp_path / "a.wav"
    soundfile.write(clip, np.zeros(1_600, np.float32), 16_000)
    given = ["--text", "hi"] if verb == "chat" else [str(clip)]
    command = [sys.executable, "-m", "muomni.cli", verb, *given, "--run", str(run_root)]
    # What stays in a buffer fails once more at the end of the process; without buffers there would be none to fail.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    # Its reading end is closed before it writes.
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        error = process.stderr.read()
    assert error == b"" and process.returncode == 2
