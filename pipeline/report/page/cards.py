"""Cards of single samples in the report: their pictures, scores and reasons, and which samples are shown."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

from pipeline.report.charts import bound_text, number
from pipeline.report.data import ReportData, RuleLine, View, decided, records, rules_by_column
from pipeline.report.text import as_float, as_text, number_text, reasons_of
from pipeline.report.thumbnails import data_uri

KEPT_SHOWN, REJECTED_SHOWN = 16, 24
TARGET_SIDE, TILE_SIDE = 400, 192
"""Longest sides of the embedded pictures, in pixels: of a card's large picture, and of the small ones below it."""


def tile(data: ReportData, sample_id: str, name: str, caption: str, side: int = TILE_SIDE) -> View:
    """One picture with its caption; without a URI if the picture was never made."""
    picture = data.picture(sample_id, name)
    return {"caption": caption, "uri": data_uri(picture, side) if picture is not None else None}


def pill_views(row: Mapping[str, Any], rules: Iterable[RuleLine]) -> list[View]:
    """Each scored column of a sample with its state: "pass", "fail", or "unknown" without a score."""
    pills = []
    for column, group in rules_by_column(rules).items():
        value = as_float(row.get(column))
        passed = all(rule.passes(value) for rule in group)
        state = "unknown" if math.isnan(value) else "pass" if passed else "fail"
        bounds = " and ".join(bound_text(rule.bound, rule.threshold) for rule in group)
        hint = f"{group[0].stage}: {column} = {number(value)}, needs {bounds}"
        pills.append({"column": column, "value": number_text(row.get(column)), "state": state, "hint": hint})
    return pills


def card(data: ReportData, row: Mapping[str, Any]) -> View:
    """One sample: its pictures, prompt, scores and reasons."""
    sample_id = str(row["sample_id"])
    fault = as_text(row.get("planted_fault"))
    return {
        "sample_id": sample_id,
        "prompt": as_text(row.get("prompt")),
        "relation": as_text(row.get("relation")),
        "split": as_text(row.get("split")),
        "fault": fault if fault != "none" else "",
        "reasons": reasons_of(row),
        "pills": pill_views(row, data.rules),
        "large": [tile(data, sample_id, "target", "target", TARGET_SIDE)],
        "small": [
            *reference_tiles(data, row),
            tile(data, sample_id, "foreground", "foreground"),
            tile(data, sample_id, "background", "background"),
        ],
    }


def reference_tiles(data: ReportData, row: Mapping[str, Any]) -> list[View]:
    """The tiles of both references, named after their subjects."""
    captions = {f"reference_{k}": as_text(row.get(f"reference_{k}_name")) or f"reference {k}" for k in (0, 1)}
    return [tile(data, str(row["sample_id"]), name, caption) for name, caption in captions.items()]


def spread(groups: Sequence[Sequence[Hashable]], limit: int) -> list[int]:
    """Up to ``limit`` row numbers, in order, taken in turns from each group, smallest group first.

    ``groups[row]`` lists the groups of that row. Every group is represented if there are at most ``limit`` groups.
    """
    queues: dict[Hashable, list[int]] = {}
    for row, names in enumerate(groups):
        for name in names:
            queues.setdefault(name, []).append(row)
    chosen: set[int] = set()
    while queues and len(chosen) < limit:
        for name in sorted(queues, key=lambda n: (len(queues[n]), str(n))):
            fresh = [row for row in queues[name] if row not in chosen]
            chosen.update(fresh[:1] if len(chosen) < limit else [])
            queues[name] = fresh[1:]
        queues = {name: rows for name, rows in queues.items() if rows}
    return sorted(chosen)


def kept_cards(data: ReportData) -> list[View]:
    """A few kept samples of every relation."""
    kept = decided(data.manifest, "kept")
    chosen = spread([[as_text(relation)] for relation in kept["relation"]], KEPT_SHOWN)
    return [card(data, row) for row in records(kept.iloc[chosen])]


def rejected_cards(data: ReportData) -> list[View]:
    """Rejected samples that show every reason and every planted fault, the rarest first if there are too many."""
    rejected = decided(data.manifest, "rejected")
    groups = [
        [*reasons_of(row), f"planted: {as_text(row['planted_fault'])}"]
        for row in records(rejected[["reasons", "planted_fault"]])
    ]
    return [card(data, row) for row in records(rejected.iloc[spread(groups, REJECTED_SHOWN)])]


def generated_card(data: ReportData, sample_id: str, row: View | None, generated: Image.Image) -> View:
    """One generated picture beside its target and inputs. If the sample is not part of this run, the picture alone."""
    large = [{"caption": "generated", "uri": data_uri(generated, TARGET_SIDE)}]
    small: list[View] = []
    if row is not None:
        large.append(tile(data, sample_id, "target", "target", TARGET_SIDE))
        small = [*reference_tiles(data, row), tile(data, sample_id, "background", "background")]
    row = row or {}
    return {
        "sample_id": sample_id,
        "prompt": as_text(row.get("prompt")),
        "relation": as_text(row.get("relation")),
        "split": as_text(row.get("split")),
        "fault": "",
        "reasons": [],
        "pills": [],
        "large": large,
        "small": small,
    }
