"""Text that is kept or shown: one line, plain characters, and nothing of the process or machine that wrote it."""

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
    """The text on one line of at most ``limit`` characters, without control and direction marks or memory addresses.

    Error messages of libraries hold addresses (``<_io.BytesIO object at 0x7f...>``), which differ from process to
    process; what is stored must be the same in all of them.
    """
    plain = _INVISIBLE.sub(" ", _ADDRESS.sub("", str(text)))
    line = " ".join(plain.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def stored_line(error: object, limit: int = 500) -> str:
    """``one_line`` of an error that is kept with the data: of paths on this machine the last name alone."""
    return _FOLDERS.sub("", one_line(error, 4 * limit))[:limit]


def is_plain(text: str) -> bool:
    """Whether the text is free of control and direction marks, line breaks and halves of surrogate pairs."""
    return not any(mark in text for mark in "\t\n") and _INVISIBLE.search(text) is None


def from_path(name: str) -> str:
    """A file name as text that any file can hold, whatever bytes it has on the disk."""
    return os.fsencode(name).decode(errors="backslashreplace")


CUT = 4096
"""Bytes of a note that are read: more than its first line needs."""

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # begins like the mark of UTF-16, so it is looked for first
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def decoded(data: bytes) -> str:
    """Text of a file in whatever encoding: as its byte order mark says, else UTF-8, else Latin-1, which reads any.

    ``data`` may be a file's beginning, cut anywhere.
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
    """A name or category as prompts and tables have it, whatever it was read from: the first line with words in it,
    without control and direction marks and without its final stop, at most ``limit`` characters."""
    lines = (one_line(_unmarked(line), 10 * limit) for line in str(text).splitlines())
    return next((line for line in lines if line), "")[:limit].rstrip(" .。")


def _unmarked(line: str) -> str:
    """Without what is not seen and takes no room: joiners and marks that turn the direction of writing."""
    return "".join(letter for letter in line if unicodedata.category(letter) != "Cf")
