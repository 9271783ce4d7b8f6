"""The timeline of a turn, and what guessing ahead would give."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

from benchmarks import decode_trained, timeline
from muomni import recipes
from muomni.infer.session import load
from muomni.models.thinker import Thinker


def test_a_guess_is_what_followed_the_same_tokens_last() -> None:
    assert decode_trained.guesses([1, 2, 3, 9, 1, 2, 4, 5, 6, 7, 1, 2]) == [4, 5, 6, 7]
    assert decode_trained.guesses([1, 2, 3]) == []
    # The last two themselves are no place before.
    assert decode_trained.guesses([5, 5]) == []


def test_steps_are_counted_as_greedy_decoding_with_guesses_takes_them() -> None:
    # 7 8 was seen before 1 2 3 4: one step gives its own token and the four guesses that are right.
    assert decode_trained.accepted([7, 8, 1, 2, 3, 4, 7, 8], [1, 2, 3, 4, 7]) == (1, 5)
    # Nothing repeats: a step a token.
    assert decode_trained.accepted([10, 11], [1, 2, 3, 4]) == (4, 4)


@torch.inference_mode()
def test_an_answers_nats_are_those_of_a_full_forward() -> None:
    torch.manual_seed(0)
    thinker = Thinker(recipes.model("nano").thinker).eval()
    ids = torch.randint(8, 1_000, (20,))
    positions = torch.arange(20)[:, None].expand(-1, 3)
    bounds = torch.tensor([0, 20], dtype=torch.int32)
    logits = thinker.logits(thinker(thinker.embed(ids), positions, bounds, 20))
    expected = torch.nn.functional.cross_entropy(logits[11:17], ids[12:18])
    assert decode_trained.nats(thinker, [ids], [(12, 18)])[0] == pytest.approx(float(expected), rel=1e-5)


def test_the_picture_of_a_turn_holds_its_work(run_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "turn.svg"
    assert timeline.main([str(run_root), "--text", "the cat", "--ms", "5000", "--out", str(out)]) == 0
    root = ET.fromstring(out.read_text())
    space = "{http://www.w3.org/2000/svg}"
    bars: dict[str, list[float]] = {}
    for rect in root.iter(f"{space}rect"):
        bars.setdefault(rect.get("fill", ""), []).append(float(rect.get("x", "0")))
    assert all(bars[timeline.COLOURS[lane]] for lane in timeline.LANES[2:])
    assert timeline.COLOURS["picture encoder"] not in bars


def test_work_is_watched_where_it_is_done_and_in_its_order(run_root: Path) -> None:
    session, watch = load(run_root, device="cpu"), timeline.Watch()
    reply = timeline.watched(session, watch, text="the cat", max_new_tokens=20)
    prefill, step, frame, heard = (watch.spans[lane] for lane in timeline.LANES[2:])
    assert len(prefill) == 1 and len(step) >= 1 and not watch.spans["picture encoder"]
    # Each begins behind the end of what it needs, to the clock's last digit.
    assert prefill[0][1] < step[0][0] and step[0][1] < frame[0][0] and frame[0][1] < heard[0][0]
    assert sum(end - start for start, end in heard) == pytest.approx(reply.audio.seconds)
    # Nothing is watched any more.
    assert "step" not in vars(session.engine.decoder) and "see" not in vars(session.engine)


def test_a_run_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert timeline.main([str(tmp_path), "--text", "x"]) == 2
    assert decode_trained.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 2
