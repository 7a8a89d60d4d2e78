"""Folders of examples in the layout of the published program; a picture is drawn from one, or a shard made of many.

    example1/
        ref/ref_1.png ...    the references, ordered by file name; any image format
        background.png       the scene to draw into: the picture with its foreground blacked out; any image format
        real.png             the picture to be generated; any image format; not needed for drawing
        description.txt      the prompt

Names are ordered as people count: example2 comes before example10.
"""

from __future__ import annotations

import re
from pathlib import Path

from data_schemas.errors import UserError
from data_schemas.io import pictures
from data_schemas.io.files import read_file
from data_schemas.io.text import decoded

REFERENCES = "ref"
MAX_PROMPT = 1_000_000
"""Most bytes of a description.txt."""


def is_folder(path: Path) -> bool:
    """Whether a path is a folder. Raises UserError if that cannot be found out."""
    try:
        return path.is_dir()
    except (OSError, ValueError) as error:  # the name is too long or has a NUL, or a parent may not be entered
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot be read ({reason}); give another folder") from error


def listed(folder: Path) -> list[Path]:
    """The entries of a folder in order, without hidden ones."""
    try:
        return sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=_counted)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); change its permissions") from error


def _counted(path: Path) -> tuple[list[tuple[int, str]], str]:
    """A key that orders the numbers in a name by value."""
    parts = re.split(r"([0-9]{1,18})", path.name)
    return [(int(part) if part.isdecimal() and part.isascii() else -1, part) for part in parts], path.name


def example_folders(root: Path) -> list[Path]:
    """The examples in a folder, in order: its sub-folders that have a folder ``ref``; or itself if it has one."""
    if is_folder(root / REFERENCES):
        return [root]
    return [path for path in listed(root) if is_folder(path / REFERENCES)] if is_folder(root) else []


def reference_files(example: Path) -> list[Path]:
    """The picture files in an example's folder ``ref``, in order; empty if there are none."""
    folder = example / REFERENCES
    return [p for p in listed(folder) if p.suffix.lower() in pictures.SUFFIXES] if is_folder(folder) else []


def picture_file(example: Path, stem: str) -> Path | None:
    """The file of an example's picture ``stem`` ("background", "real"), a PNG before others; None if there is none."""
    files = [p for p in listed(example) if p.stem == stem and p.suffix.lower() in pictures.SUFFIXES]
    return min(files, key=lambda p: pictures.SUFFIXES.index(p.suffix.lower()), default=None)


def prompt_bytes(example: Path) -> bytes:
    """The content of an example's description.txt. Raises UserError if it cannot be read."""
    return read_file(example / "description.txt", "add the prompt", MAX_PROMPT)


def prompt_of(data: bytes) -> str:
    """The prompt that the content of a description.txt stands for."""
    return decoded(data).strip()
