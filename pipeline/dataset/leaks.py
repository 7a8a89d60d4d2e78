"""The last look before a dataset is published: no subject, and no near-copy of one, in both of its splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from data_schemas.errors import RunFailed
from data_schemas.tables import SPLITS
from pipeline.references.copies import likeness, near_hashes, near_pairs


def check_leaks(
    plan: pa.Table, held: Sequence[int], references: Sequence[Mapping[str, Any]], targets: Sequence[str | None]
) -> dict[str, Any]:
    """What the splits of a dataset have in common, as facts for its card; raises RunFailed if that is anything.

    ``held`` are the rows of ``plan`` that are in shards, ``targets`` the perceptual hashes of all targets; None where
    there is none. The facts are the number of subjects and of reference pictures of each split, the largest cosine
    between features of a picture of one and of one of the other, and how many targets repeat another's hash.
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
    twins, told = _near_targets(plan, held, targets)
    leaks += told
    leaks += [
        f"{shown[a]['source']} of {min(splits[a])} is a near-copy of {shown[b]['source']} of {min(splits[b])}"
        for a, b in near_pairs(shown)
        if splits[a] != splits[b]
    ]
    if leaks:
        raise RunFailed(
            f"train and test are not apart: {leaks[0]}" + (f", and {len(leaks) - 1} more" if leaks[1:] else "") + "; "
            "remove one of them from the pool or reject it (instructar review), or plan anew with instructar rerun plan"
        )
    sides = [[row for row, own in zip(shown, splits, strict=True) if s in own] for s in SPLITS]
    return {
        "subjects": {s: sum(s in own for own in subjects.values()) for s in SPLITS},
        "references": {s: len(own) for s, own in zip(SPLITS, sides, strict=True)},
        "nearest": likeness(*sides),
        "repeated_targets": twins,
    }


def _near_targets(plan: pa.Table, held: Sequence[int], targets: Sequence[str | None]) -> tuple[int, list[str]]:
    """How many of the held targets repeat another's hash, and a line for each that the other split nearly has."""
    ids, splits = plan["sample_id"].to_pylist(), plan["split"].to_pylist()
    hashes = {split: {k: h for k in held if splits[k] == split and (h := targets[k]) is not None} for split in SPLITS}
    everything = [h for own in hashes.values() for h in own.values()]
    (one, some), (other, others) = hashes.items()
    pairs = near_hashes(list(some.values()), list(others.values()))
    told = [
        f"the target of {ids[list(some)[a]]} of {one} is a near-copy of that of {ids[list(others)[b]]} of {other}"
        for a, b in pairs
    ]
    return len(everything) - len(set(everything)), told
