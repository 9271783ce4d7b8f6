"""Texts that must be refused: what is wrong -> (a part of the reason, bytes or string)."""

from __future__ import annotations

import gzip
import json

import media_files as made

from muomni.data.media import MAX_TEXT_BYTES

UTF8, EMPTY, CONTROL, LONG = "is not UTF-8", "is empty", "control character", "16 are read"
MIB = 2**20

CASES: dict[str, tuple[str, bytes | str]] = {
    "a stray continuation": (UTF8, b"a\x80b"),
    "a lead without its rest": (UTF8, b"caf\xc3"),
    "a lead before a letter": (UTF8, b"caf\xc3e"),
    "two of three bytes": (UTF8, b"\xe2\x82"),
    "three of four bytes": (UTF8, b"ok \xf0\x9f\x98"),
    "an overlong slash": (UTF8, b"\xc0\xaf"),
    "an overlong zero": (UTF8, b"\xc0\x80"),
    "an overlong euro": (UTF8, b"\xf0\x82\x82\xac"),
    "an encoded surrogate": (UTF8, b"\xed\xa0\x80"),
    "CESU-8": (UTF8, b"\xed\xa0\xbd\xed\xb8\x80"),
    "beyond the last code point": (UTF8, b"\xf4\x90\x80\x80"),
    "a lead that never was": (UTF8, b"\xf8\x88\x80\x80\x80"),
    "0xFE": (UTF8, b"\xfe"),
    "Latin-1": (UTF8, "déjà vu".encode("latin-1")),
    "Windows-1252": (UTF8, "“quoted”".encode("cp1252")),
    "Windows-1251": (UTF8, "Привет".encode("cp1251")),
    "Shift-JIS": (UTF8, "日本語のテキスト".encode("shift-jis")),
    "GB18030": (UTF8, "中文文本".encode("gb18030")),
    "UTF-16 with a mark": (UTF8, "hello".encode("utf-16")),
    "UTF-16 without a mark": (CONTROL, "hello".encode("utf-16-le")),
    "UTF-32": (CONTROL, "hello".encode("utf-32-be")),
    "gzip": ("is", gzip.compress(b"hello")),
    "a picture": (UTF8, made.picture()),
    "a recording": ("is|holds", made.sound(made.tone())),
    "bad after 3 MiB": (UTF8 + r" .* at 3145728", b"a" * 3 * MIB + b"\xff"),
    "bad on the edge of a MiB": (UTF8 + r" .* at 1048575", b"a" * (MIB - 1) + b"\xe2\x82" + b"b" * 9),
    "a high surrogate": (UTF8, "\ud83d"),
    "a low surrogate": (UTF8, "ok \ude00"),
    "surrogates in the wrong order": (UTF8, "\ude00\ud83d"),
    "JSON's lone surrogate": (UTF8, json.loads('"a\\ud800b"')),
    "surrogateescape": (UTF8 + r" .* at 3", b"caf\xe9".decode("utf-8", "surrogateescape")),
    "a NUL": (CONTROL + r" U\+0000", "a\0b"),
    "NULs alone": (CONTROL, b"\0" * 100),
    "a NUL at the end": (CONTROL, b"text\0"),
    "an escape sequence": (CONTROL + r" U\+001B", "\x1b[2Jgone"),
    "a backspace": (CONTROL, "no\b\byes"),
    "delete": (CONTROL, "a\x7f"),
    "an end of file of DOS": (CONTROL, b"text\x1a"),
    "no bytes": (EMPTY, b""),
    "no characters": (EMPTY, ""),
    "spaces": (EMPTY, b"    "),
    "line ends and tabs": (EMPTY, "\r\n\t\x0b\x0c\n"),
    "wide spaces": (EMPTY, "\u3000\u00a0\u2009\u2028"),
    "nothing of width": (EMPTY, "\u200b\u200d\u2060"),
    "a mark alone": (EMPTY, b"\xef\xbb\xbf"),
    "a mark and spaces": (EMPTY, "\ufeff \n"),
    "16 MiB of spaces": (EMPTY, b" " * MAX_TEXT_BYTES),
    "too many bytes": (LONG, b"a" * (MAX_TEXT_BYTES + 1)),
    "too many characters": (LONG, "a" * (MAX_TEXT_BYTES + 1)),
    "too many bytes of few characters": (LONG, "🙂" * (MAX_TEXT_BYTES // 4 + 1)),
    "one wide character in 16 MiB, then a fault": (UTF8, "🙂".encode() + b"a" * (15 * MIB) + b"\xff"),
}
