"""The files of a pool, on a disk or in a bucket.

On a disk they are pathlib's paths. ``BucketPath`` has those methods of pathlib by which pools find files. All that it
tells comes from one listing, so that a storage that fails for a moment never seems to lack a file.
"""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, BinaryIO, Protocol, Self, TypeVar

import fsspec

from data_schemas.errors import UserError
from data_schemas.io.files import read_file
from data_schemas.io.storage import Unreadable, file_sha256, need_bucket, patiently, reaching, url_to_fs

AT_ONCE = 16_000_000
"""Bytes up to which a file's digest is made from a single request."""
AHEAD = 4 << 20
"""Bytes that are asked for together when a Parquet file is read."""
SIDE_BY_SIDE = 8
"""Requests at the same time while a pool is listed: the answers, not the work, take the time."""
R = TypeVar("R")


class Place(Protocol):
    """A file or folder: pathlib's Path, or a BucketPath."""

    @property
    def name(self) -> str: ...
    @property
    def stem(self) -> str: ...
    @property
    def suffix(self) -> str: ...
    @property
    def parent(self) -> Self: ...
    def __truediv__(self, other: Any, /) -> Self: ...
    def with_suffix(self, suffix: str, /) -> Self: ...
    def relative_to(self, other: Any, /) -> PurePath: ...
    def is_relative_to(self, other: Any, /) -> bool: ...
    def resolve(self) -> Self: ...
    def exists(self) -> bool: ...
    def is_file(self) -> bool: ...
    def is_dir(self) -> bool: ...
    def is_symlink(self) -> bool: ...
    def iterdir(self) -> Iterable[Self]: ...
    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class Listing:
    """All files below the URL of a pool, asked for once. ``kind`` is "file" or "directory", if there is either."""

    url: str
    fs: fsspec.AbstractFileSystem = field(compare=False, repr=False)
    root: str
    kind: str

    @cached_property
    def files(self) -> dict[PurePosixPath, dict[str, Any]]:
        """What the storage says of each file, by its path. Of a single file's neighbours too, as of its licence."""
        with reaching(self.url):
            infos = patiently(self._listed, self.url)
        # an empty object named "folder/" stands for a folder that a console made
        files = [info for info in infos if info["type"] == "file" and not info["name"].endswith("/")]
        return {PurePosixPath(info["name"]): info for info in files}

    def _listed(self) -> Iterable[dict[str, Any]]:
        if self.kind != "file":
            return self.fs.find(self.root, detail=True).values()
        try:
            beside = self.fs.ls(str(PurePosixPath(self.root).parent), detail=True)
        except FileNotFoundError:  # a server that lists no folders
            beside = []
        return [*beside, self.fs.info(self.root)]

    @cached_property
    def folders(self) -> dict[PurePosixPath, set[PurePosixPath]]:
        """What is in each folder, by its path."""
        found: dict[PurePosixPath, set[PurePosixPath]] = defaultdict(set)
        for path in self.files:
            while path != PurePosixPath(self.root) and path != path.parent:
                found[path.parent].add(path)
                path = path.parent
        return dict(found)


