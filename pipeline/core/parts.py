"""The part store: where a stage's output lives, whether it is whole, and how it is written. Nothing else writes it.

Layout: ``<run>/<stage>/<fingerprint>/<part>.parquet`` (one row a sample), ``<part>.tar`` beside it where the stage
makes pictures, ``<part>.notes.json`` with what is true of this copy alone: the seconds each sample took, and the state
of the file system's entry for the tar when its content was last compared with its digest. The Parquet file is written
last: a part exists if and only if that file does. Its metadata says where in the tar each picture lies, so that a
picture is read without the others.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from data_schemas.errors import UserError
from data_schemas.io.storage import file_sha256, read_facts, url_to_fs, write_file, write_stream
from data_schemas.schema import TableSchema, validate

Members = Mapping[str, Mapping[str, bytes]]
"""Pictures of a part: sample id -> member name ("target.png") -> bytes."""


class TarEntry(NamedTuple):
    """Where the bytes of one member are in a tar, and their CRC-32 checksum."""

    offset: int
    size: int
    checksum: int


Entries = Mapping[str, Mapping[str, TarEntry]]
"""Sample id -> member name -> its entry in the tar."""

BLOCK = 1 << 20


class DamagedPart(UserError):
    """A picture that a part's index names is not in its tar as it was written."""


