"""Zip and tar archives as the folder that unpacking them would give, read in place."""

from __future__ import annotations

import io
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from fsspec.archive import AbstractArchiveFileSystem

from data_schemas.errors import UserError
from data_schemas.io.files import check_file
from data_schemas.io.tars import tar_files
from data_schemas.io.text import one_line
from pipeline.references.places import BucketPath, GuardedFile, Listing

SUFFIXES = (".tar", ".zip")
DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, RuntimeError, ValueError)
"""What zipfile raises for what it cannot unpack; a RuntimeError is a password or a method that it does not know."""


def unpacked(archives: Sequence[Path], source: str) -> BucketPath:
    """What the archives of the pool ``source`` hold, as if all were unpacked into one folder.

    Raises UserError for an archive that cannot be read, and for a file that is in two of them.
    """
    try:
        states = [(os.path.abspath(path), check_file(path, "give an archive").stat()) for path in archives]
        files = Archives(*((path, state.st_size, state.st_mtime_ns) for path, state in states))
    except UserError as error:
        raise UserError(f"references.pool {source}: {error}") from error
    return BucketPath(Listing(source, files, "", "directory"), PurePosixPath(""))


class Archives(AbstractArchiveFileSystem):
    """The files of archives by their paths in them. Threads may read side by side.

    An archive is (path, bytes, time of its last change): fsspec keeps one instance for the same arguments, and makes a
    copy in another process of them. Raises UserError for an archive that cannot be read.
    """

    protocol = "archives"

    def __init__(self, *archives: tuple[str, int, int], **options: Any):
        super().__init__(**options)
        self._members: dict[str, tuple[str, tarfile.TarInfo | zipfile.ZipInfo]] = {}
        self._zips: dict[str, zipfile.ZipFile] = {}
        self.dir_cache: dict[str, dict[str, Any]] = {}
        for path, _, _ in archives:
            if path.lower().endswith(".tar"):
                for entry in tar_files(path):
                    self._add(path, entry, entry.name, entry.size)
            else:
                for member in self._in_zip(path):
                    self._add(path, member, member.filename, member.file_size)
        folders = self._all_dirnames(list(self._members))
        self.dir_cache |= {name: {"name": name, "type": "directory", "size": 0} for name in folders}

    def _in_zip(self, path: str) -> Iterator[zipfile.ZipInfo]:
        try:
            self._zips[path] = zipfile.ZipFile(path)
        except (OSError, *DAMAGED) as error:
            raise UserError(f"{os.path.basename(path)} is no zip archive that can be read; get it again") from error
        yield from (member for member in self._zips[path].infolist() if not member.is_dir())

    def _add(self, archive: str, member: tarfile.TarInfo | zipfile.ZipInfo, called: str, size: int) -> None:
        name, own = PurePosixPath(called.lstrip("/")), os.path.basename(archive)
        if ".." in name.parts:
            raise UserError(f"{own}: member {one_line(called, 100)!r} leaves the archive; pack it again")
        if (other := self._members.get(str(name))) is not None:
            both = f"{own} and {os.path.basename(other[0])}"
            raise UserError(f"{both}: each holds {one_line(called, 100)}; unpack them into folders of their own")
        self._members[str(name)] = archive, member
        self.dir_cache[str(name)] = {"name": str(name), "type": "file", "size": size}

    def _get_dirs(self) -> None:
        """Nothing to do: the archives are listed when they are opened."""

    def _open(self, path: str, mode: str = "rb", **options: Any) -> IO[bytes]:
        archive, member = self._members[path]
        if isinstance(member, zipfile.ZipInfo):
            where = f"{self.unstrip_protocol(path)}: cannot be unpacked from {os.path.basename(archive)}"
            file = _unpack(where, lambda: self._zips[archive].open(member))
            return GuardedFile(file, partial(_unpack, where))  # type: ignore[return-value]
        with open(archive, "rb") as file:  # no member has more bytes than a picture may have
            file.seek(member.offset_data)
            return io.BytesIO(file.read(member.size))


def _unpack(where: str, read: Callable[[], Any]) -> Any:
    """What ``read`` returns; what a damaged member raises becomes a UserError.

    It is no OSError, which would be taken for a storage that fails for a moment: asked again, it would stop the run.
    """
    try:
        return read()
    except UserError:
        raise
    except (OSError, *DAMAGED) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's; that of bz2 has no number
            raise
        raise UserError(f"{where} ({one_line(error, 100)}); pack it again, without a password") from error
