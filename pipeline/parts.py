"""The part store: where a stage's output lives, whether it is whole, and how it is written. Nothing else writes it.

Layout: ``<run>/<stage>/<fingerprint>/<part>.parquet`` (one row a sample), ``<part>.tar`` beside it where the stage
makes pictures, ``<part>.timing.json`` with the seconds each sample took (kept apart, so that everything else is
the same bytes in every run). The Parquet file is written last: a part exists if and only if that file does.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from data_schemas.schema import TableSchema, validate

Members = Mapping[str, Mapping[str, bytes]]
"""Pictures of a part: sample id -> member name ("target.png") -> bytes."""


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


@dataclass(frozen=True)
class Part:
    """A whole part as read back: its rows, and the digest of its Parquet file that later stages record."""

    table: pa.Table
    digest: str

    def rows(self) -> list[dict]:
        return self.table.to_pylist()


class PartStore:
    """The parts of one stage under one fingerprint, on any fsspec file system."""

    def __init__(self, run: str, stage: str, stage_fingerprint: str, schema: TableSchema):
        self.fs, root = fsspec.core.url_to_fs(run)
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

        Pages carry checksums, the Parquet metadata carries the tar's digest: a flipped bit or a lost tail is
        seen, and the part is made again rather than trusted.
        """
        try:
            data = self.fs.cat_file(self.path(part, "parquet"))
            table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
            validate(table, self.schema, part)
        except (OSError, ValueError, pa.ArrowException):
            return None
        metadata = table.schema.metadata or {}
        if made_from is not None and metadata.get(b"made_from") != made_from.encode():
            return None
        tar_digest = metadata.get(b"tar_sha256")
        if tar_digest is not None:
            try:
                if content_digest(self.fs.cat_file(self.path(part, "tar"))).encode() != tar_digest:
                    return None
            except OSError:
                return None
        return Part(table, content_digest(data))

    def members(self, part: str) -> dict[str, dict[str, bytes]]:
        """The pictures of a part, by sample id and member name. Call after read() has found it whole."""
        pictures: dict[str, dict[str, bytes]] = {}
        data = self.fs.cat_file(self.path(part, "tar"))
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for entry in tar:
                stream = tar.extractfile(entry)
                assert stream is not None
                sample_id, _, name = entry.name.partition(".")
                pictures.setdefault(sample_id, {})[name] = stream.read()
        return pictures

    def reader(self, part: str) -> Callable[[str, str], bytes]:
        """Reads single pictures of a large part: (sample id, member name) -> bytes. Only the tar's headers are read
        beforehand. Call after read() has found the part whole."""
        path = self.path(part, "tar")
        with self.fs.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            places = {entry.name: (entry.offset_data, entry.size) for entry in tar}

        def read(sample_id: str, name: str) -> bytes:
            start, size = places[f"{sample_id}.{name}"]
            return self.fs.cat_file(path, start=start, end=start + size)

        return read

    def commit(
        self,
        part: str,
        rows: list[dict],
        members: Members | None,
        made_from: str,
        timing: Mapping[str, object] | None = None,
    ) -> Part:
        """Write a part so that it is either whole or not there: tar, timing, then the Parquet file that marks it.

        ``members`` is None for a stage without pictures. The same rows and members give the same bytes.
        """
        table = self.schema.table(rows)
        validate(table, self.schema, part)
        metadata = {**(table.schema.metadata or {}), b"made_from": made_from.encode()}
        if members is not None:
            tar = pack_tar(members)
            metadata[b"tar_sha256"] = content_digest(tar).encode()
            write_atomically(self.fs, self.path(part, "tar"), tar)
        if timing is not None:
            write_atomically(self.fs, self.path(part, "timing.json"), json.dumps(timing, sort_keys=True).encode())
        buffer = io.BytesIO()
        pq.write_table(table.replace_schema_metadata(metadata), buffer, compression="zstd", write_page_checksum=True)
        write_atomically(self.fs, self.path(part, "parquet"), buffer.getvalue())
        whole = self.read(part, made_from)
        if whole is None:
            raise OSError(f"{self.url(part, 'parquet')}: written, but does not read back whole; check the disk")
        return whole

    def timing(self, part: str) -> dict:
        """What commit() was given as ``timing``; empty if the file is gone (it is for information only)."""
        try:
            return json.loads(self.fs.cat_file(self.path(part, "timing.json")))
        except (OSError, ValueError):
            return {}


def pack_tar(members: Members) -> bytes:
    """An uncompressed WebDataset tar with fixed headers; the order is that of the mapping."""
    import webdataset as wds  # imports torch, which few commands need

    buffer = io.BytesIO()
    with wds.TarWriter(buffer, encoder=False, mtime=0, user="instructar", group="instructar") as writer:
        for sample_id, files in members.items():
            writer.write({"__key__": sample_id, **files})
    return buffer.getvalue()


def write_atomically(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    """Write through a temporary name and a rename; a killed process leaves no half file under ``path``."""
    fs.makedirs(path.rpartition("/")[0], exist_ok=True)
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        if isinstance(fs, LocalFileSystem):
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        else:  # object stores publish an object only once it is whole
            fs.pipe_file(path, data)
    except BaseException:
        if isinstance(fs, LocalFileSystem) and os.path.exists(temporary):
            os.remove(temporary)
        raise


def part_names(count: int, prefix: str = "part") -> list[str]:
    """part-00000, part-00001, ..."""
    return [f"{prefix}-{k:05d}" for k in range(count)]


def check_name(name: str) -> str:
    """A run, stage or part name that is safe as one path component."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(f"{name!r} is not a name: use letters, digits, '.', '_' and '-'")
    return name


def join_digests(digests: Iterable[str]) -> str:
    """One digest for the several parts that something was made from, in order."""
    return content_digest(*(d.encode() for d in digests))
