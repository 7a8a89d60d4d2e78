"""Clean text for storing and showing: one line, no control characters, nothing specific to a process or machine."""

from __future__ import annotations

import codecs
import os
import re
import unicodedata

_ADDRESS = re.compile(r" (?:object )?at 0x[0-9a-fA-F]+")
_FOLDERS = re.compile(r"(?<![\w:/.~-])~?/(?:[^\s/'\"<>|:;,()]+/)+")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, but for tab and line feed, which become spaces
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"  # joiners, and marks that turn the direction of writing
    "\ud800-\udfff]"  # halves of surrogate pairs, which no file can hold
)


def one_line(text: object, limit: int = 500) -> str:
    """The text on one line of at most ``limit`` characters, without control marks, direction marks or memory addresses.

    Error messages of libraries contain addresses (``<_io.BytesIO object at 0x7f...>``) that differ between processes,
    and stored messages must be the same in all of them.
    """
    plain = _INVISIBLE.sub(" ", _ADDRESS.sub("", str(text)))
    line = " ".join(plain.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def printable(text: str) -> str:
    """The text in its lines and columns, without control and direction marks: a file's name or another's table may hold
    what a terminal obeys."""
    return _INVISIBLE.sub(" ", text)


def stored_line(error: object, limit: int = 500) -> str:
    """``one_line`` of an error that is stored with the data.

    Paths are cut to their last part, so no machine's folders appear.
    """
    return without_folders(one_line(error, 4 * limit))[:limit]


def without_folders(text: str) -> str:
    """The text with every absolute path cut to its last part."""
    return _FOLDERS.sub("", text)


def is_plain(text: str) -> bool:
    """Whether the text has no control marks, direction marks, line breaks or halves of surrogate pairs."""
    return not any(mark in text for mark in "\t\n") and _INVISIBLE.search(text) is None


def from_path(name: str) -> str:
    """A file name as valid text, whatever bytes it consists of on the disk."""
    return os.fsencode(name).decode(errors="backslashreplace")


CUT = 4096
"""Bytes that are read of a note; more than its first line needs."""

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # checked before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def decoded(data: bytes) -> str:
    """The text of a file in any encoding: by its byte order mark, else UTF-8, else Latin-1, which accepts all bytes.

    ``data`` may be the beginning of a longer file and may end within a character.
    """
    for bom, encoding in _BOMS:
        if data.startswith(bom):
            return data[len(bom) :].decode(encoding, errors="ignore")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data" and len(data) >= CUT:
            return data[: error.start].decode()
        return data.decode("latin-1")


def label(text: object, limit: int = 80) -> str:
    """A subject's name or category, cleaned for prompts and tables.

    It is the first line that has words in it, without control and direction marks or a final full stop, and has at most
    ``limit`` characters.
    """
    lines = (one_line(_unmarked(line), 10 * limit) for line in str(text).splitlines())
    return next((line for line in lines if line), "")[:limit].rstrip(" .。")


def _unmarked(line: str) -> str:
    """The line without invisible format characters such as joiners and direction marks."""
    return "".join(letter for letter in line if unicodedata.category(letter) != "Cf")
