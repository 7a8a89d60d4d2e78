"""Where model weights are: one place that resolves a Hugging Face id and revision, or a local path.

Nothing is downloaded here but by ``fetch``: a run looks at what is on this machine before any work, and says at once
everything that is missing.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from data_schemas.errors import UserError

if TYPE_CHECKING:
    from pipeline.core.stage import Stage

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
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
    path = _look(weights)
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


def require(stages: Iterable[Stage]) -> None:
    """UserError naming every model of these stages that is not on this machine."""
    needed = [w for stage in stages for w in stage.weights()]
    missing = [w for w in dict.fromkeys(needed) if isinstance(_look(w), str)]
    if missing:
        names = "; ".join(f"{w.purpose} {w.text}" + (f" ({w.gigabytes:g} GB)" if w.gigabytes else "") for w in missing)
        raise UserError(
            f"{len(missing)} of {len(set(needed))} models are missing on this machine: {names}. "
            "Get them with `instructar models fetch`, or name local paths in the config"
        )


def _look(weights: Weights) -> Path | str:
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


@dataclass(frozen=True)
class Found:
    """One line of ``instructar models check``."""

    stage: str
    weights: Weights
    path: Path | None
    problem: str

    @property
    def bytes_on_disk(self) -> int:
        if self.path is None:
            return 0
        files = [self.path] if self.path.is_file() else {f for p in self.weights.files for f in self.path.glob(p)}
        return sum(f.stat().st_size for f in files)


def check(stages: Iterable[Stage]) -> list[Found]:
    """What each stage needs and whether it is there; loads nothing."""
    found = []
    for stage in stages:
        for weights in stage.weights():
            look = _look(weights)
            place, problem = (None, look) if isinstance(look, str) else (look, "")
            found.append(Found(stage.name, weights, place, problem))
    return found


def table(found: Iterable[Found]) -> list[str]:
    """The lines a person reads: a header, a line a model, and for each stage whether its models fit the GPU."""
    found = list(found)
    wide = max((len(f"{f.weights.purpose}: {f.weights.text}") for f in found), default=5)
    lines = [f"{'stage':<10} {'model':<{wide}} {'state':<8} {'size':>9}  licence"]
    memory: dict[str, float] = {}
    for f in found:
        w = f.weights
        size = f"{f.bytes_on_disk / 1e9:.2f} GB" if f.path else f"~{w.gigabytes:g} GB"
        gated = ", gated: accept it on the hub and set HF_TOKEN" if w.gated and f.path is None else ""
        name, state = f"{w.purpose}: {w.text}", "missing" if f.problem else "here"
        lines.append(f"{f.stage:<10} {name:<{wide}} {state:<8} {size:>9}  {w.licence}{gated}")
        if f.problem and f.problem != NOT_HERE:
            lines.append(f"{'':<10} {f.problem}")
        memory[f.stage] = memory.get(f.stage, 0.0) + w.memory
    return [*lines, "", *_fit(memory)]


def _fit(memory: dict[str, float]) -> list[str]:
    """Whether each stage's weights fit the GPU; stages run one after the other, so they need not fit together."""
    import torch

    if not torch.cuda.is_available():
        return ["No GPU here: these models would run on the CPU, slowly."]
    device = torch.cuda.get_device_properties(0)
    room = device.total_memory / 1e9
    return [
        f"{stage:<10} {need:.1f} GB of weights on {device.name} ({room:.0f} GB): "
        + ("fits" if need * 1.2 < room else "does not fit with room to work; see offload, precision and batch_size")
        for stage, need in memory.items()
        if need
    ]


def fetch(weights: Weights) -> Path:
    """Download what is missing from the hub; UserError where the hub says no."""
    if isinstance(path := _look(weights), Path):
        return path
    if weights.is_local:
        raise UserError(f"{weights.purpose}: {weights.text}: {path}; put it there, or name a Hugging Face id")
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{weights.purpose}: {weights.text} is not here and HF_HUB_OFFLINE is set; unset it to fetch")
    try:
        return Path(snapshot_download(weights.source, revision=weights.revision, allow_patterns=list(weights.files)))
    except GatedRepoError as error:
        raise UserError(
            f"{weights.purpose}: {weights.source} is gated: accept its licence at {HfApi().endpoint}/{weights.source} "
            "and set HF_TOKEN to a token of that account"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UserError(
            f"{weights.purpose}: {weights.text} does not exist on the hub, or HF_TOKEN may not see it; check the "
            "name and the revision"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{weights.purpose}: {weights.text} could not be fetched ({reason}); try again") from error
