"""Removing what a run holds and its current config does not reach: parts, datasets and temporary files.

Only files of these names are ever removed, and only if nothing else lies in their folder:

    <run>/<stage>/<fingerprint>/part-00000.parquet ...    of a fingerprint that is not the current one's
    <run>/datasets/<content>/train-00000.tar ...          of a dataset that is not among the newest
    .<name>.<32 hexadecimal digits>.tmp                   of a process that was killed more than an hour ago

Links are never followed. The current config is that of the run's last curation, also of one that did not end.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from data_schemas.errors import UserError
from data_schemas.io import pointers
from data_schemas.io.files import LEFT_AFTER
from data_schemas.io.storage import patiently, reaching, shown, url_to_fs
from pipeline.config import CurationConfig
from pipeline.dataset import versions
from pipeline.run import Run
from pipeline.upkeep.lock import FOLDER as LOCKS
from pipeline.upkeep.lock import held

FINGERPRINT = re.compile(r"[0-9a-f]{16}")
PART = re.compile(r"(part|train|test|pool)-([0-9a-f]{5,}|end)\.(parquet|tar|notes\.json)|pool\.json")
IN_DATASET = re.compile(r"(train|test)-\d{5,}\.tar|manifest\.parquet|run\.json|README\.md")
TEMPORARY = re.compile(r"\.(.*\.)?[0-9a-f]{32}\.tmp(\.old\.tmp)?")

Entry = Mapping[str, Any]
"""A file or folder as fsspec lists it."""


@dataclass(frozen=True)
class Piece:
    """Something to remove: a folder with its files, or a single file. ``name`` is relative to the run."""

    what: str
    name: str
    files: tuple[Entry, ...]
    folder: str | None = None

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(int(file["size"] or 0) for file in self.files)


@dataclass(frozen=True)
class Found:
    """What can be removed, and the folders that cannot because something else is in them."""

    pieces: tuple[Piece, ...]
    left_alone: tuple[str, ...]

    def freed(self) -> int:
        """Bytes that removing all pieces frees. A file with further names, as shards have, frees nothing."""
        files = [file for piece in self.pieces for file in piece.files]
        names = Counter(_identity(file) for file in files)
        sizes = {_identity(f): int(f["size"] or 0) for f in files if names[_identity(f)] >= f.get("nlink", 1)}
        return sum(sizes.values())


def _identity(file: Entry) -> object:
    return file.get("ino") or file["name"]


def prunable(config: CurationConfig, keep: int = 1) -> Found:
    """What can go of the run that was curated with ``config``, but for the ``keep`` newest datasets."""
    run = Run.of(config)
    fs, root = url_to_fs(config.run_url)
    return _Search(fs, root.rstrip("/"), run, keep).found()


def prune(config: CurationConfig, keep: int = 1) -> Found:
    """Remove it, holding the run's lock. Raises UserError that names the owner if a curation is at work."""
    with held(config.run_url) as lock, reaching(config.run_url):
        found = prunable(config, keep)
        for piece in found.pieces:
            lock.check()
            _remove(lock.fs, lock.folder.removesuffix(f"/{LOCKS}"), piece)
    return found


