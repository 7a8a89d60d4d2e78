"""A curation of stub stages that is started again and again, and what is to be seen of it from outside."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import yaml
from paths import ROOT, SUPPORT
from troubled.stages import STUBS

PLANNED = 40
FAULTS = {"crash": [7], "hang": [23], "nan": [31]}
"""Samples that end as error rows, however often the run is disturbed."""
ONCE = {"crash_once": [11, 30], "full_once": True}
"""What goes wrong once and leaves no trace in the dataset."""
WHOLE = 300
"""Seconds in which a run that nobody disturbs must be whole."""
CURATE = ("-m", "pipeline.cli", "curate", "--config")


class Curation:
    """A run in a folder of its own, or in the bucket folder ``root``. Its log and its stages' traces lie beside it.

    ``faults`` are settings of its troubled stage, and ``changes`` of the run.
    """

    def __init__(self, folder: Path, engine: str, faults: Mapping[str, Any], root: str = "", **changes: Any):
        folder.mkdir()
        self.folder, self.root, self.file = folder, root or str(folder / "runs"), folder / "settings.yaml"
        trouble = {**faults, "folder": str(folder), "batch_size": 3, "rest": 0.05}
        self.file.write_text(yaml.safe_dump({
            "name": "chaos", "root": self.root, "samples": PLANNED, "part_size": 5, "engine": engine, "devices": [],
            "time_limit": 1.0, "shards": {"samples_per_shard": 16}, **STUBS,
            "filters": [{"use": "troubled.stages:Trouble", "config": trouble}], **changes,
        }))  # fmt: skip

    def start(
        self, command: Sequence[str] = CURATE, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """The command that curates, with all its processes in a group of their own."""
        given = {**os.environ, "PYTHONPATH": f"{ROOT}:{SUPPORT}", **(environment or {})}
        arguments = [sys.executable, *command, str(self.file)]
        with open(self.folder / "log.txt", "ab") as log:
            return subprocess.Popen(
                arguments, env=given, start_new_session=True, stdout=log, stderr=log, cwd=self.folder
            )

    def told(self) -> str:
        """The end of what the command has said."""
        return (self.folder / "log.txt").read_text(errors="replace")[-3000:]

    def made(self) -> Counter[str]:
        """How often the troubled stage was given each sample."""
        return Counter(line.split()[0] for line in (self.folder / "made").read_text().splitlines())

    def contents(self) -> dict[str, str]:
        """Digest of every shard and of the manifest. AssertionError unless the run has exactly one dataset."""
        fs, root = self._storage()
        folders = [
            path
            for path in fs.ls(f"{root}/chaos/datasets", detail=False)
            if ".json" not in path and not _name(path).startswith(".")
        ]
        assert len(folders) == 1, f"{self.root} has these datasets: {folders}"
        files = [path for path in fs.ls(folders[0], detail=False) if path.endswith((".tar", ".parquet"))]
        return {_name(path): hashlib.sha256(fs.cat_file(path)).hexdigest() for path in files}

    def parts(self) -> dict[str, str]:
        """The parts that are whole, and when each was written."""
        fs, root = self._storage()
        found = fs.glob(f"{root}/chaos/*/*/*.parquet", detail=True)
        return {path: str(about.get("LastModified", about.get("mtime"))) for path, about in found.items()}

    def _storage(self) -> tuple[fsspec.AbstractFileSystem, str]:
        fs, root = fsspec.core.url_to_fs(self.root)
        fs.invalidate_cache()
        return fs, root


def _name(path: str) -> str:
    return path.rpartition("/")[2]


@dataclass(frozen=True)
class Undisturbed:
    """What every other run must come to: its dataset, how often each sample was made, and the seconds it takes."""

    contents: dict[str, str]
    made: Counter[str]
    seconds: float


def undisturbed(folder: Path, engine: str, faults: Mapping[str, Any], **changes: Any) -> Undisturbed:
    """Curate once in peace."""
    curation, begun = Curation(folder, engine, faults, **changes), time.monotonic()
    assert curation.start().wait(WHOLE) == 0, curation.told()
    return Undisturbed(curation.contents(), curation.made(), time.monotonic() - begun)
