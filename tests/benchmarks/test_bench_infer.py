"""bench_infer: peers that compute the same, what is not timed, the floor, goals judged, a smoke run."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import bench_infer, infer_cases, infer_report
from benchmarks.infer_cases import DecodeCase
from benchmarks.infer_peers import PlainDecoder
from benchmarks.infer_report import OURS, PLAIN
from muomni import recipes
from muomni.models.thinker import Thinker
from muomni.tokens import N_SPECIAL

CPU = torch.device("cpu")
NANO = recipes.model("nano").thinker
CASE = DecodeCase(size="nano", batch=3, threads=1)


def _thinker() -> Thinker:
    torch.manual_seed(0)
    thinker = Thinker(NANO).eval()
    # Random weights repeat the last token; here a choice hangs on what attention finds, and is never a control token.
    thinker.embedding.data[:N_SPECIAL] = 0.0
    for block in thinker.stack.blocks:
        block.attention.out.weight.data *= 25.0
        block.attention.q_weight.data *= 4.0
    return thinker


@torch.inference_mode()
def test_the_plain_decoder_chooses_what_full_forwards_choose() -> None:
    thinker, ids = _thinker(), infer_cases.prompts(NANO, 2, CPU)
    found = PlainDecoder(thinker, ids).decode(24)
    for row in range(2):
        whole = torch.cat((ids[row], found[row]))
        positions = torch.arange(len(whole))[:, None].expand(-1, 3)
        bounds = torch.tensor([0, len(whole)], dtype=torch.int32)
        logits = thinker.logits(thinker(thinker.embed(whole), positions, bounds, len(whole)))
        assert torch.equal(logits[-25:-1].argmax(-1), found[row]) and len(set(found[row].tolist())) > 12


def test_ours_gives_the_plain_decoders_tokens_of_every_row() -> None:
    thinker, ids = _thinker(), infer_cases.prompts(NANO, 3, CPU)
    assert thinker.pack(n_positions=infer_cases.N_PROMPT + infer_cases.N_NEW + 2) is None
    plain = PlainDecoder(thinker, ids).decode(9)
    # Control tokens are never chosen by ours: the plain one must not have wanted any.
    assert int(plain.min()) >= N_SPECIAL
    decode = infer_cases.ours(thinker, ids, graph=False)
    for n in (9, 1, 9):
        assert torch.equal(decode(n), plain[:, :n])


def test_who_gives_other_tokens_is_not_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    adapter = tmp_path / "peer.py"
    adapter.write_text("def make(shape):\n    return lambda n: [[7] * n] * shape.batch\n")
    right = infer_cases.ours

    def wrong(thinker: Thinker, ids: torch.Tensor, *, graph: bool) -> infer_cases.Decode:
        decode = right(thinker, ids, graph=graph)
        return lambda n: decode(n) + 1

    monkeypatch.setattr(infer_cases, "ours", wrong)
    rows = list(bench_infer.timed(CASE, CPU, peers=[f"{adapter}:make"], rounds=1, seconds=0.0))
    by_name = {row["contender"]: row for row in rows}
    assert by_name[f"{OURS}, fp32"]["status"].startswith("wrong: ")
    assert by_name[f"{PLAIN}, fp32"]["status"] == "ok"
    assert (
        by_name[f"{adapter.stem}:make, fp32".replace(adapter.stem, str(adapter)[:-3] + ".py")]["status"]
        == "ok"
    )


def test_float32_is_timed_with_weights_that_int8_does_not_replace(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Thinker] = []

    def kept(thinker: Thinker, ids: torch.Tensor, *, graph: bool) -> infer_cases.Decode:
        seen.append(thinker)
        return lambda n: ids[:, :n]

    monkeypatch.setattr(infer_cases, "ours", kept)
    for name, make, _ in infer_cases.contenders(CASE, CPU):
        if name.startswith(OURS):
            make()
    ids = torch.arange(8, 40)
    with torch.inference_mode():
        logits = [thinker.logits(thinker.embed(ids)) for thinker in seen]
    # Both are there at once, the first as exact as the other is not.
    exact = torch.nn.functional.linear(seen[0].embed(ids), seen[0].embedding).detach()
    errors = [float((own - exact).abs().max()) for own in logits]
    assert len(seen) == 2 and errors[0] < 1e-3 * float(exact.abs().max()) < 10 * errors[1]


def test_a_steps_bytes_are_those_of_its_weights() -> None:
    thinker = Thinker(NANO)
    matrices = [p for p in (*thinker.stack.blocks.parameters(), thinker.embedding) if p.ndim == 2]
    assert infer_cases.step_bytes(NANO, bytes_a_weight=4) == 4 * sum(p.numel() for p in matrices)


def _decoded(size: str, batch: int, speed: float, **more: object) -> infer_report.Row:
    return {
        "op": "infer", "pass": "decode", "variant": f"decode {size}, batch {batch}", "size": size, "batch": batch,
        "threads": 1, "contender": f"{OURS}, fp32", "status": "ok", "tokens_per_s": speed, "tokens_per_cpu_s": speed,
        "prefill_ms": 1.0, "of_floor": 0.5, **more,
    }  # fmt: skip


def test_goals_are_judged_by_their_bounds() -> None:
    rows = [_decoded("start", 1, 84 * 5.0), _decoded("tiny", 1, 100.0), _decoded("tiny", 32, 1_199.0)]
    turn = {
        "op": "infer",
        "pass": "turn",
        "variant": "t",
        "size": "tiny",
        "contender": f"{OURS}, fp32",
        "status": "ok",
    }
    rows += [{**turn, "threads": threads, "first_audio_p50": 0.25, "rtf_p50": 0.51} for threads in (1, 2)]
    judged = [line.split("|")[-2].strip() for line in infer_report.goals(rows)]
    assert judged == ["met", "**missed**", "met", "**missed**"]
    graph = {"contender": f"{OURS}, graph, fp32", "threads": 0}
    rows = [_decoded("tiny", 1, 3_000.0, **graph), _decoded("tiny", 32, 36_000.0, **graph)]
    judged = [line.split("|")[-2].strip() for line in infer_report.goals(rows)]
    assert judged == ["met", "**missed**", "met"]


def test_a_smoke_run_measures_everything_once(tmp_path: Path) -> None:
    assert (
        bench_infer.main(["--device", "cpu", "--smoke", "--only", "decode,sessions", "--out", str(tmp_path)])
        == 0
    )
    found = json.loads((tmp_path / "rows.json").read_text())
    ours = [row for row in found["rows"] if row["contender"].startswith(OURS)]
    assert {row["pass"] for row in ours} == {"decode", "turn", "encoders"}
    assert all(row["status"] == "ok" for row in ours)
    turn = next(row for row in ours if row["pass"] == "turn")
    assert 0 < turn["first_text_p50"] < turn["first_audio_p50"] < turn["total_p50"]
    assert "not a result" in (tmp_path / "summary.md").read_text()


def test_an_adapter_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture) -> None:
    assert bench_infer.main(["--device", "cpu", "--peer", "nowhere.py:make"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
