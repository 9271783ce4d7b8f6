"""The harness: what is wrong is not timed, contenders take turns, cases cost what the formulas say."""

from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from muomni_kernels import dispatch, registry

from benchmarks import AGAIN, bench_rms_norm, harness, shapes
from benchmarks.baselines import foreign
from benchmarks.case import Case, Contender, NotRun
from benchmarks.make import normal
from benchmarks.measure import host_times, measure
from benchmarks.ops import OPS

CPU = torch.device("cpu")


def _case(dtype: torch.dtype = torch.float32, **contenders: Contender) -> Case:
    def make(seed: int) -> list[torch.Tensor]:
        return [normal(CPU, dtype, seed, 6, 8), normal(CPU, dtype, seed + 1, 8)]

    reference = Contender(call=lambda x, w: (x.float() * w.float()).tanh().to(x.dtype))
    made: dict[str, Callable[[], Contender]] = {name: lambda c=c: c for name, c in contenders.items()}
    return Case(
        op="toy", variant="6x8", shape={}, dtype=dtype, make=make, n_grads=2, rows=6, width=8,
        contenders={**made, "reference": lambda: reference},
        n_bytes={"forward": 192, "backward": 192, "both": 384},
    )  # fmt: skip


def _statuses(case: Case) -> dict[str, str]:
    rows = measure(case, rounds=2, seconds=0.1, wanted=None, host={})
    return {f"{row['contender']} {row['pass']}": row["status"] for row in rows}


def test_a_wrong_contender_is_reported_and_not_timed() -> None:
    class WrongGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            y = (x * w).tanh()
            ctx.save_for_backward(x, w, y)
            return y

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x, w, y = ctx.saved_tensors
            d = grads[0] * (1 - y**2)
            return d * w, -(d * x).sum(0)

    found = _statuses(
        _case(
            right=Contender(call=lambda x, w: torch.tanh(x * w), backend=True),
            value=Contender(call=lambda x, w: torch.tanh(x * w) + 1e-3, backend=True),
            gradient=Contender(call=WrongGradient.apply),
            shape=Contender(call=lambda x, w: torch.tanh(x * w)[:5]),
            infinite=Contender(call=lambda x, w: torch.tanh(x * w) / 0),
        )
    )
    assert found["value all"].startswith("wrong: output 0: error 1.0e-03")
    assert found["gradient all"].startswith("wrong: gradient 1: relative error 2")
    assert found["shape all"].startswith("wrong: output 0: shape (5, 8), expected (6, 8)")
    assert found["infinite all"] == "wrong: output 0: not finite"
    for stage in ("forward", "backward", "both"):
        assert (
            found[f"right {stage}"] == found[f"right{AGAIN} {stage}"] == found[f"reference {stage}"] == "ok"
        )
        assert found[f"copy {stage}"] == "yardstick"
    assert not any(
        name.split()[0] in ("value", "gradient", "shape", "infinite") for name in found if "all" not in name
    )


