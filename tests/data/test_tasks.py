"""Every task on a small source: its answers against the items, its targets against the tokens, its order and mix."""

import re
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from tasked import LONGEST, THINGS, Made, full

from muomni.data import embedded
from muomni.data.examples import Example, clips, documents, fitting, pictures
from muomni.data.items import (
    SPLITS,
    DialogueClip,
    Kind,
    LineItem,
    PictureItem,
    QuestionItem,
    Source,
    SpeechItem,
    Split,
)
from muomni.data.tasks import CHOOSING, MAX_HELD_OUT, NAMING, TASKS, WEIGHTS, examples
from muomni.data.text import Tokenizer, train_tokenizer
from muomni.data.wordings import WORDINGS
from muomni.tokens import AUDIO, EOS, HEARD, IGNORE_INDEX, IMAGE

SOURCE = full()


def made(split: Split = "train", source: Source = SOURCE, **changes: object) -> list[Example]:
    return examples(split, max_audio_samples=LONGEST, source=source, **changes)  # type: ignore[arg-type]


def of(task: str, split: Split = "train") -> list[Example]:
    """A task's examples; of several draws where they are drawn."""
    if split != "train":
        return [example for example in made(split) if example.task == task]
    weights = dict.fromkeys(TASKS, 0.0) | {task: 1.0}
    return [example for seed in range(8) for example in made(seed=seed, weights=weights)]


