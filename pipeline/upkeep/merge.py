"""One dataset from several: their shards under new numbers, one manifest, and a run.json that names the parents.

Shards are linked where that is possible. A sample that two parents hold with the same bytes is kept once; the shard of
the later parent is then written again without it. The same parents in the same order give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from data_schemas.errors import UserError
from data_schemas.io.documents import MAX_BYTES
from data_schemas.io.new_folders import filling, new_folder
from data_schemas.io.storage import read_bounded, shown
from data_schemas.io.tars import read_members
from data_schemas.io.text import label
from data_schemas.schema import validate
from data_schemas.tables import MANIFEST, SPLITS
from pipeline.core.names import part_names
from pipeline.core.tar_writer import write_tar
from pipeline.dataset.opened import Dataset
from pipeline.dataset.versions import FIRST
from pipeline.references.copies import near_hashes
from pipeline.remembered import differences

NAMED = 5
"""Most differences that a refusal names."""
APART = ("subject", "reference")
"""What is never in train of one parent and in test of another. A reference's id follows from its picture."""
MUST_AGREE = ("content", "decision", "split")
"""What two rows of one sample must have in common."""


@dataclass(frozen=True)
class Parent:
    """A dataset that is merged: its manifest, and the names of its shards in the new one by their own."""

    dataset: Dataset
    table: pa.Table
    renamed: dict[str, str]
    left_out: frozenset[str]
    """Samples that an earlier parent has too."""
    without: frozenset[str]
    """Shards that hold some of these."""


def merge(datasets: Sequence[Dataset], out: str, allow_mixed: bool = False) -> dict[str, int]:
    """Write the dataset into the folder ``out`` of this machine, which must not be there or be empty. It gets its name
    when it is whole. Returns how many samples and shards there are, and how many samples were there twice.

    Raises UserError for parents that were made otherwise (unless ``allow_mixed``), columns of different types, a sample
    with different contents, a subject or a near-copy of a target in train of one and test of another, damaged files.
    """
    target = new_folder(out)
    for dataset in datasets:
        dataset.need_facts()
    for other in datasets[1:]:
        if not allow_mixed and (lines := _made_otherwise(datasets[0], other)):
            more = f"; and {len(lines) - NAMED} more" if len(lines) > NAMED else ""
            raise UserError(
                f"{shown(other.url)} was made otherwise than {shown(datasets[0].url)}: {'; '.join(lines[:NAMED])}"
                f"{more}; --allow-mixed merges them all the same"
            )
    _check_types(datasets)
    parents = _parents(datasets, [_manifest(dataset) for dataset in datasets])
    with filling(target) as folder:
        digests: dict[str, str] = {}
        for parent in parents:
            for name, own in parent.renamed.items():
                digests[own] = _shard(parent, name, folder / own)
        manifest = _merged_manifest(parents)
        (folder / "manifest.parquet").write_bytes(manifest)
        facts = _facts(target.name, parents, digests, manifest)
        (folder / "run.json").write_text(json.dumps(facts, indent=2, sort_keys=True))
        (folder / "README.md").write_text(_card(facts, _cards(parents, folder)))
    rows = sum(len(parent.table) for parent in parents)
    return {"samples": rows, "shards": len(digests), "twice": sum(len(parent.left_out) for parent in parents)}


def _made_otherwise(first: Dataset, other: Dataset) -> list[str]:
    """A line for each version, model, setting and threshold that differs; nothing of pools and plans."""
    sides: list[dict[str, Any]] = []
    for dataset in (first, other):
        if not isinstance(dataset.facts.get("stages"), dict):
            return [f"{shown(dataset.url)} is itself merged of stages that differ"]
        thresholds = {
            f"{reason} ({column} {r['bound']})": r["threshold"] for (reason, column), r in dataset.rules.items()
        }
        sides.append({**dataset.facts["stages"], "threshold": thresholds})
    return differences(sides[0], sides[1])