def fingerprint(**ingredients: object) -> str:
    """16 hex digits that change when anything that decides a stage's output changes (design, decision 2)."""
    text = json.dumps(ingredients, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def content_digest(*chunks: bytes) -> str:
    """SHA-256 over the chunks, each preceded by its length, so that no two lists of chunks collide."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(len(chunk).to_bytes(8, "little"))
        digest.update(chunk)
    return digest.hexdigest()


def join_digests(digests: Iterable[str]) -> str:
    """One digest for the several parts that something was made from, in order."""
    return content_digest(*(d.encode() for d in digests))


@dataclass(frozen=True)
class Part:
    """A whole part as read back: its rows, the digest of its Parquet file that later stages record, and, of a stage
    that makes pictures, the SHA-256 of its tar and where the pictures lie in it."""

    table: pa.Table
    digest: str
    tar_sha256: str | None
    entries: Entries

    def rows(self) -> list[dict]:
        return self.table.to_pylist()


def _parse_entries(stored: bytes) -> Entries:
    by_sample = json.loads(stored)
    return {i: {name: TarEntry(*entry) for name, entry in members.items()} for i, members in by_sample.items()}


class PartStore:
    """The parts of one stage under one fingerprint, on any fsspec file system."""

    def __init__(self, run: str, stage: str, stage_fingerprint: str, schema: TableSchema):
        self.fs, root = url_to_fs(run)
        self.root = f"{root.rstrip('/')}/{stage}/{stage_fingerprint}"
        self.schema = schema

    def path(self, part: str, suffix: str) -> str:
        return f"{self.root}/{part}.{suffix}"

    def url(self, part: str, suffix: str) -> str:
        """The same path as users write it: plain on a disk, with its protocol on a bucket."""
        path = self.path(part, suffix)
        return path if isinstance(self.fs, LocalFileSystem) else self.fs.unstrip_protocol(path)

    def exists(self, part: str) -> bool:
        """Whether the part was committed; only ``read`` tells whether it is whole."""
        return self.fs.exists(self.path(part, "parquet"))

    def read(self, part: str, made_from: str | None = None) -> Part | None:
        """The part if it is whole, else None: missing, damaged, or made from other input than ``made_from``.

        Pages of the Parquet file carry checksums. The tar is not opened as long as the file system shows the entry
        that it showed when the content was last compared; otherwise it is compared with its digest again. A part that
        is not as it was written is made again rather than trusted.
        """
        try:
            data = self.fs.cat_file(self.path(part, "parquet"))
            table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
            validate(table, self.schema, part)
            metadata = table.schema.metadata or {}
            entries = _parse_entries(metadata.get(b"members", b"{}"))
        except (OSError, ValueError, TypeError, AttributeError, pa.ArrowException):
            return None
        if made_from is not None and metadata.get(b"made_from") != made_from.encode():
            return None
        tar = metadata.get(b"tar_sha256")
        if tar is not None and not self._tar_is_whole(part, tar.decode()):
            return None
        return Part(table, content_digest(data), None if tar is None else tar.decode(), entries)

    def _tar_is_whole(self, part: str, sha256: str) -> bool:
        notes = self.notes(part)
        try:
            seen = self._file_stamp(self.path(part, "tar"))
            if seen == notes.get("tar_seen"):
                return True
            if file_sha256(self.fs, self.path(part, "tar")) != sha256:
                return False
        except OSError:
            return False
        self._write_notes(part, {**notes, "tar_seen": seen})
        return True

    def _file_stamp(self, path: str) -> str:
        """What the file system says of a file, which changes when it is written."""
        if not isinstance(self.fs, LocalFileSystem):
            return self.fs.ukey(path)
        status = os.stat(path)  # and not fsspec's key, which changes when the file gets a second name
        return f"{status.st_size} {status.st_mtime_ns}"

    def pictures(self, part: str, whole: Part) -> PartPictures:
        """Reads single pictures of a part that ``read`` has found whole."""
        return PartPictures(self, part, whole.entries)

    def commit(
        self,
        part: str,
        rows: list[dict],
        members: Members | None,
        made_from: str,
        timing: Mapping[str, object] | None = None,
    ) -> Part:
        """Write a part so that it is either whole or not there: tar, notes, then the Parquet file that marks it.

        ``members`` is None for a stage without pictures. The same rows and members give the same bytes.
        """
        table = self.schema.table(rows)
        validate(table, self.schema, part)
        metadata = {**(table.schema.metadata or {}), b"made_from": made_from.encode()}
        notes: dict[str, object] = dict(timing or {})
        if members is not None:
            path = self.path(part, "tar")
            sha256, entries = write_stream(self.fs, path, lambda file: write_tar(file, members.items()))
            stored = json.dumps(entries, separators=(",", ":"))
            metadata |= {b"tar_sha256": sha256.encode(), b"members": stored.encode()}
            notes["tar_seen"] = self._file_stamp(path)
        if notes:
            self._write_notes(part, notes)
        buffer = io.BytesIO()
        pq.write_table(table.replace_schema_metadata(metadata), buffer, compression="zstd", write_page_checksum=True)
        write_file(self.fs, self.path(part, "parquet"), buffer.getvalue())
        whole = self.read(part, made_from)
        if whole is None:
            raise OSError(f"{self.url(part, 'parquet')}: written, but does not read back whole; check the disk")
        return whole

    def notes(self, part: str) -> dict[str, Any]:
        """What was noted of this copy of a part; empty if the file is gone, as it is for information only."""
        return read_facts(self.fs, self.path(part, "notes.json")) or {}

    def _write_notes(self, part: str, notes: Mapping[str, object]) -> None:
        write_file(self.fs, self.path(part, "notes.json"), json.dumps(notes, sort_keys=True).encode())

    def distrust(self, part: str) -> None:
        """Have the tar compared with its digest the next time that the part is read."""
        self._write_notes(part, {key: value for key, value in self.notes(part).items() if key != "tar_seen"})


class PartPictures:
    """Pictures of one part, each read alone from where it lies in the tar and compared with its checksum."""

    def __init__(self, store: PartStore, part: str, entries: Entries):
        self.entries = entries
        self._store, self._part = store, part

    def read(self, sample_id: str, name: str) -> bytes:
        """One picture's bytes; KeyError if the sample has none of this name."""
        start, size, checksum = self.entries[sample_id][name]
        path, fs = self._store.path(self._part, "tar"), self._store.fs
        if isinstance(fs, LocalFileSystem):  # fsspec's own way takes ten times as long, and a shard has hundreds
            with open(path, "rb", buffering=0) as file:
                data = os.pread(file.fileno(), size, start)
        else:
            data = fs.cat_file(path, start=start, end=start + size)
        if len(data) != size or zlib.crc32(data) != checksum:
            self._store.distrust(self._part)
            url = self._store.url(self._part, "tar")
            raise DamagedPart(f"{url}: {sample_id}.{name} is damaged; run the curation again, which makes it anew")
        return data

    def of(self, sample_id: str) -> Mapping[str, bytes]:
        """The pictures of one sample by name, read when they are asked for; empty if it has none."""
        return _SamplePictures(self, sample_id, tuple(self.entries.get(sample_id, ())))


class _SamplePictures(Mapping[str, bytes]):
    def __init__(self, pictures: PartPictures, sample_id: str, names: Sequence[str]):
        self._pictures, self._sample_id, self._names = pictures, sample_id, names

    def __getitem__(self, name: str) -> bytes:
        if name not in self._names:
            raise KeyError(name)
        return self._pictures.read(self._sample_id, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


# Writing


def write_tar(file: IO[bytes], members: Iterable[tuple[str, Mapping[str, bytes]]]) -> tuple[str, Entries]:
    """Write an uncompressed WebDataset tar with fixed headers, in the order given: (its SHA-256, its places)."""
    hashing = _HashingFile(file)
    entries: dict[str, dict[str, TarEntry]] = {}
    with tarfile.open(fileobj=hashing, mode="w", format=tarfile.USTAR_FORMAT, copybufsize=BLOCK) as tar:  # type: ignore[call-overload]
        for sample_id, pictures in members:
            of_sample = entries[sample_id] = {}
            for name in sorted(pictures):
                header = tarfile.TarInfo(f"{sample_id}.{name}")
                header.size, header.mode = len(pictures[name]), 0o444
                header.uname = header.gname = "instructar"
                of_sample[name] = TarEntry(tar.offset + tarfile.BLOCKSIZE, header.size, zlib.crc32(pictures[name]))
                tar.addfile(header, io.BytesIO(pictures[name]))
    return hashing.digest.hexdigest(), entries


class _HashingFile:
    """Passes on what is written, and counts and hashes it."""

    def __init__(self, file: IO[bytes]):
        self.file, self.digest, self.written = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.written += len(data)
        return self.file.write(data)

    def tell(self) -> int:
        return self.written


def part_names(count: int, prefix: str = "part") -> list[str]:
    """part-00000, part-00001, ..."""
    return [f"{prefix}-{k:05d}" for k in range(count)]


def check_name(name: str) -> str:
    """A run, stage or part name that is safe as one path component."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(f"{name!r} is not a name: use letters, digits, '.', '_' and '-'")
    return name
