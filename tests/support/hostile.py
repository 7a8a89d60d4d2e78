"""Small files that claim to be large, and pictures that programs write in their own way."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(
    width: int, height: int, bits: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes], level: int = -1
) -> bytes:
    """A PNG from its uncompressed rows, each after its filter byte; ``chunks`` stand before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    extra = b"".join(chunk(*c) for c in chunks)
    end = chunk(b"IDAT", zlib.compress(rows, level)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + end


def tag_bomb(tags: int, size: int) -> bytes:
    """A TIFF directory all of whose tags hold the same ``size`` bytes."""
    start = 8 + 2 + 12 * tags + 4
    entries = b"".join(struct.pack("<HHLL", tag, 7, size, start) for tag in range(1, tags + 1))
    return b"II*\0" + struct.pack("<LH", 8, tags) + entries + bytes(4) + b"x" * size


def jpeg_with_exif(exif: bytes, picture: Image.Image | None = None) -> bytes:
    """A JPEG with Exif data of any length, in as many segments as it takes."""
    buffer = io.BytesIO()
    (picture or Image.new("RGB", (16, 16))).save(buffer, "JPEG")
    parts = [b"Exif\0\0" + exif[at : at + 65000] for at in range(0, len(exif), 65000)]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in parts)
    return buffer.getvalue()[:2] + segments + buffer.getvalue()[20:]
