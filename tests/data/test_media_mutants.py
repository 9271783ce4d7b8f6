"""Mutants of good files are admitted or refused, never worse; the fuzzer finds what it is there to find."""

import json
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import fuzz_media

FAULTY = """
import ctypes, sys
sys.path.insert(0, {tests!r})
import fuzz_media
fuzz_media.CPU_SECONDS = 1

def faulty(payload, rng):
    if rng.random() < 0.02:
        {fault}

fuzz_media.KINDS = {{"text": (fuzz_media.KINDS["text"][0], faulty)}}
fuzz_media.main()
"""


@pytest.mark.parametrize(
    ("kind", "n_cases"), [("audio", 5_000), ("image", 5_000), ("text", 5_000), ("film", 1_000)]
)
def test_thousands_of_mutants_are_admitted_or_refused(kind: str, n_cases: int) -> None:
    if kind not in fuzz_media.KINDS:
        pytest.skip("PyAV is not installed: muomni[video]")
    found = fuzz_media.hunt(kind, n_cases, seed=1)
    assert not found.findings, "\n".join(found.findings)
    assert found.n_cases == n_cases == found.admitted + found.refused
    assert min(found.admitted, found.refused) > n_cases // 10


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("raise KeyError('planted')", "KeyError: 'planted'"),
        ("ctypes.string_at(0)", "SIGSEGV"),
        ("while True: pass", "SIGPROF"),
        ("bytearray(2**30)", "MemoryError"),
        ("raise fuzz_media.MediaError('two\\nlines')", r"two\nlines"),
    ],
)
def test_the_fuzzer_finds_and_numbers(fault: str, told: str, tmp_path: Path) -> None:
    script = tmp_path / "faulty.py"
    here = str(Path(__file__).parent)
    script.write_text(FAULTY.format(tests=here, fault=fault))
    found = fuzz_media.hunt("text", 300, 7, script, most=2)
    first, second = found.findings
    assert told in first and told in second and first.startswith("text, seed 7, case ")
    # The same numbers by the generator alone: the reader draws behind the mutant.
    expected = [n for n in range(300) if fuzz_media.mutant("text", 7, n)[1].random() < 0.02][:2]
    assert [int(line.split("case ")[1].split(":")[0]) for line in (first, second)] == expected


def test_a_mutant_is_the_same_in_another_process_and_another_than_its_neighbours() -> None:
    show = "import sys, zlib; sys.path.insert(0, sys.argv[1]); import fuzz_media as f; "
    show += "print([[zlib.crc32(f.mutant(kind, 3, n)[0]) for n in range(200)] for kind in f.KINDS])"
    call = [sys.executable, "-c", show, str(Path(__file__).parent)]
    said = json.loads(subprocess.run(call, capture_output=True, text=True, check=True).stdout)
    ours = [[zlib.crc32(fuzz_media.mutant(kind, 3, n)[0]) for n in range(200)] for kind in fuzz_media.KINDS]
    assert said == ours
    assert all(len(set(numbers)) > 150 for numbers in ours)