def test_backends_of_ours_are_held_to_the_parity_rule_and_others_to_a_looser_bound() -> None:
    def sloppy(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return (x * w).tanh() * 1.004

    strict = _statuses(_case(torch.bfloat16, ours=Contender(call=sloppy, backend=True)))
    loose = _statuses(_case(torch.bfloat16, theirs=Contender(call=sloppy)))
    assert "twice that of plain PyTorch" in strict["ours all"]
    assert loose["theirs both"] == "ok"


def test_one_that_fails_or_is_not_installed_leaves_the_others_in() -> None:
    def broken(*_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no kernel image\nand more")

    def uncompilable(*_: torch.Tensor) -> torch.Tensor:
        raise pytest.importorskip("triton.errors").TritonError("out of shared memory")

    case = _case(broken=Contender(call=broken), uncompilable=Contender(call=uncompilable))
    case.contenders["absent"] = foreign("a_library_nobody_has", lambda module: module.call)
    case.contenders["other"] = foreign("math", lambda module: module.rms_norm)
    found = _statuses(case)
    assert found["broken all"] == "failed: RuntimeError: no kernel image"
    assert found["uncompilable all"] == "failed: TritonError: out of shared memory"
    assert found["absent all"] == "not run: not installed"
    assert found["other all"].startswith("not run: this version has another interface")
    assert found["reference both"] == "ok"
    with pytest.raises(NotRun, match="not installed"):
        foreign("a_library_nobody_has", lambda module: module)()


def test_contenders_take_turns_in_rotating_order() -> None:
    order: list[str] = []
    plan = harness.Plan(device=CPU, n_sets=1, n_calls=1, rounds=4, seconds=9.0)
    replays = {n: harness.Replay(start=lambda n=n: order.append(n), n_calls=1) for n in "abc"}
    times = harness.interleave(replays, plan)
    assert "".join(order) == "abcbcacababc"
    assert {name: len(values) for name, values in times.items()} == {"a": 4, "b": 4, "c": 4}


def test_percentiles_are_those_of_the_sorted_values() -> None:
    assert harness.percentiles([float(i) for i in (10, 0, 5, 3, 8, 1, 9, 2, 7, 6, 4)]) == {
        "p20": 2,
        "p50": 5,
        "p80": 8,
    }
    assert harness.percentiles([4.0]) == {"p20": 4.0, "p50": 4.0, "p80": 4.0}


@pytest.mark.parametrize("n_bytes", [1, 2**18, 2**24, 2**30])
def test_input_sets_exceed_the_cache(n_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = 60 * 2**20
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=cache))
    plan = harness.plan(torch.device("cuda"), n_bytes, rounds=7, seconds=1.0)
    assert plan.n_sets == harness.MAX_CALLS or plan.n_sets * n_bytes >= 3 * cache
    assert plan.n_sets <= plan.n_calls <= harness.MAX_CALLS
    assert plan.n_calls == harness.MAX_CALLS or plan.n_calls * n_bytes >= harness.REPLAY_BYTES


def test_bytes_of_the_model_shape_are_those_of_the_formula() -> None:
    case = bench_rms_norm.case(CPU, torch.bfloat16, 16_384, 256, model=True)
    assert case.n_bytes == {
        "forward": 4 * 16_384 * 256,
        "backward": 6 * 16_384 * 256,
        "both": 10 * 16_384 * 256,
    }


def test_the_grid_begins_with_the_model_and_has_every_shape_once() -> None:
    grid = shapes.grid(shapes.MODEL_WIDTHS)
    assert grid[0] == (16_384, 256, True)
    assert {(rows, width) for rows, width, _ in grid} == {(r, w) for r in shapes.ROWS for w in shapes.WIDTHS}
    assert len(grid) == len(shapes.ROWS) * len(shapes.WIDTHS)


def test_model_shapes_are_those_of_the_recipes() -> None:
    from muomni import recipes

    sizes = [recipes.model(size).thinker for size in ("nano", "tiny", "base")]
    assert {size.d_model for size in sizes} <= set(shapes.MODEL_WIDTHS)
    assert {size.d_ff for size in sizes} == set(shapes.MODEL_FF)
    assert {(size.vocab_size, size.d_model) for size in sizes} == set(shapes.MODEL_HEAD)
    assert {(s.n_heads, s.n_kv_heads, s.head_dim) for s in sizes} == {
        (h.n_heads, h.n_kv_heads, h.head_dim) for h in shapes.MODEL_HEADS
    }
    assert recipes.recipe("tiny", "text").train.batch_tokens == shapes.MODEL_ROWS


@pytest.mark.parametrize("op", OPS)
def test_rows_and_width_of_a_case_are_those_the_dispatch_table_sees(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, ...]] = []
    select = registry.select

    def spy(name: str, *arguments: Any) -> Any:
        seen.append((name, *arguments))
        return select(name, *arguments)

    monkeypatch.setattr(registry, "select", spy)
    for case in import_module(f"benchmarks.bench_{op}").cases(CPU, torch.float32, smoke=True):
        seen.clear()
        with torch.no_grad():
            contender = case.contenders["reference"]()
            with contender.scope():
                contender.call(*case.make(0))
        assert dispatch.extents(*seen[0]) == (case.rows, case.width), case.name


@pytest.mark.parametrize("op", OPS)
def test_every_op_is_measured_end_to_end(op: str) -> None:
    module = import_module(f"benchmarks.bench_{op}")
    host = host_times(module.tiny(CPU, torch.float32), {"reference"})
    assert host["reference"]["forward"] > 0
    for case in module.cases(CPU, torch.float32, smoke=True):
        torch.compiler.reset()
        rows = list(measure(case, rounds=1, seconds=0.0, wanted=None, host=host))
        problems = [r for r in rows if r["status"].startswith(("failed", "wrong", "not timed"))]
        assert not problems, problems
        timed = {(r["contender"], r["pass"]) for r in rows if r["status"] == "ok"}
        assert {("reference", stage) for stage in case.passes} <= timed
        assert all(r["p20"] <= r["p50"] <= r["p80"] for r in rows if r["status"] == "ok")


def test_large_shapes_of_a_gpu_can_be_described_without_one() -> None:
    for op in ("rms_norm", "add_rms_norm", "qk_norm_rope", "swiglu", "rope", "linear_cross_entropy"):
        cases = list(import_module(f"benchmarks.bench_{op}").cases(CPU, torch.bfloat16))
        names = [case.name for case in cases]
        assert len(set(names)) == len(names) and cases[0].model
    assert nullcontext is Contender(call=len).scope
