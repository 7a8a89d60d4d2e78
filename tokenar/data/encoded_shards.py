"""Encoded shards: what the frozen encoders say of every sample, so that training never runs them.

One plain tar for each raw shard, of the same name:

    __shard__           JSON: encoders, source, shapes, and where each sample lies (ShardIndex)
    <id>.json           what the raw shard says of the sample, with its prompt and its number of references
    <id>.safetensors    codes [R+2, N] uint16: the references, the background, the target
                        text [t, C] bfloat16: as many positions as the prompt has, no padding
                        teacher [P, D] bfloat16: the distillation target, if there was a teacher

WebDataset's readers pass over ``__shard__``; here it makes opening a shard one read, and a sample another.
B batch, T tokens, C width of the text, R references, N tokens an image, V vocabulary, P patches, D their width.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import safetensors.torch
import torch
from pydantic import Field, PositiveInt, ValidationError, model_validator
from safetensors import SafetensorError
from torch import Tensor

from data_schemas.errors import UserError
from data_schemas.io.files import check_file, write_atomically
from data_schemas.io.storage import file_sha256, reaching, url_to_fs
from data_schemas.settings import Settings, first_mistake
from data_schemas.shards import MAX_REFERENCES, expand_shards

INDEX_NAME = "__shard__"
MAX_INDEX_BYTES = 256_000_000
HEADER_BYTES = 4096
"""More than a sample's safetensors header and padding take."""
MAX_VOCABULARY = 1 << 16


# What a shard says of itself


class Fingerprints(Settings):
    """SHA-256 of each encoder that a shard was made with."""

    tokenizer: str
    text: str
    teacher: str | None = None


class Shapes(Settings):
    """What the encoders give: N codes below V for a picture, up to T x C of text, P x D of the teacher."""

    image_tokens: PositiveInt
    vocabulary: int = Field(ge=2, le=MAX_VOCABULARY)
    text_tokens: PositiveInt
    text_width: PositiveInt
    teacher: tuple[PositiveInt, PositiveInt] | None = None


class Source(Settings):
    """The raw shard that an encoded one was made from."""

    name: str
    size: int
    sha256: str

    @classmethod
    def of(cls, url: str) -> Source:
        """Read a shard for its digest; UserError if it cannot be read."""
        fs, path = url_to_fs(url)
        try:
            with reaching(url):
                return cls(name=url.rpartition("/")[2], size=fs.size(path), sha256=file_sha256(fs, path))
        except FileNotFoundError as error:
            raise _vanished(url) from error


class Row(NamedTuple):
    """Where one sample's safetensors member lies, in bytes behind ``__shard__``; ``text`` is its t."""

    sample_id: str
    references: int
    text: int
    offset: int
    size: int


