"""Byte-level BPE: text <-> ids, with control tokens that no text can forge."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer as BPETokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from muomni import files
from muomni.errors import UserError
from muomni.tokens import N_SPECIAL, SPECIAL_TOKENS


class TokenizerError(UserError, ValueError):
    """A tokenizer file that is missing, broken or of another vocabulary."""


class Tokenizer:
    """Text <-> ids. Ids below N_SPECIAL are control tokens and never come out of `encode`.

    A text is encoded with a space before it, which `decode` takes away: its first word has the ids that it has behind
    another one, so that what is quoted has the ids of its source.
    """

    def __init__(self, bpe: BPETokenizer) -> None:
        """Wrap a trained BPE; use `train` or `load`."""
        # Added tokens are matched in text unless this is set and every one of them is flagged special.
        bpe.encode_special_tokens = True
        self._bpe = bpe
        self._bytes = _token_bytes(bpe)

    @property
    def vocab_size(self) -> int:
        """Entries, control tokens included."""
        return self._bpe.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Ids of a text; any Unicode. Of an empty one none."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of many texts."""
        spaced = self._bpe.encode_batch([*map(_spaced, texts)], add_special_tokens=False)
        return [encoding.ids for encoding in spaced]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids from its beginning on; control tokens are left out, broken UTF-8 becomes U+FFFD."""
        return b"".join(self._bytes[i] for i in ids).removeprefix(b" ").decode("utf-8", "replace")

    def spell(self, token: int) -> bytes:
        """The UTF-8 of one id, possibly a part of a character; empty for a control token.

        A text's first begins with the space that is put before it.
        """
        return self._bytes[token]

    def stream(self) -> StreamDecoder:
        """A decoder that takes one id at a time."""
        return StreamDecoder(self._bytes)

    def save(self, path: Path) -> None:
        """Write the tokenizer as JSON, whole or not at all."""
        files.replace(path, self._bpe.to_str(pretty=True))

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a tokenizer. Raises TokenizerError when it is missing, broken, or not of this token table."""
        if not path.exists():
            raise TokenizerError(f"{path}: no tokenizer; run `muomni train --stage text` first.")
        # The library raises a bare Exception for a broken file, so the file is checked before it sees it.
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise TokenizerError(f"{path}: is not JSON; retrain the text stage.") from None
        if not isinstance(content, dict) or content.get("model", {}).get("type") != "BPE":
            raise TokenizerError(f"{path}: is not a BPE tokenizer; retrain the text stage.")
        return cls(BPETokenizer.from_str(json.dumps(content)))


class StreamDecoder:
    """Ids one at a time -> text as soon as its UTF-8 is complete."""

    def __init__(self, token_bytes: list[bytes]) -> None:
        """Start with nothing pending."""
        self._token_bytes, self._begun = token_bytes, False
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that this id completes, possibly empty."""
        spelled = self._token_bytes[token]
        if spelled and not self._begun:
            spelled, self._begun = spelled.removeprefix(b" "), True
        return self._utf8.decode(spelled)

    @property
    def whole(self) -> bool:
        """Nothing is left incomplete."""
        return not self._utf8.getstate()[0]

    def finish(self) -> str:
        """What was left incomplete, as U+FFFD."""
        return self._utf8.decode(b"", final=True)


def _spaced(text: str) -> str:
    return f" {text}" if text else text


def broken(utf8: bytes) -> bool:
    """Whether bytes end within a character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(utf8)
    return bool(decoder.getstate()[0])


def _byte_of_character() -> dict[str, int]:
    """The byte behind each character of byte-level BPE: printable bytes stand for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    mapping = {chr(b): b for b in printable}
    others = [b for b in range(256) if b not in set(printable)]
    return mapping | {chr(256 + n): b for n, b in enumerate(others)}


def _token_bytes(bpe: BPETokenizer) -> list[bytes]:
    table = _byte_of_character()
    tokens = [bpe.id_to_token(i) for i in range(bpe.get_vocab_size(with_added_tokens=True))]
    if tuple(tokens[:N_SPECIAL]) != SPECIAL_TOKENS:
        raise TokenizerError(
            f"tokenizer: control tokens {tokens[:N_SPECIAL]}, expected {list(SPECIAL_TOKENS)}; "
            "train into another --run."
        )
    return [b""] * N_SPECIAL + [bytes(table[c] for c in token or "") for token in tokens[N_SPECIAL:]]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE of exactly vocab_size entries (control tokens and all 256 bytes included).

    Raises TokenizerError when the texts do not hold enough different pairs for that many entries.
    """
    bpe = BPETokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(map(_spaced, texts), trainer)
    if bpe.get_vocab_size() != vocab_size:
        raise TokenizerError(
            f"vocab_size: the texts give {bpe.get_vocab_size()} entries, expected {vocab_size}; use more text or a "
            "smaller thinker.vocab_size."
        )
    return Tokenizer(bpe)
