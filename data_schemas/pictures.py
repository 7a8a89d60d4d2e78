"""Reading and writing pictures within bounds: what a stranger hands over is never trusted to be small."""

from __future__ import annotations

import io
import warnings

from PIL import Image

from data_schemas.errors import UserError

MAX_PIXELS = 64_000_000
"""Largest picture that is decoded, in pixels (width x height); about 256 MB once decoded as RGBA."""

MAX_BYTES = 256_000_000
"""Largest encoded picture that is read, in bytes."""

FOREGROUND = 128
"""Alpha, 0 to 255, from which a pixel belongs to the foreground."""


def decode(data: bytes, source: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one picture wholly, or raise UserError naming ``source``.

    The size in the header is checked before any pixel is decoded. Returns mode L, RGB or RGBA: palettes are
    expanded, transparency in any form becomes RGBA, everything else RGB. EXIF rotation is not applied.
    """
    if len(data) > MAX_BYTES:
        raise UserError(f"{source}: {len(data)} bytes, more than the limit of {MAX_BYTES}; make it smaller")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data))
        width, height = picture.size
        if width * height > max_pixels:
            raise UserError(
                f"{source}: {width} x {height} pixels, more than the limit of {max_pixels}; make it smaller"
            )
        picture.load()
        if picture.mode in ("L", "RGB", "RGBA"):
            return picture
        transparent = picture.mode in ("LA", "PA") or "transparency" in picture.info
        return picture.convert("RGBA" if transparent else "RGB")
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{source}: too many pixels ({error}); make it smaller") from error
    except Exception as error:  # Pillow raises many kinds on broken files: SyntaxError, struct.error, ...
        raise UserError(f"{source}: not a readable picture ({error}); replace or remove it") from error


def encode_png(picture: Image.Image) -> bytes:
    """PNG bytes; the same pixels give the same bytes (no metadata, fixed compression)."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def on_white(picture: Image.Image) -> Image.Image:
    """The picture composited on white, as RGB.

    Dropping alpha instead would show the colours hidden under transparent pixels (spec/tokenar.md QUIRK 15).
    """
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def square_on_white(picture: Image.Image, padding: float) -> Image.Image:
    """An RGBA cut-out trimmed to its subject, in the middle of a white square with ``padding``, a share of the longer
    side, all around: what tells subjects apart is shown this view (spec/curation.md, "what others measured")."""
    bounds = picture.getchannel("A").point(lambda a: 255 if a >= FOREGROUND else 0).getbbox()
    if bounds is not None:
        picture = picture.crop(bounds)
    side = round(max(picture.size) * (1 + 2 * padding))
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square.convert("RGB")
