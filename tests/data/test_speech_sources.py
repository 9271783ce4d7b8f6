"""Speech sources on small files in their packages' own formats: transcripts, voices, groups, sound."""

import gzip
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

sys.path.insert(0, str(Path(__file__).parent))
from placed import found, place

from muomni.data.admit import Admitted, admit
from muomni.data.items import SAMPLE_RATE, QuestionItem, SpeechItem
from muomni.data.media import MediaError, read_audio
from muomni.data.sources import adapters, asterisk, chitchat, glosses, sound, spoken, synthesis
from muomni.data.sources.questions import WORDINGS
from muomni.data.splits import split_of

PROMPTS = {
    "es": "; Core Asterisk Sounds in Spanish\n\nagent-loginok: Agente conectado\ndigits/21: 21\n"
    "beep: [ascending tones]\nsilence/1: (silencio)\nmissing: no hay\n",
    "it": "\ufeff; Elenco completo\nactivated: L'operatore è già attivato.\n",
}


def tones(seconds: float = 0.5) -> np.ndarray:
    time = np.arange(int(SAMPLE_RATE * seconds)) / SAMPLE_RATE
    return np.concatenate([np.zeros(8_000), 0.2 * np.sin(2 * np.pi * 300 * time), np.zeros(8_000)]).astype(
        np.float32
    )


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("es", {"agent-loginok": "agente conectado", "digits/21": "veintiuno"}),
        ("it", {"activated": "l'operatore è già attivato"}),
    ],
)
def test_prompts_of_other_languages_keep_their_letters_and_numbers_become_words(
    language: str, expected: dict[str, str], cache: Path
) -> None:
    (adapter,) = (a for a in asterisk.ADAPTERS if a.name == f"asterisk-{language}")
    sounds, texts = adapter.packages
    voice = {"es": "es_MX_f_Allison", "it": "it_IT_m_Carlo"}[language]
    listing = gzip.compress(PROMPTS[language].encode())
    place(texts, cache, {f"usr/share/doc/core-sounds-{language}.txt.gz": listing})
    names = ("agent-loginok", "digits/21", "beep", "silence/1") if language == "es" else ("activated",)
    place(sounds, cache, {f"usr/share/asterisk/sounds/{voice}/{n}.g722": b"\x00" * 400 for n in names})
    items = found(adapter.name, cache)
    assert {one.id.removeprefix(f"asterisk-{language}/"): one.group for one in items} == expected
    assert all(one.fields["language"] == language and one.fields["text"] == one.group for one in items)


def test_english_prompts_are_those_of_the_embedded_set(cache: Path) -> None:
    lines = "a: Press 1.\nb: [this is not said] hello & goodbye\nc: extension 1234\nd: www.asterisk.org\n"
    place(asterisk.TEXTS, cache, {"core-sounds-en.txt.gz": gzip.compress(lines.encode())})
    place(asterisk.SOUNDS, cache, {f"en_US_f_Allison/{n}.g722": b"\x00" * 400 for n in "abcd"})
    assert [one.group for one in found("asterisk", cache)] == ["press one", "hello and goodbye"]


