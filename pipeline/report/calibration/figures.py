"""The measurements of one rule: what each threshold keeps, catches and loses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from data_schemas.errors import UserError
from pipeline.core.stage import Rule
from pipeline.report.calibration.floor import spread_evenly
from pipeline.report.calibration.labels import Rates
from pipeline.report.calibration.suggestion import area_under_curve, is_blind, suggestion

QUANTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
CANDIDATES = (1, 5, 10, 25, 50, 75, 90)
"""QUANTILES are shown, in percent; CANDIDATES are tried as thresholds (for an upper bound, 100 minus these)."""
CURVE_POINTS = 80
"""Most thresholds of a curve: scores of samples, evenly spaced by rank."""


@dataclass(frozen=True)
class Candidate:
    """One threshold and what it would keep.

    ``alone`` counts samples that pass this rule, ``together`` those that pass all rules; ``floor_share`` is the share
    of the floor that passes this rule. ``rates`` tells the same of the labelled samples.
    """

    threshold: float
    alone: int
    together: int
    floor_share: float
    rates: Rates


@dataclass(frozen=True)
class Seen:
    """What a rule sees of one kind of labelled samples.

    ``scores`` are theirs. ``auc`` is the probability that a good sample is further on the passing side; NaN
    for good ones. ``failing`` counts those that fail the rule now, ``failing_any`` those that fail any rule.
    """

    kind: str
    bad: bool
    scores: list[float]
    auc: float
    failing: int
    failing_any: int


@dataclass(frozen=True)
class RuleFigures:
    """The measurements of one rule. ``rule`` has the threshold of the config.

    ``scores`` (by sample id) and ``floor`` hold finite numbers only. ``auc`` is the probability that a sample is
    further on the passing side than a floor sample (0.5 is chance), NaN if the floor says nothing; ``label_auc`` is the
    same for good and bad labelled samples. ``suggested`` is None where the evidence does not place a threshold;
    ``note`` says why. ``curve`` has many thresholds, ``candidates`` the few of the table, and ``kinds`` a row for each
    kind of labelled samples.
    """

    rule: Rule
    scores: pd.Series
    floor: np.ndarray
    auc: float
    label_auc: float
    suggested: float | None
    note: str
    candidates: tuple[Candidate, ...]
    curve: tuple[Candidate, ...]
    kinds: tuple[Seen, ...]

    def quantiles(self) -> dict[int, float]:
        """The scores at QUANTILES."""
        return dict(zip(QUANTILES, np.quantile(self.scores, [q / 100 for q in QUANTILES]).tolist(), strict=True))

    def at(self, threshold: float) -> Candidate:
        """The candidate with this threshold."""
        return next(c for c in self.candidates if c.threshold == threshold)


def rule_figures(
    rule: Rule,
    table: pd.DataFrame,
    frames: Mapping[str, pd.DataFrame],
    rules: Sequence[tuple[str, Rule]],
    labels: pd.DataFrame,
) -> RuleFigures:
    """The measurements of one rule.

    ``table`` has the scores, ``frames`` the rows of the stages by name, ``rules`` all rules with the config's
    thresholds, and ``labels`` those of labels.labels.
    """
    scores, floor = (
        rows.set_index("sample_id")[rule.column].dropna() for rows in (table[table.kind == k] for k in ("run", "floor"))
    )
    if len(scores) < 2:
        raise UserError(f"calibrate: {len(scores)} samples have a {rule.column}, at least 2 are needed; make more")
    known = labels[labels.index.isin(scores.index)]
    good, bad = (scores.loc[known.index[known.bad == is_bad]].to_numpy() for is_bad in (False, True))
    suggested, note = suggestion(rule, scores, floor, good, bad)
    trial = _Trial(rule, floor, frames, rules, known)
    levels = [q / 100 if rule.bound == "min" else 1 - q / 100 for q in CANDIDATES]
    tried = {round(float(np.quantile(scores, level)), 3) for level in levels} | {rule.threshold}
    tried |= {suggested} if suggested is not None else set()
    points = {*spread_evenly(np.unique(scores).tolist(), CURVE_POINTS), rule.threshold}
    return RuleFigures(
        rule=rule,
        scores=scores,
        floor=floor.to_numpy(),
        auc=math.nan if is_blind(scores, floor) else area_under_curve(scores.to_numpy(), floor.to_numpy(), rule.bound),
        label_auc=area_under_curve(good, bad, rule.bound),
        suggested=suggested,
        note=note,
        candidates=tuple(trial.candidate(t) for t in sorted(tried)),
        curve=tuple(trial.candidate(t) for t in sorted(points)),
        kinds=trial.kinds(scores, good),
    )


class _Trial:
    """Tries thresholds of one rule on the samples of a run. ``known`` are the labels of samples that have the score."""

    def __init__(
        self, rule: Rule, floor: pd.Series, frames: Mapping[str, pd.DataFrame], rules: Sequence[tuple[str, Rule]],
        known: pd.DataFrame,
    ):  # fmt: skip
        self.rule, self.floor, self.known = rule, floor, known
        whole = np.logical_and.reduce([(frame.status == "ok").to_numpy() for frame in frames.values()])
        others = [passing(r, frames[name][r.column]) for name, r in rules if r != rule]
        self.rest = np.logical_and.reduce([whole, *others])
        own = next(frame for name, frame in frames.items() if (name, rule) in rules)
        self.own, labelled = own[rule.column], known.bad.reindex(own.sample_id)
        self.ids = own.sample_id
        self.bad, self.good = ((labelled == value).to_numpy(bool) for value in (True, False))

    def candidate(self, threshold: float) -> Candidate:
        tried = replace(self.rule, threshold=threshold)
        kept = passing(tried, self.own)
        share = float(passing(tried, self.floor).mean()) if len(self.floor) else math.nan
        rates = Rates(self.bad, self.good, kept, kept & self.rest)
        return Candidate(threshold, int(kept.sum()), int((kept & self.rest).sum()), share, rates)

    def kinds(self, scores: pd.Series, good: np.ndarray) -> tuple[Seen, ...]:
        """Good kinds first, then bad ones, each by name."""
        kept = passing(self.rule, self.own)
        found = []
        for (bad, kind), rows in self.known.groupby(["bad", "kind"]):
            at = self.ids.isin(rows.index).to_numpy()
            own = scores.loc[rows.index]
            auc = area_under_curve(good, own.to_numpy(), self.rule.bound) if bad else math.nan
            lost = (int((at & ~passes).sum()) for passes in (kept, kept & self.rest))
            found.append(Seen(str(kind), bool(bad), own.tolist(), auc, *lost))
        return tuple(found)


def passing(rule: Rule, scores: pd.Series) -> np.ndarray:
    """Which scores pass the rule; a missing score does not."""
    values = scores.to_numpy(dtype=float, na_value=np.nan)
    return values >= rule.threshold if rule.bound == "min" else values <= rule.threshold