class ShardIndex(Settings):
    """The ``__shard__`` member; ``size`` is the number of bytes behind it."""

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
            most = HEADER_BYTES + 2 * (numbers + prod(shapes.teacher or (0,)))  # every type takes two bytes
            if not (0 <= row.offset <= row.offset + row.size <= self.size and row.size <= most):
                raise ValueError(f"sample {row.sample_id}: {row.size} bytes at {row.offset}")
        return self

    def layout(self, row: Row) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Type and shape of each tensor of a sample."""
        shapes = self.shapes
        tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            "codes": (torch.uint16, (row.references + 2, shapes.image_tokens)),
            "text": (torch.bfloat16, (row.text, shapes.text_width)),
        }
        return tensors | ({"teacher": (torch.bfloat16, shapes.teacher)} if shapes.teacher else {})


@dataclass
class EncodedSample:
    """One sample: codes [R+2, N] int64 (references, background, target), text [t, C] float32 without padding, and
    teacher [P, D] float32 or None."""

    sample_id: str
    codes: Tensor
    text: Tensor
    teacher: Tensor | None = None

    @property
    def references(self) -> int:
        """R."""
        return len(self.codes) - 2


# Writing


def write_shard(
    path: Path,
    encoders: Fingerprints,
    shapes: Shapes,
    source: Source,
    samples: Iterable[tuple[EncodedSample, dict[str, Any]]],
) -> int:
    """Write one shard from samples and what their JSON members say; the number of samples.

    The file appears when it is whole. The same samples give the same bytes.
    """
    rows = []
    with tempfile.TemporaryFile(dir=path.parent) as body:
        with tarfile.open(fileobj=body, mode="w") as tar:
            for sample, info in samples:
                _add(tar, f"{sample.sample_id}.json", json.dumps(info, sort_keys=True, ensure_ascii=False).encode())
                content = _packed(sample)
                _add(tar, f"{sample.sample_id}.safetensors", content)
                offset = tar.offset - _blocks(len(content))
                rows.append(Row(sample.sample_id, sample.references, len(sample.text), offset, len(content)))
        index = ShardIndex(encoders=encoders, shapes=shapes, source=source, size=body.tell(), samples=rows)
        write_atomically(path, lambda temporary: _join(temporary, index, body))
    return len(rows)


def _packed(sample: EncodedSample) -> bytes:
    tensors = {"codes": sample.codes.to(torch.uint16), "text": sample.text.to(torch.bfloat16)}
    if sample.teacher is not None:
        tensors["teacher"] = sample.teacher.to(torch.bfloat16)
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def _blocks(size: int) -> int:
    """Bytes that a member of ``size`` bytes takes up in a tar."""
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _join(path: Path, index: ShardIndex, body: IO[bytes]) -> None:
    """The index comes first, though where the samples lie is only known once they are written."""
    content = index.model_dump_json().encode()
    entry = tarfile.TarInfo(INDEX_NAME)
    entry.size = len(content)
    body.seek(0)
    with open(path, "wb") as file:
        file.write(entry.tobuf() + content.ljust(_blocks(len(content)), b"\0"))
        shutil.copyfileobj(body, file, 1 << 20)


# Reading


def file_size(url: str) -> int:
    """Bytes of a file on disk or in a bucket; UserError if it is not there."""
    try:
        if "://" not in url:
            return os.stat(url).st_size
        fs, path = url_to_fs(url)
        return int(fs.size(path))
    except FileNotFoundError as error:
        raise _vanished(url) from error


def _read(url: str, offset: int, size: int) -> bytes:
    """Bytes of a file, fewer at its end. It is opened anew each time, so that one that vanished is noticed."""
    try:
        if "://" not in url:
            with open(url, "rb", buffering=0) as file:
                return os.pread(file.fileno(), size, offset)
        fs, path = url_to_fs(url)
        return fs.cat_file(path, start=offset, end=offset + size)
    except FileNotFoundError as error:
        raise _vanished(url) from error
    except OSError as error:
        raise UserError(
            f"{url}: the shard cannot be read ({error.strerror or error}); mend that and run the command again"
        ) from error


def _vanished(url: str) -> UserError:
    return UserError(f"{url}: no such shard; put it back, or begin anew with the shards that are there")


def _damaged(url: str, reason: object) -> UserError:
    return UserError(f"{url}: the encoded shard is cut short or damaged ({reason}); make it again with tokenar-encode")


def _index_bytes(url: str) -> int | None:
    """Size of the content of ``__shard__``; None if the file begins with something else."""
    if "://" not in url:
        check_file(url, "give the files of shards")  # a pipe would be waited for
    try:
        entry = tarfile.TarInfo.frombuf(_read(url, 0, tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
    return entry.size if entry.name == INDEX_NAME and entry.size >= 0 else None


def is_encoded(url: str) -> bool:
    """Whether a shard is one of tokenar-encode, by its first bytes; a raw one is not."""
    return _index_bytes(url) is not None


def read_index(url: str) -> ShardIndex:
    """The index of one shard; UserError if it is no encoded shard, cut short or damaged."""
    return _placed_index(url)[0]


def _placed_index(url: str) -> tuple[ShardIndex, int]:
    """The index, and where in the file it ends."""
    size = _index_bytes(url)
    if size is None:
        raise UserError(
            f"{url}: holds no codes, and there is no encoder to make them; run tokenar-encode on it first, or train "
            "on raw shards alone"
        )
    if size > MAX_INDEX_BYTES:
        raise _damaged(url, f"an index of {size} bytes")
    content = _read(url, tarfile.BLOCKSIZE, size)
    if len(content) < size:
        raise _damaged(url, "it ends within its index")
    try:
        index = ShardIndex.model_validate_json(content)
    except ValidationError as error:
        raise _damaged(url, first_mistake(error)) from error
    end = tarfile.BLOCKSIZE + _blocks(size)
    if file_size(url) != end + index.size:
        raise _damaged(url, f"{file_size(url)} bytes, not {end + index.size}")
    return index, end


class EncodedShards:
    """All samples of the shards that ``pattern`` names, by number: shards by name, samples as stored.

    UserError if a shard is not whole, if shards were made with different encoders, or if there is no sample.
    ``encoders`` and ``shapes`` hold for every shard. Reading is safe from several threads.
    """

    def __init__(self, pattern: str):
        self.pattern = pattern
        self.urls = expand_shards(pattern)
        with ThreadPoolExecutor(8) as pool:
            self._shards = list(pool.map(_placed_index, self.urls))
        first = self._shards[0][0]
        self.encoders, self.shapes = first.encoders, first.shapes
        for url, (index, _) in zip(self.urls, self._shards, strict=True):
            self._same_encoders(url, index)
        self.sources = [index.source for index, _ in self._shards]
        self.sample_ids = [row.sample_id for index, _ in self._shards for row in index.samples]
        if not self.sample_ids:
            raise UserError(f"{pattern}: the shards hold no sample; make them again")
        self.references = [row.references for index, _ in self._shards for row in index.samples]
        self.lengths = [row.text for index, _ in self._shards for row in index.samples]
        self._firsts = np.cumsum([0, *(len(index.samples) for index, _ in self._shards[:-1])])

    def _same_encoders(self, url: str, index: ShardIndex) -> None:
        for facts, expected in ((index.encoders, self.encoders), (index.shapes, self.shapes)):
            for name, value in expected:
                if (here := getattr(facts, name)) != value:
                    raise UserError(
                        f"{url}: encoded with {name} {_short(here)}, {self.urls[0]} with {_short(value)}; encode all "
                        "shards with the same encoders"
                    )

    def expect(self, *, tokenizer: str | None = None, text: str | None = None, teacher: str | None = None) -> None:
        """Refuse shards of other encoders than those with these fingerprints; None stands for any."""
        for name, wanted in (("tokenizer", tokenizer), ("text", text), ("teacher", teacher)):
            found = getattr(self.encoders, name)
            if wanted is not None and found != wanted:
                raise UserError(
                    f"{self.pattern}: encoded with {name} {_short(found)}, this run takes {_short(wanted)}; encode the "
                    "shards again with the encoders of this run, or use those they were made with"
                )

    def digest(self) -> str:
        """Tells these samples from others, by the raw shards they were made of."""
        return hashlib.sha256(" ".join(source.sha256 for source in self.sources).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.sample_ids)

    def read(self, number: int) -> EncodedSample:
        """Sample ``number``, one read of one file. UserError naming the shard if it vanished or changed."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        shard = int(np.searchsorted(self._firsts, number, side="right")) - 1
        index, start = self._shards[shard]
        row = index.samples[number - int(self._firsts[shard])]
        content = _read(self.urls[shard], start + row.offset, row.size)
        where = f"{self.urls[shard]}: sample {row.sample_id}"
        try:
            tensors = safetensors.torch.load(content)
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise _damaged(where, error) from error
        found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        if found != index.layout(row):
            raise _damaged(where, f"other tensors than its index says: {', '.join(found)}")
        codes = tensors["codes"].long()
        if codes.max() >= index.shapes.vocabulary:
            raise _damaged(where, f"code {int(codes.max())} of {index.shapes.vocabulary}")
        teacher = tensors["teacher"].float() if "teacher" in tensors else None
        return EncodedSample(row.sample_id, codes, tensors["text"].float(), teacher)


def _short(fact: object) -> str:
    """A fingerprint as one reads it out; other facts as they are."""
    return fact[:12] if isinstance(fact, str) else str(fact)


def pad_text(rows: Sequence[Tensor], tokens: int) -> tuple[Tensor, Tensor]:
    """B texts of [t, C] -> ([B, tokens, C] with zeros behind each, [B, tokens] bool, True where there is text)."""
    longest = max(len(row) for row in rows)
    if longest > tokens:
        raise UserError(f"a prompt takes {longest} positions of text, the model has {tokens}; raise model.text_tokens")
    padded = rows[0].new_zeros(len(rows), tokens, rows[0].shape[1])
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = row
    lengths = torch.tensor([len(row) for row in rows])
    return padded, torch.arange(tokens) < lengths[:, None]
