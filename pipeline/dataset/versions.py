"""The versions of a run's datasets.

    <run>/datasets/versions.json      dataset and version, in the order in which they were last published

The first dataset is 1.0.0. A dataset that was published before has the version that it had. Any other follows the
highest version there is: by a major step if something that this one's shards hold is gone, has other bytes, another
decision, split or shard, or if nobody can tell; by a minor step if samples were only added; else by a patch.

The file outlives datasets that are removed, so that no version is given twice. If it is lost, the versions that the
datasets' run.json name take its place.
"""

from __future__ import annotations

import io
import json
import re
from typing import NamedTuple

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from data_schemas.io.storage import patiently, read_facts, shown, write_file

FIRST = "1.0.0"
FILE = "versions.json"
TELLING = ["sample_id", "decision", "split", "shard", "content"]
"""The columns of the manifest by which two datasets are compared."""
DATASET = re.compile(r"[0-9a-f]{16}")
"""The name of a dataset's folder."""
_VERSION = re.compile(r"(\d{1,9})\.(\d{1,9})\.(\d{1,9})")


class Published(NamedTuple):
    """A dataset by the name of its folder, with its version."""

    dataset: str
    version: str


def published(fs: fsspec.AbstractFileSystem, datasets: str) -> list[Published]:
    """The datasets of a run that have a version, the newest last. ``datasets`` is their folder."""
    stored = (read_facts(fs, f"{datasets}/{FILE}") or {}).get("published")
    entries = [entry for entry in stored if isinstance(entry, dict)] if isinstance(stored, list) else []
    named = [_entry(entry.get("dataset"), entry.get("version")) for entry in entries]
    known = {entry.dataset: entry for entry in named if entry is not None}
    if not known:
        for name in folders(fs, datasets):
            if entry := _entry(name, (read_facts(fs, f"{datasets}/{name}/run.json") or {}).get("version")):
                known[name] = entry
        return sorted(known.values(), key=_order)
    return list(known.values())


def folders(fs: fsspec.AbstractFileSystem, datasets: str) -> list[str]:
    """The names of all folders of datasets, also of those without a version."""
    try:
        found = patiently(lambda: fs.ls(datasets, detail=False), shown(datasets))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name for path in found if DATASET.fullmatch(name := str(path).rstrip("/").rpartition("/")[2]))


def version_of(fs: fsspec.AbstractFileSystem, datasets: str, name: str, manifest: bytes) -> str:
    """The version of the dataset in the folder ``name``, which has this manifest: its own, or the next one."""
    known = published(fs, datasets)
    own = next((entry.version for entry in known if entry.dataset == name), None)
    if own is not None or not known:
        return own or FIRST
    last = max(known, key=_order)
    path = f"{datasets}/{last.dataset}/manifest.parquet"
    try:
        before = patiently(lambda: fs.cat_file(path), shown(path))
        how = step(_telling(before), _telling(manifest))
    except (FileNotFoundError, ValueError, pa.ArrowException):  # pruned, or of a program that wrote no content
        how = "major"
    return stepped(last.version, how)


def record(fs: fsspec.AbstractFileSystem, datasets: str, name: str, version: str) -> None:
    """Remember that the dataset was published now."""
    known = [entry for entry in published(fs, datasets) if entry.dataset != name]
    entries = [entry._asdict() for entry in [*known, Published(name, version)]]
    write_file(fs, f"{datasets}/{FILE}", json.dumps({"published": entries}, indent=2).encode())


def step(old: pd.DataFrame, new: pd.DataFrame) -> str:
    """What a dataset does to those who use the one before it: "major", "minor" or "patch".

    Both have the columns TELLING, a row for each planned sample.
    """
    held, now = (frame[frame.shard.notna()].set_index("sample_id") for frame in (old, new))
    if held.content.isna().any() or now.content.isna().any():
        return "major"
    there = now.reindex(held.index)
    if not (there[TELLING[1:]] == held[TELLING[1:]]).all(axis=None):
        return "major"
    return "minor" if len(now) > len(held) else "patch"


def stepped(version: str, how: str) -> str:
    """The version that follows by a step."""
    major, minor, patch = map(int, version.split("."))
    if how == "major":
        return f"{major + 1}.0.0"
    return f"{major}.{minor + 1}.0" if how == "minor" else f"{major}.{minor}.{patch + 1}"


def _telling(manifest: bytes) -> pd.DataFrame:
    return pq.read_table(io.BytesIO(manifest), columns=TELLING).to_pandas().reindex(columns=TELLING)


def _entry(dataset: object, version: object) -> Published | None:
    texts = isinstance(dataset, str) and isinstance(version, str)
    if texts and DATASET.fullmatch(str(dataset)) and _VERSION.fullmatch(str(version)):
        return Published(str(dataset), str(version))
    return None


def _order(entry: Published) -> tuple[int, ...]:
    return tuple(map(int, entry.version.split(".")))
