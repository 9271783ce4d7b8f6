"""The dispatch table: it changes the backend by shape and by mode, only as a preference, and is checked when read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from muomni_kernels import choice_rows, dispatch, registry, use_backend

TABLE = {
    "version": 1,
    "devices": {
        "cpu": {
            "source": "made up",
            "eager": {"attention": {"8": [[4, "reference"], [16, "sdpa_mask"], [None, "chunked"]]}},
            "compiled": {"attention": {"8": [[None, "sdpa_mask"]]}},
        }
    },
}


def _write(path: Path, table: Any) -> Path:
    path.write_text(json.dumps(table))
    return path


def _arguments(rows: int, width: int) -> tuple[Any, ...]:
    q = torch.randn(rows, width // 4, 4)
    return q, q, q, torch.tensor([0, rows], dtype=torch.int32), rows, True


def _name(op: str, *arguments: Any) -> str:
    chosen = registry.select(op, *arguments)
    return next(row.name for row in registry.backends(op) if row.run is chosen)


def test_the_backend_follows_the_shape(tmp_path: Path) -> None:
    assert _name("attention", *_arguments(16, 8)) == "chunked", "the order of priority, without a table"
    with dispatch.use_table(_write(tmp_path / "table.json", TABLE)):
        names = [_name("attention", *_arguments(rows, 8)) for rows in (1, 4, 5, 16, 17, 64)]
        assert names == ["reference", "reference", "sdpa_mask", "sdpa_mask", "chunked", "chunked"]
        assert _name("attention", *_arguments(4, 12)) == "chunked", "a width that was not measured"
    assert _name("attention", *_arguments(4, 8)) == "chunked", "the block is over"


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> str:
    """An op of three backends that are told apart by their results."""
    monkeypatch.setitem(registry._backends, "toy", [])
    for name, factor in (("first", 2.0), ("second", 3.0), ("third", 5.0)):
        registry.register(
            "toy", name, lambda x, factor=factor: x * factor, supports=lambda x: None, available=lambda: None
        )
    return "toy"


TOY = {
    "version": 1,
    "devices": {
        "cpu": {
            "source": "made up",
            "eager": {"toy": {"8": [[None, "second"]]}},
            "compiled": {"toy": {"8": [[6, "second"], [None, "third"]]}},
        }
    },
}


def _run_toy(x: torch.Tensor) -> torch.Tensor:
    return registry.select("toy", x)(x)


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_backend_follows_the_mode_without_a_graph_break(toy: str, dynamic: bool, tmp_path: Path) -> None:
    torch.compiler.reset()
    compiled = torch.compile(_run_toy, fullgraph=True, backend="eager", dynamic=dynamic)
    with dispatch.use_table(_write(tmp_path / "table.json", TOY)):
        for rows, factor in ((5, 3.0), (6, 3.0), (7, 5.0), (12, 5.0)):
            assert float(_run_toy(torch.ones(rows, 8))[0, 0]) == 3.0
            assert float(compiled(torch.ones(rows, 8))[0, 0]) == factor
        assert float(compiled(torch.ones(7, 4))[0, 0]) == 2.0, "a width that was not measured"
    with dispatch.use_table(None):
        assert float(compiled(torch.ones(7, 8))[0, 0]) == 2.0, "traced again when the table changes"


def test_a_backend_that_cannot_run_is_only_a_preference_and_forcing_overrides(tmp_path: Path) -> None:
    table = {
        "version": 1,
        "devices": {"cpu": {"source": "", "eager": {"attention": {"8": [[None, "varlen"]]}}}},
    }
    call = _arguments(4, 8)
    with dispatch.use_table(_write(tmp_path / "table.json", table)):
        assert _name("attention", *call) == "chunked"
        with use_backend("attention", "sdpa_mask"):
            assert _name("attention", *call) == "sdpa_mask"
    with dispatch.use_table(_write(tmp_path / "table.json", TABLE)), use_backend(None, "chunked"):
        assert _name("attention", *call) == "chunked"


@pytest.mark.parametrize(
    ("table", "place"),
    [
        ({"devices": {}}, "version: expected 1"),
        ({"version": 1, "devices": []}, "devices: expected an object"),
        ({"version": 1, "devices": {"cpu": {"eager": {}}}}, "devices.cpu: expected source"),
        ({"version": 1, "devices": {"cpu": {"source": "", "eagre": {}}}}, "devices.cpu: expected source"),
        (
            {"version": 1, "devices": {"cpu": {"source": "", "eager": {"rope": {"x": []}}}}},
            "devices.cpu.eager.rope: ",
        ),
        *(
            (
                {"version": 1, "devices": {"cpu": {"source": "", "eager": {"rope": {"8": steps}}}}},
                "devices.cpu.eager.rope.8: expected rising",
            )
            for steps in (
                [],
                [["a", "triton"]],
                [[None, "triton"], [4, "triton"]],
                [[8, "a"], [4, "b"]],
                [[4, 4]],
            )
        ),
    ],
)
def test_a_malformed_table_is_one_clear_error(table: Any, place: str, tmp_path: Path) -> None:
    path = _write(tmp_path / "table.json", table)
    with pytest.raises(dispatch.DispatchError, match=place) as error, dispatch.use_table(path):
        pass
    assert str(path) in str(error.value) and not dispatch.active
    path.write_text("{")
    with pytest.raises(dispatch.DispatchError, match="not JSON"):
        dispatch.load(path)
    with pytest.raises(dispatch.DispatchError, match="cannot be read"):
        dispatch.load(tmp_path / "missing.json")


def test_the_committed_table_names_backends_that_exist() -> None:
    registry.load()
    table, sources = dispatch.parse(dispatch.PATH.read_text(), name="dispatch.json")
    for op, places in table.items():
        assert {key for key, _ in places} <= set(sources)
        names = {row.name for row in registry.backends(op)}
        assert {name for widths in places.values() for steps in widths.values() for _, name in steps} <= names


def test_extents_tell_calls_apart() -> None:
    assert dispatch.extents("rms_norm", torch.empty(2, 3, 8)) == (6, 8)
    assert dispatch.extents("rope", torch.empty(2, 5, 4, 8)) == (10, 32)
    assert dispatch.extents("linear_cross_entropy", torch.empty(6, 8), torch.empty(32, 8)) == (6, 256)
    assert dispatch.extents("vq_nearest", torch.empty(6, 8), torch.empty(2, 4, 8)) == (6, 64)
    assert dispatch.extents("rms_norm", torch.empty(4, 0)) == (0, 1)


def test_the_doctor_says_what_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with dispatch.use_table(None):
        choices = dict(choice_rows())
    assert set(choices) == set(registry.ops())
    assert choices["attention"] == "chunked first, by order of priority: not measured on this device (cpu)"
    with dispatch.use_table(_write(tmp_path / "table.json", TABLE)):
        assert (
            "measured on cpu: chunked in 1, reference in 1, sdpa_mask in 2"
            in dict(choice_rows())["attention"]
        )
    with use_backend("attention", "reference"):
        assert dict(choice_rows())["attention"] == "reference, forced by use_backend"
