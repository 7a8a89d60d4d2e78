"""The content of shards and of the manifest: kept samples go into shards, every planned sample into the manifest."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from data_schemas.errors import UserError
from data_schemas.schema import Column, validate
from data_schemas.shards import encode_words
from data_schemas.tables import MANIFEST, SPLITS, STATUS_COLUMNS
from pipeline.core.stage import NEEDED


def may_be_held(splits: Sequence[str], made: pa.Table, unfiltered: bool) -> list[bool]:
    """Whether shards may hold each sample, if it is chosen for them.

    A planted fault is known to be wrong, so none may. With ``shards.unfiltered``, which measures what the filters are
    worth, the training shards hold them like all others. ``made`` has the column planted_fault, unless a user's own
    synthesis knows of none.
    """
    faults = made["planted_fault"].to_pylist() if "planted_fault" in made.column_names else [None] * len(made)
    return [
        fault in (None, "none") or (unfiltered and split == "train")
        for split, fault in zip(splits, faults, strict=True)
    ]


def assign(held: Sequence[int], splits: Sequence[str], samples_per_shard: int) -> dict[str, list[int]]:
    """Shard name (train-00000) -> the numbers of its samples, in plan order. ``splits`` has the split of every sample,
    ``held`` the numbers of those that get into shards."""
    shards: dict[str, list[int]] = {}
    for split in SPLITS:
        own = [number for number in held if splits[number] == split]
        for number, start in enumerate(range(0, len(own), samples_per_shard)):
            shards[f"{split}-{number:05d}"] = own[start : start + samples_per_shard]
    return shards


def shard_members(
    plan: dict,
    info: dict,
    synthesis: Mapping[str, bytes],
    matting: Mapping[str, bytes],
    reference: Callable[[int, str], bytes],
) -> dict[str, bytes]:
    """The members of one kept sample, as described in data_schemas/shards.py.

    Pictures are copied from the parts byte by byte. ``reference`` reads a picture of reference 0 or 1 by its name.
    """
    saved = {"synthesis": synthesis, "matting": matting}
    members = {f"{name}.png": _saved(saved[stage], stage, name) for stage in saved for name in NEEDED[stage]}
    for i in range(2):
        members[f"reference_{i}.png"] = reference(i, "white.png")
        members[f"reference_{i}.rgba.png"] = reference(i, "cutout.png")
    return members | encode_words(plan["prompt"], info)


def _saved(pictures: Mapping[str, bytes], stage: str, name: str) -> bytes:
    if f"{name}.png" not in pictures:
        raise UserError(f"stage {stage}: it saved no picture {name} for the shards; set saves_pictures, and save it")
    return pictures[f"{name}.png"]


def sample_info(plan: dict, scores: Mapping[str, object]) -> dict:
    """The content of a sample's JSON member: its subjects, boxes, seed and scores."""
    subjects = [
        {key: plan[f"{prefix}_{i}_{key}"] for prefix, key in (("subject", "id"), ("reference", "name"),
                                                             ("reference", "category"))}
        for i in range(2)
    ]  # fmt: skip
    return {
        "sample_id": plan["sample_id"],
        "split": plan["split"],
        "relation": plan["relation"],
        "prompt": plan["prompt"],
        "seed": plan["seed"],
        "subjects": subjects,
        "boxes": [list(plan["box_0"]), list(plan["box_1"])],
        "scores": dict(scores),
    }


def score_columns(
    tables: Mapping[str, pa.Table], columns: Mapping[str, Sequence[Column]]
) -> dict[str, pa.ChunkedArray]:
    """Every stage's own columns by name, for the manifest. Raises ValueError if two stages use the same name."""
    gathered: dict[str, pa.ChunkedArray] = {}
    for stage, own in columns.items():
        for column in own:
            if column.name in gathered or column.name in {c.name for c in (*MANIFEST.columns, *STATUS_COLUMNS)}:
                raise ValueError(f"stage {stage}: column {column.name!r} is already taken; give it another name")
            gathered[column.name] = tables[stage].column(column.name)
    return gathered


def manifest_bytes(
    plan: pa.Table,
    decisions: pa.Table,
    held: Mapping[str, Sequence[str | None]],
    scores: Mapping[str, pa.ChunkedArray],
    fields: Mapping[str, pa.Field],
) -> bytes:
    """The manifest as Parquet: every planned sample with its split, shard, scores, decision and reasons.

    ``held`` has the manifest's columns "shard" and "content".
    """
    table = plan
    for name in decisions.column_names[1:]:
        table = table.append_column(decisions.schema.field(name), decisions.column(name))
    for name, own in held.items():
        table = table.append_column(MANIFEST.arrow().field(name), pa.array(own, pa.string()))
    for name, values in scores.items():
        table = table.append_column(fields[name], values)
    table = table.replace_schema_metadata(MANIFEST.arrow().metadata)
    validate(table, MANIFEST, "manifest.parquet")
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
