"""What all the lines of a review log come to: each reviewer's opinion of each sample, and what counts of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.review.said import Said

COLUMNS = ("verdict", "alpha_threshold", "matte")
"""The actions that the review table has a column of."""


@dataclass
class Opinion:
    """What one reviewer holds of one sample: the last line of each action that was not undone."""

    lines: dict[str, Said] = field(default_factory=dict)

    def value(self, action: str) -> Any:
        """The value of an action, None if nothing was said."""
        line = self.lines.get(action)
        return None if line is None else line.value


Opinions = Mapping[str, Mapping[str, Opinion]]
"""Sample id -> reviewer -> opinion."""


def opinions(rows: Iterable[Said]) -> Opinions:
    """The opinions that lines, in the order of time, come to."""
    lines = list(rows)
    undone = {(line.reviewer, line.value) for line in lines if line.action == "undo"}
    found: dict[str, dict[str, Opinion]] = {}
    for line in lines:
        if line.action != "undo" and (line.reviewer, line.id) not in undone:
            by_reviewer = found.setdefault(line.sample_id, {})
            by_reviewer.setdefault(line.reviewer, Opinion()).lines[line.action] = line
    return found


def settled(of_sample: Mapping[str, Opinion]) -> dict[str, Said]:
    """What counts for a sample: of each action the line that was said last, by whomever."""
    lines = [line for opinion in of_sample.values() for line in opinion.lines.values()]
    return {line.action: line for line in sorted(lines, key=lambda line: (line.time, line.id))}


def review_rows(all_opinions: Opinions) -> list[dict[str, Any]]:
    """The rows of the review table, in the order of ids; samples of which nothing is left have none."""
    rows = []
    for sample_id in sorted(all_opinions):
        counts = settled(all_opinions[sample_id])
        values = {name: counts[name].value if name in counts else None for name in COLUMNS}
        if all(value is None for value in values.values()):
            continue
        said = [line for name, line in counts.items() if values.get(name) is not None]
        by = counts["verdict"] if values["verdict"] is not None else max(said, key=lambda line: line.time)
        rows.append(
            {"sample_id": sample_id, **values, "reason": by.reason, "reviewer": by.reviewer,
             "time": max(line.time for line in said)}
        )  # fmt: skip
    return rows


def verdicts(all_opinions: Opinions) -> dict[str, dict[str, bool]]:
    """Reviewer -> sample id -> whether they would keep it, of all who gave verdicts."""
    found: dict[str, dict[str, bool]] = {}
    for sample_id, of_sample in all_opinions.items():
        for reviewer, opinion in of_sample.items():
            if (verdict := opinion.value("verdict")) is not None:
                found.setdefault(reviewer, {})[sample_id] = verdict == "kept"
    return found
