"""Scoring of packed documents against one document at a time, and figures against hand counts."""

import pytest
import torch

from muomni.data.audio import CTC_SYMBOLS
from muomni.data.examples import Example, swapped
from muomni.data.template import Turn, render
from muomni.evaluate.figure import ratio
from muomni.evaluate.score import rows, score
from muomni.evaluate.speech import _Told
from muomni.infer.session import Session
from muomni.tokens import IGNORE_INDEX


@torch.no_grad()
def test_packed_scores_equal_one_document_at_a_time(session: Session) -> None:
    thinker = session.engine.model.thinker
    turns = [
        Turn(text=[40, 41], answer=[50]),
        Turn(text=[42], answer=[51, 52, 53, 54]),
        Turn(answer=[60, 61]),
    ]
    documents = [render([turn], n_image_tokens=1, max_seq_len=128) for turn in turns]
    scores = score(thinker, documents)
    assert scores.n_targets.tolist() == [2, 5, 3]
    for i, document in enumerate(documents):
        bounds = torch.tensor([0, len(document)], dtype=torch.int32)
        hidden = thinker(thinker.embed(document.input_ids), document.positions, bounds, len(document))
        log_p = thinker.logits(hidden).log_softmax(-1)
        chosen = [(t - 1, int(v)) for t, v in enumerate(document.labels) if v != IGNORE_INDEX]
        assert scores.nats[i] == pytest.approx(-sum(float(log_p[t, v]) for t, v in chosen), rel=1e-5)
        assert scores.exact[i] == all(int(log_p[t].argmax()) == v for t, v in chosen)


def test_rows_hold_every_item_once_within_the_capacity() -> None:
    lengths = [5, 3, 9, 1, 1, 20, 2]
    groups = rows(lengths, capacity=10)
    assert [i for group in groups for i in group] == list(range(7))
    assert all(sum(lengths[i] for i in group) <= 10 or len(group) == 1 for group in groups)


def test_swapping_changes_what_the_answer_depends_on_and_nothing_else() -> None:
    asked = [
        Example(task="group spoken", question="", answer="food", pictures=(1, 4), clips=(9,)),
        Example(task="group spoken", question="", answer="food", pictures=(2,), clips=(8,)),
        Example(task="group spoken", question="", answer="animal", pictures=(3,), clips=(7,)),
    ]
    assert [(e.pictures, e.clips, e.answer) for e in swapped(asked)] == [
        ((3,), (9,), "food"), ((3,), (8,), "food"), ((1, 4), (7,), "animal"),
    ]  # fmt: skip
    spoken = [Example(task="transcribe", question="q", answer=a, clips=(i,)) for i, a in enumerate("ab")]
    assert [e.clips for e in swapped(spoken)] == [(1,), (0,)]
    captions = [
        Example(task="caption", question="q", answer=a, pictures=(i // 2,)) for i, a in enumerate("abcd")
    ]
    assert [e.pictures for e in swapped(captions)] == [(1,), (1,), (0,), (0,)]


def test_a_figure_is_a_ratio_of_sums_with_its_interval() -> None:
    figure = ratio(
        "x", "x", sums=[1.0, 9.0], units=[10, 10], baseline=0.6, baseline_name="none", unit="errors"
    )
    assert (figure.value, figure.n, figure.beats_baseline) == (0.5, 2, True)
    assert figure.interval == pytest.approx((0.1, 0.9))
    assert figure.to_dict()["interval"] == list(figure.interval)


def test_a_text_as_the_talker_is_told_of_it_has_a_symbol_for_each_of_its_characters(session: Session) -> None:
    """The space that every text begins with included, which is not heard."""
    told = _Told(session, "the cat, a naïve one")
    assert len(told.symbols) == len(told.text.characters) == len(" the cat, a naïve one".encode())
    assert "".join(CTC_SYMBOLS[i] for i in told.symbols.tolist()) == "_the cat_ a nai_ve one"
