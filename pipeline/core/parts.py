"""The part store, the only module that writes the outputs of stages.

Layout: ``<run>/<stage>/<fingerprint>/<part>.parquet`` holds one row for each sample. If the stage makes pictures,
``<part>.tar`` beside it holds them. ``<part>.notes.json`` holds facts that are not part of the content: how long each
sample took, and the SHA-256, size and modification time that the tar had when it was last hashed.

The Parquet file is written last, so a part exists if and only if this file does. Its metadata lists where each picture
is in the tar, so one picture can be read without the others.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from data_schemas.errors import UserError
from data_schemas.io.storage import (
    Unreadable,
    file_sha256,
    patiently,
    read_facts,
    url_of,
    url_to_fs,
    write_file,
    write_stream,
)  # fmt: skip
from data_schemas.io.text import one_line
from data_schemas.schema import TableSchema, validate
from pipeline.core.tar_writer import Entries, Members, TarEntry, write_tar


class DamagedPart(UserError):
    """The bytes of a picture in a tar do not match the checksum in the part's Parquet file.

    Raised when a picture is read. For damage that ``PartStore.read`` finds, it returns None instead.
    """


def fingerprint(**ingredients: object) -> str:
    """16 hexadecimal digits that change when any of the ingredients changes."""
    text = json.dumps(ingredients, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def content_digest(*chunks: bytes) -> str:
    """SHA-256 of the chunks.

    Each is preceded by its length, so two different lists never feed the same bytes to the hash.
    """
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(len(chunk).to_bytes(8, "little"))
        digest.update(chunk)
    return digest.hexdigest()


def join_digests(digests: Iterable[str]) -> str:
    """Combine several digests into one; their order matters."""
    return content_digest(*(d.encode() for d in digests))


@dataclass(frozen=True)
class Part:
    """A complete part as read from its store.

    ``digest`` is the ``content_digest`` of the Parquet file's bytes. Later stages record it to say what they were made
    from, as this one has in ``made_from`` and for each of its samples in ``inputs``. ``tar_sha256`` and ``entries``
    describe the part's tar, if the stage makes pictures.
    """

    table: pa.Table
    digest: str
    made_from: str
    inputs: Mapping[str, str]
    tar_sha256: str | None
    entries: Entries

    def rows(self) -> list[dict]:
        """The rows as dictionaries."""
        return self.table.to_pylist()


def _parse_entries(stored: bytes) -> Entries:
    by_sample = json.loads(stored)
    return {i: {name: TarEntry(*entry) for name, entry in members.items()} for i, members in by_sample.items()}


NOT_WHOLE = (OSError, ValueError, TypeError, AttributeError, KeyError, pa.ArrowException)
"""What reading a part raises that is missing or damaged."""


class PartStore:
    """The parts of one stage under one fingerprint, on any fsspec file system."""

    def __init__(self, run: str, stage: str, stage_fingerprint: str, schema: TableSchema):
        self.fs, root = url_to_fs(run)
        self.root = f"{root.rstrip('/')}/{stage}/{stage_fingerprint}"
        self.schema = schema

    def path(self, part: str, suffix: str) -> str:
        """The path of a part's file in the store's file system."""
        return f"{self.root}/{part}.{suffix}"

    def url(self, part: str, suffix: str) -> str:
        """A part's file as users write it: a plain path on a local disk, a URL such as s3://... in a bucket."""
        return url_of(self.fs, self.path(part, suffix))

    def clear(self) -> None:
        """Remove all parts."""
        if self.fs.exists(self.root):
            self.fs.rm(self.root, recursive=True)

    def exists(self, part: str) -> bool:
        """Whether the part was committed. Only ``read`` checks that it is undamaged."""
        return patiently(lambda: self.fs.exists(self.path(part, "parquet")), self.url(part, "parquet"))

    def read(self, part: str, made_from: str | None = None) -> Part | None:
        """The part, or None if it is missing, unreadable, damaged or made from another input than ``made_from``.

        Raises Unreadable if the storage does not say whether it is there. The pages of the Parquet file carry
        checksums. The tar is only hashed if its size or modification time differ from the note. After None, the
        caller must run the stage again for the part."""
        try:
            return self._whole(part, made_from)
        except Unreadable:
            raise
        except NOT_WHOLE:
            return None

    def _whole(self, part: str, made_from: str | None) -> Part:
        """The part as in ``read``; one of NOT_WHOLE says why it cannot be had."""
        data = patiently(lambda: self.fs.cat_file(self.path(part, "parquet")), self.url(part, "parquet"))
        table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
        validate(table, self.schema, part)
        metadata = table.schema.metadata or {}
        entries = _parse_entries(metadata.get(b"members", b"{}"))
        inputs = json.loads(metadata.get(b"inputs", b"{}"))
        found = metadata[b"made_from"].decode()
        if made_from is not None and found != made_from:
            raise ValueError("made from another input")
        tar = metadata.get(b"tar_sha256")
        if tar is not None and not self._tar_is_whole(part, tar.decode()):
            raise ValueError("its tar is missing or has other bytes")
        return Part(table, content_digest(data), found, inputs, None if tar is None else tar.decode(), entries)

    def _tar_is_whole(self, part: str, sha256: str) -> bool:
        notes = self.notes(part)
        try:
            seen = self._tar_note(part, sha256)
            if seen == notes.get("tar_seen"):
                return True
            path = self.path(part, "tar")
            if patiently(lambda: file_sha256(self.fs, path), self.url(part, "tar")) != sha256:
                return False
        except FileNotFoundError:
            return False
        self._write_notes(part, {**notes, "tar_seen": seen})
        return True

    def _tar_note(self, part: str, sha256: str) -> str:
        """The note that a part's tar, as it is now, has this SHA-256.

        It names the SHA-256 because a commit that is killed may leave a new tar and its note beside an old Parquet
        file. It changes whenever the tar is written.
        """
        path = self.path(part, "tar")
        if not isinstance(self.fs, LocalFileSystem):
            return f"{sha256} {patiently(lambda: self.fs.ukey(path), self.url(part, 'tar'))}"
        # Publishing hard-links the tars. fsspec's key would change with each link.
        status = os.stat(path)
        return f"{sha256} {status.st_size} {status.st_mtime_ns}"

    def pictures(self, part: str, whole: Part) -> PartPictures:
        """A reader of single pictures of a part that ``read`` returned."""
        return PartPictures(self, part, whole.entries)

    def commit(
        self,
        part: str,
        rows: list[dict],
        members: Members | None,
        made_from: str,
        timing: Mapping[str, object] | None = None,
        inputs: Mapping[str, str] | None = None,
    ) -> Part:
        """Write a part and return it.

        First the tar is written, then the notes, then the Parquet file that completes the part.

        ``members`` is None for a stage without pictures. ``made_from`` is the digest of the input, which ``read``
        compares, ``inputs`` that of each sample's own input. ``timing`` is stored in the notes. All but the timing
        being the same, tar and Parquet file have the same bytes; the notes differ.
        """
        table = self.schema.table(rows)
        validate(table, self.schema, part)
        metadata = {**(table.schema.metadata or {}), b"made_from": made_from.encode()}
        if inputs:
            metadata[b"inputs"] = json.dumps(inputs, separators=(",", ":")).encode()
        notes: dict[str, object] = dict(timing or {})
        if members is not None:
            path = self.path(part, "tar")
            sha256, entries = write_stream(self.fs, path, lambda file: write_tar(file, members.items()))
            stored = json.dumps(entries, separators=(",", ":"))
            metadata |= {b"tar_sha256": sha256.encode(), b"members": stored.encode()}
            notes["tar_seen"] = self._tar_note(part, sha256)
        if notes:
            self._write_notes(part, notes)
        buffer = io.BytesIO()
        pq.write_table(table.replace_schema_metadata(metadata), buffer, compression="zstd", write_page_checksum=True)
        write_file(self.fs, self.path(part, "parquet"), buffer.getvalue())
        try:
            return self._whole(part, made_from)
        except Unreadable:
            raise
        except NOT_WHOLE as error:
            path, why = self.url(part, "parquet"), one_line(f"{type(error).__name__}: {error}", 200)
            raise OSError(f"{path}: written, but does not read back whole ({why}); check the disk") from error

    def notes(self, part: str) -> dict[str, Any]:
        """The notes on a part. They decide whether its tar is hashed again.

        Empty if the file is missing; then ``read`` hashes the tar again.
        """
        return read_facts(self.fs, self.path(part, "notes.json")) or {}

    def _write_notes(self, part: str, notes: Mapping[str, object]) -> None:
        write_file(self.fs, self.path(part, "notes.json"), json.dumps(notes, sort_keys=True).encode())

    def distrust(self, part: str) -> None:
        """Make the next ``read`` verify the content of the part's tar."""
        self._write_notes(part, {key: value for key, value in self.notes(part).items() if key != "tar_seen"})


