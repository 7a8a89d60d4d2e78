"""Decoding and encoding of pictures, with limits: a picture from outside may be huge, broken or hostile."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from data_schemas.errors import UserError
from data_schemas.io import exif
from data_schemas.io.text import one_line

MAX_PIXELS = 64_000_000
"""Largest picture that is decoded, in pixels (width x height); about 256 MB once decoded as RGBA."""

MAX_BYTES = 256_000_000
"""Largest encoded picture that is read, in bytes."""

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""The formats that are read, by Pillow's names. None of them lets a file run a program."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
"""File name suffixes of these formats."""

FOREGROUND = 128
"""Alpha (0 to 255) at and above which a pixel counts as foreground."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that turns a picture upright, by its EXIF orientation."""

_KEY_BITS = {"L;2": 2, "L;4": 4, "RGB;16B": 16}
"""Bits of a PNG's transparent colour (tRNS chunk), by the raw modes in which the decoded pixels have another depth."""


def decode(data: bytes, source: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one picture completely and turn it upright. Raises UserError that names ``source``.

    Returns mode L, RGB or RGBA. Palettes are expanded, any kind of transparency becomes RGBA, 16-bit grey is scaled to
    8 bits, and of several frames or pages the first is taken. All other modes become RGB.
    """
    with _refusing(source):
        return _as_seen(_loaded(data, source, max_pixels), source)


def as_seen(picture: Image.Image, source: str) -> Image.Image:
    """A picture that Pillow opened or made, upright and in a mode that ``decode`` gives. Raises UserError likewise."""
    with _refusing(source):
        return _as_seen(picture, source)


def _as_seen(picture: Image.Image, source: str) -> Image.Image:
    turn = _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    seen = _as_8_bit(picture, source)
    return seen if turn is None else seen.transpose(turn)


def decode_as_stored(data: bytes, source: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one picture completely, keeping its stored mode and orientation. Label maps are read this way."""
    with _refusing(source):
        return _loaded(data, source, max_pixels)


@contextmanager
def _refusing(source: str) -> Iterator[None]:
    """Turn any decoding error into a UserError whose text does not differ between processes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{source}: too many pixels ({one_line(error)}); make it smaller") from error
    except Exception as error:  # Pillow raises many kinds on broken files: SyntaxError, struct.error, ...
        reason = f"none of {', '.join(FORMATS)}" if isinstance(error, UnidentifiedImageError) else one_line(error, 200)
        raise UserError(f"{source}: not a readable picture ({reason}); replace or remove it") from error


def _loaded(data: bytes, source: str, max_pixels: int) -> Image.Image:
    """The first frame. The header's size and the claims of its tags are checked before anything is decoded."""
    if len(data) > MAX_BYTES:
        raise UserError(f"{source}: {len(data)} bytes, more than the limit of {MAX_BYTES}; make it smaller")
    if not data:
        raise UserError(f"{source}: not a readable picture (it is empty); replace or remove it")
    if exif.overclaims(data):
        raise UserError(f"{source}: not a readable picture (its tags claim more than it holds); replace or remove it")
    picture = Image.open(io.BytesIO(exif.one_exif(data)), formats=FORMATS)
    picture.info.pop("Raw profile type exif", None)  # Exif stored as text, an obsolete form without a size limit
    width, height = picture.size
    if width * height > max_pixels:
        raise UserError(f"{source}: {width} x {height} pixels, more than the limit of {max_pixels}; make it smaller")
    bits = _KEY_BITS.get(str(picture.tile[0][3])) if picture.format == "PNG" and picture.tile else None
    picture.load()
    if bits and (key := picture.info.get("transparency")) is not None:
        of_key = (lambda v: v >> 8) if bits == 16 else (lambda v: v * 255 // (2**bits - 1))
        picture.info["transparency"] = tuple(map(of_key, key)) if isinstance(key, tuple) else of_key(key)
    return picture


def _as_8_bit(picture: Image.Image, source: str) -> Image.Image:
    """The picture as L, RGB or RGBA. Raises UserError for modes whose values cannot be read as light."""
    mode, key = picture.mode, picture.info.get("transparency")
    if mode.startswith("I"):
        return _from_16_bit(np.asarray(picture), key, source)
    if mode == "F":
        values = np.asarray(picture)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise UserError(f"{source}: its fractions are not between 0 and 1; save it with 8 or 16 bits a channel")
        return Image.fromarray((values * 255).round().astype(np.uint8))
    if mode == "LAB":
        raise UserError(f"{source}: its colours are Lab; save it as RGB")
    if mode in ("L", "RGB", "RGBA") and key is None:
        return picture
    transparent = mode in ("LA", "La", "PA", "RGBa", "RGBA") or key is not None
    return picture.convert("RGBA" if transparent else "RGB")


def _from_16_bit(values: np.ndarray, key: int | None, source: str) -> Image.Image:
    """16-bit grey [H, W] as L.

    Every value is divided by 257 and rounded; with a transparent grey value ``key``, RGBA.
    """
    if values.min() < 0 or values.max() > 65535:
        raise UserError(f"{source}: grey values outside 0 to 65535; save it with 8 or 16 bits a channel")
    grey = Image.fromarray(_TO_8_BITS[values])
    if key is None:
        return grey
    alpha = np.where(values == key, np.uint8(0), np.uint8(255))
    return Image.merge("RGBA", (grey, grey, grey, Image.fromarray(alpha)))


_TO_8_BITS = ((np.arange(65536) + 128) // 257).astype(np.uint8)


def encode_png(picture: Image.Image) -> bytes:
    """PNG bytes. The same pixels always give the same bytes: no metadata, fixed compression level."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def on_white(picture: Image.Image) -> Image.Image:
    """The picture composited on white, as RGB.

    Dropping the alpha channel instead would show the colours stored under transparent pixels (docs/differences.md,
    "References on white").
    """
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def square_on_white(picture: Image.Image, padding: float) -> Image.Image:
    """An RGBA cut-out trimmed to its subject and centred on a white square, as RGB.

    ``padding`` is the white space on each side, as a share of the longer side. Encoders that compare subjects are shown
    this view (docs/differences.md, "Crops instead of whole pictures").
    """
    bounds = picture.getchannel("A").point(lambda a: 255 if a >= FOREGROUND else 0).getbbox()
    if bounds is not None:
        picture = picture.crop(bounds)
    side = round(max(picture.size) * (1 + 2 * padding))
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square.convert("RGB")
