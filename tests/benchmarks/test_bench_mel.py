"""bench_mel: times in turn, refuses what computes something else, judges the gates."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from muomni_kernels import log_mel

from benchmarks import bench_mel, mel_floor, mel_report, provenance
from benchmarks.mel_peers import PEERS, Peer


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")


def test_a_smoke_run_writes_rows_summary_and_plot(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        assert bench_mel.main(["--smoke", "--out", str(tmp_path)]) == 0
    finally:
        torch.set_num_threads(threads)
    found = json.loads((tmp_path / "rows.json").read_text())
    named = {row["contender"] for row in found["rows"]}
    assert {"log_mel", "torch composition, mean", "torch.stft + matmul + log", "read once (sum)"} <= named
    errors = [row for row in found["rows"] if row["case"] == "accuracy"]
    assert {row["contender"] for row in errors} == {"log_mel", "fp32 in PyTorch"}
    for row in found["rows"]:
        if row["case"] == "accuracy":
            assert 0 < row["max_error"] < 1e-4
            continue
        assert 0 < row["wall_ms_min"] <= row["wall_ms_median"]
        assert row["rounds"] >= 3
    torch_row = next(row for row in found["rows"] if row["contender"].startswith("torch.stft"))
    assert torch_row["agreement"] > 0.999, "the same definition"
    summary = (tmp_path / "summary.md").read_text()
    assert "| log_mel |" in summary
    assert "## Floor" in summary
    assert (tmp_path / "mel.svg").read_text().startswith("<svg")


def test_threads_of_peers_must_be_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MKL_NUM_THREADS")
    assert bench_mel.main(["--smoke"]) == 2
    assert "MKL_NUM_THREADS" in capsys.readouterr().err


def test_a_peer_that_computes_something_else_is_not_timed() -> None:
    wrong = Peer(name="wrong", package="numpy", make=lambda: lambda clips: [np.random.rand(400, 128)])
    run, agrees, why = bench_mel.prepare(wrong)
    assert run is None
    assert agrees < bench_mel.AGREES
    assert why == "computes something else"


def test_a_peer_that_leaves_frames_out_is_not_timed() -> None:
    clips = [np.zeros(16_000, np.float32), np.zeros(24_000, np.float32)]
    frames = [np.zeros((101, 128)), np.zeros((150, 128))]
    assert bench_mel.misshapen(frames, clips) == ""
    assert "1 results for 2 clips" in bench_mel.misshapen(frames[:1], clips)
    assert "clip 1 of 24000" in bench_mel.misshapen([frames[0], frames[0]], clips)
    times, faults = bench_mel.interleave(
        {"right": lambda: 1, "short": lambda: 2}, 0.0, lambda name, _: "short" if name == "short" else ""
    )
    assert list(times) == ["right"]
    assert faults == {"short": "short"}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc and malloc_trim")
def test_memory_is_no_less_than_the_result_that_is_kept() -> None:
    command = [sys.executable, "-m", "benchmarks.bench_mel", "--memory", "log_mel", "30 s"]
    # The kernels that are installed: those of the sources may have no C++ extension.
    done = subprocess.run(command, cwd=provenance.ROOT, text=True, capture_output=True, check=True)
    peak, result = map(float, done.stdout.split()[-2:])
    assert result == pytest.approx(3_000 * 128 * 4 / 2**20)
    assert 0.9 * result < peak < 4 * result


def test_operations_are_those_of_the_algorithm() -> None:
    full, pooled = (mel_floor.operations(pooled=pooled) for pooled in (False, True))
    assert {k: v for k, v in full.items() if k != "logarithm"} == {
        k: v for k, v in pooled.items() if k != "logarithm"
    }
    assert full["bands"] == 394, "non-zeros of the filters"
    assert pooled["logarithm"] < full["logarithm"]
    # docs/audio.md: window, 20 inner and 11 outer sums are some 5,400.
    assert sum(full[k] for k in ("window", "inner sums", "twiddles", "outer sums")) == pytest.approx(
        5_400, rel=0.02
    )


def test_a_peer_that_is_not_there_is_named() -> None:
    def missing() -> None:
        raise ImportError("No module named 'gone'")

    run, _, why = bench_mel.prepare(Peer(name="gone", package="gone", make=missing))  # pyright: ignore[reportArgumentType]
    assert run is None
    assert "not installed" in why and "gone" in why


def test_agreement_finds_shifted_frames_and_other_bands() -> None:
    clip = bench_mel.speech_like(16_000, 3)
    ours = log_mel(clip)
    assert bench_mel.agreement(ours[1:], ours) > 0.999
    assert bench_mel.agreement(log_mel(clip, n_mels=80), ours, same_bands=False) > 0.9
    assert bench_mel.agreement(ours.flip(0), ours) < 0.8


def test_gates_judge_ratios() -> None:
    def row(contender: str, ms: float) -> dict:
        return {"case": "64 x 10 s", "contender": contender, "wall_ms_min": ms}

    lines = mel_report.gates([row("log_mel", 10.0), row("kaldi-native-fbank", 450.0), row("audioflux", 80.0)])
    assert any("kaldi" in line and "45.0 | met" in line for line in lines)
    assert any("audioflux" in line and "8.0 | **missed**" in line for line in lines)
    assert any("librosa" in line and "not measured" in line for line in lines)


def test_memory_is_judged_against_the_like() -> None:
    def row(contender: str, peak: float, result: float) -> dict:
        return {"case": "64 x 10 s", "contender": contender, "peak_mib": peak, "result_mib": result}

    rows = [row("log_mel", 31.5, 31.0), row("log_mel_downsample, mean", 4.0, 3.9), row("librosa", 33.0, 31.0)]
    narrow, composition = row("kaldi-native-fbank", 20.0, 19.5), row("torch composition, mean", 200.0, 3.9)
    fused, full, alike = mel_report.gates([*rows, narrow, composition])[-3:]
    assert "(kaldi-native-fbank)" in fused and "0.20 | met" in fused
    assert "(librosa)" in full and "0.95 | **missed**" in full
    assert "(torch composition, mean)" in alike and "0.02 | met" in alike
    assert mel_report.gates(rows[:2])[-1] == "| memory | 0.5 | | - | not measured |"


def test_an_error_above_the_gate_is_a_miss() -> None:
    rows = [
        {"case": "accuracy", "contender": "log_mel", "clip": c, "max_error": e}
        for c, e in (("a", 1e-5), ("b", 3e-5))
    ]
    assert any("3.0e-05 | **missed**" in line for line in mel_report.gates(rows))
    assert any("1.0e-05 | met" in line for line in mel_report.gates(rows[:1]))


def test_every_peer_has_a_name_of_its_own() -> None:
    assert len({peer.name for peer in PEERS}) == len(PEERS)