def _check_types(datasets: Sequence[Dataset]) -> None:
    known: dict[str, tuple[pa.DataType, str]] = {}
    for dataset in datasets:
        for field in dataset.schema:
            kind, url = known.setdefault(field.name, (field.type, dataset.url))
            if kind != field.type:
                raise UserError(
                    f"column {field.name!r} is {kind} in {shown(url)} and {field.type} in {shown(dataset.url)}; curate "
                    "them with the same version of its stage"
                )


def _manifest(dataset: Dataset) -> pa.Table:
    table = dataset.table()
    names = set(table["shard"].unique().drop_null().to_pylist())
    if bad := sorted(names - dataset.shards.keys()):
        raise UserError(
            f"{shown(dataset.url)}: its manifest names a shard {bad[0]!r} that run.json does not; curate again"
        )
    return table


def _parents(datasets: Sequence[Dataset], tables: Sequence[pa.Table]) -> list[Parent]:
    """What is taken of each parent. UserError for samples and subjects that contradict each other."""
    columns = ["sample_id", *MUST_AGREE, "shard", *(f"{what}_{i}_id" for what in APART for i in range(2))]
    rows = pd.concat([t.select(columns).to_pandas().assign(parent=n) for n, t in enumerate(tables)], ignore_index=True)
    urls = [shown(dataset.url) for dataset in datasets]
    for what in APART:
        _check_apart(rows, what, urls)
    twice = rows.duplicated("sample_id")
    _check_twice(rows, twice, urls)
    left = rows[~twice & rows.shard.notna()]
    _check_targets(left, tables, urls)
    held = left.groupby(["parent", "shard"], sort=True).size().index  # by parent, then by name
    parents = []
    names = {split: iter(part_names(len(held), split)) for split in SPLITS}
    for number, (dataset, table) in enumerate(zip(datasets, tables, strict=True)):
        own = rows.parent == number
        shards = [shard for parent, shard in held if parent == number]
        renamed = {shard: f"{next(names[shard.rpartition('-')[0]])}.tar" for shard in shards}
        left_out = rows[own & twice]
        without = frozenset(left_out.shard.dropna())
        rest = table.filter(pa.array(~twice[own]))
        parents.append(Parent(dataset, rest, renamed, frozenset(left_out.sample_id), without))
    return parents


def _check_apart(rows: pd.DataFrame, what: str, urls: Sequence[str]) -> None:
    sides = [rows[[f"{what}_{i}_id", "split", "parent"]].set_axis(["id", "split", "parent"], axis=1) for i in range(2)]
    seen = pd.concat(sides).drop_duplicates(["id", "split"])
    both = seen[seen.duplicated("id", keep=False)].sort_values(["id", "split"])
    if len(both):
        where = " and ".join(f"in {s} of {urls[n]}" for s, n in zip(both.split[:2], both.parent[:2], strict=True))
        raise UserError(f"{what} {both.id.iloc[0]} is {where}; a model would be tested on what it has seen")


def _check_targets(held: pd.DataFrame, tables: Sequence[pa.Table], urls: Sequence[str]) -> None:
    hashes: dict[str, str] = {}
    for table in tables:
        if "target_phash" in table.column_names:  # a user's own synthesis need not hash its targets
            hashes |= zip(table["sample_id"].to_pylist(), table["target_phash"].to_pylist(), strict=True)
    one, other = (held[(held.split == s) & (held.sample_id.map(hashes.get).notna())] for s in SPLITS)
    for a, b in near_hashes(*([hashes[i] for i in side.sample_id] for side in (one, other))):
        where = [f"{row.sample_id} in {row.split} of {urls[row.parent]}" for row in (one.iloc[a], other.iloc[b])]
        raise UserError(f"the target of {where[0]} is a near-copy of that of {where[1]}; leave one of them out")


def _check_twice(rows: pd.DataFrame, twice: pd.Series, urls: Sequence[str]) -> None:
    again = rows[twice]
    first = rows.drop_duplicates("sample_id").set_index("sample_id").loc[again.sample_id].reset_index()
    again = again.reset_index(drop=True)
    for column in MUST_AGREE:
        other = (first[column] != again[column]) & ~(first[column].isna() & again[column].isna())
        if other.any():
            row = int(other.to_numpy().argmax())
            raise UserError(
                f"sample {again.sample_id[row]} has another {column} in {urls[again.parent[row]]} than in "
                f"{urls[first.parent[row]]}; leave one of them out"
            )


