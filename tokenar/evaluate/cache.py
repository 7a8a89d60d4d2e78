"""What an evaluation has found out already: bytes by key in a few Parquet files.

A key is a digest of all that decides the value, so that nothing in here goes stale. Every process appends files of its
own; a file that exists is whole, and a damaged one is passed over: its values are found out again.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_schemas.io.files import write_atomically
from tokenar.evaluate.encoders import Clip, Encoder, picture_key
from tokenar.evaluate.metrics import Features

SCHEMA = pa.schema([("key", pa.string()), ("value", pa.binary())])


class Cache:
    """The values in ``folder``; ``flush`` writes what was put in since the last time."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.values: dict[str, bytes] = {}
        self.new: list[str] = []
        self.load()

    def load(self) -> None:
        """Read all files, those of other processes too."""
        for path in self._files():
            try:
                table = pq.read_table(path, schema=SCHEMA)
            except (OSError, pa.ArrowInvalid):
                continue
            columns = table.column("key").to_pylist(), table.column("value").to_pylist()
            self.values.update(zip(*columns, strict=True))

    def put(self, key: str, value: bytes) -> None:
        """Hold a value until ``flush``."""
        self.values[key] = value
        self.new.append(key)

    def flush(self) -> None:
        """Write what is new as one file."""
        self._write(self.new)
        self.new = []

    def compact(self) -> None:
        """One file in place of all; for one process, when the others are done."""
        old = self._files()
        if len(old) > 1:
            self._write(sorted(self.values))
            for path in old:
                path.unlink()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))

    def _write(self, keys: Sequence[str]) -> None:
        if not keys:
            return
        table = pa.table({"key": list(keys), "value": [self.values[key] for key in keys]}, SCHEMA)
        path = self.folder / f"{uuid.uuid4().hex}.parquet"
        write_atomically(path, lambda temporary: pq.write_table(table, temporary))


class CachedFeatures:
    """What encoders say of pictures, asked once for every picture and encoder."""

    def __init__(self, cache: Cache):
        self.cache = cache

    def of(self, encoder: Encoder, pictures: Sequence[Image.Image]) -> Features:
        """[N, D] float32 for N pictures."""
        return np.stack([self.read(key) for key in self.keys(encoder, pictures)])

    def keys(self, encoder: Encoder, pictures: Sequence[Image.Image]) -> list[str]:
        """The keys under which the features of N pictures are in the cache now."""
        keys = [picture_key(encoder, picture) for picture in pictures]
        new = {key: picture for key, picture in zip(keys, pictures, strict=True) if key not in self.cache.values}
        if new:
            for key, features in zip(new, encoder.encode(list(new.values())), strict=True):
                self.cache.put(key, features.astype(np.float32).tobytes())
        return keys

    def text(self, encoder: Clip, prompt: str) -> Features:
        """[D] for a prompt."""
        key = hashlib.sha256(f"{encoder.fingerprint} {prompt}".encode()).hexdigest()
        if key not in self.cache.values:
            self.cache.put(key, encoder.text(prompt).astype(np.float32).tobytes())
        return self.read(key)

    def read(self, key: str) -> Features:
        """[D], from the cache."""
        return np.frombuffer(self.cache.values[key], np.float32)


def pack(row: dict[str, Any]) -> bytes:
    """A row as bytes; floats come back as they were."""
    return json.dumps(row).encode()


def unpack(value: bytes) -> dict[str, Any]:
    """The inverse of ``pack``."""
    return json.loads(value)
