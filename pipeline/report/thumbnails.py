"""Thumbnails: for pages that need no other files, and for tables that people look through."""

from __future__ import annotations

import base64
import io
import math

from PIL import Image


def data_uri(picture: Image.Image, side: int) -> str:
    """A JPEG thumbnail as a data URI."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(picture, side)).decode()


def jpeg(picture: Image.Image, side: int) -> bytes:
    """A thumbnail of at most ``side`` x ``side`` pixels as JPEG. Transparent pictures are on a grey checkerboard."""
    transparent = picture.has_transparency_data
    small = picture.convert("RGBA" if transparent else "RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    if transparent:
        small = Image.alpha_composite(checkerboard(small.size), small).convert("RGB")
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()


def checkerboard(size: tuple[int, int], square: int = 8) -> Image.Image:
    """A checkerboard in greys that are visible on dark and light pages."""
    columns, lines = (math.ceil(length / square) for length in size)
    cells = bytes(214 if (x + y) % 2 else 192 for y in range(lines) for x in range(columns))
    board = Image.frombytes("L", (columns, lines), cells).resize(
        (columns * square, lines * square), Image.Resampling.NEAREST
    )
    return board.crop((0, 0, *size)).convert("RGBA")
