"""A cache of an evaluation's rows and features: values (bytes) by key in a few Parquet files.

A key is a digest of everything that the value depends on, so no value becomes outdated. Every rank writes files of its
own, each at once under a temporary name. A file that cannot be read is ignored, and its values are computed again.
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
    """The values in ``folder``. New values are held in memory until ``flush`` writes them; ``new`` has their keys."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.values: dict[str, bytes] = {}
        self.new: list[str] = []
        self.load()

    def load(self) -> None:
        """Read all files, also those that other ranks wrote."""
        for path in self._files():
            try:
                table = pq.read_table(path, schema=SCHEMA)
            except (OSError, pa.ArrowInvalid):
                continue
            columns = table.column("key").to_pylist(), table.column("value").to_pylist()
            self.values.update(zip(*columns, strict=True))

    def put(self, key: str, value: bytes) -> None:
        """Add a value; ``flush`` writes it."""
        self.values[key] = value
        self.new.append(key)

    def flush(self) -> None:
        """Write the new values to one new file."""
        self._write(self.new)
        self.new = []

    def compact(self) -> None:
        """Merge all files into one. Only one rank may call it, after the others have written theirs."""
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
    """Features of pictures and prompts. Every encoder computes those of a picture once; then the cache has them."""

    def __init__(self, cache: Cache):
        self.cache = cache

    def of(self, encoder: Encoder, pictures: Sequence[Image.Image]) -> Features:
        """The features of N pictures, [N, D] float32."""
        return np.stack([self.read(key) for key in self.keys(encoder, pictures)])

    def keys(self, encoder: Encoder, pictures: Sequence[Image.Image]) -> list[str]:
        """Make sure that the cache has the features of the pictures, and return their keys."""
        keys = [picture_key(encoder, picture) for picture in pictures]
        new = {key: picture for key, picture in zip(keys, pictures, strict=True) if key not in self.cache.values}
        if new:
            for key, features in zip(new, encoder.encode(list(new.values())), strict=True):
                self.cache.put(key, features.astype(np.float32).tobytes())
        return keys

    def text(self, encoder: Clip, prompt: str) -> Features:
        """CLIP's features of a prompt, [D] float32."""
        key = hashlib.sha256(f"{encoder.fingerprint} {prompt}".encode()).hexdigest()
        if key not in self.cache.values:
            self.cache.put(key, encoder.text(prompt).astype(np.float32).tobytes())
        return self.read(key)

    def read(self, key: str) -> Features:
        """The cached features under a key, [D] float32."""
        return np.frombuffer(self.cache.values[key], np.float32)


def pack(row: dict[str, Any]) -> bytes:
    """A row as bytes. ``unpack`` gives exactly the same floats back."""
    return json.dumps(row).encode()


def unpack(value: bytes) -> dict[str, Any]:
    """The inverse of ``pack``."""
    return json.loads(value)
