"""The index of an encoded shard, its first member ``__shard__``: which encoders made the shard, from which raw shard,
and where in the file each sample's tensors are.

R references, N tokens an image, V vocabulary, T text tokens, C text width, P teacher patches, D teacher width.
"""

from __future__ import annotations

import os
import tarfile
from math import prod
from typing import Literal, NamedTuple

import torch
from pydantic import Field, PositiveInt, ValidationError, model_validator

from data_schemas.errors import UserError
from data_schemas.io.files import check_file
from data_schemas.io.storage import Unreadable, file_sha256, patiently, reaching, url_to_fs
from data_schemas.settings import Settings, first_mistake
from data_schemas.shards import MAX_REFERENCES

INDEX_NAME = "__shard__"
MAX_INDEX_BYTES = 256_000_000
HEADER_BYTES = 4096
"""More than the header and padding of a sample's safetensors member take."""
MAX_VOCABULARY = 1 << 16
"""Codes are stored as uint16."""


class Fingerprints(Settings):
    """SHA-256 of each encoder that a shard was made with; ``teacher`` is None if there was no teacher."""

    tokenizer: str
    text: str
    teacher: str | None = None


class Shapes(Settings):
    """Shapes of the encoders' results: N codes below V an image, up to T x C text features, P x D teacher features."""

    image_tokens: PositiveInt
    vocabulary: int = Field(ge=2, le=MAX_VOCABULARY)
    text_tokens: PositiveInt
    text_width: PositiveInt
    teacher: tuple[PositiveInt, PositiveInt] | None = None


class Source(Settings):
    """The raw shard that an encoded shard was made from: file name, bytes and SHA-256."""

    name: str
    size: int
    sha256: str

    @classmethod
    def of(cls, url: str) -> Source:
        """Describe a raw shard, which is read as a whole for its digest; UserError if it cannot be read."""
        fs, path = url_to_fs(url)
        try:
            with reaching(url):
                return cls(name=url.rpartition("/")[2], size=fs.size(path), sha256=file_sha256(fs, path))
        except FileNotFoundError as error:
            raise _missing(url) from error


class Row(NamedTuple):
    """One sample: its number of references, the length of its text in tokens, and the offset and size in bytes of its
    safetensors member. Offsets are counted from the end of the ``__shard__`` member."""

    sample_id: str
    references: int
    text: int
    offset: int
    size: int


class ShardIndex(Settings):
    """The content of the ``__shard__`` member. ``size`` is the number of bytes that follow it in the file."""

    format: Literal[1] = 1
    encoders: Fingerprints
    shapes: Shapes
    source: Source
    size: int = Field(ge=0)
    samples: list[Row]

    @model_validator(mode="after")
    def _rows_lie_inside(self) -> ShardIndex:
        shapes = self.shapes
        for row in self.samples:
            if not (1 <= row.references <= MAX_REFERENCES and 0 <= row.text <= shapes.text_tokens):
                raise ValueError(f"sample {row.sample_id}: {row.references} references, {row.text} positions of text")
            numbers = (row.references + 2) * shapes.image_tokens + row.text * shapes.text_width
            most = HEADER_BYTES + 2 * (numbers + prod(shapes.teacher or (0,)))  # every stored type has two bytes
            if not (0 <= row.offset <= row.offset + row.size <= self.size and row.size <= most):
                raise ValueError(f"sample {row.sample_id}: {row.size} bytes at {row.offset}")
        return self

    def layout(self, row: Row) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Type and shape of each tensor of a sample, by name."""
        shapes = self.shapes
        tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            "codes": (torch.uint16, (row.references + 2, shapes.image_tokens)),
            "text": (torch.bfloat16, (row.text, shapes.text_width)),
        }
        return tensors | ({"teacher": (torch.bfloat16, shapes.teacher)} if shapes.teacher else {})


def padded_size(size: int) -> int:
    """Bytes that the content of a tar member of ``size`` bytes takes up, padded to whole tar blocks."""
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def file_size(url: str) -> int:
    """Size in bytes of a file on disk or in a bucket; UserError if it does not exist."""
    try:
        if "://" not in url:
            return os.stat(url).st_size
        fs, path = url_to_fs(url)
        return int(patiently(lambda: fs.size(path), url))
    except FileNotFoundError as error:
        raise _missing(url) from error


def read_bytes(url: str, offset: int, size: int) -> bytes:
    """``size`` bytes of a file from ``offset`` on, or fewer if it ends before; UserError if it cannot be read.

    The file is opened for every call, so that a shard that was removed during training is noticed.
    """
    try:
        if "://" not in url:
            with open(url, "rb", buffering=0) as file:
                return os.pread(file.fileno(), size, offset)
        fs, path = url_to_fs(url)
        return patiently(lambda: fs.cat_file(path, start=offset, end=offset + size), url)
    except FileNotFoundError as error:
        raise _missing(url) from error
    except Unreadable:
        raise
    except OSError as error:
        raise UserError(
            f"{url}: the shard cannot be read ({error.strerror or error}); mend that and run the command again"
        ) from error


def _missing(url: str) -> UserError:
    return UserError(f"{url}: no such shard; put it back, or begin anew with the shards that are there")


def damaged(url: str, reason: object) -> UserError:
    """The error for a shard, or a sample of one, whose content is not as its index says."""
    return UserError(f"{url}: the encoded shard is cut short or damaged ({reason}); make it again with tokenar-encode")


def _index_bytes(url: str) -> int | None:
    """Size of the content of ``__shard__``; None if that is not the file's first member."""
    if "://" not in url:
        check_file(url, "give the files of shards")  # opening a pipe would wait for its writer
    try:
        entry = tarfile.TarInfo.frombuf(read_bytes(url, 0, tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
    return entry.size if entry.name == INDEX_NAME and entry.size >= 0 else None


def is_encoded(url: str) -> bool:
    """Whether a shard was written by tokenar-encode, judged by its first bytes. Raw shards were not."""
    return _index_bytes(url) is not None


def read_index(url: str) -> ShardIndex:
    """The index of one shard; UserError if it is not an encoded shard, or is cut short or damaged."""
    return read_index_and_end(url)[0]


def read_index_and_end(url: str) -> tuple[ShardIndex, int]:
    """The index of one shard, and the offset in the file at which the ``__shard__`` member ends."""
    size = _index_bytes(url)
    if size is None:
        raise UserError(
            f"{url}: holds no codes, and there is no encoder to make them; run tokenar-encode on it first, or train "
            "on raw shards alone"
        )
    if size > MAX_INDEX_BYTES:
        raise damaged(url, f"an index of {size} bytes")
    content = read_bytes(url, tarfile.BLOCKSIZE, size)
    if len(content) < size:
        raise damaged(url, "it ends within its index")
    try:
        index = ShardIndex.model_validate_json(content)
    except ValidationError as error:
        raise damaged(url, first_mistake(error)) from error
    end = tarfile.BLOCKSIZE + padded_size(size)
    if file_size(url) != end + index.size:
        raise damaged(url, f"{file_size(url)} bytes, not {end + index.size}")
    return index, end
