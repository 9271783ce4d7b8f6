"""A save into a directory that is there: what is not the model's stays, an error or a kill anywhere loses nothing."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from muomni.infer import pretrained
from muomni.infer.session import Session, load
from muomni.models.weights import CheckpointError

OTHERS = (".git/HEAD", ".env", ".ssh/key", "onnx/notes.txt", "onnx/mine.onnx")
EXPORTED = tuple(f"onnx/{part}.onnx" for part in ("vision", "audio", "codec_decoder", "vocoder"))
MOVES = 5 + 5 + len(EXPORTED)
"""The old files and the new ones, and the exported parts out of the way."""


@pytest.fixture
def saved(session: Session, tmp_path: Path) -> Path:
    """A clone, and what somebody keeps in it."""
    place = session.save_pretrained(tmp_path / "a clone")
    for name in (*OTHERS, *EXPORTED):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(f"old {name}")
    return place


def _content(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@contextlib.contextmanager
def _before_moves(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], Any]) -> Iterator[list[str]]:
    """act(i) before move i of the save inside the block, which the list then holds."""
    rename, moved = os.rename, list[str]()

    def watched(source: Any, target: Any) -> None:
        if pretrained.SAVING in str(source) + str(target) and "tokenizer.json." not in str(source):
            act(len(moved))
            moved.append(str(target))
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", watched)
        yield moved


def test_what_is_not_the_models_stays_and_what_was_exported_from_the_old_one_goes(
    session: Session, saved: Path
) -> None:
    inode = saved.stat().st_ino
    session.save_pretrained(saved, dtype="float16")
    assert json.loads((saved / "config.json").read_text())["dtype"] == "float16"
    load(saved, device="cpu")
    assert {
        name: content.decode() for name, content in _content(saved).items() if "/" in name or name == ".env"
    } == {name: f"old {name}" for name in OTHERS}
    assert saved.stat().st_ino == inode and {path.name for path in saved.parent.iterdir()} == {saved.name}


@pytest.mark.parametrize("step", range(MOVES))
@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), KeyboardInterrupt()], ids=["error", "interrupt"]
)
def test_an_error_at_any_move_leaves_all_as_it_was(
    step: int, error: BaseException, session: Session, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(move: int) -> None:
        if move == step:
            raise error

    before = _content(saved)
    with _before_moves(monkeypatch, fail), pytest.raises(type(error)):
        session.save_pretrained(saved, dtype="float16")
    assert _content(saved) == before
    assert not list(saved.glob(".saving-*"))


@pytest.mark.parametrize("step", range(5))
def test_an_error_at_any_move_into_a_new_place_leaves_none(
    step: int, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(move: int) -> None:
        if move == step:
            raise OSError(5, "Input/output error")

    with _before_moves(monkeypatch, fail) as moved, pytest.raises(OSError, match="Input/output"):
        session.save_pretrained(tmp_path / "new")
    assert len(moved) == step and not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", [True, False], ids=["replaced", "new"])
def test_a_kill_at_any_move_leaves_a_model_or_what_load_refuses(
    there: bool, session: Session, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kill leaves is what there is between two moves: a copy is made of it."""
    place = saved if there else tmp_path / "new"
    old = {name: content for name, content in _content(saved).items() if there}
    copies = tmp_path / "copies"

    def copy(move: int) -> None:
        shutil.copytree(place, copies / str(move))

    with _before_moves(monkeypatch, copy) as moved:
        session.save_pretrained(place, dtype="float16")
    copy(len(moved))
    new = {name: (place / name).read_bytes() for name in pretrained.FILES}
    assert len(moved) == (MOVES if there else 5)
    states = []
    for step in range(len(moved) + 1):
        killed = copies / str(step)
        left = _content(killed)
        # Nothing is lost: it is all somewhere, the last copy's old model excepted.
        assert {*new.values()} <= {*left.values()}
        assert step == len(moved) or {*old.values()} <= {*left.values()}
        assert not there or {name: left[name] for name in OTHERS} == {name: old[name] for name in OTHERS}
        found = {name: left.get(name) for name in pretrained.FILES}
        if found in (new, {name: old.get(name, b"") for name in pretrained.FILES}):
            states.append("new" if found == new else "old")
            load(killed, device="cpu")
            continue
        states.append("refused")
        with pytest.raises(CheckpointError, match=pretrained.REMEDY) as caught:
            load(killed, device="cpu")
        assert "\n" not in str(caught.value)
        assert load(session.save_pretrained(killed), device="cpu")
    n_old = 1 + len(EXPORTED) if there else 0
    assert states == ["old"] * n_old + ["refused"] * (len(moved) - n_old) + ["new"]


def test_a_link_stays_one_and_what_it_points_to_gets_the_model(session: Session, tmp_path: Path) -> None:
    target, link = tmp_path / "disk" / "model", tmp_path / "link"
    target.parent.mkdir()
    link.symlink_to(target)
    for dtype in ("float32", "float16"):
        assert session.save_pretrained(link, dtype=dtype) == link
        assert link.is_symlink() and {path.name for path in target.iterdir()} == {*pretrained.FILES}
        load(link, device="cpu")
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "link"}


def test_a_folder_that_is_called_like_a_file_of_the_model_is_not_replaced(
    session: Session, tmp_path: Path
) -> None:
    (tmp_path / "README.md").mkdir()
    with pytest.raises(CheckpointError, match=r"holds README\.md"):
        session.save_pretrained(tmp_path)
