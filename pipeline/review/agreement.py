"""How far people agree with each other and with the filters: Cohen's kappa with bootstrap intervals."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import cohen_kappa_score

from pipeline.core.rules import decide
from pipeline.jobs import planned_part
from pipeline.review.log import ReviewLog
from pipeline.review.opinions import opinions, settled, verdicts
from pipeline.run import Run

DRAWS = 2000
"""Resamples of a bootstrap interval."""
Labels = dict[str, bool]
"""Sample id -> kept."""


def agreement(run: Run) -> list[dict[str, Any]]:
    """A row for each pair that judged the same samples: ``who``, ``with``, ``samples``, ``kappa``, ``low``, ``high``.

    The pairs are any two reviewers, and people with the judge, the identity filter and all filters together as they
    would decide without people. Of several reviewers of a sample the last verdict counts as people's. Empty if nobody
    gave a verdict.
    """
    all_opinions = opinions(ReviewLog(run.config.run_url).rows())
    by_reviewer = verdicts(all_opinions)
    if not by_reviewer:
        return []
    rows = [_row(a, b, by_reviewer[a], by_reviewer[b]) for a, b in combinations(sorted(by_reviewer), 2)]
    last = {i: settled(of_sample).get("verdict") for i, of_sample in all_opinions.items()}
    people = {i: line.value == "kept" for i, line in last.items() if line is not None and line.value is not None}
    rows += [_row("people", name, people, labels) for name, labels in filters(run, people).items()]
    return [row for row in rows if row["samples"]]


def filters(run: Run, samples: Mapping[str, object]) -> dict[str, Labels]:
    """What judge, identity filter and all filters together would do with these samples, were there no reviewer."""
    judges = {"judge": ["semantics"], "identity filter": ["identity"], "all filters": [s.name for s in run.stages()]}
    found: dict[str, Labels] = {name: {} for name in judges}
    for part in run.parts():
        frames = _frames_of(run, part, samples)
        for name, members in judges.items() if frames else ():
            own = {stage: frames[stage] for stage in members if stage in frames}
            asked = [(stage, rule) for stage, rule in run.rules if stage in own]
            if asked:  # a stage without rules has no say
                decided = decide(own, asked)
                found[name] |= {r["sample_id"]: r["decision"] == "kept" for r in decided if r["decision"] in KNOWN}
    return found


KNOWN = ("kept", "rejected")


def _frames_of(run: Run, part: str, samples: Mapping[str, object]) -> dict[str, pd.DataFrame]:
    """The rows of these samples by stage, in the same order; nothing if the part has none of them, is not decided, or
    a stage has not made it of the plan as it is."""
    plan = run.store("plan").read(part)
    if plan is None or not run.store("decide").exists(part):
        return {}
    frames = {}
    for stage in run.stages():
        if (made := planned_part(run, stage.name, part, plan)) is None:
            return {}
        table = made.table.to_pandas()
        frames[stage.name] = table[table["sample_id"].isin(list(samples))].reset_index(drop=True)
    return frames if all(len(frame) for frame in frames.values()) else {}


def kappa(one: Sequence[bool], other: Sequence[bool]) -> float:
    """Cohen's kappa of two raters' labels of the same samples; NaN if both always say the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one label alone
        return float(cohen_kappa_score(one, other, labels=[False, True])) if len(one) else math.nan


def interval(one: Sequence[bool], other: Sequence[bool], draws: int = DRAWS) -> tuple[float, float]:
    """The middle 95 % of kappa over bootstrap resamples of the samples; always the same for the same labels."""
    cells = np.bincount(2 * np.asarray(one, int) + np.asarray(other, int), minlength=4)
    counts = np.random.default_rng(0).multinomial(len(one), cells / len(one), size=draws) / len(one)
    neither, second, first, both = counts.T
    observed = neither + both
    expected = (first + both) * (second + both) + (neither + second) * (neither + first)
    with np.errstate(invalid="ignore", divide="ignore"):
        kappas = (observed - expected) / (1 - expected)
    kappas = kappas[np.isfinite(kappas)]
    low, high = np.percentile(kappas, [2.5, 97.5]) if len(kappas) else (math.nan, math.nan)
    return float(low), float(high)


def _row(who: str, other: str, one: Labels, two: Labels) -> dict[str, Any]:
    both = sorted(one.keys() & two.keys())
    a, b = [one[i] for i in both], [two[i] for i in both]
    low, high = interval(a, b) if both else (math.nan, math.nan)
    values = {"kappa": kappa(a, b), "low": low, "high": high}
    return {
        "who": who, "with": other, "samples": len(both),
        **{name: value if math.isfinite(value) else None for name, value in values.items()},
    }  # fmt: skip
