"""From and to the hub, with a hub of our own in its place: which files move, under which name, and what goes wrong."""

from __future__ import annotations

import inspect
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import muomni
from muomni.infer import hub, pretrained
from muomni.infer.session import Session
from muomni.models.weights import CheckpointError


class TransportError(Exception):
    """As the hub's library has it: its errors are of a kind that their transport raises too."""


class HubHTTPError(TransportError):
    """An answer that is an error."""


class FakeHub(ModuleType):
    """A directory for each repository."""

    def __init__(self, root: Path) -> None:
        super().__init__("huggingface_hub")
        self.root, self.calls = root, []
        self.problem: Exception | None = None
        self.errors = ModuleType("errors")
        self.errors.HfHubHTTPError = HubHTTPError  # type: ignore[attr-defined]

    def _told(self, name: str, **given: Any) -> None:
        if self.problem is not None:
            raise self.problem
        self.calls.append((name, given))

    def snapshot_download(self, repo_id: str, **given: Any) -> str:
        self._told("snapshot_download", repo_id=repo_id, **given)
        return str(self.root / repo_id)

    def HfApi(self, token: str | None = None) -> FakeHub:
        self._told("HfApi", token=token)
        return self

    def create_repo(self, repo_id: str, **given: Any) -> str:
        self._told("create_repo", repo_id=repo_id, **given)
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: str, **given: Any) -> None:
        self._told("upload_folder", repo_id=repo_id, **given)
        shutil.copytree(folder_path, self.root / repo_id)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    module = FakeHub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


def test_what_is_pushed_is_what_is_loaded(session: Session, fake: FakeHub) -> None:
    address = session.push_to_hub("someone/nano-omni", private=True, token="t")
    assert address == "https://hub.example/someone/nano-omni"
    assert fake.calls[:2] == [
        ("HfApi", {"token": "t"}),
        ("create_repo", {"repo_id": "someone/nano-omni", "private": True, "exist_ok": True}),
    ]
    loaded = muomni.from_pretrained("someone/nano-omni", revision="v1", local_files_only=True, device="cpu")
    assert loaded.speak("the cat").waveform.tolist() == session.speak("the cat").waveform.tolist()
    name, given = fake.calls[-1]
    assert name == "snapshot_download"
    assert given == {
        "repo_id": "someone/nano-omni", "revision": "v1", "local_files_only": True,
        "allow_patterns": ["model.safetensors", "config.json", "tokenizer.json", "README.md", "MANIFEST.json"],
    }  # fmt: skip


def test_a_damaged_download_is_refused(session: Session, fake: FakeHub) -> None:
    session.push_to_hub("someone/nano-omni")
    with (fake.root / "someone/nano-omni/config.json").open("ab") as file:
        file.write(b" ")
    with pytest.raises(CheckpointError, match=r"config\.json: .*download it again"):
        muomni.from_pretrained("someone/nano-omni", device="cpu")


def test_a_damaged_directory_is_not_pushed(session: Session, fake: FakeHub, tmp_path: Path) -> None:
    saved = session.save_pretrained(tmp_path / "saved")
    (saved / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        hub.push(saved, "someone/nano-omni")
    assert fake.calls == []


@pytest.mark.parametrize(
    "name",
    [
        "nano",
        "a/b/c",
        "/etc/model",
        "../up/model",
        "own er/x",
        "o/..",
        "o/a--b",
        "o/x.git",
        "o/",
        "o/-x",
        "o/x\n",
        "",
    ],
)
def test_a_name_that_the_hub_cannot_have_reaches_no_server(name: str, fake: FakeHub) -> None:
    with pytest.raises(hub.HubError, match="OWNER/NAME"):
        hub.download(name)
    assert fake.calls == []


@pytest.mark.parametrize("name", ["o/x", "some-one/nano.omni_2", "A1/B-2"])
def test_a_name_of_the_hub_is_taken(name: str) -> None:
    assert hub.check_repo_id(name) == name


@pytest.mark.parametrize(
    "problem", [HubHTTPError("404 no such repository\nmore"), TransportError("no route"), OSError("offline")]
)
def test_what_goes_wrong_on_the_way_is_one_line(session: Session, fake: FakeHub, problem: Exception) -> None:
    fake.problem = problem
    for call in (lambda: muomni.from_pretrained("o/x"), lambda: session.push_to_hub("o/x")):
        fake.HfApi = lambda token: fake  # type: ignore[method-assign]
        with pytest.raises(hub.HubError, match=str(problem).splitlines()[0]) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_path_with_a_typing_error_is_told_to_be_no_directory_here(fake: FakeHub) -> None:
    fake.problem = HubHTTPError("404 no such repository")
    with pytest.raises(
        hub.HubError, match=r"out/modle: is no directory here and cannot be fetched from the hub"
    ):
        muomni.from_pretrained("out/modle")


def test_without_the_extra_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(hub.HubError, match=r"pip install 'muomni\[hub\]'"):
        muomni.from_pretrained("someone/nano-omni")


def test_the_real_library_takes_these_arguments() -> None:
    real = pytest.importorskip("huggingface_hub")
    patterns = list(pretrained.FILES)
    inspect.signature(real.snapshot_download).bind(
        "o/x", revision=None, local_files_only=True, allow_patterns=patterns
    )
    inspect.signature(real.HfApi).bind(token=None)
    api = real.HfApi
    inspect.signature(api.create_repo).bind(None, "o/x", private=False, exist_ok=True)
    inspect.signature(api.upload_folder).bind(
        None, repo_id="o/x", folder_path=".", commit_message="m", allow_patterns=patterns
    )
    assert issubclass(real.errors.HfHubHTTPError, real.errors.HfHubHTTPError.__bases__)