def test_a_prompt_is_decoded_trimmed_and_encoded_and_a_silent_one_is_bad(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av", reason="av is not installed: muomni[data]")
    monkeypatch.setattr(asterisk, "decode_g722", lambda path: tones())
    heard = read_audio(asterisk.flac_of(cache / "x.g722"))
    assert len(heard) == pytest.approx(8_000 + 2 * 1_280, abs=2)
    monkeypatch.setattr(asterisk, "decode_g722", lambda path: np.zeros(8_000, np.float32))
    with pytest.raises(MediaError, match=r"x\.g722: is silent"):
        asterisk.flac_of(cache / "x.g722")


def test_loudness_is_one_and_peaks_stay_below_full_scale() -> None:
    quiet, loud = 0.001 * tones(), np.clip(40 * tones(), -1, 1)
    for waveform in (quiet, loud):
        assert np.sqrt(np.square(sound.levelled(waveform)).mean()) == pytest.approx(sound.RMS, rel=1e-4)
    clicks = np.zeros(16_000, np.float32)
    clicks[::4_000] = 0.5
    assert np.abs(sound.levelled(clicks)).max() == pytest.approx(0.99)


TALK = [
    "Do you like walking by the river? LOL that is funny. I went there 3 times.",
    "I do like it very much! u know me",
    "Where do you go on Sundays? Where do you go on Sundays?",
    "THIS IS ALL SHOUTED OUT. To the old house on the hill, most of the time.",
]


def _conversation(cache: Path, **more: list[str]) -> None:
    talks = {"one": TALK, **more}
    data = {name: {"messages": [[{"text": turn}] for turn in turns]} for name, turns in talks.items()}
    place(chitchat.CONVERSATIONS, cache, {"dataset.json": json.dumps(data)})


def test_sentences_are_plain_and_each_comes_once(cache: Path) -> None:
    _conversation(cache)
    assert sorted(sentence for sentence, _ in synthesis.sentences(cache)) == [
        "Do you like walking by the river?",
        "I do like it very much!",
        "To the old house on the hill, most of the time.",
        "Where do you go on Sundays?",
    ]


def test_a_sentence_has_the_split_of_its_conversation_and_none_is_in_two(cache: Path) -> None:
    held_out = next(f"talk {i}" for i in range(1000) if split_of("conversations", f"talk {i}") == "test")
    said = ["where do you, go on sunday's?", "We stay at home on Sundays.", "I see, that is nice.", "It is."]
    _conversation(cache, **{held_out: said})
    found = dict(synthesis.sentences(cache))
    assert split_of("conversations", "one") == found["Do you like walking by the river?"] == "train"
    assert found["We stay at home on Sundays."] == "test"
    assert not {"where do you go on sundays?", "Where do you go on Sundays?"} & set(found)


@pytest.fixture
def engines(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Both engines as a tone; what was said to which voice."""
    said: list[tuple[str, str]] = []

    def speak(text: str, voice: str) -> np.ndarray:
        said.append((voice, text))
        return tones(0.1 * len(text.split()))

    monkeypatch.setattr(synthesis, "speak_hibari", lambda text, folder: speak(text, "hibari"))
    monkeypatch.setattr(synthesis, "speak_flite", lambda text, voice, program, library: speak(text, voice))
    place(synthesis.HIBARI, cache, {"hibari/__init__.py": ""})
    place(synthesis.FLITE, cache, {"usr/bin/flite": ""})
    place(synthesis.FLITE_VOICES, cache, {"usr/lib/libflite.so.1": ""})
    return said


def test_synthetic_speech_says_the_sentence_and_is_labelled(
    cache: Path, engines: list[tuple[str, str]]
) -> None:
    _conversation(cache)
    (one, *_) = items = found("hibari", cache)
    assert len(items) == 4
    admitted = admit(one)
    assert isinstance(admitted, Admitted) and isinstance(item := admitted.item, SpeechItem)
    assert item.synthetic and item.speaker == "hibari" and item.split == split_of("conversations", "one")
    assert engines == [("hibari", item.raw_text)]
    assert np.sqrt(np.square(read_audio(admitted.payload)).mean()) == pytest.approx(sound.RMS, rel=0.05)


def test_an_engine_that_says_nothing_is_a_bad_item(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis, "speak_hibari", lambda text, folder: np.zeros(16_000, np.float32))
    with pytest.raises(MediaError, match="hibari: says nothing for 'hello'"):
        synthesis.spoken("hello", "hibari", (cache,))


def test_every_wording_is_asked_in_every_voice_and_words_in_one(
    cache: Path, engines: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        spoken,
        "definitions",
        lambda cache: [("wordnet brink", "What is a brink?", "A region marking a boundary.")],
    )
    items = found("spoken-questions", cache)
    about_pictures = [one for one in items if one.fields["kind"] != "definition"]
    assert len(about_pictures) == sum(map(len, WORDINGS.values())) * len(synthesis.VOICES)
    splits = {(one.fields["text"], one.split) for one in about_pictures}
    assert splits == {(text, split) for wordings in WORDINGS.values() for text, split in wordings}
    (word,) = (one for one in items if one.fields["kind"] == "definition")
    admitted = admit(word)
    assert isinstance(admitted, Admitted) and isinstance(item := admitted.item, QuestionItem)
    assert (item.text, item.answer) == ("what is a brink", "A region marking a boundary.")
    # The same split as the typed question of the same word.
    assert item.split == split_of("conversations", "wordnet brink")


def test_words_asked_for_are_plain_with_short_answers(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def talk(asked: str, answer: str) -> Any:
        from muomni.data.sources.adapter import Found

        return Found(
            kind="conversations", id=f"wordnet/{asked}", group=asked, fields={"turns": (asked, answer)}
        )

    glosses_ = [
        talk("What is a brink?", "A region."), talk('What does "abridge" mean?', "To shorten."),
        talk("What is Paris?", "A city."), talk("What is a house?", "A building " + "x" * 80),
    ]  # fmt: skip
    monkeypatch.setattr(glosses, "find", lambda cache: iter(glosses_))
    assert spoken.definitions(cache) == [("What is a brink?", "What is a brink?", "A region.")]


def test_flite_gets_one_word_as_text_and_not_as_a_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> None:
        commands.append(command)
        buffer = io.BytesIO()
        soundfile.write(buffer, tones(), SAMPLE_RATE, format="WAV")
        Path(command[-1]).write_bytes(buffer.getvalue())

    monkeypatch.setattr(synthesis.subprocess, "run", run)
    assert len(synthesis.speak_flite("hello", "slt", cache / "flite", cache)) == len(tones())
    assert commands[0][commands[0].index("-t") + 1] == "hello "


def test_the_sets_of_the_recipes_exist_and_ask_for_nothing() -> None:
    from muomni.data.sources import RECIPES

    known = adapters()
    for names in RECIPES.values():
        assert names and all(not known[name].opt_in for name in names)
        assert len(set(names)) == len(names)
    stages = {stage for name in RECIPES["small"] for stage in known[name].stages}
    assert stages == {"text", "audio", "vision", "codec", "vocoder", "omni", "talker"}
    for adapter in known.values():
        assert adapter.licence and all(p.licence and p.attribution for p in adapter.packages)
        # An archive's address may be known without its size, the hub is read in part; a pinned package is known whole.
        assert all(p.n_bytes > 0 and p.sha256 for p in adapter.packages if p.registry not in ("url", "hub"))
