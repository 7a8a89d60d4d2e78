"""The files in a pool's folder: pictures, their notes and masks, and files of other kinds, which are not read."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data_schemas.errors import UserError
from data_schemas.io import text
from data_schemas.io.files import check_file
from data_schemas.io.pictures import SUFFIXES
from pipeline.references import archives
from pipeline.references.places import BucketPath, Place

SPLIT_NAMES = {"train", "training", "test", "validation", "valid", "val", "dev"}
"""Usual names of folders and files that hold one split of a data set."""
LEADING_ARTICLE = re.compile(r"^(an?|the)\s+(?=\S)", re.IGNORECASE)
ABOUT = ("readme", "license", "licence", "thumbs", "desktop")
"""Stems of files that describe a folder and are no references."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or was added to an archive by macOS."""
    return name.startswith(".") or name == "__MACOSX"


def walk(root: Place, suffixes: Sequence[str]) -> list[Place]:
    """Files under ``root`` with these suffixes, sorted by relative path, without hidden files and folders."""
    found = root.below() if isinstance(root, BucketPath) else _on_disk(str(root))
    paths: list[Place] = [path for path in found if path.name.lower().endswith(tuple(suffixes))]
    if isinstance(root, BucketPath):
        paths = [path for path in paths if not any(map(is_hidden, path.relative_to(root).parts))]
    return sorted(paths, key=lambda path: path.relative_to(root).parts)


def _on_disk(root: str) -> list[Path]:
    """All files under a folder, without hidden files and folders."""

    def refuse(error: OSError) -> None:
        raise UserError(
            f"references.pool: folder {error.filename} cannot be read ({error.strerror}); change its permissions"
        ) from error

    paths = []
    for folder, below, names in os.walk(root, onerror=refuse):
        below[:] = [name for name in below if not is_hidden(name)]
        paths += [Path(folder, name) for name in names if not is_hidden(name)]
    return paths


def inside(root: Place, source: str) -> Place:
    """The content of an archive that is the pool ``source``, or of all archives in a folder without pictures and
    Parquet files; any other folder or file as it is. Raises UserError for archives that cannot be read.
    """
    is_archive = root.is_file() and root.name.lower().endswith(archives.SUFFIXES)
    if isinstance(root, BucketPath):
        if is_archive:
            raise UserError(f"references.pool {source}: archives are read on a disk only; copy it to this machine")
        return root
    if root.is_file():
        return archives.unpacked([Path(str(root))], source) if is_archive else root
    if walk(root, (".parquet", *SUFFIXES)):
        return root
    found = [Path(str(path)) for path in walk(root, archives.SUFFIXES)]
    return archives.unpacked(found, source) if found else root


def descend(root: Place, split: str) -> Place:
    """The folder that contains the category folders.

    Starting at ``root``, it enters a folder that is alone in its parent, and the folder of the split if all folders are
    named like splits.
    """
    while True:
        try:
            entries = [p for p in root.iterdir() if not is_hidden(p.name)]
        except OSError as error:
            raise UserError(f"references.pool: folder {root} cannot be read ({error.strerror})") from error
        folders = {p.name: p for p in entries if p.is_dir() and not p.is_symlink()}
        if any(p.suffix.lower() in SUFFIXES for p in entries if p.is_file()):
            return root
        if split in folders and set(folders) <= SPLIT_NAMES:
            root = folders[split]
        elif len(folders) == 1:
            (root,) = folders.values()
        else:
            return root


def mask_file(path: Place) -> Place:
    """The mask that belongs to this path, with any picture suffix.

    If there is none, a .png that does not exist is returned; reading it later makes an error row.
    """
    return next((p for s in SUFFIXES if (p := path.with_suffix(s)).is_file()), path.with_suffix(".png"))


def note(path: Place) -> str:
    """The name in the .txt file beside a picture, or "" if there is none. Raises UserError if it cannot be read.

    It is the first line without an article at its beginning, because prompts add their own.
    """
    beside = path.with_suffix(".txt")
    return LEADING_ARTICLE.sub("", text.label(text.decoded(_start_of(beside))))


def _start_of(beside: Place) -> bytes:
    """The beginning of a note; empty if there is none."""
    if isinstance(beside, BucketPath):
        return beside.start(text.CUT) if beside.is_file() else b""
    if not os.path.lexists(str(beside)):
        return b""
    try:
        with check_file(str(beside), "write the name into a plain file").open("rb") as file:
            return file.read(text.CUT)
    except OSError as error:
        raise UserError(f"{beside}: cannot be read ({error.strerror}); change its permissions") from error


def other_kinds(root: Place, read: Sequence[str], masks: Place | None = None) -> Counter[str]:
    """The number of files under ``root`` by suffix, without files that are ``read``, notes, masks and READMEs."""
    return Counter(
        path.suffix.lower() or "without suffix"
        for path in walk(root, ("",))
        if path.suffix.lower() not in (*read, ".txt")
        and path.stem.lower() not in ABOUT
        and not (masks and path.is_relative_to(masks))
    )


def census(kinds: Counter[str]) -> str:
    """Kinds of files as text, the most frequent first: ".zip 3, .md 1"."""
    ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{text.one_line(kind, 20)} {n}" for kind, n in ordered[:5])
    return shown + (f" and {len(ordered) - 5} other kinds" if len(ordered) > 5 else "") or "nothing"
