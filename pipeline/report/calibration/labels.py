"""Which samples of a run are known to be good or bad: from planted faults, and from people's decisions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pandas as pd

from pipeline.core.review import Reviews
from pipeline.report.planted import share, wilson
from pipeline.run import Run

CLEAN, KEPT, REJECTED = "clean", "kept by a person", "rejected by a person"
"""Kinds of labelled samples besides the planted faults."""


def labels_of(run: Run) -> pd.DataFrame:
    """The labels of a run, from the parts that exist and from its review table."""
    parts = [part for name in run.parts() if (part := run.store("synthesis").read(name)) is not None]
    rows = [row for part in parts for row in part.rows()]
    planted = {row["sample_id"]: row["planted_fault"] for row in rows if row.get("planted_fault") is not None}
    verdicts = {i: row["verdict"] for i, row in Reviews(run.config.run_url).rows.items() if row["verdict"] is not None}
    return labels(planted, verdicts)


def labels(planted: dict[str, str], verdicts: dict[str, str]) -> pd.DataFrame:
    """A row for each sample with a label, by its id.

    ``planted`` has a fault or "none" for samples of a drawer that plants faults; ``verdicts`` has "kept" or "rejected"
    for reviewed ones, and wins where a sample has both. The columns: ``bad``; ``labelled_by``, "planted" or "person";
    ``planted_fault``, also where a person decided; and ``kind``, the fault or one of CLEAN, KEPT, REJECTED.
    """
    found = {}
    for sample_id in [*planted, *(i for i in verdicts if i not in planted)]:
        fault, verdict = planted.get(sample_id), verdicts.get(sample_id)
        fault = None if fault == "none" else fault
        if verdict is None:
            found[sample_id] = (fault is not None, "planted", fault, fault or CLEAN)
        else:
            found[sample_id] = (verdict == "rejected", "person", fault, REJECTED if verdict == "rejected" else KEPT)
    columns = ["bad", "labelled_by", "planted_fault", "kind"]
    frame = pd.DataFrame.from_dict(found, orient="index", columns=columns)
    return frame.astype({"bad": bool, "labelled_by": object, "planted_fault": object, "kind": object})


class Rates:
    """What one threshold does to the labelled samples that have the score.

    ``caught`` counts the bad and ``lost`` the good ones that fail the rule; ``caught_by_all`` counts the bad ones that
    fail any rule.
    """

    def __init__(self, bad: np.ndarray, good: np.ndarray, passes: np.ndarray, passes_all: np.ndarray):
        self.bad, self.good = int(bad.sum()), int(good.sum())
        self.caught, self.lost = int((bad & ~passes).sum()), int((good & ~passes).sum())
        self.caught_by_all = int((bad & ~passes_all).sum())

    @property
    def precision(self) -> float | None:
        """The share of bad ones among those that fail; None if none fails."""
        return share(self.caught, self.caught + self.lost)

    @property
    def recall(self) -> float | None:
        """The share of the bad ones that fails; None without bad ones."""
        return share(self.caught, self.bad)

    @property
    def recall_by_all(self) -> float | None:
        """The same for all rules together."""
        return share(self.caught_by_all, self.bad)

    @property
    def precision_interval(self) -> list[float] | None:
        """The 95 % interval of the precision."""
        return wilson(self.caught, self.caught + self.lost)

    @property
    def recall_interval(self) -> list[float] | None:
        """The 95 % interval of the recall."""
        return wilson(self.caught, self.bad)


def counted(labelled_by: Iterable[str]) -> str:
    """How many labels are of each origin, in words."""
    counts = Counter(labelled_by)
    words = {"planted": "from planting", "person": "from people"}
    return " and ".join(f"{counts[by]:,} {text}" for by, text in words.items() if counts[by])
