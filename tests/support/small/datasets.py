"""Datasets of a few rows, written as a curation publishes them, but without its work."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_schemas.tables import MANIFEST
from small.run import make_sample, write_shard

RULES = [
    {"stage": "identity", "column": "similarity_min", "bound": "min", "threshold": 0.5, "reason": "identity_low"},
    {"stage": "quality", "column": "blockiness", "bound": "max", "threshold": 0.4, "reason": "jpeg_blocks"},
]
STAGES = {"identity": {"version": 2, "model": "net@1", "settings": {"padding": 0.1}}, "decide": {"version": 2}}


def row(number: int, split: str = "train", shard: int | None = 0, **changes) -> dict:
    """A row of a manifest: a kept sample, or one that is in no shard."""
    plan = {
        "sample_id": f"s{number:02d}", "index": number, "split": split, "seed": number, "reference_0_id": "r0",
        "reference_1_id": "r1", "reference_0_name": "cat", "reference_1_name": "cup", "reference_0_category": "cat",
        "reference_1_category": "cup", "subject_0_id": f"{split}-a", "subject_1_id": f"{split}-b", "relation": "hug",
        "layout": "beside", "box_0": [0.0, 0.0, 0.5, 1.0], "box_1": [0.5, 0.0, 1.0, 1.0], "turn_0": 0.0, "turn_1": 0.0,
        "mirror_0": False, "mirror_1": False, "front": None, "prompt": "a cat and a cup",
    }  # fmt: skip
    decided = {"decision": "kept" if shard is not None else "rejected", "reasons": [], "error_stage": None,
               "error_code": None, "error_message": None, "reviewer": None, "review_reason": None}  # fmt: skip
    held = {"shard": None if shard is None else f"{split}-{shard:05d}.tar",
            "content": None if shard is None else f"c{number}"}  # fmt: skip
    return plan | decided | held | {"similarity_min": 0.8, "blockiness": 0.1} | changes


def table(rows: list[dict]) -> pa.Table:
    scores = [name for name in rows[0] if name not in MANIFEST.arrow().names]
    schema = pa.schema([*MANIFEST.arrow(), *(pa.field(name, pa.float64()) for name in scores)])
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
