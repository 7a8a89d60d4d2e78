"""Datasets of a few rows, written as a curation publishes them, but without its work."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_schemas.schema import Column
from data_schemas.tables import MANIFEST
from small.run import make_sample, write_shard

RULES = [
    {"stage": "identity", "column": "similarity_min", "bound": "min", "threshold": 0.5, "reason": "identity_low"},
    {"stage": "quality", "column": "blockiness", "bound": "max", "threshold": 0.4, "reason": "jpeg_blocks"},
]
STAGES = {"identity": {"version": 2, "model": "net@1", "settings": {"padding": 0.1}}, "decide": {"version": 2}}


def _blank(column: Column) -> object:
    if column.nullable:
        return None
    if pa.types.is_string(column.type):
        return "x"
    return [] if pa.types.is_list(column.type) else pa.scalar(0).cast(column.type).as_py()


def row(number: int, split: str = "train", shard: int | None = 0, **changes) -> dict:
    """A row of a manifest: a kept sample, or one that is in no shard."""
    blank = {c.name: [0.0, 0.0, 1.0, 1.0] if c.name.startswith("box_") else _blank(c) for c in MANIFEST.columns}
    shown = {f"{what}_{i}_id": f"{split}-{what[0]}{i}" for what in ("subject", "reference") for i in range(2)}
    own = {"sample_id": f"s{number:02d}", "index": number, "split": split, "decision": "kept"}
    if shard is None:
        own |= {"decision": "rejected"}
    else:
        own |= {"shard": f"{split}-{shard:05d}.tar", "content": f"c{number}"}
    return blank | shown | own | {"similarity_min": 0.8, "blockiness": 0.1} | changes


def table(rows: list[dict]) -> pa.Table:
    scores = [name for name in rows[0] if name not in MANIFEST.arrow().names]
    kinds = {name: pa.string() if isinstance(rows[0][name], str) else pa.float64() for name in scores}
    schema = pa.schema([*MANIFEST.arrow(), *(pa.field(name, kind) for name, kind in kinds.items())])
    return pa.Table.from_pylist(rows, schema=schema.with_metadata(MANIFEST.arrow().metadata))


def write_dataset(folder: Path, rows: list[dict], **facts) -> str:
    folder.mkdir(parents=True)
    pq.write_table(table(rows), folder / "manifest.parquet")
    stated = {"config": {"name": "small", "seed": 0}, "version": "1.0.0", "stages": STAGES, "rules": RULES, **facts}
    (folder / "run.json").write_text(json.dumps(stated))
    return str(folder)


def write_shards(folder: Path, rows: list[dict], **facts) -> str:
    """The same with the shards that the rows name. A sample's pictures follow from its number and split."""
    held: dict[str, list] = {}
    for own in rows:
        if own["shard"] is not None:
            sample = replace(make_sample(own["index"], own["split"], side=32), sample_id=own["sample_id"])
            held.setdefault(own["shard"], []).append(sample)
    for name, samples in held.items():
        write_shard(folder.parent / "being-made" / name, samples)
    digests = {name: hashlib.sha256((folder.parent / "being-made" / name).read_bytes()).hexdigest() for name in held}
    write_dataset(folder, rows, shards=digests, **facts)
    for name in held:
        (folder.parent / "being-made" / name).rename(folder / name)
    return str(folder)