@dataclass(frozen=True)
class BucketPath:
    """A file or folder of a pool in a bucket. ``str`` gives its URL."""

    pool: Listing
    path: PurePosixPath

    @classmethod
    def of(cls, url: str) -> Self | None:
        """The pool's folder or file; None if nothing is there. UserError if its bucket is missing or refuses."""
        fs, root = url_to_fs(url.rstrip("/"))
        try:
            with reaching(url):
                kind = fs.info(root)["type"]
        except FileNotFoundError:
            need_bucket(url)
            return None
        return cls(Listing(url.rstrip("/"), fs, root, kind), PurePosixPath(root))

    def __str__(self) -> str:
        return str(self.pool.fs.unstrip_protocol(str(self.path)))

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def stem(self) -> str:
        return self.path.stem

    @property
    def suffix(self) -> str:
        return self.path.suffix

    @property
    def parent(self) -> Self:
        return type(self)(self.pool, self.path.parent)

    def __truediv__(self, other: PurePath | str, /) -> Self:
        return type(self)(self.pool, self.path / other)

    def with_suffix(self, suffix: str, /) -> Self:
        return type(self)(self.pool, self.path.with_suffix(suffix))

    def relative_to(self, other: BucketPath, /) -> PurePosixPath:
        return self.path.relative_to(other.path)

    def is_relative_to(self, other: BucketPath, /) -> bool:
        return self.path.is_relative_to(other.path)

    def resolve(self) -> Self:
        return self

    @property
    def _is_root(self) -> bool:
        return self.path == PurePosixPath(self.pool.root)

    def is_file(self) -> bool:
        return self.pool.kind == "file" if self._is_root else self.path in self.pool.files

    def is_dir(self) -> bool:
        return self.pool.kind == "directory" if self._is_root else self.path in self.pool.folders

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def is_symlink(self) -> bool:
        return False

    def iterdir(self) -> Iterator[Self]:
        return (type(self)(self.pool, path) for path in self.pool.folders.get(self.path, ()))

    def below(self) -> list[Self]:
        """All files in this folder and its folders."""
        return [type(self)(self.pool, path) for path in self.pool.files if path.is_relative_to(self.path)]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return int(self.pool.files[self.path]["size"])

    @property
    def version(self) -> str:
        """Changes when the file is written again."""
        info = self.pool.files[self.path]
        return str([info.get(key) for key in ("ETag", "etag", "LastModified", "last_modified", "mtime", "created")])

    @property
    def _key(self) -> str:
        return str(self.pool.files[self.path]["name"])

    def start(self, count: int) -> bytes:
        """The first ``count`` bytes of the file, or all if it has fewer."""
        if not self.size:  # there is no range to ask for
            return b""
        return patiently(lambda: self.pool.fs.cat_file(self._key, start=0, end=count), str(self))

    def digest(self) -> str:
        """SHA-256 of the file, as a digest of any other."""
        if self.size > AT_ONCE:
            return patiently(lambda: file_sha256(self.pool.fs, self._key), str(self))
        return hashlib.sha256(self.start(AT_ONCE)).hexdigest()

    def opened(self) -> BinaryIO:
        """The file opened for reading here and there; each of its reads is tried again if the storage fails."""
        file = patiently(lambda: self.pool.fs.open(self._key, "rb", block_size=AHEAD), str(self))
        return GuardedFile(file, lambda read: patiently(read, str(self)))  # type: ignore[return-value]


class GuardedFile(io.RawIOBase):
    """A file whose reads and seeks are called by ``guard``, which may try again or raise another error.

    A position changes only by reads that succeed.
    """

    def __init__(self, file: Any, guard: Callable[[Callable[[], Any]], Any]):
        self._file, self._guard = file, guard

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return int(self._guard(lambda: self._file.seek(offset, whence)))  # in a zip it reads what lies between

    def tell(self) -> int:
        return int(self._file.tell())

    def read(self, size: int = -1, /) -> bytes:
        return self._guard(lambda: self._file.read(size))

    def close(self) -> None:
        self._file.close()
        super().close()


def read_place(place: Place, advice: str, limit: int) -> bytes:
    """The bytes of a file on a disk or in a bucket; UserError if it is none, is refused, or has more than ``limit``."""
    if not isinstance(place, BucketPath):
        return read_file(str(place), advice, limit)
    if not place.is_file():
        raise UserError(f"{place}: cannot be read (No such file or directory); {advice}")
    if place.size > limit:
        raise UserError(f"{place}: {place.size} bytes, more than the limit of {limit}; {advice}")
    try:
        return place.start(limit)
    except Unreadable as error:
        if refused(error):
            raise UserError(f"{place}: cannot be read (Permission denied); {advice}") from error
        raise
    except FileNotFoundError as error:  # since it was listed
        raise UserError(f"{place}: cannot be read (No such file or directory); {advice}") from error


def digest_of(place: Place) -> str:
    """SHA-256 of a file. Raises OSError if it cannot be read."""
    if isinstance(place, BucketPath):
        return place.digest()
    with open(str(place), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refused(error: Unreadable) -> bool:
    """Whether a storage refuses a single file: a mistake in that file, as missing permissions on a disk are."""
    return isinstance(error.__cause__, PermissionError)


def each(work: Callable[[Any], R], places: Sequence[Any]) -> Iterator[R]:
    """``work`` of every place, in their order; for places in a bucket several at the same time."""
    if not places or isinstance(places[0], Path):
        yield from map(work, places)
        return
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        yield from pool.map(work, places)
