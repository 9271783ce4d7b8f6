"""Finished models from and to the Hugging Face hub, by its plain functions.

Not its mixin: that would make the model a subclass of a class of the hub and load the hub with it, and would write one
file of weights, where a model here is a directory whose files vouch for each other.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from muomni.errors import UserError
from muomni.infer import pretrained
from muomni.models.weights import verify_manifest

REPO_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


class HubError(UserError, RuntimeError):
    """A name that the hub cannot have, or what went wrong between here and the hub."""


def check_repo_id(name: str) -> str:
    """The name itself. Raises HubError unless it has the form OWNER/NAME as the hub allows it."""
    sound = REPO_ID.fullmatch(name) and "--" not in name and ".." not in name
    if not sound or name.endswith((".git", ".", "-")):
        raise HubError(f"{name}: is no directory here and no name on the hub, which has the form OWNER/NAME.")
    return name


def download(repo_id: str, *, revision: str | None = None, local_files_only: bool = False) -> Path:
    """A model's directory in the hub's cache; only the files of the format are fetched.

    revision: a branch, tag or commit. local_files_only: ask no server.
    Raises HubError.
    """
    check_repo_id(repo_id)
    hub = _hub()
    try:
        path = hub.snapshot_download(
            repo_id,
            revision=revision,
            local_files_only=local_files_only,
            allow_patterns=list(pretrained.FILES),
        )
    except _errors(hub) as error:
        raise HubError(
            f"{repo_id}: is no directory here and cannot be fetched from the hub ({_line(error)}); check the name and "
            "the network."
        ) from None
    return Path(path)


def push(directory: Path, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a model's directory, with its `onnx` folder if there is one; the repository is made when there is none.

    token: by default the one that `hf auth login` keeps. Returns the repository's address.
    Raises HubError, and CheckpointError for a directory that is not whole.
    """
    check_repo_id(repo_id)
    hub = _hub()
    verify_manifest(directory, remedy=pretrained.REMEDY)
    api = hub.HfApi(token=token)
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id, folder_path=str(directory), commit_message="Upload a muomni model",
            allow_patterns=[*pretrained.FILES, f"{pretrained.ONNX}/*.onnx"],
        )  # fmt: skip
    except _errors(hub) as error:
        raise HubError(
            f"{repo_id}: cannot be uploaded ({_line(error)}); log in with `hf auth login`."
        ) from None
    return str(address)


def _hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError:
        raise HubError("hub: huggingface_hub is not installed; run `pip install 'muomni[hub]'`.") from None


def _errors(hub: Any) -> tuple[type[BaseException], ...]:
    # The base of its errors is the transport's, which also raises its own: of requests or httpx, by its version.
    return (*hub.errors.HfHubHTTPError.__bases__, OSError, ValueError)


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
