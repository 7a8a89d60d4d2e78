"""Checks of the tags in a picture (TIFF, or Exif in other formats) before Pillow loads them.

Pillow reads the data of every tag, and several tags may point at the same bytes: 5,000 tags in a file of 1 MB can take
5 GB of memory. Programs that write pictures store the data of each tag once, so larger claims are refused.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

_HEADER = rb"(II\*\0|MM\0\*|II\+\0|MM\0\+)"
_ANYWHERE = re.compile(_HEADER)
_MARKED = re.compile(rb"(?s)(?:\A|Exif\0\0|eXIf|EXIF.{4}|MPF\0)" + _HEADER)
"""The start of a directory where the formats other than AVIF have one. Compressed pixels hold the same bytes by chance,
in one of some thousand pictures."""
_SUB_DIRECTORIES = (0x8769, 0x8825, 0xA005)
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
"""Bytes of one value by the tag's type number, as Pillow reads them."""


def overclaims(data: bytes) -> bool:
    """Whether the tags of any directory in the file claim more bytes than the whole file has."""
    where = _ANYWHERE if data[4:8] == b"ftyp" else _MARKED
    return any(_claimed(data, found.start(1)) > len(data) for found in where.finditer(data))


def one_exif(data: bytes) -> bytes:
    """The bytes of a picture with only the first Exif segment of a JPEG intact.

    Pillow would join all Exif segments without a limit, so the marks of the later ones are overwritten.
    """
    mark = b"Exif\0\0"
    if not data.startswith(b"\xff\xd8"):
        return data
    first = data.find(mark) + len(mark)
    return data if data.count(mark) < 2 else data[:first] + data[first:].replace(mark, b"Exif\0-")


def _claimed(data: bytes, start: int) -> int:
    """Bytes that the tag directory at ``start`` and its sub-directories claim, as far as they can be read."""
    order = "<" if data[start : start + 1] == b"I" else ">"
    big = b"+" in data[start : start + 4]
    claimed, seen = 0, set()
    try:
        waiting = [struct.unpack_from(f"{order}Q" if big else f"{order}L", data, start + (8 if big else 4))[0]]
        while waiting and claimed <= len(data):
            if (offset := waiting.pop()) in seen:
                continue
            seen.add(offset)
            for tag, kind, count, value in _entries(data, start + offset, order, big):
                claimed += _SIZES.get(kind, 0) * count
                if tag in _SUB_DIRECTORIES:
                    waiting.append(value)
                if claimed > len(data):
                    break
    except (struct.error, OverflowError):  # the file ends before or inside a directory; Pillow reports that
        pass
    return claimed


def _entries(data: bytes, at: int, order: str, big: bool) -> Iterator[tuple[int, int, int, int]]:
    """(tag, type, count, value or its offset) of each entry of the directory at offset ``at``."""
    head, entry = (f"{order}Q", f"{order}HHQQ") if big else (f"{order}H", f"{order}HHLL")
    (number,) = struct.unpack_from(head, data, at)
    at += struct.calcsize(head)
    for k in range(number):
        yield struct.unpack_from(entry, data, at + k * struct.calcsize(entry))
