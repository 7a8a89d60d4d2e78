"""What lies in a pool's folder: its pictures, the notes and masks beside them, and what else, which is not read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data_schemas.errors import UserError
from data_schemas.io import text
from data_schemas.io.files import check_file
from data_schemas.io.pictures import SUFFIXES

SPLIT_FOLDERS = {"train", "training", "test", "validation", "valid", "val", "dev"}
ABOUT = ("readme", "license", "licence", "thumbs", "desktop")
"""Stems of files about a folder, which nobody takes for references."""


def is_hidden(name: str) -> bool:
    """Whether nobody put this file or folder there knowingly: hidden ones, and what a Mac packs into archives."""
    return name.startswith(".") or name == "__MACOSX"


def walk(root: Path, suffixes: Sequence[str]) -> list[Path]:
    """Files under ``root`` by suffix, sorted by relative path; hidden files and folders are passed over."""

    def refuse(error: OSError) -> None:
        raise UserError(
            f"references.pool: folder {error.filename} cannot be read ({error.strerror}); change its permissions"
        ) from error

    found = []
    for folder, below, names in os.walk(root, onerror=refuse):
        below[:] = [name for name in below if not is_hidden(name)]
        found += [Path(folder, n) for n in names if n.lower().endswith(tuple(suffixes)) and not is_hidden(n)]
    return sorted(found, key=lambda path: path.relative_to(root).parts)


def descend(root: Path, split: str) -> Path:
    """The folder that holds the categories: below folders that are alone in theirs, and in that of the split."""
    while True:
        try:
            there = [p for p in root.iterdir() if not is_hidden(p.name)]
        except OSError as error:
            raise UserError(f"references.pool: folder {root} cannot be read ({error.strerror})") from error
        folders = {p.name: p for p in there if p.is_dir() and not p.is_symlink()}
        if any(p.suffix.lower() in SUFFIXES for p in there if p.is_file()):
            return root
        if split in folders and set(folders) <= SPLIT_FOLDERS:
            root = folders[split]
        elif len(folders) == 1:
            (root,) = folders.values()
        else:
            return root


def mask_file(path: Path) -> Path:
    """The mask of this name, whatever its kind; one that is missing is told by the picture's own row."""
    return next((p for s in SUFFIXES if (p := path.with_suffix(s)).is_file()), path.with_suffix(".png"))


def note(path: Path) -> str:
    """The name in the .txt beside a picture, empty if there is none; UserError for one that cannot be read."""
    beside = path.with_suffix(".txt")
    if not os.path.lexists(beside):
        return ""
    try:
        with check_file(beside, "write the name into a plain file").open("rb") as file:
            return text.label(text.decoded(file.read(text.CUT)))
    except OSError as error:
        raise UserError(f"{beside}: cannot be read ({error.strerror}); change its permissions") from error


def other_kinds(root: Path, read: Sequence[str], masks: Path | None = None) -> Counter[str]:
    """How many files under ``root`` are of kinds that are not ``read``, by suffix; notes, masks and the like apart."""
    return Counter(
        path.suffix.lower() or "without suffix"
        for path in walk(root, ("",))
        if path.suffix.lower() not in (*read, ".txt")
        and path.stem.lower() not in ABOUT
        and not (masks and path.is_relative_to(masks))
    )


def census(kinds: Counter[str]) -> str:
    """Kinds of files, the most frequent first: ".zip 3, .md 1"."""
    ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    told = ", ".join(f"{kind} {n}" for kind, n in ordered[:5])
    return told + (f" and {len(ordered) - 5} other kinds" if len(ordered) > 5 else "") or "nothing"