class _Search:
    def __init__(self, fs: fsspec.AbstractFileSystem, root: str, run: Run, keep: int):
        self.fs, self.root, self.run, self.keep = fs, root, run, keep
        self.pieces: list[Piece] = []
        self.left_alone: list[str] = []

    def found(self) -> Found:
        self.fs.invalidate_cache()
        self._temporary(self.root)
        self._temporary(f"{self.root}/{LOCKS}")
        for stage in self._folders(self.root):
            if _name(stage) != "datasets":
                self._stage(stage["name"])
        self._datasets(f"{self.root}/datasets")
        return Found(tuple(self.pieces), tuple(self.left_alone))

    def _stage(self, folder: str) -> None:
        current = dict(self.run.fingerprints).get(_last(folder))
        for entry in self._folders(folder):
            if FINGERPRINT.fullmatch(_name(entry)):
                self._temporary(entry["name"])
                if _name(entry) != current:
                    self._whole_folder("parts", entry["name"], PART)

    def _datasets(self, folder: str) -> None:
        self._temporary(folder)
        names = versions.folders(self.fs, folder)
        dated = [entry.dataset for entry in versions.published(self.fs, folder)]
        newest_last = [name for name in names if name not in dated] + [name for name in dated if name in names]
        kept = {*newest_last[-self.keep :], self._linked()}
        real = {_name(entry) for entry in self._folders(folder)}
        for name in names:
            if name in real:
                self._temporary(f"{folder}/{name}")
                if name not in kept:
                    self._whole_folder("dataset", f"{folder}/{name}", IN_DATASET)

    def _linked(self) -> str | None:
        """The dataset that ``<run>/dataset`` points to."""
        if isinstance(self.fs, LocalFileSystem):
            with suppress(OSError):
                return _last(os.readlink(f"{self.root}/dataset"))
            return None
        newest = pointers.followed(self.fs.unstrip_protocol(f"{self.root}/dataset"))
        return None if newest is None else _last(newest)

    def _whole_folder(self, what: str, folder: str, known: re.Pattern[str]) -> None:
        entries = [entry for entry in self._list(folder) if not TEMPORARY.fullmatch(_name(entry))]
        if not entries and not isinstance(self.fs, LocalFileSystem):
            return  # a bucket has no folders but those of its files
        if all(_is_file(entry) and known.fullmatch(_name(entry)) for entry in entries):
            self.pieces.append(Piece(what, self._relative(folder), tuple(entries), folder))
        else:
            self.left_alone.append(self._relative(folder))

    def _temporary(self, folder: str) -> None:
        for entry in self._list(folder):
            if not TEMPORARY.fullmatch(_name(entry)) or time.time() - entry.get("mtime", 0) < LEFT_AFTER:
                continue
            if _is_file(entry) or entry.get("islink"):  # a link is removed, not what it leads to
                own = {**entry, "size": 0} if entry.get("islink") else entry
                self.pieces.append(Piece("temporary", self._relative(entry["name"]), (own,)))
            elif entry["type"] == "directory":
                self._whole_folder("temporary", entry["name"], IN_DATASET)

    def _folders(self, folder: str) -> Iterator[Entry]:
        return (entry for entry in self._list(folder) if entry["type"] == "directory" and not entry.get("islink"))

    def _list(self, folder: str) -> list[Entry]:
        if isinstance(self.fs, LocalFileSystem) and os.path.islink(folder) and folder != self.root:
            return []
        try:
            entries = patiently(lambda: self.fs.ls(folder, detail=True), shown(folder))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted((e for e in entries if e["name"].rstrip("/") != folder), key=lambda entry: entry["name"])

    def _relative(self, path: str) -> str:
        return path.rstrip("/")[len(self.root) + 1 :]


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _name(entry: Entry) -> str:
    return _last(entry["name"])


def _is_file(entry: Entry) -> bool:
    return entry["type"] == "file" and not entry.get("islink")


def _remove(fs: fsspec.AbstractFileSystem, root: str, piece: Piece) -> None:
    """Remove a piece so that nothing that is half gone can be taken for whole: a dataset loses its name first (in a
    bucket its run.json), a part its Parquet file."""
    folder = piece.folder
    files = sorted(
        (str(file["name"]) for file in piece.files), key=lambda path: not path.endswith((".parquet", "n.json"))
    )
    if not isinstance(fs, LocalFileSystem):
        for path in files:
            fs.rm_file(path)
        return
    own = os.path.dirname(files[0]) if folder is None else folder
    if os.path.realpath(own) != os.path.normpath(os.path.join(os.path.realpath(root), os.path.relpath(own, root))):
        raise UserError(f"{own}: leads out of the run by a link; nothing of it was removed")
    if folder is not None and piece.what == "dataset":
        renamed = os.path.join(os.path.dirname(folder), f".{uuid.uuid4().hex}.tmp")
        os.rename(folder, renamed)
        files, folder = [os.path.join(renamed, os.path.basename(path)) for path in files], renamed
    for path in files:
        with suppress(FileNotFoundError):
            os.unlink(path)
    if folder is not None:
        with suppress(OSError):  # a temporary file that is not old enough
            os.rmdir(folder)
            os.rmdir(os.path.dirname(folder))  # a stage of which nothing is left


def told(found: Found, done: bool) -> str:
    """What was found as lines of text."""
    lines = [f"{piece.what:<10} {_size(piece.size):>10}  {piece.name}" for piece in found.pieces]
    lines += [f"left alone            {name}: holds what a curation does not write" for name in found.left_alone]
    if not found.pieces:
        return "\n".join([*lines, "nothing to remove"])
    what = f"{len(found.pieces)} pieces, {_size(found.freed())}"
    return "\n".join([*lines, f"removed {what}" if done else f"would free {what}; remove them with --yes"])


def _size(number: float) -> str:
    units: Sequence[str] = ("B", "kB", "MB", "GB", "TB")
    for unit in units:
        if number < 1000 or unit == units[-1]:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    raise AssertionError
