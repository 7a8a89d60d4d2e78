"""Model weights that a stage needs: a Hugging Face id with a revision, or a local path, and where the files are.

Nothing is downloaded here; a run uses only files that are already on this machine.
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
"""The hub's usual name of a model's weights if they are in one file."""
NOT_HERE = "not on this machine"
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Weights:
    """Model files that a stage needs.

    ``source`` is a Hugging Face id or a local folder or file. ``files`` are glob patterns, each of which must match a
    file. ``gigabytes`` (download) and ``memory`` (gigabytes once loaded) are those of the published model.
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
        """Whether ``source`` is a path: it exists on this machine, or it does not look like a Hugging Face id."""
        return not HUB_ID.fullmatch(self.source) or os.path.exists(self.path)

    @property
    def path(self) -> Path:
        """Where ``source`` is if it is local."""
        return Path(os.path.expanduser(self.source))  # Path's own raises for the home of nobody

    @property
    def patterns(self) -> list[str]:
        """``files`` as the hub's client reads them, whose * also stands for folders."""
        return [pattern.removeprefix("**/") for pattern in self.files]

    @property
    def name(self) -> str:
        """The name stored with the data: the id on the hub, or a local file's or folder's own name without its
        location.
        """
        return os.path.basename(os.path.abspath(self.path)) if self.is_local else self.source

    @property
    def text(self) -> str:
        """The source as messages show it, with the revision if it is not "main"."""
        return self.source if self.is_local or self.revision == "main" else f"{self.source}@{self.revision}"


def locate(weights: Weights) -> Path:
    """The folder or file that holds the weights on this machine. Raises UserError if anything is missing."""
    path = look(weights)
    if isinstance(path, str):
        raise UserError(f"{weights.purpose}: {weights.text}: {path}")
    return path


def identity(weights: Weights) -> str:
    """A text that identifies these weights: the commit on the hub, or a digest of the local files."""
    if not weights.is_local and COMMIT.fullmatch(weights.revision):
        return weights.revision
    path = locate(weights)
    if weights.is_local:
        matches = [path] if path.is_file() else [f for p in weights.files for f in path.glob(p)]
        return _digest(tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(set(matches))))
    return path.name  # the hub's cache names a snapshot's folder after its commit


def look(weights: Weights) -> Path | str:
    """The folder or file that holds the weights, or a text that says what is missing."""
    if weights.is_local:
        path = weights.path
        if os.path.isfile(path):  # also says no where a name is too long, or holds what none can
            return path
        if not os.path.isdir(path):
            return "no such file or folder"
    else:
        try:
            path = Path(snapshot_download(
                weights.source, revision=weights.revision, allow_patterns=weights.patterns, local_files_only=True
            ))  # fmt: skip
        except (LocalEntryNotFoundError, ValueError):  # ValueError: not a valid id
            return NOT_HERE
    for pattern in weights.files:
        matches = list(path.glob(pattern))
        if not matches:
            return f"{pattern} is missing in {path}"
        for index in (m for m in matches if m.name.endswith(".index.json")):
            try:
                shards = set(json.loads(index.read_text())["weight_map"].values())
                lost = sorted(s for s in shards if not (index.parent / s).is_file())
            except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
                return f"{index.name} in {index.parent} is damaged; download it again"
            if lost:
                return f"{lost[0]} is missing in {index.parent}"
    return path


@functools.lru_cache(maxsize=64)
def _digest(files: tuple[tuple[str, int, int], ...]) -> str:
    """SHA-256 of the files' names and bytes. Sizes and times are only part of the cache key."""
    digest = hashlib.sha256()
    for name, size, _ in files:
        digest.update(f"{os.path.basename(name)} {size} ".encode())
        with open(name, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return "sha256-" + digest.hexdigest()[:40]
