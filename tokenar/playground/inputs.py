"""What a person gives the playground: pictures that may be no pictures, and a prompt."""

from __future__ import annotations

import hashlib

from PIL import Image, ImageDraw

from data_schemas.errors import UserError
from data_schemas.io import pictures
from data_schemas.io.files import read_file
from data_schemas.io.text import one_line

MAX_BYTES = 30_000_000
"""Largest file that can be dropped into the page; data_schemas.serving reads no larger request."""
MAX_PROMPT = 2000
"""Most characters of a prompt."""
ROOM = ((0.08, 0.34, 0.46, 0.92), (0.54, 0.34, 0.92, 0.92))
"""The boxes (left, top, right, bottom) of the places that ``with_room`` makes."""

Boxes = tuple[tuple[float, float, float, float], ...]


def read_picture(path: str | None, what: str) -> Image.Image:
    """A dropped picture in mode L, RGB or RGBA. UserError that calls it ``what`` if there is none."""
    if path is None:
        raise UserError(f"{what}: there is no picture yet; drop one")
    try:
        data = read_file(path, "drop it again", MAX_BYTES)
    except UserError as error:
        raise UserError(f"{what}: not there any more, or too large; drop it again") from error
    return pictures.decode(data, what)


def clean_prompt(text: str | None) -> str:
    """The prompt on one line without invisible marks. UserError if it is empty or too long."""
    line = one_line(text or "", MAX_PROMPT + 1)
    if not line:
        raise UserError("prompt: it is empty; say what to draw")
    if len(line) > MAX_PROMPT:
        raise UserError(f"prompt: more than {MAX_PROMPT} characters; make it shorter")
    return line


def with_room(picture: Image.Image) -> Image.Image:
    """The background (RGB) with two black places for the subjects, side by side."""
    roomy = pictures.on_white(picture)
    pen = ImageDraw.Draw(roomy)
    for left, top, right, bottom in ROOM:
        edges = (left * roomy.width, top * roomy.height, right * roomy.width, bottom * roomy.height)
        pen.ellipse(edges, fill="black")
    return roomy


def digest(picture: Image.Image) -> str:
    """SHA-256 of a picture's pixels."""
    return hashlib.sha256(f"{picture.size} ".encode() + picture.tobytes()).hexdigest()
