"""Figures of each family against hand counts, the model's answers being told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from muomni.evaluate import asked as asked_module
from muomni.evaluate import asr as asr_module
from muomni.evaluate.asr import evaluate_asr, trained_speakers
from muomni.evaluate.family import Case, HeldOut, Measured, spread, worst
from muomni.evaluate.judges import Panel
from muomni.evaluate.ocr import evaluate_ocr
from muomni.evaluate.retrieval import evaluate_retrieval
from muomni.evaluate.spoken import evaluate_spoken
from muomni.evaluate.text import evaluate_text
from muomni.evaluate.vqa import evaluate_vqa
from muomni.evaluate.written import Question, write
from muomni.infer.history import Trained
from muomni.infer.session import Session
from muomni.tokens import EOS

if TYPE_CHECKING:
    from muomni.data.items import Item, Source

Told = Callable[[Question, "Item | None", str], str]
"""A question, the picture that is shown, the words that are heard -> the answer."""


@pytest.fixture
def told(made: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[Told], list[Question]]:
    """told(answer): what the model writes from now on; gives the questions as they come."""
    pictures = {made.file(i): i for i in (*made.items("pictures", "test"), *made.items("lines", "test"))}
    clips = {made.file(i): i.text for i in (*made.items("speech", "test"), *made.items("questions", "test"))}
    asked: list[Question] = []

    def answer_with(answer: Told) -> list[Question]:
        def write(session: Session, questions: Sequence[Question], *, max_new_tokens: int = 0) -> list[str]:
            asked.extend(questions)
            return [
                answer(
                    q,
                    pictures[q.pictures[0]] if q.pictures else None,
                    " ".join(clips[clip] for clip in q.clips),
                )
                for q in questions
            ]

        monkeypatch.setattr(asked_module, "write", write)
        monkeypatch.setattr(asr_module, "write", write)
        return asked

    return answer_with


def held(session: Session, source: Source, **changes: Any) -> HeldOut:
    return HeldOut(session=session, source=source, **changes)


def by_name(found: Measured) -> dict[str, Any]:
    return {figure.name: figure for figure in found.figures}


def test_answers_written_together_are_those_of_chat_alone(session: Session) -> None:
    class Hashing:
        """Untrained logits have one favourite; this takes a token that depends on all of them, and may end."""

        def replace(self, row: int, sampling: object, *, seed: int) -> None:
            pass

        def __call__(self, logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
            chosen = (logits.double().sum(dim=-1).abs() * 1e6).long() % 300
            return torch.where(chosen < 30, EOS, chosen)

    session.engine.decoder.sampler = Hashing()  # type: ignore[assignment]
    # More questions than the engine has rows, of different lengths.
    texts = ["who is it", "press one", "hello world, say it again and again", "the cat"] * 3
    together = write(session, [Question(text=text) for text in texts], max_new_tokens=12)
    alone = [session.another().chat(text, speak=False, max_new_tokens=12).text for text in texts]
    assert together == alone
    assert len(set(together)) == 4


def test_error_rates_of_the_thinker_and_by_speaker(
    session: Session, made: Any, told: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    spelled = iter(["one two three", "four fiv", "ten"])
    monkeypatch.setattr(session, "transcribe", lambda file: next(spelled))
    told(lambda question, picture, heard: heard.upper() + "!")
    session.history = ()
    found = evaluate_asr(held(session, made))
    figures = by_name(found)
    # Of 13 + 9 + 9 characters one is missing, and "six seven" is seven edits from "ten".
    assert figures["asr.char_error_rate"].value == pytest.approx((1 + 7) / 31)
    assert figures["asr.word_error_rate"].value == pytest.approx((1 + 2) / 7)
    assert figures["asr.unseen_speakers.char_error_rate"].value == pytest.approx(7 / 9)
    assert figures["asr.seen_speakers.char_error_rate"].value == pytest.approx(1 / 22)
    # Case and punctuation are not heard.
    assert figures["asr.thinker.char_error_rate"].value == 0.0
    assert figures["asr.thinker.own_recording"].baseline == pytest.approx(1.0, abs=0.3)
    title = "Recordings that the CTC head understands worst"
    assert [case.given for case in found.cases[title]] == ["ten", "four fiv", "one two three"]


def trained(*data: str) -> tuple[Trained, ...]:
    return tuple(Trained(stage="audio", data=names, steps=1, seed=0) for names in data)


def test_speakers_are_those_of_the_data_the_model_was_trained_on_whatever_it_is_measured_on(
    session: Session, made: Any, told: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "transcribe", lambda file: "ten")
    told(lambda question, picture, heard: heard)

    def counted() -> dict[str, int]:
        return {
            name.split(".")[1]: figure.n
            for name, figure in by_name(evaluate_asr(held(session, made))).items()
            if name.endswith("seen_speakers.char_error_rate")
        }

    # The embedded set's speakers are in its record; ann and bob are not, though ann is in the training split of what
    # it is measured on.
    session.history = trained("embedded")
    assert counted() == {"unseen_speakers": 3}
    session.engine.model.talker.voices.name(["bob"])
    assert counted() == {"seen_speakers": 1, "unseen_speakers": 2}
    monkeypatch.setattr(asr_module, "open_source", lambda names: made)
    assert counted() == {"seen_speakers": 3}
    session.engine.model.talker.voices.names.zero_()
    assert counted() == {"seen_speakers": 2, "unseen_speakers": 1}


def test_speakers_of_data_that_are_not_there_are_the_voices_unless_there_may_be_more(
    session: Session, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUOMNI_DATA", str(tmp_path))
    session.history = trained("embedded", "a-set-elsewhere")
    assert trained_speakers(held(session, made)) is None
    session.engine.model.talker.voices.name(["ann"])
    known = trained_speakers(held(session, made))
    assert known is not None and {"ann", "allison"} <= known and "bob" not in known
    session.engine.model.talker.voices.name([f"voice {i}" for i in range(session.config.talker.n_voices)])
    assert trained_speakers(held(session, made)) is None


def test_figures_by_speaker_are_missing_where_speakers_of_training_cannot_be_told(
    session: Session, made: Any, told: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "transcribe", lambda file: "ten")
    told(lambda question, picture, heard: heard)
    monkeypatch.setattr(asr_module, "trained_speakers", lambda held: None)
    found = evaluate_asr(held(session, made))
    assert "asr.char_error_rate" in by_name(found)
    assert [one.name for one in found.missing] == [
        "asr.seen_speakers.char_error_rate",
        "asr.unseen_speakers.char_error_rate",
    ]


def test_written_answers_with_the_right_and_with_another_picture(
    session: Session, made: Any, told: Callable
) -> None:
    def answer(question: Question, picture: Any, heard: str) -> str:
        asked = question.text
        if "sentence" in asked or "happening" in asked:
            return f"The old {picture.label}."
        if "group" in asked or "category" in asked:
            # Plants are all taken for animals.
            return "animal"
        return picture.label if picture else "cold"

    told(answer)
    found = evaluate_vqa(held(session, made))
    figures = by_name(found)
    assert figures["vqa.exact.name"].value == 1.0
    assert figures["vqa.exact.name"].baseline == pytest.approx(1 / 6)
    assert figures["vqa.right_picture.name"].baseline == 0.0
    assert (figures["vqa.exact.group"].value, figures["vqa.exact.group"].baseline) == (0.5, 0.5)
    # Greys of one group are nearer to each other than to those of the other; training has the same pictures.
    assert figures["vqa.exact.group.nearest"].baseline == 1.0
    assert found.tables["Groups taken for others, by the Thinker"][1] == ["plant", "animal", "3"]
    # The second caption of every picture, word for word; the best constant is the first of one, with one of five
    # words wrong for the others.
    assert figures["vqa.f1.caption"].value == 1.0
    assert figures["vqa.f1.caption"].baseline == pytest.approx((1 + 5 * 4 / 5) / 6)
    assert figures["vqa.right_picture.caption"].baseline == pytest.approx(2 / 3)
    assert figures["vqa.exact.definition"].n == 1
    wrong = found.cases["Wrong answers, task group"]
    assert [(case.expected, case.given) for case in wrong] == [("plant", "animal")] * 3
    assert all(case.pictures for case in wrong)


def test_spoken_questions_against_typed_and_other_ones(session: Session, made: Any, told: Callable) -> None:
    def answer(question: Question, picture: Any, heard: str) -> str:
        # What is typed is not understood.
        return {"what is it": picture and picture.label, "which kind": picture and picture.group}.get(
            heard
        ) or ("cold" if heard else "what")

    asked = told(answer)
    found = evaluate_spoken(held(session, made, panel=Panel(recognise=lambda waveform: "cold")))
    figures = by_name(found)
    assert (figures["spoken.exact"].value, figures["spoken.exact"].n) == (1.0, 13)
    assert (figures["spoken.typed"].value, figures["spoken.typed"].baseline) == (1.0, 0.0)
    assert {question.text for question in asked} == {"", "what is it", "which kind", "say hot"}
    # The name of a thing is not its group.
    assert (figures["spoken.right_question"].n, figures["spoken.right_question"].baseline) == (12, 0.0)
    assert figures["spoken.heard"].value == pytest.approx(1 / 13)
    assert len(found.cases["Answers as speech"]) == 6


def test_lines_are_read_against_a_constant_and_another_picture(
    session: Session, made: Any, told: Callable
) -> None:
    told(lambda question, picture, heard: picture.text.replace("push", "Push.").replace("shut", "shot"))
    figures = by_name(evaluate_ocr(held(session, made)))
    # 4 + 4 + 9 characters, of which one is wrong.
    assert figures["ocr.char_error_rate"].value == pytest.approx(1 / 17)
    assert figures["ocr.char_error_rate"].baseline > 0.5
    assert figures["ocr.right_picture"].baseline > 0.5


def test_without_lines_reading_is_missing_with_the_reason(
    session: Session, made: Any, told: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = made.items
    monkeypatch.setattr(made, "items", lambda kind, split: [] if kind == "lines" else whole(kind, split))
    found = evaluate_ocr(held(session, made))
    assert not found.figures
    assert [m.name for m in found.missing] == ["ocr.char_error_rate", "ocr.right_picture"]
    assert "no picture of written words" in found.missing[0].why


class Perfect(torch.nn.Module):
    """Towers that meet exactly where picture and first word belong together."""

    def __init__(self, places: dict[int, int], words: list[int], size: int) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(()))
        self.places, self.words = places, words
        self.vision = torch.nn.Module()
        self.vision.cfg = type("Config", (), {"image_size": size})()  # type: ignore[assignment]

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        greys = ((images[:, 0, 0, 0] + 1.0) * 127.5).round().int().tolist()
        return torch.eye(len(self.places))[[self.places[grey] for grey in greys]]

    def embed_texts(self, ids: torch.Tensor, bounds: torch.Tensor, longest: int) -> torch.Tensor:
        rows = [self.words.index(w) if (w := int(ids[b + 1])) in self.words else 0 for b in bounds[:-1]]
        return torch.eye(len(self.places))[rows]


def test_retrieval_of_towers_that_know_half(session: Session, made: Any) -> None:
    items = made.items("pictures", "test")
    first = [session.tokenizer.encode(item.label)[0] for item in items]
    places = {grey: i for i, grey in enumerate((40, 60, 80, 160, 180, 200))}
    own = held(session, made)
    own.__dict__["contrast"] = Perfect(places, first, 32)
    found = evaluate_retrieval(own)
    figures = by_name(found)
    # Labels that begin alike are equally near, which counts against both.
    known = np.mean([first.count(word) == 1 for word in first])
    for name in ("picture_to_caption", "zero_shot_label"):
        assert figures[f"retrieval.{name}"].value == pytest.approx(known)
        assert figures[f"retrieval.{name}"].baseline == pytest.approx(1 / 6)
    # Five of six: only what four others beat and one more is wrong.
    assert figures["retrieval.picture_to_caption.at_5"].baseline == pytest.approx(5 / 6)
    assert figures["retrieval.nearest_group"].value == 1.0
    assert figures["retrieval.nearest_group"].baseline == 0.5
    assert figures["retrieval.zero_shot_group"].baseline == 1.0


def test_text_of_several_sets_has_a_row_for_each(session: Session, made: Any) -> None:
    figures = by_name(evaluate_text(held(session, made)))
    rows = [figures[f"text.bits_per_byte.{name}"] for name in ("set.talks", "set.letters", "after_omni")]
    assert [row.n for row in rows] == [3, 3, 6]
    # Both sets have as many bytes.
    assert np.mean([rows[0].value, rows[1].value]) == pytest.approx(rows[2].value)
    # The held-out texts are those of training, so counting them is a good guess.
    assert all(row.baseline < 1.0 < row.value for row in rows)


def test_spread_and_worst() -> None:
    assert spread("abcdefgh", 4) == ["a", "c", "e", "g"]
    assert spread("ab", 4) == ["a", "b"]
    cases = [
        Case(item=name, expected="", given="", error=error)
        for name, error in zip("abcd", (1, 3, 1, 2), strict=True)
    ]
    assert [case.item for case in worst(cases, 3)] == ["b", "d", "a"]
