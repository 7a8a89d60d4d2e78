"""Saving samples that somebody chose: a manifest with their rows, and shards with their pictures if asked for.

The folder is a dataset like those of ``pipeline/dataset/publish.py``: manifest.parquet, run.json, train-*.tar and
test-*.tar. run.json tells under ``selection`` what was chosen. The same choice gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_schemas.errors import UserError
from data_schemas.io.new_folders import filling, new_folder
from data_schemas.schema import validate
from data_schemas.tables import MANIFEST
from pipeline.config import HOW
from pipeline.core.tar_writer import write_tar
from pipeline.dataset.facts import stated
from pipeline.dataset.frames.columns import FIRST, Columns, DatasetColumns
from pipeline.dataset.frames.decisions import Compared
from pipeline.dataset.frames.run_columns import RunColumns
from pipeline.dataset.picture_reader import PictureReader
from pipeline.dataset.publish import ShardMembers, contents_of
from pipeline.dataset.sharding import assign, may_be_held
from pipeline.dataset.versions import FIRST as FIRST_VERSION
from pipeline.jobs import pool_digest

FOLDER = "selections"
"""Where a page saves them, in the run's folder."""


def save(columns: Columns, rows: np.ndarray, conditions: Sequence[str], out: str, shards: bool = False) -> str:
    """Write the samples in ``rows``, in the order of the plan, into the folder ``out`` of this machine. Returns it.

    ``conditions`` are those by which they were chosen. A sample with a planted fault gets into no shard, as in the
    run's own dataset.

    Raises UserError if it is there already, if no sample was chosen, if one is not decided yet, or if shards are asked
    for and one has no pictures, or none may be in a shard.
    """
    target = new_folder(out)
    rows = np.sort(rows)
    columns = columns.base if isinstance(columns, Compared) else columns
    if not len(rows):
        raise UserError(f"{out}: no sample was chosen; loosen the conditions")
    table = _manifest(columns, rows)
    with filling(target) as folder:
        digests: dict[str, str] = {}
        if shards:
            table, digests = _with_shards(columns, rows, table, folder)
        validate(table, MANIFEST, "manifest.parquet")
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        (folder / "manifest.parquet").write_bytes(buffer.getvalue())
        facts = _facts(columns) | {
            "version": FIRST_VERSION, "shards": digests,
            "manifest_sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
            "selection": {"conditions": list(conditions), "samples": len(rows)},
        }  # fmt: skip
        (folder / "run.json").write_text(json.dumps(facts, indent=2, sort_keys=True))
    return out


def _manifest(columns: Columns, rows: np.ndarray) -> pa.Table:
    """The rows of the manifest, in no shard."""
    ours = [column.name for column in MANIFEST.columns]
    own = [name for name in columns.fields if name not in ours and "." not in name]
    columns.load([name for name in (*ours, *own) if name in columns.fields])
    arrays, fields = [], []
    for name in (*ours, *own):
        given = MANIFEST.arrow().field(name) if name in ours else columns.fields[name]
        held = name not in ("shard", "content")
        arrays.append(columns.column(name).take(pa.array(rows)) if held else pa.nulls(len(rows), given.type))
        fields.append(given)
    undecided = arrays[ours.index("decision")].null_count
    if undecided:
        raise UserError(
            f"{undecided} of the {len(rows)} chosen samples are not decided yet; curate to the end, or choose those "
            "whose decision is there"
        )
    return pa.table(arrays, schema=pa.schema(fields, MANIFEST.arrow().metadata))


def _with_shards(columns: Columns, rows: np.ndarray, table: pa.Table, folder: Path) -> tuple[pa.Table, dict[str, str]]:
    """Write the shards; the manifest with the names of the shards and digests, and the SHA-256 of each shard."""
    if not isinstance(columns, RunColumns):
        raise UserError("shards are made of a run's parts, which this program does not find; save a manifest")
    run = columns.run
    failed = columns.standing().failed[rows]
    if failed.any():
        raise UserError(
            f"{int(failed.sum())} of the {len(rows)} chosen samples have no pictures, because a stage failed on them; "
            "choose those with decision != error"
        )
    settings, splits = run.config.shards, table["split"].to_pylist()
    held = [number for number, may in enumerate(may_be_held(splits, table, settings.unfiltered)) if may]
    if not held:
        raise UserError(
            f"none of the {len(rows)} chosen samples may be in a shard, as each has a planted fault; save a manifest, "
            "or choose those with planted_fault = none"
        )
    reader = PictureReader(run, pool_digest(run))
    scores = table.select([name for name in table.column_names if name not in {c.name for c in MANIFEST.columns}])
    digests: dict[str, str] = {}
    shard_of: list[str | None] = [None] * len(rows)
    content_of: list[str | None] = [None] * len(rows)
    for name, numbers in assign(held, splits, settings.samples_per_shard).items():
        plans, own = (side.take(numbers).to_pylist() for side in (table, scores))
        members = ShardMembers(reader, {p[FIRST]: (p, s) for p, s in zip(plans, own, strict=True)})
        with open(folder / f"{name}.tar", "wb") as file:
            digests[f"{name}.tar"], entries = write_tar(file, members.items())
        contents = contents_of(entries)
        for number in numbers:
            shard_of[number], content_of[number] = f"{name}.tar", contents[table[FIRST][number].as_py()]
    for name, values in (("shard", shard_of), ("content", content_of)):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), pa.array(values, pa.string()))
    return table, digests


def _facts(columns: Columns) -> dict[str, Any]:
    """What run.json says of how the samples were made."""
    if isinstance(columns, RunColumns):
        run = columns.run
        config = run.config.model_dump(mode="json", exclude={"root", *HOW})
        return {"config": config, "fingerprints": dict(run.fingerprints), **stated(run)}
    assert isinstance(columns, DatasetColumns)
    told = ("name", "config", "fingerprints", "stages", "rules", "parents")
    return {key: value for key, value in columns.dataset.facts.items() if key in told}
