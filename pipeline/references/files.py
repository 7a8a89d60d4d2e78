"""The files in a pool's folder: pictures, their notes and masks, and files of other kinds, which are not read."""

from __future__ import annotations

import os
import re
from collections import Counter, deque
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

LINK = "link to a folder"
"""What a link counts as whose folder is read already, or would be read without end."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or was added to an archive by macOS."""
    return name.startswith(".") or name == "__MACOSX"


def walk(root: Place, suffixes: Sequence[str]) -> list[Place]:
    """Files under ``root`` with these suffixes, sorted by relative path, without hidden files and folders.

    Links to folders are followed, to each folder once and never to one that they lie in.
    """
    return sorted(
        (path for path in _below(root)[0] if path.name.lower().endswith(tuple(suffixes))),
        key=lambda path: path.relative_to(root).parts,
    )


def _below(root: Place) -> tuple[list[Place], list[Place]]:
    """All files under a folder, without hidden files and folders, and the links to folders that are not followed."""
    if not isinstance(root, BucketPath):
        return _on_disk(str(root))
    return [path for path in root.below() if not any(map(is_hidden, path.relative_to(root).parts))], []


def _on_disk(root: str) -> tuple[list[Place], list[Place]]:
    def refuse(error: OSError) -> None:
        raise UserError(
            f"references.pool: folder {error.filename} cannot be read ({error.strerror}); change its permissions"
        ) from error

    paths: list[Place] = []
    left: list[Place] = []
    entered: set[str] = set()
    starts = deque([root])  # the folder itself, then what links in it lead to: a link never takes a folder's own place
    while starts:
        start = starts.popleft()
        top = os.path.realpath(start)
        if start != root and (top in entered or leads_round(start, os.path.realpath(root))):
            left.append(Path(start))
            continue
        for folder, below, names in os.walk(start, onerror=refuse):
            real = top + folder[len(start) :]
            entered.add(real)
            paths += [Path(folder, name) for name in names if not is_hidden(name)]
            visible = [(name, os.path.join(folder, name)) for name in sorted(below) if not is_hidden(name)]
            starts += [path for _, path in visible if os.path.islink(path)]
            below[:] = [
                name for name, path in visible if not os.path.islink(path) and os.path.join(real, name) not in entered
            ]
    return paths, left


def leads_round(link: Place | str, *entered: str) -> bool:
    """Whether a link leads to a folder in which the link itself lies, or a folder that was ``entered``, by its real
    path.
    """
    real, own = os.path.realpath(str(link)), os.path.realpath(os.path.dirname(str(link)))
    return any(os.path.commonpath([real, path]) == real for path in (own, *entered))


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
    entered = [os.path.realpath(str(root))]
    while True:
        try:
            entries = [p for p in root.iterdir() if not is_hidden(p.name)]
        except OSError as error:
            raise UserError(f"references.pool: folder {root} cannot be read ({error.strerror})") from error
        folders = {p.name: p for p in entries if p.is_dir() and not p.is_symlink()}
        beside = [os.path.realpath(str(p)) for p in folders.values()]
        for link in (p for p in entries if p.is_symlink() and p.is_dir() and not leads_round(p, *entered)):
            real = os.path.realpath(str(link))
            if not any(os.path.commonpath([real, folder]) == folder for folder in beside):  # else it is another name
                folders[link.name] = link
        if any(p.suffix.lower() in SUFFIXES for p in entries if p.is_file()):
            return root
        if split in folders and set(folders) <= SPLIT_NAMES:
            root = folders[split]
        elif len(folders) == 1:
            (root,) = folders.values()
        else:
            return root
        entered.append(os.path.realpath(str(root)))


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
    """The number of files under ``root`` by suffix, without files that are ``read``, notes, masks and READMEs.

    Links to folders that are not followed count too.
    """
    files, links = _below(root)
    kinds = [
        *((path, path.suffix.lower() or "without suffix") for path in files if path.stem.lower() not in ABOUT),
        *((link, LINK) for link in links),
    ]
    return Counter(
        kind for path, kind in kinds if kind not in (*read, ".txt") and not (masks and path.is_relative_to(masks))
    )


def census(kinds: Counter[str]) -> str:
    """Kinds of files as text, the most frequent first: ".zip 3, .md 1"."""
    ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{text.one_line(kind, 20)} {n}" for kind, n in ordered[:5])
    return shown + (f" and {len(ordered) - 5} other kinds" if len(ordered) > 5 else "") or "nothing"
