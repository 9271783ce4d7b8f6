"""What is shown while a stage trains: figures of the row, a line now and then without a terminal, two on one."""

import io

import pytest
from rich.console import Console

from muomni import progress

ROW = {
    "step": 120,
    "loss/token": 3.25,
    "loss/balance": 0.0,
    "lr": 8e-3,
    "tokens_per_second": 12_345.6,
    "fill_rate": 0.998,
    "mfu": 0.413,
    "memory_mib": 1_536.0,
}


def test_every_figure_of_a_row_is_shown_and_those_it_lacks_are_not() -> None:
    assert progress.speed(ROW) == "12.3k tokens/s  MFU 41.3%  fill 99.8%  1.50 GiB  lr 8.00e-03"
    assert progress.losses(ROW) == "token 3.250"
    assert progress.speed({"mfu": None, "memory_mib": 600.4}) == "600 MiB"
    assert progress.speed({}) == progress.losses({"loss/token": None}) == ""


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0 s"), (48, "48 s"), (185, "3:05"), (7_385, "2:03:05"), (59.6, "1:00")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert progress.clock(seconds) == shown


@pytest.mark.parametrize(("number", "shown"), [(812, "812"), (12_345, "12.3k"), (1_204_000, "1.20M")])
def test_large_numbers(number: float, shown: str) -> None:
    assert progress.count(number) == shown


def test_without_a_terminal_a_line_every_15_seconds_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    out = io.StringIO()
    # A stage that goes on at step 401 of 600, two seconds a step.
    with progress.training("text", Console(file=out, width=200)) as update:
        for step in range(401, 601):
            now += 2.0
            update(step, 600, {**ROW, "step": step})
    lines = out.getvalue().splitlines()
    assert len(lines) == 200 // 8, "every eight steps take 16 seconds; the last line is the end"
    first = (
        "text 408/600 16 s, 6:24 left 12.3k tokens/s MFU 41.3% fill 99.8% 1.50 GiB lr 8.00e-03 token 3.250"
    )
    assert " ".join(lines[0].split()) == first
    assert lines[-1].startswith("text       600/600  6:40, 0 s left")
    assert "\x1b" not in out.getvalue()


def test_a_terminal_shows_the_same_figures_in_place() -> None:
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=True, color_system=None)
    with progress.training("text", console) as update:
        update(120, 600, ROW)
    shown = out.getvalue()
    for part in (
        "text",
        "120/600",
        "left",
        "12.3k tokens/s",
        "MFU 41.3%",
        "fill 99.8%",
        "1.50 GiB",
        "token 3.250",
    ):
        assert part in shown


def test_a_bar_with_a_note_works_both_ways() -> None:
    for terminal in (True, False):
        out = io.StringIO()
        with progress.bar("measure", Console(file=out, width=100, force_terminal=terminal)) as update:
            update(0, 2, "asr [raw]")
            update(2, 2, "speech")
        assert "speech" in out.getvalue() and "2/2" in out.getvalue()
