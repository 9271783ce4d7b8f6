"""bench_mel: times in turn, refuses what computes something else, judges the gates."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from muomni_kernels import log_mel

from benchmarks import bench_mel, mel_report
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
    for row in found["rows"]:
        assert 0 < row["wall_ms_min"] <= row["wall_ms_median"]
        assert row["rounds"] >= 3
    torch_row = next(row for row in found["rows"] if row["contender"].startswith("torch.stft"))
    assert torch_row["agreement"] > 0.999, "the same definition"
    assert "| log_mel |" in (tmp_path / "summary.md").read_text()
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


def test_every_peer_has_a_name_of_its_own() -> None:
    assert len({peer.name for peer in PEERS}) == len(PEERS)
