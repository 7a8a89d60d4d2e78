"""Tars of pictures that have the same bytes whenever they are written, with the places of the pictures in them."""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from typing import IO, NamedTuple

from data_schemas.errors import UserError
from data_schemas.io.text import one_line

Members = Mapping[str, Mapping[str, bytes]]
"""Pictures of a part: sample id -> member name ("target.png") -> bytes."""


class TarEntry(NamedTuple):
    """Where the bytes of one member are in a tar, and their CRC-32 checksum."""

    offset: int
    size: int
    checksum: int


Entries = Mapping[str, Mapping[str, TarEntry]]
"""Sample id -> member name -> its entry in the tar."""


def write_tar(file: IO[bytes], members: Iterable[tuple[str, Mapping[str, bytes]]]) -> tuple[str, Entries]:
    """Write an uncompressed WebDataset tar. Returns its SHA-256 and its entries.

    The headers have no times or owners that vary, so the same members always give the same bytes. tarfile makes the
    headers only: its own way of adding a file copies every picture twice.

    Raises UserError for a name that a header has no room for, or that would lead out of the folder where the tar is
    unpacked; ids from outside can be such.
    """
    digest, written = hashlib.sha256(), 0
    entries: dict[str, dict[str, TarEntry]] = {}

    def put(data: bytes) -> None:
        nonlocal written
        digest.update(data)
        file.write(data)
        written += len(data)

    for sample_id, pictures in members:
        of_sample = entries[sample_id] = {}
        for name in sorted(pictures):
            data = pictures[name]
            put(_header(f"{sample_id}.{name}", len(data)))
            of_sample[name] = TarEntry(written, len(data), zlib.crc32(data))
            put(data)
            put(bytes(-len(data) % tarfile.BLOCKSIZE))
    put(bytes(2 * tarfile.BLOCKSIZE))  # the mark of the end
    put(bytes(-written % tarfile.RECORDSIZE))
    return digest.hexdigest(), entries


def _header(name: str, size: int) -> bytes:
    header = tarfile.TarInfo(name)
    header.size, header.mode = size, 0o444
    header.uname = header.gname = "instructar"
    if name.startswith("/") or ".." in name.split("/"):
        raise UserError(f"member {one_line(name, 100)!r}: leads out of its folder; give its sample another id")
    try:
        return header.tobuf(tarfile.USTAR_FORMAT)
    except ValueError as error:
        raise UserError(f"member {one_line(name, 100)!r}: {error}; give its sample a shorter id") from error
