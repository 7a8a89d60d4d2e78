"""Zip archives of which one member cannot be unpacked, in each way that people meet."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping


def _stream(data: bytearray, local: int, central: int, start: int, end: int) -> None:
    data[start:end] = b"\xff" * (end - start)


def _properties(data: bytearray, local: int, central: int, start: int, end: int) -> None:
    data[start + 4] = 0xFF  # behind the version and the length of what LZMA needs to know


def _header(data: bytearray, local: int, central: int, start: int, end: int) -> None:
    data[local] = 0


def _password(data: bytearray, local: int, central: int, start: int, end: int) -> None:
    data[local + 6] |= 1
    data[central + 8] |= 1


def _method(data: bytearray, local: int, central: int, start: int, end: int) -> None:
    data[local + 8] = data[central + 10] = 9  # deflate64, in which Windows packs large files


KINDS: dict[str, tuple[int, Callable[[bytearray, int, int, int, int], None]]] = {
    "other bytes": (zipfile.ZIP_STORED, _stream),
    "a broken stream": (zipfile.ZIP_DEFLATED, _stream),
    "broken bzip2": (zipfile.ZIP_BZIP2, _stream),
    "broken lzma": (zipfile.ZIP_LZMA, _properties),
    "a broken header": (zipfile.ZIP_DEFLATED, _header),
    "a password": (zipfile.ZIP_DEFLATED, _password),
    "deflate64": (zipfile.ZIP_DEFLATED, _method),
}
"""How the archive is packed, and what is then done to its bytes."""


def damaged_zip(kind: str, files: Mapping[str, bytes], broken: str) -> bytes:
    """An archive of these files, of which ``broken`` cannot be unpacked."""
    method, damage = KINDS[kind]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    data, member = bytearray(buffer.getvalue()), archive.getinfo(broken)
    start = member.header_offset + 30 + len(broken)
    central = data.index(broken.encode(), archive.start_dir) - 46
    damage(data, member.header_offset, central, start, start + member.compress_size)
    return bytes(data)
