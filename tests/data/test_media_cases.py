"""Each bad recording, picture and text is one line that names it, for at most 1 s of CPU and 64 MB of memory."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import bad_pictures
import bad_recordings
import bad_texts
from admission import PLACES

REASONS = {
    "recording": {**dict.fromkeys(PLACES, ""), **{k: v[0] for k, v in bad_recordings.CASES.items()}},
    "picture": {**dict.fromkeys(PLACES, ""), **{k: v[0] for k, v in bad_pictures.CASES.items()}},
    "text": {k: v[0] for k, v in bad_texts.CASES.items()},
}
CASES = [(kind, case) for kind, cases in REASONS.items() for case in cases]
PLACE_REASONS = {
    "missing": "no such file", "folder": "not a file", "pipe": "not a file", "socket": "not a file",
    "endless device": "not a file", "null device": "not a file", "broken link": "no such file",
    "circle": "symbolic links", "long name": "too long", "NUL in the name": "null", "inside a file": "no such file",
    "1 GiB": "1024 MiB, at most 256", "two\nlines": "no such file", "nameless": "not a file|no such file",
}  # fmt: skip


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """What became of each case, read in a process of its own."""
    script = Path(__file__).with_name("admission.py")
    run = subprocess.run(
        [sys.executable, str(script), str(tmp_path_factory.mktemp("media"))], capture_output=True, text=True
    )
    assert not run.returncode, run.stderr
    said = [json.loads(line) for line in run.stdout.splitlines()]
    return {(one["kind"], one["case"]): one for one in said}


@pytest.mark.parametrize(("kind", "case"), CASES, ids=[f"{kind}-{case}" for kind, case in CASES])
def test_a_bad_file_is_one_line_that_names_it_and_costs_little(
    kind: str, case: str, answers: dict[tuple[str, str], dict[str, Any]]
) -> None:
    answer = answers[kind, case]
    assert answer["outcome"] == "MediaError", answer
    reason = answer["reason"]
    assert reason.isprintable() and len(reason) < 200 + len(answer["path"])
    shown = answer["path"].replace("\n", "\\n").replace("\0", "\\x00")
    assert reason.startswith(f"{shown}: "), reason
    expected = PLACE_REASONS[case] if case in PLACES else REASONS[kind][case]
    assert re.search(expected, reason.removeprefix(shown)), reason
    assert answer["seconds"] <= 1.0
    assert answer["growth"] <= 64_000_000


def test_there_are_enough_cases() -> None:
    count = Counter(kind for kind, _ in CASES)
    assert count["recording"] >= 60 and count["picture"] >= 60 and count["text"] >= 40
