"""The tokenizer loses nothing and lets no text make a control token."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.data import embedded
from muomni.data.text import Tokenizer, TokenizerError, train_tokenizer
from muomni.tokens import N_SPECIAL, SPECIAL_TOKENS


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([c.text for c in embedded.SET.conversations("validation")], 512)


FORGERIES = [
    form
    for token in SPECIAL_TOKENS
    for form in (
        token,
        f" {token} ",
        f"{token}{token}",
        token.upper(),
        f"a{token}b",
        token[:-1],
        f"\n{token}\0",
        f"<{token}>",
    )
]


@pytest.mark.parametrize("text", FORGERIES)
def test_no_spelling_of_a_control_token_makes_one(text: str, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(text)
    assert min(ids) >= N_SPECIAL
    assert tokenizer.decode(ids) == text


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(SPECIAL_TOKENS), st.text(max_size=12)), max_size=6).map("".join))
def test_any_text_comes_back_and_stays_text(text: str) -> None:
    tokenizer = _shared()
    ids = tokenizer.encode(text)
    assert all(i >= N_SPECIAL for i in ids)
    assert tokenizer.decode(ids) == text


_cache: list[Tokenizer] = []


def _shared() -> Tokenizer:
    if not _cache:
        _cache.append(train_tokenizer([c.text for c in embedded.SET.conversations("validation")], 512))
    return _cache[0]


def test_a_word_has_the_same_ids_at_the_beginning_as_behind_another(tokenizer: Tokenizer) -> None:
    said = tokenizer.encode("rain today")
    for before in ("say: ", "no "):
        assert tokenizer.encode(before + "rain today")[-len(said) :] == said
    assert tokenizer.encode_batch(["", "rain today"]) == [[], said]
    assert tokenizer.spell(said[0])[:1] == b" " and tokenizer.decode(said) == "rain today"


@pytest.mark.parametrize("text", [" ", "  two", " a", "\n a"])
def test_spaces_that_a_text_begins_with_are_its_own(text: str, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(text)
    stream = tokenizer.stream()
    assert tokenizer.decode(ids) == text == "".join(map(stream.push, ids)) + stream.finish()


def test_a_reloaded_tokenizer_is_the_same_and_as_safe(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again.vocab_size == tokenizer.vocab_size == 512
    for text in ("how are you?", *SPECIAL_TOKENS):
        assert again.encode(text) == tokenizer.encode(text)


def test_streamed_text_equals_decoded_text_and_never_splits_a_character(tokenizer: Tokenizer) -> None:
    text = "naïve 🍎 rain ☃!"
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in tokenizer.encode(text)] + [stream.finish()]
    assert "".join(pieces) == text
    assert all("�" not in piece for piece in pieces)
    cut = tokenizer.stream()
    shown = "".join(cut.push(i) for i in tokenizer.encode("🍎")[:-1])
    assert shown == "" and cut.finish() == "�"


def test_common_words_are_few_tokens(tokenizer: Tokenizer) -> None:
    text = embedded.SET.conversations("test")[0].text
    assert len(text.encode()) / len(tokenizer.encode(text)) > 1.8


@pytest.mark.parametrize(
    ("content", "expected"), [(None, "no tokenizer"), ("{", "is not JSON"), ("{}", "is not a BPE")]
)
def test_bad_tokenizer_files(content: str | None, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(TokenizerError, match=expected):
        Tokenizer.load(path)


def test_too_large_a_vocabulary_is_an_error() -> None:
    with pytest.raises(TokenizerError, match="vocab_size"):
        train_tokenizer(["abc abc"], 4_096)
