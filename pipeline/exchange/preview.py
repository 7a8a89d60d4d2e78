"""Small Parquet files that the Hub's viewer shows: the samples of a shard, with thumbnails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_schemas.errors import UserError
from data_schemas.shards import ShardSample, read_shard
from data_schemas.tables import PREVIEW
from pipeline.report.thumbnails import jpeg

SIDE = 192
"""Longest side of a thumbnail in pixels."""
ROWS = 100
"""Rows of a row group, which is what a viewer reads at once."""
PICTURES = ("reference_0", "reference_1", "background", "target")


def write_preview(shard: Path, out: Path) -> None:
    """Write the table PREVIEW of a shard's samples. The same shard gives the same bytes.

    Raises UserError for a sample that cannot be read, or that no curation made.
    """
    schema = _with_features(PREVIEW.arrow())
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        for rows in _in_groups(_row(sample, shard) for sample in read_shard(str(shard))):
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _row(sample: ShardSample, shard: Path) -> dict:
    relation, names = _told(sample)
    if relation is None or len(names) < 2 or len(sample.references) < 2:
        raise UserError(
            f"{shard}: sample {sample.sample_id}: has no relation of two named references, as a curation's samples "
            "have; publish a curated dataset"
        )
    shown = dict(zip(PICTURES, (*sample.references[:2], sample.background, sample.target), strict=True))
    return {
        "sample_id": sample.sample_id,
        "prompt": sample.prompt,
        **{
            name: {"bytes": jpeg(picture, SIDE), "path": f"{sample.sample_id}.{name}.jpg"}
            for name, picture in shown.items()
        },
        "relation": relation,
        **{f"reference_{i}_name": names[i] for i in range(2)},
        "shard": shard.name,
    }


def _told(sample: ShardSample) -> tuple[str | None, list[str]]:
    """A sample's relation, if it tells one, and the names of its subjects."""
    stated = sample.info.get("subjects")
    names = [s.get("name") for s in stated if isinstance(s, dict)] if isinstance(stated, list) else []
    relation = sample.info.get("relation")
    return _text(relation) if isinstance(relation, str) else None, [_text(n) for n in names if isinstance(n, str)]


def _text(text: str) -> str:
    """The text without halves of surrogate pairs, which JSON can name and no table holds."""
    return text.encode(errors="replace").decode()


def _in_groups(rows: Iterator[dict]) -> Iterator[list[dict]]:
    group: list[dict] = []
    for row in rows:
        group.append(row)
        if len(group) == ROWS:
            yield group
            group = []
    if group:
        yield group


def _with_features(schema: pa.Schema) -> pa.Schema:
    """The schema with the note by which Hugging Face's readers know that a column holds pictures.

    They believe it of fields that may be null only.
    """
    features = {
        field.name: {"_type": "Image"} if field.name in PICTURES else {"dtype": "string", "_type": "Value"}
        for field in schema
    }
    note = json.dumps({"info": {"features": features}})
    return pa.schema([field.with_nullable(True) for field in schema]).with_metadata(
        {**(schema.metadata or {}), b"huggingface": note.encode()}
    )
