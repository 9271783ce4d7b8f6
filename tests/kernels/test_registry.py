"""Which backend runs: priority, forcing by block and by environment, reasons, the doctor's table."""

import pytest
import torch
from muomni_kernels import (
    attention,
    cpp,
    doctor_rows,
    registry,
    rms_norm,
    swiglu,
    triton_support,
    use_backend,
)


def test_first_backend_without_a_reason_against_it_runs() -> None:
    for op in registry.ops():
        names = [row.name for row in registry.backends(op)]
        assert names[-1] == "reference", f"{op}: the reference comes last"
    x = torch.randn(2, 8)
    run = {row.name: row.run for row in registry.backends("rms_norm")}
    first = "reference" if cpp.available() else "cpp"
    assert registry.select("rms_norm", x, torch.ones(8), 1e-6) is run[first]
    assert registry.select("rms_norm", x.double(), torch.ones(8), 1e-6) is run["reference"]


def test_a_forced_backend_that_cannot_run_raises_with_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    expected = (
        r"rms_norm: backend .triton. was asked for but cannot run \(triton: needs a CUDA tensor, got cpu; "
    )
    with use_backend("rms_norm", "triton"), pytest.raises(RuntimeError, match=expected):
        rms_norm(torch.randn(2, 8), torch.ones(8))
    monkeypatch.setenv("MUOMNI_BACKEND", "rms_norm=cuda")
    with pytest.raises(RuntimeError, match="'cuda' was asked for but does not exist"):
        rms_norm(torch.randn(2, 8), torch.ones(8))


def test_innermost_block_wins_over_outer_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUOMNI_BACKEND", "attention=sdpa_mask,rope=triton")
    assert attention and swiglu, "asking for an op registers its backends"
    assert registry.forced("attention") == "sdpa_mask"
    assert registry.forced("swiglu") is None
    with use_backend("attention", "reference"):
        assert registry.forced("attention") == "reference"
        with use_backend(None, "chunked"):
            assert registry.forced("attention") == "chunked"
            assert registry.forced("rms_norm") is None, (
                "a general wish touches only ops that have the backend"
            )
    assert registry.forced("attention") == "sdpa_mask"
    monkeypatch.setenv("MUOMNI_BACKEND", "triton")
    assert registry.forced("rope") == "triton" and registry.forced("attention") is None


def test_a_wish_that_names_nothing_raises_and_lists_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    call = (torch.randn(2, 8), torch.ones(8))
    with pytest.raises(
        RuntimeError, match=r"use_backend: 'rms_nrm' is not an op; they are add_rms_norm, .*, swiglu"
    ):
        use_backend("rms_nrm", "reference").__enter__()
    with pytest.raises(RuntimeError, match=r"use_backend: no op has a backend 'tritn'; they are .*, triton"):
        use_backend(None, "tritn").__enter__()
    for setting, match in (
        ("tritn", "MUOMNI_BACKEND: no op has a backend 'tritn'"),
        ("rope=reference,rms_nrm=triton", "MUOMNI_BACKEND: 'rms_nrm' is not an op"),
    ):
        monkeypatch.setenv("MUOMNI_BACKEND", setting)
        with pytest.raises(registry.BackendError, match=match):
            rms_norm(*call)
    monkeypatch.setenv("MUOMNI_BACKEND", " rms_norm=reference, ")
    assert rms_norm(*call).shape == (2, 8)


def test_tensors_on_two_devices_are_a_reason_against_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    reason = triton_support.reason_against(torch.zeros(2), torch.zeros(2, device="meta"))
    assert reason == "needs all tensors on one device, got cpu and meta"


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="registered already"):
        registry.register("rope", "reference", lambda: None, supports=lambda: None, available=lambda: None)


def test_doctor_lists_every_op_with_a_reason_where_it_cannot_run() -> None:
    rows = doctor_rows()
    assert {row[0] for row in rows} >= {
        "rms_norm",
        "rope",
        "swiglu",
        "attention",
        "log_mel",
        "mel_downsample",
        "log_mel_downsample",
    }
    for op, backend, runs, reason in rows:
        assert runs == (reason == ""), (op, backend)
        if backend == "reference":
            assert runs
    if not torch.cuda.is_available():
        assert ("attention", "varlen", False, "needs a CUDA device, this machine has none") in rows
