"""Shards as tar files: finding them and reading their members within limits.

The members' meaning is in ``shards.py``.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import fsspec

from data_schemas.errors import UserError
from data_schemas.io import folders, pictures
from data_schemas.io.documents import MAX_BYTES as MAX_TEXT
from data_schemas.io.files import check_file
from data_schemas.io.pointers import followed
from data_schemas.io.storage import need_bucket, reaching, shown, url_to_fs
from data_schemas.io.text import is_plain, one_line

MAX_SAMPLE = 2 * pictures.MAX_BYTES
"""Most bytes of all members of one sample together."""
MAX_MEMBERS = 1000
MAX_ID = 500
MAX_HEADER = 1_000_000
"""Most bytes of one member's name and other headers."""
MAX_FILE_NAME = 150
GLOB = "give a glob such as 'runs/quickstart/dataset/train-*.tar'"


def read_members(url: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(sample id, members by name) of one tar, in stored order.

    Raises UserError for a damaged or truncated shard, for members that are links or devices, for members whose declared
    size is too large (they are not read), and for a sample that appears twice.
    """
    with _opened(url) as file:
        yield from _samples(url, file, _content)


def sample_ids(url: str) -> list[str]:
    """The sample ids of a tar in stored order, read from its headers alone. Raises UserError like ``read_members``."""
    with _opened(url) as file:
        return [sample_id for sample_id, _ in _samples(url, file, lambda file, entry: b"")]


def tar_files(path: str) -> Iterator[tarfile.TarInfo]:
    """The headers of all files in a tar on this disk. Raises UserError like ``read_members``."""
    with _opened(path) as file:
        yield from _entries(path, file)


def file_name(sample_id: str) -> str:
    """A file name, without suffix, made from a sample id.

    Different ids give different names, and no name leaves its folder.

    ``x/0001`` becomes ``x%2F0001``; ids of letters, digits, ``-`` and ``_`` stay as they are.
    """
    name = re.sub(r"[%/\\\x00-\x1f\x7f]|^\.", lambda mark: f"%{ord(mark[0]):02X}", sample_id)
    if len(os.fsencode(name)) <= MAX_FILE_NAME:
        return name
    start = name.encode(errors="replace")[: MAX_FILE_NAME // 2].decode(errors="ignore")
    return f"{start}%-{hashlib.sha256(sample_id.encode(errors='surrogateescape')).hexdigest()[:32]}"


class _Headers:
    """The file as tarfile reads it. tarfile only reads headers here, so a header that claims gigabytes is refused."""

    def __init__(self, file: IO[bytes], url: str):
        self._file, self._url = file, url
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise UserError(
                f"{self._url}: a header of {size} bytes, at most {MAX_HEADER} are read; make the shard again"
            )
        return self._file.read(size)


@contextmanager
def _opened(url: str) -> Iterator[IO[bytes]]:
    """Open a shard. Any error while it is read becomes one line that names the shard."""
    where = shown(url)
    try:
        with reaching(url):
            if "://" not in url:
                check_file(url, "give a shard")
            with fsspec.open(url, "rb") as file:
                yield file
    except FileNotFoundError as error:
        raise UserError(f"{where}: no such shard") from error
    except tarfile.TarError as error:
        raise UserError(f"{where}: the tar is cut short or damaged ({one_line(error)}); make it again") from error


def _samples(
    url: str, file: IO[bytes], read: Callable[[IO[bytes], tarfile.TarInfo], bytes]
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(sample id, members by name) in stored order. A member is read only after all sizes have been checked."""
    known_ids: set[str] = set()
    current, members, size = "", dict[str, bytes](), 0
    for entry in _entries(url, file):
        folder, slash, base = entry.name.removeprefix("./").rpartition("/")
        if base.startswith(".") or "__MACOSX" in folder.split("/"):
            continue
        stem, _, name = base.partition(".")
        sample_id = folder + slash + stem
        if sample_id != current or not members:
            if members:
                yield current, members
            current, members, size = sample_id, {}, 0
            _check_id(url, sample_id, known_ids)
        if name in members:
            raise UserError(f"{shown(url)}: sample {sample_id}: member {name!r} is there twice; make the shard again")
        size += entry.size
        if size > MAX_SAMPLE or len(members) >= MAX_MEMBERS:
            raise UserError(
                f"{shown(url)}: sample {sample_id}: more than {MAX_MEMBERS} members or {MAX_SAMPLE} bytes; make the "
                "shard again"
            )
        members[name] = read(file, entry)
    if members:
        yield current, members


def _check_id(url: str, sample_id: str, known_ids: set[str]) -> None:
    if not is_plain(sample_id) or len(sample_id) > MAX_ID:
        raise UserError(
            f"{shown(url)}: a sample named {one_line(sample_id, 60)!r}: names are UTF-8 text without control marks, at "
            f"most {MAX_ID} characters; make the shard again"
        )
    if sample_id in known_ids:
        raise UserError(f"{shown(url)}: sample {sample_id} is there twice; make the shard again, members side by side")
    known_ids.add(sample_id)


def _entries(url: str, file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """The headers of all files in a tar, checked; their content is skipped."""
    with tarfile.open(fileobj=_Headers(file, shown(url)), mode="r:") as tar:  # type: ignore[call-overload]
        for entry in tar:
            where = f"{shown(url)}: member {one_line(entry.name, 100)!r}"
            if entry.isdir():
                continue
            if entry.issym() or entry.islnk():
                raise UserError(f"{where} is a link to {one_line(entry.linkname, 100)!r}; pack the file itself")
            if not entry.isfile():
                raise UserError(f"{where} is a pipe or device, not a file; leave it out")
            limit = MAX_TEXT if entry.name.endswith((".json", ".txt")) else pictures.MAX_BYTES
            if not 0 <= entry.size <= limit:
                raise UserError(f"{where} has {entry.size} bytes, more than the limit of {limit}; make it smaller")
            if entry.issparse():
                raise UserError(f"{where} is stored with holes (sparse); pack the shard again without them")
            yield entry
        # A complete tar ends in a block of zeros; one that was cut between two members does not. A header that is
        # damaged or cut ends tarfile's loop just like that block, and what is behind it would be lost without a word.
        file.seek(tar.offset)
        block = file.read(tarfile.BLOCKSIZE)
        if not block or block.strip(b"\0"):
            raise tarfile.ReadError("a damaged header" if block else "no end-of-archive mark")


def _content(file: IO[bytes], entry: tarfile.TarInfo) -> bytes:
    file.seek(entry.offset_data)
    data = file.read(entry.size)
    if len(data) != entry.size:
        raise tarfile.ReadError("unexpected end of data")
    return data


def expand_shards(pattern: str | Sequence[str]) -> list[str]:
    """The sorted shards that a glob such as ``data/train-*.tar`` (disk or bucket) matches, or those of several globs.

    ``<run>/dataset`` stands for the run's newest dataset, and the shards are in that dataset's own folder: a curation
    that ends while they are read makes another one the newest. Raises UserError if nothing matches.
    """
    if not isinstance(pattern, str):
        return list(dict.fromkeys(url for one in pattern for url in expand_shards(one)))
    if "://" in pattern:
        folder, _, name = pattern.rpartition("/")
        paths = _glob_url(pattern)
        if not paths and (newest := followed(folder)) is not None:
            paths = _glob_url(f"{newest}/{name}")
        if not paths:
            need_bucket(pattern)
    else:
        paths = [pattern] if _is_there(pattern) else _glob(pattern)
        for path in paths:
            if os.path.isdir(path):
                _no_examples(path)
                raise UserError(
                    f"{shown(path)}: is a folder, not a shard; give a glob such as '{path.rstrip('/')}/*.tar'"
                )
            check_file(path, GLOB)
        paths = [_in_its_folder(path) for path in paths]
    if not paths:
        raise UserError(f"{shown(pattern)}: no shard matches; {GLOB}")
    return sorted(paths)


def _in_its_folder(path: str) -> str:
    """The path of a file without the link to the folder that it is in."""
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder), name) if os.path.islink(folder) else path


def _no_examples(path: str) -> None:
    """UserError for a folder of examples, which says how shards are made of them."""
    places = [Path(path), *(Path(path, split) for split in ("train", "test"))]
    made = f"{path.rstrip('/')}-shards"
    if any(folders.example_folders(place) for place in places):
        raise UserError(
            f"{shown(path)}: holds examples in folders, not shards; make shards of them with instructar import {path} "
            f"--out {made}, and give '{made}/train-*.tar'"
        )


def _is_there(path: str) -> bool:
    """Whether a file with exactly this name exists; its name may contain brackets and stars."""
    try:
        return os.path.lexists(path)
    except ValueError:  # a NUL
        return False


def _glob_url(pattern: str) -> list[str]:
    fs, path = url_to_fs(pattern)
    try:
        with reaching(pattern):
            return [fs.unstrip_protocol(match) for match in fs.glob(path)]
    except FileNotFoundError:
        return []


def _glob(pattern: str) -> list[str]:
    try:
        return glob.glob(pattern)
    except (ValueError, OSError, re.error) as error:
        raise UserError(f"{shown(pattern)}: cannot be a path ({one_line(error, 100)}); {GLOB}") from error
