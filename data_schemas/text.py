"""Text that is kept or shown: one line, plain characters, and nothing of the process or machine that wrote it."""

from __future__ import annotations

import re

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
