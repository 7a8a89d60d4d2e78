"""Encoded shards: the output of the frozen encoders for every sample, so that training does not run them.

There is one plain tar file for each raw shard, with the same name:

    __shard__           JSON: encoders, source, shapes, and the offset of each sample (ShardIndex)
    <id>.json           the metadata of the raw sample, with its prompt and its number of references
    <id>.safetensors    codes [R+2, N] uint16: the references, the background, the target
                        text [t, C] bfloat16: the prompt's t positions, without padding
                        teacher [P, D] bfloat16: the distillation target, if there was a teacher

The index makes opening a shard one read, and reading a sample another. WebDataset's readers skip ``__shard__``.

Shape legend: B batch, R references, N tokens an image, t text tokens of one prompt, C text width, P teacher patches, D
teacher width.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from data_schemas.errors import UserError
from data_schemas.io.files import write_atomically
from data_schemas.shards import expand_shards
from tokenar.data.samples import Encoded
from tokenar.data.shard_index import (
    INDEX_NAME,
    Fingerprints,
    Row,
    Shapes,
    ShardIndex,
    Source,
    damaged,
    padded_size,
    read_bytes,
    read_index_and_end,
)


@dataclass
class EncodedSample:
    """One sample: codes [R+2, N] int64 of references, background and target, text features [t, C] float32 without
    padding, and teacher features [P, D] float32 or None."""

    sample_id: str
    codes: Tensor
    text: Tensor
    teacher: Tensor | None = None

    @property
    def references(self) -> int:
        """Number of references (R)."""
        return len(self.codes) - 2


# Writing


def write_shard(
    path: Path,
    encoders: Fingerprints,
    shapes: Shapes,
    source: Source,
    samples: Iterable[tuple[EncodedSample, dict[str, Any]]],
) -> int:
    """Write one shard from pairs of a sample and the content of its JSON member; returns the number of samples.

    The file appears at ``path`` only when it is complete. The same samples give the same bytes.
    """
    rows = []
    with tempfile.TemporaryFile(dir=path.parent) as body:
        with tarfile.open(fileobj=body, mode="w") as tar:
            for sample, info in samples:
                _add(tar, f"{sample.sample_id}.json", json.dumps(info, sort_keys=True, ensure_ascii=False).encode())
                content = _packed(sample)
                _add(tar, f"{sample.sample_id}.safetensors", content)
                offset = tar.offset - padded_size(len(content))
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


def _join(path: Path, index: ShardIndex, body: IO[bytes]) -> None:
    """Write the index and after it ``body``, the samples, which came first because the index has their offsets."""
    content = index.model_dump_json().encode()
    entry = tarfile.TarInfo(INDEX_NAME)
    entry.size = len(content)
    body.seek(0)
    with open(path, "wb") as file:
        file.write(entry.tobuf() + content.ljust(padded_size(len(content)), b"\0"))
        shutil.copyfileobj(body, file, 1 << 20)


# Reading


class EncodedShards:
    """All samples of the shards that the glob ``pattern`` names. Samples are numbered in the order of the shards' names
    and, within a shard, in stored order.

    ``encoders`` and ``shapes`` are the same for all shards. ``references`` and ``lengths`` are each sample's number of
    references and of text tokens. Several threads may read at once. UserError if a shard is cut short or damaged, if
    shards were made with different encoders, or if there is no sample.
    """

    def __init__(self, pattern: str):
        self.pattern = pattern
        self.urls = expand_shards(pattern)
        with ThreadPoolExecutor(8) as pool:
            self._shards = list(pool.map(read_index_and_end, self.urls))
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
                if (actual := getattr(facts, name)) != value:
                    raise UserError(
                        f"{url}: encoded with {name} {_short(actual)}, {self.urls[0]} with {_short(value)}; encode all "
                        "shards with the same encoders"
                    )

    def expect(self, *, tokenizer: str | None = None, text: str | None = None, teacher: str | None = None) -> None:
        """UserError if the shards were made with other encoders than those with these fingerprints; None allows any."""
        for name, expected in (("tokenizer", tokenizer), ("text", text), ("teacher", teacher)):
            actual = getattr(self.encoders, name)
            if expected is not None and actual != expected:
                raise UserError(
                    f"{self.pattern}: encoded with {name} {_short(actual)}, this run takes {_short(expected)}; encode "
                    "the shards again with the encoders of this run, or use those they were made with"
                )

    def digest(self) -> str:
        """SHA-256 that identifies these samples, made from the digests of the raw shards."""
        return hashlib.sha256(" ".join(source.sha256 for source in self.sources).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.sample_ids)

    def read(self, number: int) -> EncodedSample:
        """Sample ``number``, with one read of one file. UserError naming the shard if it was removed or changed."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        shard = int(np.searchsorted(self._firsts, number, side="right")) - 1
        index, start = self._shards[shard]
        row = index.samples[number - int(self._firsts[shard])]
        content = read_bytes(self.urls[shard], start + row.offset, row.size)
        where = f"{self.urls[shard]}: sample {row.sample_id}"
        try:
            tensors = safetensors.torch.load(content)
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise damaged(where, error) from error
        layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        if layout != index.layout(row):
            raise damaged(where, f"other tensors than its index says: {', '.join(layout)}")
        codes = tensors["codes"].long()
        if codes.max() >= index.shapes.vocabulary:
            raise damaged(where, f"code {int(codes.max())} of {index.shapes.vocabulary}")
        teacher = tensors["teacher"].float() if "teacher" in tensors else None
        return EncodedSample(row.sample_id, codes, tensors["text"].float(), teacher)


def _short(fact: object) -> str:
    """A fingerprint shortened for a message; anything else as text."""
    return fact[:12] if isinstance(fact, str) else str(fact)


def pad_text(rows: Sequence[Tensor], tokens: int) -> tuple[Tensor, Tensor]:
    """Pad B texts [t, C] with zeros: ([B, tokens, C], [B, tokens] bool, True where there is text).

    UserError if a text has more than ``tokens`` positions.
    """
    longest = max(len(row) for row in rows)
    if longest > tokens:
        raise UserError(f"a prompt takes {longest} positions of text, the model has {tokens}; raise model.text_tokens")
    padded = rows[0].new_zeros(len(rows), tokens, rows[0].shape[1])
    for padded_row, row in zip(padded, rows, strict=True):
        padded_row[: len(row)] = row
    lengths = torch.tensor([len(row) for row in rows])
    return padded, torch.arange(tokens) < lengths[:, None]


class FromShards:
    """The samples of encoded shards. They stay on disk and are read one by one."""

    def __init__(self, shards: EncodedShards, text_tokens: int):
        self.shards, self.text_tokens = shards, text_tokens
        self.references, self.sample_ids = shards.references, shards.sample_ids

    def read(self, number: int, epoch: int | None = None) -> Encoded:
        """Sample ``number``, the same in every epoch. UserError naming the shard if it was removed or is damaged."""
        sample = self.shards.read(number)
        text, mask = pad_text([sample.text], self.text_tokens)
        return Encoded(sample.sample_id, "", sample.codes[:-1], text[0], sample.codes[-1], mask[0], sample.teacher)
