"""Turning scores into decisions: kept, or rejected with all reasons. It reads tables only and loads no model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from data_schemas.errors import UserError
from data_schemas.settings import suggest
from pipeline.core.stage import Rule, Stage


def resolve_rules(stages: Sequence[Stage], thresholds: Mapping[str, float]) -> list[tuple[str, Rule]]:
    """(stage, rule) for every rule of every stage, with the thresholds of the config filled in.

    Raises UserError for a reason that no rule has and for a threshold outside the range of its column.
    """
    rules = [(stage.name, rule) for stage in stages for rule in stage.rules]
    known = {rule.reason for _, rule in rules}
    for reason in thresholds:
        if reason not in known:
            raise UserError(f"decide.thresholds.{reason}: no such reason; {suggest(reason, sorted(known))}")
    columns = {column.name: column for stage in stages for column in stage.columns}
    resolved = []
    for stage_name, rule in rules:
        value = float(thresholds.get(rule.reason, rule.threshold))
        column = columns[rule.column]
        low = -math.inf if column.low is None else column.low
        high = math.inf if column.high is None else column.high
        if not low <= value <= high:
            raise UserError(f"decide.thresholds.{rule.reason}: {value} is outside {rule.column}'s {low} to {high}")
        resolved.append((stage_name, Rule(rule.column, rule.bound, value, rule.reason, rule.meaning)))
    return resolved


def decide(
    verdicts: Mapping[str, pd.DataFrame],
    rules: Sequence[tuple[str, Rule]],
    reviews: Mapping[str, Mapping] | None = None,
) -> list[dict]:
    """The rows of the ``decide`` table.

    ``verdicts`` maps each stage to its frame; all frames have the same samples in the same order. ``reviews`` maps
    sample ids to rows of the review table. The first of these that applies decides: an error in any stage gives
    "error"; a reviewer's verdict; any broken rule gives "rejected"; a missing score gives "undecided"; otherwise the
    sample is "kept".
    """
    first = next(iter(verdicts.values()))
    errors = _first_errors(verdicts)
    failed = np.zeros(len(first), dtype=bool)
    failed[list(errors)] = True
    reviewed = [(reviews or {}).get(sample_id, {}) for sample_id in first["sample_id"]]
    scores = [verdicts[s][rule.column].to_numpy(dtype=float, na_value=np.nan) for s, rule in rules]
    decisions, broken = outcomes(
        scores, [rule for _, rule in rules], failed, np.array([review.get("verdict") for review in reviewed], object)
    )
    decided = []
    for row, sample_id in enumerate(first["sample_id"]):
        outcome, review = decisions[row], reviewed[row]
        by_person = row not in errors and bool(review.get("verdict"))
        if outcome == "error":
            why = [f"{errors[row]['error_stage']}_error"]
        elif by_person:
            why = ["review"] if outcome == "rejected" else []
        elif outcome == "undecided":
            why = ["score_missing"]
        else:
            why = [rules[number][1].reason for number in np.flatnonzero(broken[:, row]).tolist()]
        person = {"reviewer": review["reviewer"], "review_reason": review["reason"]} if by_person else NO_PERSON
        decided.append(
            {"sample_id": sample_id, "decision": outcome, "reasons": why, **errors.get(row, NO_ERROR), **person}
        )
    return decided


NO_ERROR = {"error_stage": None, "error_code": None, "error_message": None}
NO_PERSON = {"reviewer": None, "review_reason": None}


def outcomes(
    scores: Sequence[np.ndarray], rules: Sequence[Rule], failed: np.ndarray, verdicts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(the decision of each sample, [R, N] whether each of R rules is broken by each of N samples), as in ``decide``.

    ``scores`` has N numbers for each rule, NaN where there is none. ``failed`` says whether a stage failed on the
    sample, ``verdicts`` has what a reviewer said, or None.
    """
    broken = np.zeros((len(rules), len(failed)), dtype=bool)
    missing = np.zeros(len(failed), dtype=bool)
    for number, (own, rule) in enumerate(zip(scores, rules, strict=True)):
        unknown = np.isnan(own)
        broken[number] = ~rule.passes(own) & ~unknown
        missing |= unknown
    decisions = np.full(len(failed), "kept", dtype=object)
    decisions[missing] = "undecided"
    decisions[broken.any(axis=0)] = "rejected"
    told = verdicts.astype(bool)  # not where it is None
    decisions[told] = verdicts[told]
    decisions[failed] = "error"
    return decisions, broken


def _first_errors(verdicts: Mapping[str, pd.DataFrame]) -> dict[int, dict]:
    """Row number -> stage, code and message of the first stage that failed on the sample."""
    errors: dict[int, dict] = {}
    for stage, frame in verdicts.items():
        for row in np.flatnonzero(frame["status"].to_numpy() == "error").tolist():
            code, message = frame["error_code"].iat[row], frame["error_message"].iat[row]
            errors.setdefault(row, {"error_stage": stage, "error_code": code, "error_message": message})
    return errors
