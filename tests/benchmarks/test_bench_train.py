"""bench_train: peers that compute the same, what is not timed, work counted, goals judged, a smoke run."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import bench_train, train_cases, train_floor, train_peers, train_report
from benchmarks.train_cases import Case
from benchmarks.train_peers import NotRun, PlainModel, PlainStep, rows_of
from muomni import recipes
from muomni.data.batch import pack
from muomni.data.template import Document
from muomni.errors import UserError
from muomni.models.thinker import Thinker

CPU = torch.device("cpu")
NANO = recipes.model("nano").thinker


def _packed(*lengths: int, n_tokens: int) -> Any:
    documents = []
    for length in lengths:
        ids = torch.randint(NANO.vocab_size, (length,), generator=torch.Generator().manual_seed(length))
        none = torch.zeros(0, dtype=torch.int64)
        documents.append(
            Document(
                input_ids=ids, labels=ids, image_slots=none, audio_slots=none,
                positions=torch.arange(length)[:, None].expand(-1, 3),
            )
        )  # fmt: skip
    return pack(documents, n_tokens=n_tokens, n_docs=len(lengths), max_seq_len=max(lengths))


@pytest.mark.parametrize(
    "changed", [{}, {"mix_kernel": 1}, {"late_keys": False}], ids=["all", "unmixed", "in time"]
)
@pytest.mark.parametrize("lengths", [(40, 40, 40), (7, 50, 30)], ids=["rows", "packed"])
def test_the_plain_model_has_the_thinkers_loss_and_gradients(
    lengths: tuple[int, ...], changed: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    cfg = dataclasses.replace(NANO, **changed)
    thinker = Thinker(cfg).double()
    plain = PlainModel(cfg).double().take(thinker)
    batch = _packed(*lengths, n_tokens=120)
    rows = rows_of(batch)
    assert (rows.mask is None) == (len(set(lengths)) == 1)
    hidden = thinker(thinker.embed(batch.input_ids), batch.positions, batch.cu_seqlens, batch.max_seqlen)
    total, count = thinker.cross_entropy(hidden, batch.labels)
    (total / count).backward()
    loss = plain(rows)
    loss.backward()
    # Both take rotary angles in float32, in another order of operations.
    assert loss.item() == pytest.approx((total / count).item(), abs=1e-7)
    weight, own = thinker.embedding.grad, plain.embedding.weight.grad
    assert weight is not None and own is not None
    torch.testing.assert_close(own, weight, rtol=1e-5, atol=1e-8)
    norms = [
        torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        for model in (thinker, plain)
    ]
    assert float(norms[0]) == pytest.approx(float(norms[1]), rel=1e-7)


def test_a_mask_that_nobody_would_make_is_not_made() -> None:
    n = train_peers.MOST_MASKED + 1
    with pytest.raises(NotRun, match="mask of"):
        rows_of(_packed(40, n - 40, n_tokens=n))


def _case() -> Case:
    return Case(size="nano", stage="text", kind="full", run=train_cases.run_of("nano", "text", most=512))


def test_a_peer_that_computes_something_else_is_reported_and_not_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Of random weights the loss is nearly the same, but not the gradient's norm.
    wrong = train_peers.Ops(
        norm=train_peers.PLAIN.norm, rotate=lambda q, k, cos, sin: (q, k), swiglu=lambda gate, up: gate * up,
        loss=train_peers.PLAIN.loss,
    )  # fmt: skip
    monkeypatch.setattr(train_cases, "PLAIN", wrong)
    settings = bench_train.Settings(
        device=CPU, root=tmp_path, precisions=["fp32"], rounds=4, seconds=0.0, deadline=float("inf"),
        backend="eager",
    )  # fmt: skip
    rows = {row["contender"]: row for row in bench_train.timed(_case(), settings)}
    assert rows["plain eager, fp32"]["status"].startswith("wrong: first ")
    assert rows["plain compiled, fp32"]["status"].startswith("wrong: first ")
    assert rows["plain with Liger, fp32"]["status"] == "not run: needs CUDA"
    assert rows["ours, fp32"]["status"] == "ok"
    assert not {"p50", "tokens_per_s"} & rows["plain eager, fp32"].keys()


def test_a_wrong_gradient_and_a_loss_that_is_not_finite_are_noticed() -> None:
    def contender(loss: float, norm: float) -> Any:
        step = lambda _: (torch.tensor(loss), torch.tensor(norm))  # noqa: E731
        return lambda: SimpleNamespace(step=step, held=lambda: 0, half=False)

    _, told = bench_train.prepare(contender(7.0, 1.0), CPU, loss=7.00005, norm=1.0005)
    assert told["loss"] == 7.0 and told["grad_norm"] == 1.0
    with pytest.raises(bench_train.WrongError, match="gradient norm"):
        bench_train.prepare(contender(7.0, 1.002), CPU, loss=7.0, norm=1.0)
    with pytest.raises(bench_train.WrongError, match="first loss nan"):
        bench_train.prepare(contender(float("nan"), 1.0), CPU, loss=None, norm=None)


def test_our_timed_step_is_the_one_that_trains_and_agrees_with_the_plain_one_for_three_updates() -> None:
    case = _case()
    made = train_cases.batches(case, Path())
    ours = train_cases.ours(case, made, CPU, precision="fp32", name="ours")
    plain = train_cases.plain(case, made, CPU, precision="fp32", name="plain", backend=None, liger=False)
    for i in range(3):
        (loss, norm), (other, its) = ours.step(i), plain.step(i)
        assert norm is not None and its is not None
        assert float(loss) == pytest.approx(float(other), abs=1e-4)
        assert float(norm) == pytest.approx(float(its), rel=1e-3)
    assert ours.held() == plain.held()


def test_liger_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(train_peers.importlib, "import_module", missing)
    with pytest.raises(NotRun, match="not installed"):
        train_peers.liger_ops(torch.device("cuda"))


@pytest.mark.parametrize("size", ["nano", "tiny"])
def test_products_are_counted_as_the_formula_has_them(size: str) -> None:
    run = train_cases.run_of(size, "text", most=1_024)
    cfg, n, length = run.model.thinker, 1_024, 512
    packed = (cfg.n_heads + 2 * cfg.n_kv_heads) * cfg.head_dim
    weights = cfg.d_model * (packed + cfg.n_heads * cfg.head_dim + 3 * cfg.d_ff)
    attention = 12 * cfg.n_heads * cfg.head_dim * (n // length) * length * (length + 1) / 2
    # The last token of a document has no target, and the head's products leave it out.
    head = 6 * (n - n // length) * cfg.d_model * cfg.vocab_size
    expected = cfg.n_layers * (6 * n * weights + attention) + head
    work = train_floor.count(run)
    assert work.flops == pytest.approx(expected, rel=1e-9)
    assert work.trained == sum(p.numel() for p in Thinker(cfg).parameters())
    assert work.bytes(half=False) == pytest.approx(2 * work.bytes(half=True) - 32 * work.trained)


def test_mixed_inputs_and_late_keys_are_counted() -> None:
    run = train_cases.run_of("nano", "text", most=1_024)
    cfg = run.model.thinker
    plain = dataclasses.replace(run.model, thinker=dataclasses.replace(cfg, mix_kernel=1, late_keys=False))
    work, less = train_floor.count(run), train_floor.count(dataclasses.replace(run, model=plain))
    # Inputs are read and written, then read with their gradient, which is written; keys are copied there and back.
    assert work.numbers - less.numbers == 1_024 * (5 * cfg.d_model + 4 * cfg.n_kv_heads * cfg.head_dim)
    assert work.flops == less.flops and work.trained - less.trained == cfg.mix_kernel * cfg.d_model


def test_frozen_parts_are_counted_forward_only() -> None:
    omni, text = (train_floor.count(recipes.recipe("nano", stage)) for stage in ("omni", "text"))
    assert omni.trained > text.trained and omni.flops > text.flops
    encoders = recipes.model("nano").vision
    n, images = 2 * encoders.n_patches, recipes.recipe("nano", "omni").train.batch_items
    assert omni.flops - text.flops > images * n * encoders.n_layers * encoders.d_model**2


def test_the_floor_adds_products_and_bytes() -> None:
    work = train_floor.Work(flops=200.0, numbers=10.0, trained=1)
    yard = train_floor.Yardstick(flops=100.0, bandwidth=8.0)
    assert work.seconds(yard, half=False) == 2.0 + (40 + 32) / 8
    assert work.scaled(2).seconds(yard, half=True) == 4.0 + (40 + 32) / 8
    own = train_floor.yardstick(CPU, half=False, seconds=0.0)
    assert 1e9 < own.flops < 1e14 and 1e8 < own.bandwidth < 1e13


def test_time_in_which_nothing_ran_is_found() -> None:
    assert bench_train.busy_share([]) is None
    assert bench_train.busy_share([(0, 10), (5, 20), (6, 8), (30, 40)]) == pytest.approx(0.75)
    assert bench_train.busy_share([(0, 10), (10, 20)]) == 1.0


def test_memory_is_what_a_call_holds_at_one_time() -> None:
    def call() -> None:
        a = torch.zeros(1_000_000)
        del a
        b = [torch.zeros(500_000) for _ in range(3)]
        del b

    assert bench_train.cpu_peak(call) == pytest.approx(6_000_000, rel=0.01)


@pytest.mark.parametrize("stage", ["text", "audio", "vision", "codec", "vocoder", "omni"])
def test_the_embedded_set_fills_batches(stage: str, tmp_path: Path) -> None:
    share = train_cases.fill(recipes.recipe("nano", stage), tmp_path)
    assert share is not None and 0.85 < share <= 1.0
    assert train_cases.fill(recipes.recipe("nano", "talker"), tmp_path) is None


ADAPTER = """
import torch


