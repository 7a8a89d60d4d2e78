"""Which categories and relations the kept samples cover, and which are thin."""

from __future__ import annotations

import pandas as pd

from pipeline.report.data import View

CATEGORIES_SHOWN = 40
"""Categories with a row of their own, those of which most samples are planned."""


def coverage_view(manifest: pd.DataFrame) -> View | None:
    """A table of categories and relations with the kept and the planned samples of each; None without samples.

    A sample counts for the categories of both of its references, and once in a total.
    """
    needed = {"relation", "reference_0_category", "reference_1_category"}
    if manifest.empty or not needed <= set(manifest.columns):
        return None
    samples = pd.DataFrame({
        "relation": manifest.relation.astype(str),
        "kept": (manifest.decision == "kept").to_numpy(),
        "at": range(len(manifest)),
    })  # fmt: skip
    sides = [samples.assign(category=manifest[f"reference_{i}_category"].astype(str).to_numpy()) for i in range(2)]
    both = pd.concat(sides).drop_duplicates(["at", "category"])
    cells = _counts(both, ["category", "relation"])
    of_category, of_relation = _counts(both, ["category"]), _counts(samples, ["relation"])
    categories = sorted(of_category, key=lambda key: (-of_category[key][1], key))
    relations = sorted(of_relation, key=lambda key: (-of_relation[key][1], key))
    shown = categories[:CATEGORIES_SHOWN]
    grid = [[_cell(cells.get((category[0], relation[0]))) for relation in relations] for category in shown]
    rows = [
        {"category": category[0], "cells": line, "total": _cell(of_category[category])}
        for category, line in zip(shown, grid, strict=True)
    ]
    return {
        "relations": [relation[0] for relation in relations],
        "totals": [_cell(of_relation[relation]) for relation in relations],
        "all": _cell((int(samples.kept.sum()), len(samples))),
        "rows": rows,
        "more": len(categories) - len(rows),
        "never": sum(cell is None for line in grid for cell in line),
        "lost": sum(cell is not None and cell["kept"] == 0 for line in grid for cell in line),
    }


def _counts(samples: pd.DataFrame, keys: list[str]) -> dict[tuple[str, ...], tuple[int, int]]:
    """(kept, planned) of each combination of the keys' values."""
    found = samples.groupby(keys).kept.agg(["sum", "count"])
    return {
        key if isinstance(key, tuple) else (key,): (int(kept), int(planned))
        for key, kept, planned in found.itertuples()
    }  # fmt: skip


def _cell(counts: tuple[int, int] | None) -> View | None:
    return None if counts is None else {"kept": counts[0], "planned": counts[1], "share": counts[0] / counts[1]}