def _shard(parent: Parent, name: str, path: Path) -> str:
    """Bring a shard of a parent to ``path``, without the samples that are left out. Returns its SHA-256."""
    digest = parent.dataset.bring(name, path)
    return _without(path, parent.left_out) if name in parent.without else digest


def _without(path: Path, left_out: frozenset[str]) -> str:
    """Write a shard again without these samples. Returns its SHA-256."""
    kept = path.with_suffix(".kept")
    samples = ((sample_id, members) for sample_id, members in read_members(str(path)) if sample_id not in left_out)
    with open(kept, "wb") as file:
        digest, _ = write_tar(file, samples)
    os.replace(kept, path)
    return digest


def _merged_manifest(parents: Sequence[Parent]) -> bytes:
    tables = []
    for parent in parents:
        shards = parent.table["shard"].to_pandas().map(parent.renamed)
        column = parent.table.schema.get_field_index("shard")
        renamed = pa.array(shards.where(shards.notna(), None), pa.string())
        tables.append(parent.table.set_column(column, parent.table.schema.field("shard"), renamed))
    table = pa.concat_tables(tables, promote_options="default").replace_schema_metadata(MANIFEST.arrow().metadata)
    validate(table, MANIFEST, "manifest.parquet")
    buffer = io.BytesIO()
    pq.write_table(table.combine_chunks(), buffer, compression="zstd")
    return buffer.getvalue()


def _facts(name: str, parents: Sequence[Parent], digests: Mapping[str, str], manifest: bytes) -> dict[str, Any]:
    """The content of run.json. It names stages and rules only if they are those of all parents."""
    told = ("config", "fingerprints", "manifest_sha256", "stages", "rules", "parents")
    datasets = [parent.dataset for parent in parents]
    alike = not any(_made_otherwise(datasets[0], other) for other in datasets)
    return {
        "name": name,
        "version": FIRST,
        "parents": [
            {"name": d.name, "version": d.version, **{key: d.facts[key] for key in told if key in d.facts}}
            for d in datasets
        ],
        **({key: datasets[0].facts[key] for key in ("stages", "rules")} if alike else {}),
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
        "shards": dict(digests),
    }


def _cards(parents: Sequence[Parent], folder: Path) -> list[str | None]:
    """Copy the parents' cards, which name licences and sources. Returns their names, None where there is none."""
    names: list[str | None] = []
    for number, parent in enumerate(parents):
        path, name = f"{parent.dataset.folder}/README.md", f"cards/{number:02d}.md"
        if not parent.dataset.fs.exists(path):
            names.append(None)
            continue
        (folder / "cards").mkdir(exist_ok=True)
        (folder / name).write_bytes(read_bounded(parent.dataset.fs, path, "curate again", MAX_BYTES))
        names.append(name)
    return names


def _card(facts: Mapping[str, Any], cards: Sequence[str | None]) -> str:
    splits = [split for split in SPLITS if any(name.startswith(f"{split}-") for name in facts["shards"])]
    files = [{"split": split, "path": f"{split}-*.tar"} for split in splits]
    front: dict[str, Any] = {"pretty_name": facts["name"], "tags": ["webdataset", "multi-subject", "instructar"]}
    if files:  # the hub refuses a config without files
        front["configs"] = [{"config_name": "default", "data_files": files}]
    lines = ["---", yaml.safe_dump(front, sort_keys=False, allow_unicode=True) + "---", ""]
    lines += [f"# {label(facts['name'])}", "", f"Version {facts['version']}, merged of:", ""]
    for parent, card in zip(facts["parents"], cards, strict=True):
        more = f", [its card]({card}) with sources and licences" if card else ""
        lines.append(f"- {label(parent['name'])}, version {parent['version']}{more}")
    return "\n".join(
        [*lines, "", "`manifest.parquet` has every planned sample; `run.json` tells how each was made.", ""]
    )