def shown(example: Example, split: Split = "train") -> list[PictureItem]:
    every = pictures(split, SOURCE)
    return [item for i in example.pictures if isinstance(item := every[i], PictureItem)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = [text for e in made() for text in (e.question, e.answer)]
    return train_tokenizer(texts, 300)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("task", TASKS)
def test_the_targets_of_a_task_are_its_answer_and_the_end(
    task: str, split: Split, tokenizer: Tokenizer
) -> None:
    own = of(task, split)
    assert own
    lengths = [7 + i for i in range(len(clips(split, SOURCE)))]
    heard = {i: tokenizer.encode(f"heard {i}") for i in range(0, len(lengths), 2)}
    found = documents(own, tokenizer, clip_tokens=lengths, heard=heard, n_image_tokens=5, max_seq_len=512)
    for example, document in zip(own, found, strict=True):
        answer = tokenizer.encode(example.answer)
        end = len(document)
        assert document.labels[end - len(answer) - 1 :].tolist() == [*answer, EOS]
        learned = document.labels[document.labels != IGNORE_INDEX].tolist()
        assert learned == [i for one in example.rounds for i in (*tokenizer.encode(one.answer), EOS)]
        assert document.input_ids[end - len(answer) - 1 :].tolist() == [*answer, EOS]
        n_images = sum(len(one.pictures) for one in example.rounds)
        assert int((document.input_ids == IMAGE).sum()) == len(document.image_slots) == 5 * n_images
        n_audio = sum(lengths[clip] for one in example.rounds for clip in one.clips)
        assert int((document.input_ids == AUDIO).sum()) == len(document.audio_slots) == n_audio
        told = [clip for one in example.rounds for clip in one.clips if clip in heard]
        ids, ends = document.input_ids.tolist(), (document.input_ids == HEARD).nonzero()[:, 0].tolist()
        assert [ids[end - len(heard[clip]) : end] for clip, end in zip(told, ends, strict=True)] == [
            heard[clip] for clip in told
        ]


def test_a_picture_more_than_fits_leaves_the_example_out(tokenizer: Tokenizer) -> None:
    own = of("count")
    places = {"clip_tokens": (), "heard": {}, "n_image_tokens": 50, "max_seq_len": 180}
    fit = fitting(own, tokenizer, **places)  # type: ignore[arg-type]
    assert {len(e.pictures) for e in fit} == {1, 2, 3} and {len(e.pictures) for e in own} == {1, 2, 3, 4}
    assert len(documents(fit, tokenizer, **places)) == len(fit)  # type: ignore[arg-type]


@pytest.mark.parametrize("split", SPLITS)
def test_answers_are_those_of_the_items_that_are_shown_and_played(split: Split) -> None:
    every, heard = pictures(split, SOURCE), clips(split, SOURCE)
    seen: set[str] = set()
    for example in made(split):
        seen.add(example.task)
        picture = every[example.pictures[0]] if len(example.pictures) == 1 else None
        clip = heard[example.clips[0]] if example.clips else None
        if example.task in NAMING:
            assert isinstance(picture, PictureItem)
            kind = example.task.removesuffix(" spoken")
            assert example.answer == (picture.label if kind == "name" else picture.group) != ""
            if example.task.endswith("spoken"):
                assert isinstance(clip, QuestionItem) and (clip.kind, example.question) == (kind, "")
        elif example.task == "caption":
            assert isinstance(picture, PictureItem) and example.answer in picture.captions
        elif example.task == "read":
            assert isinstance(picture, LineItem) and example.answer == picture.text
        elif example.task == "transcribe":
            assert isinstance(clip, SpeechItem) and example.answer == clip.text
        elif example.task == "definition spoken":
            assert isinstance(clip, QuestionItem) and example.answer == clip.answer and not example.question
        elif example.task == "say":
            assert example.question == f"say: {example.answer}"
        elif example.task == "dialogue":
            (first,) = example.before
            assert [every[i].id.partition("#")[2] for i in first.pictures] == ["2", "0"] and not first.clips
            assert isinstance(clip, DialogueClip) and clip.place == 1 and not example.pictures
            ids = {clip.dialogue.id, *(every[i].id.partition("#")[0] for i in first.pictures)}
            assert len(ids) == 1 and clip.dialogue.messages[3].text == example.answer
        if clip is not None:
            assert clip.n_samples <= LONGEST
    assert seen == set(TASKS)


def test_two_turns_are_a_question_and_its_answer_and_more_are_chat() -> None:
    assert {(e.question, e.answer) for e in of("definition", "test")} == {
        *((f"what is word {i} test", f"a word with {i}") for i in range(5)),
        *((f"what is definition {i} test", f"a thing numbered {i}") for i in range(5)),
    }
    pairs = [p for i in range(5) for p in ((f"hello {i} test", "hi"), ("how is it", f"well {i}"))]
    assert [(e.question, e.answer) for e in of("chat", "test")] == pairs


def test_counting_gives_the_number_of_pictures_and_none_twice() -> None:
    own = of("count")
    for example in own:
        assert example.answer == {1: "one", 2: "two", 3: "three", 4: "four"}[len(example.pictures)]
        assert len(set(example.pictures)) == len(example.pictures)
    assert set(Counter(e.answer for e in own)) == {"one", "two", "three", "four"}


def test_counting_a_kind_gives_how_many_show_it_by_label_or_group() -> None:
    answers, by_label = Counter(), 0
    for example in of("count kind"):
        items = shown(example)
        named = {word for word in example.question.split() if word in THINGS or word.endswith("train")}
        assert len(named) == 1 and len({item.style for item in items}) == 1
        thing = named.pop()
        by_label += thing not in THINGS
        right = sum(thing in (item.label, item.group) for item in items)
        assert example.answer == ("none", "one", "two", "three", "four")[right]
        assert len(set(example.pictures)) == len(items) >= 2
        answers[right] += 1
    assert set(answers) == {0, 1, 2, 3, 4} and by_label


def test_the_odd_one_is_the_only_one_of_its_group_and_stands_anywhere() -> None:
    places = Counter()
    for example in of("odd one out"):
        items = shown(example)
        groups = Counter(item.group for item in items)
        place = ("first", "second", "third", "fourth").index(example.answer)
        assert len(items) in (3, 4) and len(groups) == 2 and groups[items[place].group] == 1
        assert len({item.style for item in items}) == 1 and len(set(example.pictures)) == len(items)
        places[len(items), place] += 1
    assert len(places) == 7


@pytest.mark.parametrize("split", SPLITS)
def test_yes_and_no_are_right_and_each_thing_gets_as_many_of_both(split: Split) -> None:
    asked: dict[str, Counter] = {}
    groups = {item.group for item in SOURCE.pictures(split) if item.group}
    for example in of("yes or no", split):
        (item,) = shown(example, split)
        (thing,) = (word for word in example.question.split() if word.endswith(split) or word in groups)
        assert example.answer == ("yes" if thing in (item.label, item.group) else "no")
        asked.setdefault(thing, Counter())[example.answer] += 1
    # Drawn as often as there are things to ask about, each is asked about once.
    assert asked and all(counts["yes"] == counts["no"] for counts in asked.values())
    assert groups & asked.keys() and asked.keys() - groups


def test_a_no_is_never_about_what_a_caption_or_the_group_says_the_picture_shows() -> None:
    """The other label is of another group, and none of its words is among the picture's."""
    found = [
        PictureItem(id=str(i), label=label, tags=tags, group=group, split="test")
        for i, (label, tags, group) in enumerate([
            ("old dog", (), "animal"), ("cat", (), "animal"), ("kennel", ("dog",), "place"),
            ("bowl of soup", (), "food"), ("house", ("home",), "place"), ("the home", (), ""),
            ("squid", ("food",), "animal"),
        ])
    ]  # fmt: skip
    source, denied = Made({"pictures": found}), set()
    for example in made("test", source):
        if example.task == "yes or no" and example.answer == "no":
            label = re.sub(r"^.*(picture show|is it) (a |an )?", "", example.question)
            denied.add((label, found[example.pictures[0]].label))
    assert denied
    never = {("old dog", "cat"), ("old dog", "kennel"), ("house", "the home"), ("kennel", "house")}
    assert not denied & {*never, *((b, a) for a, b in never)}


def test_a_kind_is_denied_only_where_nothing_that_is_known_of_the_picture_speaks_of_it() -> None:
    found = [
        PictureItem(id=str(i), label=f"{label}{i}", tags=tags, group=group, split="test")
        for i in range(40)
        for label, tags, group in (("squid", ("food",), "animal"), ("soup", (), "food"), ("hut", (), "place"))
    ]
    denied = Counter(
        (group, found[e.pictures[0]].group, found[e.pictures[0]].tags)
        for e in made("test", Made({"pictures": found}))
        if e.task == "yes or no" and e.answer == "no"
        for group in ("food", "animal", "place") if e.question.endswith(f" {group}")
    )  # fmt: skip
    assert denied[("place", "animal", ("food",))] and denied[("place", "food", ())]
    assert not denied[("food", "animal", ("food",))]


@pytest.mark.parametrize("split", SPLITS)
def test_instructions_are_worded_as_their_split_has_it(split: Split) -> None:
    patterns = {
        (task, own): [re.escape(w).replace(re.escape("{thing}"), ".+") for w, s in both if s == own]
        for task, both in WORDINGS.items() for own in SPLITS
    }  # fmt: skip
    for example in made(split):
        if example.task in WORDINGS:
            here = {s for s in SPLITS for p in patterns[example.task, s] if re.fullmatch(p, example.question)}
            assert here == {split}, example


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ((), set()),
        (("conversations",), {"chat", "definition"}),
        (("speech",), {"transcribe", "say"}),
        (("lines",), {"read"}),
        (("questions",), {"definition", "definition spoken"}),
        (
            ("pictures",),
            {"name", "group", "caption", "yes or no", "count", "count kind", "odd one out", "say"},
        ),
    ],
)
def test_what_a_source_lacks_gives_nothing(kinds: tuple[Kind, ...], expected: set[str]) -> None:
    source = Made({kind: [i for s in SPLITS for i in SOURCE.items(kind, s)] for kind in kinds})
    for split in SPLITS:
        assert {e.task for e in made(split, source)} == expected


