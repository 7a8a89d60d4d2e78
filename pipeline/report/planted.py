"""How well the filters find planted faults: precision, recall and yield with intervals, over all and for each kind."""

from __future__ import annotations

from typing import Any

import pandas as pd
from scipy.stats import binomtest

CONFIDENCE = 0.95


def planted(manifest: pd.DataFrame) -> dict[str, Any] | None:
    """The figures of a manifest; a fault is caught if its sample is not kept. None without planted faults.

    ``kept_faulty`` is the share of the kept samples that carry a fault. ``reasons`` counts the rules that a kind's
    caught samples broke; a sample can break several.
    """
    made = manifest[manifest.planted_fault.notna()]
    faulty, clean = made[made.planted_fault != "none"], made[made.planted_fault == "none"]
    if faulty.empty:
        return None
    lost = made[made.decision != "kept"]
    caught = faulty[faulty.decision != "kept"]
    kept = len(made) - len(lost)
    clean_kept = int((clean.decision == "kept").sum())
    return {
        "planted": len(faulty),
        "caught": len(caught),
        "recall": share(len(caught), len(faulty)),
        "recall_interval": wilson(len(caught), len(faulty)),
        "precision": share(len(caught), len(lost)),
        "precision_interval": wilson(len(caught), len(lost)),
        "clean": len(clean),
        "clean_kept": clean_kept,
        "clean_kept_share": share(clean_kept, len(clean)),
        "clean_kept_interval": wilson(clean_kept, len(clean)),
        "yield": share(kept, len(made)),
        "yield_interval": wilson(kept, len(made)),
        "kept_faulty": share(kept - clean_kept, kept),
        "by_fault": {str(fault): _of_kind(rows) for fault, rows in faulty.groupby("planted_fault")},
    }


def _of_kind(rows: pd.DataFrame) -> dict[str, Any]:
    caught = rows[rows.decision != "kept"]
    return {
        "planted": len(rows),
        "caught": len(caught),
        "recall": share(len(caught), len(rows)),
        "recall_interval": wilson(len(caught), len(rows)),
        "reasons": {str(reason): int(count) for reason, count in caught.reasons.explode().value_counts().items()},
    }


def share(part: int, whole: int) -> float | None:
    """Part of whole to four digits; None of nothing."""
    return round(part / whole, 4) if whole else None


def wilson(part: int, whole: int) -> list[float] | None:
    """Wilson's score interval (CONFIDENCE) of the share that ``part`` of ``whole`` estimates; None of nothing."""
    if not whole:
        return None
    interval = binomtest(part, whole).proportion_ci(CONFIDENCE, method="wilson")
    return [round(float(interval.low), 4), round(float(interval.high), 4)]
