"""Model weights that a stage needs: a Hugging Face id and revision, or a local path, and where they are.

Nothing is downloaded here: a run looks at what is on this machine before any work.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from data_schemas.errors import UserError
from data_schemas.networks import HUB_ID

ONE_FILE = "model.safetensors"
"""The name that the hub gives weights in one file."""
NOT_HERE = "not on this machine"
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Weights:
    """Model files that a stage needs.

    ``source`` is a Hugging Face id or a local folder or file, ``files`` are patterns of which each must match
    something there. ``gigabytes`` (download) and ``memory`` (gigabytes once loaded) are of the published model.
    """

    purpose: str
    source: str
    files: tuple[str, ...]
    revision: str = "main"
    licence: str = "unknown"
    gigabytes: float = 0.0
    memory: float = 0.0
    gated: bool = False

    @property
    def is_local(self) -> bool:
        """A path, unless it looks like a Hugging Face id and no such path exists."""
        return not HUB_ID.fullmatch(self.source) or Path(self.source).expanduser().exists()

    @property
    def name(self) -> str:
        """What the data calls it: the id on the hub, or the file's or folder's own name, wherever that lies."""
        return os.path.basename(os.path.abspath(os.path.expanduser(self.source))) if self.is_local else self.source

    @property
    def text(self) -> str:
        return self.source if self.is_local or self.revision == "main" else f"{self.source}@{self.revision}"


def locate(weights: Weights) -> Path:
    """The folder (or the one file) that holds the weights on this machine; UserError if anything is missing."""
    path = look(weights)
    if isinstance(path, str):
        raise UserError(f"{weights.purpose}: {weights.text}: {path}")
    return path


def identity(weights: Weights) -> str:
    """What tells these weights from others: the commit on the hub, or a digest of the local files."""
    if not weights.is_local and COMMIT.fullmatch(weights.revision):
        return weights.revision
    path = locate(weights)
    if weights.is_local:
        found = [path] if path.is_file() else [f for p in weights.files for f in path.glob(p)]
        return _digest(tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(set(found))))
    return path.name  # the hub's cache names the folder of a snapshot by its commit


def look(weights: Weights) -> Path | str:
    """Where the weights are, or what is missing."""
    if weights.is_local:
        path = Path(weights.source).expanduser()
        if path.is_file():
            return path
        if not path.is_dir():
            return "no such file or folder"
    else:
        try:
            path = Path(snapshot_download(
                weights.source, revision=weights.revision, allow_patterns=list(weights.files), local_files_only=True
            ))  # fmt: skip
        except (LocalEntryNotFoundError, ValueError):  # ValueError: an id that the hub would refuse
            return NOT_HERE
    for pattern in weights.files:
        matches = list(path.glob(pattern))
        if not matches:
            return f"{pattern} is missing in {path}"
        for index in (m for m in matches if m.name.endswith(".index.json")):
            shards = set(json.loads(index.read_text())["weight_map"].values())
            if lost := sorted(s for s in shards if not (index.parent / s).is_file()):
                return f"{lost[0]} is missing in {index.parent}"
    return path


@functools.lru_cache(maxsize=64)
def _digest(files: tuple[tuple[str, int, int], ...]) -> str:
    """SHA-256 over the files' names and bytes; sizes and times only say when to read them again."""
    digest = hashlib.sha256()
    for name, size, _ in files:
        digest.update(f"{os.path.basename(name)} {size} ".encode())
        with open(name, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return "sha256-" + digest.hexdigest()[:40]