def step(shape):
    weight = torch.nn.Parameter(torch.zeros(shape.d_model))

    def call():
        weight.grad = None
        loss = (weight - 1).square().sum()
        loss.backward()
        return loss.item()

    return call, shape.batch * shape.seq_len
"""


def test_anothers_step_is_timed_by_its_adapter(tmp_path: Path) -> None:
    path = tmp_path / "other.py"
    path.write_text(ADAPTER)
    spec = f"{path}:step"
    settings = bench_train.Settings(
        device=CPU, root=tmp_path, precisions=["fp32"], peers=[spec], rounds=4, seconds=0.0,
        deadline=float("inf"), backend="eager",
    )  # fmt: skip
    rows = {row["contender"]: row for row in bench_train.timed(_case(), settings)}
    assert rows[f"{spec}, fp32"]["status"] == "ok" and rows[f"{spec}, fp32"]["tokens_per_s"] > 0
    assert rows[f"{spec}, fp32"]["loss"] == 128.0


def test_an_adapter_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.py").write_text("x = 1\n")
    for spec, words in ((f"{tmp_path}/other.py:step", "no function 'step'"), ("other", "expected path/to")):
        with pytest.raises(UserError, match=words):
            train_peers.load_adapter(spec)
        assert bench_train.main(["--smoke", "--device", "cpu", "--peer", spec]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_adapter_of_the_documentation_runs(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    code = (
        text.split("## Measured against others")[1]
        .split("```")[1]
        .removeprefix("python")
        .replace("/path/to/nanoGPT", str(tmp_path))
    )
    (tmp_path / "adapter.py").write_text(code.replace("torch.compile(GPT(config)", "(GPT(config)"))
    (tmp_path / "model.py").write_text(
        "import dataclasses, torch\n"
        "@dataclasses.dataclass\nclass GPTConfig:\n"
        "    block_size: int\n    vocab_size: int\n    n_layer: int\n    n_head: int\n    n_embd: int\n"
        "class GPT(torch.nn.Module):\n"
        "    def __init__(self, c):\n"
        "        super().__init__()\n        self.e = torch.nn.Embedding(c.vocab_size, c.n_embd)\n"
        "    def forward(self, x, y):\n"
        "        z = self.e(x) @ self.e.weight.T\n"
        "        return z, torch.nn.functional.cross_entropy(z.flatten(0, 1), y.flatten())\n"
    )
    _, make = train_peers.load_adapter(f"{tmp_path / 'adapter.py'}:step")
    shape = train_peers.Shape(
        device="cpu", precision="fp32", batch=2, seq_len=8, vocab_size=32, d_model=16, n_layers=1, n_heads=2,
        n_kv_heads=2, d_ff=32, lr=0.1,
    )  # fmt: skip
    call, positions = make(shape)
    losses = [float(call()) for _ in range(5)]
    assert positions == 16 and losses[-1] < losses[0]


def _row(size: str, contender: str, ms: float, **more: Any) -> dict[str, Any]:
    us = ms * 1e3
    return {
        "op": "train", "variant": f"{size} text, packed", "size": size, "stage": "text", "kind": "packed",
        "contender": contender, "dtype": "float32", "status": "ok", "positions": 100, "p20": us, "p50": us, "p80": us,
        "min": us, "cpu_min": us, "cpu_p50": us, "n_rounds": 3, "tokens_per_s": 1e5 / ms, "tokens_per_cpu_s": 1e5 / ms,
        "fill": 0.5, "useful_per_s": 5e4 / ms, "useful_per_cpu_s": 5e4 / ms, "flops": 1e9, "bytes": 1e6, "mfu": 0.3,
        "yard_tflops": 0.1, "yard_gb_per_s": 10.0, "floor": us / 2, "over_floor": 2.0, "over_floor_min": 2.0,
        "busy": None, "peak_bytes": 10**6, **more,
    }  # fmt: skip


def test_goals_are_met_missed_or_not_measured() -> None:
    rows = [_row("tiny", "ours, fp32", 10.0), _row("tiny", "plain eager, fp32", 14.0)]
    lines = list(train_report.goals(rows))
    assert any("tiny text, packed, fp32: times faster" in x and "1.40 | 1.40 | met" in x for x in lines)
    assert any("times the floor | <= 2.5 | 2.00 | 2.00 | met" in x for x in lines)
    assert lines[-1].endswith("| - | - | not measured |") and "starting" in lines[-1]
    base = _row("base", "ours, bf16", 10.0, busy=0.95)
    lines = list(train_report.goals([base, _row("base", "plain eager, bf16", 19.0, busy=0.5)]))
    assert any("plain eager | >= 2 | 1.90 | 1.90 | **missed**" in x for x in lines)
    assert any("plain compiled | >= 1.3 | - | - | not measured" in x for x in lines)
    assert any("times the floor | <= 1.5 | 2.00 | 2.00 | **missed**" in x for x in lines)
    assert any("GPU busy | >= 97% | 95.0% | 95.0% | **missed**" in x for x in lines)


def test_useful_tokens_are_judged_against_the_starting_projects() -> None:
    # 100 positions, half of them useful: 50 x 15.12 useful tokens a second take 66.1 ms.
    for ms, verdict in ((66.0, "met"), (66.3, "**missed**")):
        lines = list(train_report.goals([_row("start", "ours, fp32", ms)]))
        assert any("15.1 | >= 50" in x and x.endswith(f"| {verdict} |") for x in lines)


def test_a_smoke_run_writes_rows_summary_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--smoke", "--device", "cpu", "--stages", "text,codec", "--precisions", "fp32"]
    assert bench_train.main([*arguments, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "rows.json").read_text())
    assert {"device", "torch", "commit", "command", "processor", "load", "threads"} <= found["about"].keys()
    timed = {(r["stage"], r["kind"], r["contender"]) for r in found["rows"] if r["status"] == "ok"}
    peers = ("ours, fp32", "plain eager, fp32", "plain compiled, fp32")
    assert timed == {("codec", "full", "ours, fp32")} | {
        ("text", kind, peer) for kind in ("full", "packed") for peer in peers
    }
    for row in found["rows"]:
        if row["status"] == "ok":
            assert row["min"] <= row["p50"] and row["p20"] <= row["p80"]
            assert 0 < row["mfu"] < 1.5 and row["peak_bytes"] > 10**6 and row["busy"] is None
    summary = (tmp_path / "summary.md").read_text()
    assert "smoke run, not a result" in summary and "needs CUDA" in summary
    assert (tmp_path / "train.svg").read_text().startswith("<svg")
    assert "written to" in capsys.readouterr().out


def test_without_time_a_case_says_so(tmp_path: Path) -> None:
    settings = bench_train.Settings(
        device=CPU, root=tmp_path, precisions=["fp32"], rounds=4, seconds=0.0, deadline=0.0
    )
    (row,) = bench_train.timed(_case(), settings)
    assert row["status"] == "not run: out of time" and "not run" in train_report.line(row)
    assert train_report.section([{"op": "rope", "status": "ok"}]) == []


def test_a_case_that_cannot_be_made_is_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("no such batch")

    monkeypatch.setattr(train_cases, "batches", broken)
    settings = bench_train.Settings(
        device=CPU, root=tmp_path, precisions=["fp32"], rounds=4, seconds=0.0, deadline=float("inf")
    )
    (row,) = bench_train.told(_case(), settings)
    assert row["status"] == "failed: ValueError: no such batch" and row["contender"].startswith("ours, ")


def test_batches_of_unequal_cost_count_alike() -> None:
    work = train_floor.Work(flops=1.0, numbers=1.0, trained=1)
    yard = train_floor.Yardstick(flops=1e9, bandwidth=1e9)
    times = [(10.0, 5.0), (30.0, 20.0), (12.0, 6.0), (34.0, 22.0), (14.0, 7.0), (50.0, 30.0)]
    row = train_floor.figures(
        times, positions=1, fill=0.5, work=work, yard=yard, half=False, own_time=False, n_batches=2
    )
    assert row["min"] == (10 + 30) / 2 and row["p50"] == (12 + 34) / 2 and row["cpu_min"] == 12.5
    assert row["useful_per_s"] == pytest.approx(0.5 / 23e-6) and row["n_rounds"] == 6


def test_a_plain_step_clips_and_updates() -> None:
    model = PlainModel(NANO).take(Thinker(NANO))
    config = recipes.recipe("nano", "text").optim
    before = model.norm.detach().clone()
    loss, norm = PlainStep(model, config, half=False)(rows_of(_packed(40, 40, n_tokens=80)), 1e-3)
    assert float(loss) > 0 and float(norm) > 0 and not torch.equal(before, model.norm)
