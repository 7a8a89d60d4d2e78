"""The last look before a dataset is published: no subject, and no near-copy of one, in both of its splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from data_schemas.errors import RunFailed
from data_schemas.tables import SPLITS
from pipeline.references.copies import likeness, near_pairs


def check_leaks(plan: pa.Table, held: Sequence[int], references: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the splits of a dataset have in common, as facts for its card; raises RunFailed if that is anything.

    ``held`` are the rows of ``plan`` that are in shards. The facts are the number of subjects and of reference pictures
    of each split, and the largest cosine between features of a picture of one and of one of the other.
    """
    rows = plan.select(["split", "reference_0_id", "reference_1_id"]).take(pa.array(held, pa.int64()))
    of_split: dict[str, set[str]] = {split: set() for split in SPLITS}
    for split, *pair in zip(*(column.to_pylist() for column in rows.columns), strict=True):
        of_split[split].update(pair)
    shown = [row for row in references if any(row["reference_id"] in own for own in of_split.values())]
    splits = [{s for s in SPLITS if row["reference_id"] in of_split[s]} for row in shown]
    subjects: dict[str, set[str]] = {}
    for row, own in zip(shown, splits, strict=True):
        subjects.setdefault(row["subject_id"], set()).update(own)
    leaks = [f"subject {subject} is in both" for subject, own in subjects.items() if len(own) > 1]
    leaks += [
        f"{shown[a]['source']} of {min(splits[a])} is a near-copy of {shown[b]['source']} of {min(splits[b])}"
        for a, b in near_pairs(shown)
        if splits[a] != splits[b]
    ]
    if leaks:
        raise RunFailed(
            f"train and test are not apart: {leaks[0]}" + (f", and {len(leaks) - 1} more" if leaks[1:] else "") + "; "
            "remove one of them from the pool, or plan anew with --again plan"
        )
    sides = [[row for row, own in zip(shown, splits, strict=True) if s in own] for s in SPLITS]
    return {
        "subjects": {s: sum(s in own for own in subjects.values()) for s in SPLITS},
        "references": {s: len(own) for s, own in zip(SPLITS, sides, strict=True)},
        "nearest": likeness(*sides),
    }