class PartPictures:
    """Pictures of one part. Each is read from its offset in the tar and checked against its checksum.

    From a bucket all pictures of a sample come in one request, as they lie side by side and are used together.
    """

    def __init__(self, store: PartStore, part: str, entries: Entries):
        self.entries = entries
        self._store, self._part = store, part
        self._here: str | None = store.path(part, "tar") if isinstance(store.fs, LocalFileSystem) else None
        # not of a method: in a circle with its cache, this object and its file would wait for the garbage collector
        self._together = lru_cache(maxsize=4)(partial(_of_sample, store.fs, store.path(part, "tar"), entries))

    def fetch(self) -> None:
        """Bring the whole tar here if it is in a bucket: one long request in the place of one for each sample."""
        if self._here is None:
            self._file = tempfile.NamedTemporaryFile()  # noqa: SIM115  # removed with this object
            path = self._store.path(self._part, "tar")
            patiently(lambda: self._store.fs.get_file(path, self._file.name), self._store.url(self._part, "tar"))
            self._here = self._file.name

    def read(self, sample_id: str, name: str) -> bytes:
        """The bytes of one picture.

        Raises KeyError if the sample has no such picture, DamagedPart if its bytes changed.
        """
        entry = self.entries[sample_id][name]
        url = self._store.url(self._part, "tar")
        data = patiently(lambda: self._bytes(sample_id, entry), url)
        if len(data) != entry.size or zlib.crc32(data) != entry.checksum:
            self._store.distrust(self._part)
            self._together.cache_clear()
            raise DamagedPart(f"{url}: {sample_id}.{name} is damaged; run the curation again, which makes it anew")
        return data

    def _bytes(self, sample_id: str, entry: TarEntry) -> bytes:
        if self._here is None:
            first, data = self._together(sample_id)
            return data[entry.offset - first : entry.offset - first + entry.size]
        with open(self._here, "rb", buffering=0) as file:  # ten times faster than fsspec
            return os.pread(file.fileno(), entry.size, entry.offset)

    def of(self, sample_id: str) -> Mapping[str, bytes]:
        """The pictures of one sample by name. Pictures are read on access; empty if the sample has none."""
        return _SamplePictures(self, sample_id, tuple(self.entries.get(sample_id, ())))


def _of_sample(fs: fsspec.AbstractFileSystem, tar: str, entries: Entries, sample_id: str) -> tuple[int, bytes]:
    """Where a sample's first picture begins in a tar, and all bytes from there to the end of its last."""
    own = entries[sample_id].values()
    first, last = min(own), max(own)
    return first.offset, fs.cat_file(tar, start=first.offset, end=last.offset + last.size)


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