def test_one_picture_of_an_unknown_group_is_named_and_counted_and_nothing_else() -> None:
    source = Made({"pictures": [PictureItem(id="a", label="dog", tags=(), group="", split="train")]})
    found = made("train", source, weights=dict.fromkeys(TASKS, 1.0))
    assert {e.task for e in found} == {"name", "count", "say"}
    assert {(e.answer, e.pictures) for e in found if e.task == "count"} == {("one", (0,))}


def test_examples_are_a_function_of_the_seed_and_held_out_ones_not_even_of_it() -> None:
    assert made(seed=3) == made(seed=3) != made(seed=4)
    assert made("test", seed=3) == made("test", seed=4)


def test_every_thing_is_asked_about_before_any_is_again() -> None:
    weights = dict.fromkeys(TASKS, 0.0) | {"transcribe": 1.0, "say": 1.0}
    asked = Counter(e.clips for e in made(weights=weights, temperature=float("inf")) if e.clips)
    # 4 recordings and the labels to say: half of the draws each.
    assert len(asked) == 4 and max(asked.values()) - min(asked.values()) <= 1 and min(asked.values()) > 1
    wordings = Counter(e.question for e in made(weights=weights) if e.task == "transcribe")
    assert len(wordings) > 1


def test_a_task_with_weight_zero_is_not_drawn_and_a_misspelt_one_is_said() -> None:
    assert "chat" not in {e.task for e in made(weights={**WEIGHTS, "chat": 0.0})}
    with pytest.raises(ValueError, match="'chatt' is no task"):
        made(weights={**WEIGHTS, "chatt": 1.0})


def test_held_out_examples_are_bounded_and_training_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muomni.data.tasks.MAX_HELD_OUT", 3)
    monkeypatch.setattr("muomni.data.tasks.MAX_EXAMPLES", 50)
    assert set(Counter(e.task for e in made("test")).values()) == {3}
    assert len(made("train")) == 50
    assert MAX_HELD_OUT > 600, "all of the embedded set"


def test_tasks_with_the_embedded_set_keep_the_shares_its_recipe_was_tuned_with() -> None:
    """Kinds twice as often as names, yes and no more often than kinds asked by voice; a third is of few answers."""
    counts = Counter(e.task for e in examples("train", max_audio_samples=163_840, source=embedded.Embedded()))
    tuned = {
        "name": 1_654, "name spoken": 1_654, "group": 3_543, "group spoken": 3_543, "yes or no": 4_332, "count": 1_414,
        "count kind": 1_654, "odd one out": 1_653, "transcribe": 1_593, "chat": 3_984, "say": 1_071,
    }  # fmt: skip
    assert set(counts) == set(tuned)
    for task, n in tuned.items():
        assert counts[task] / counts.total() == pytest.approx(n / sum(tuned.values()), rel=0.05), task
    assert 0.31 < sum(counts[task] for task in CHOOSING) / counts.total() < 0.37
