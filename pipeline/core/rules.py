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
    count = len(first)
    reasons: list[list[str]] = [[] for _ in range(count)]
    missing = np.zeros(count, dtype=bool)
    for stage, rule in rules:
        scores = verdicts[stage][rule.column].to_numpy(dtype=float, na_value=np.nan)
        broken = scores < rule.threshold if rule.bound == "min" else scores > rule.threshold
        missing |= np.isnan(scores)
        for row in np.flatnonzero(broken).tolist():
            reasons[row].append(rule.reason)
    errors = _first_errors(verdicts)
    decided = []
    for row, sample_id in enumerate(first["sample_id"]):
        failed = errors.get(row)
        review = (reviews or {}).get(sample_id, {})
        person = {"reviewer": None, "review_reason": None}
        if failed is not None:
            outcome, why = "error", [f"{failed['error_stage']}_error"]
        elif review.get("verdict"):
            outcome, why = review["verdict"], ["review"] if review["verdict"] == "rejected" else []
            person = {"reviewer": review["reviewer"], "review_reason": review["reason"]}
        elif reasons[row]:
            outcome, why = "rejected", reasons[row]
        elif missing[row]:
            outcome, why = "undecided", ["score_missing"]
        else:
            outcome, why = "kept", []
        blank = {"error_stage": None, "error_code": None, "error_message": None}
        decided.append({"sample_id": sample_id, "decision": outcome, "reasons": why, **(failed or blank), **person})
    return decided


def _first_errors(verdicts: Mapping[str, pd.DataFrame]) -> dict[int, dict]:
    """Row number -> stage, code and message of the first stage that failed on the sample."""
    errors: dict[int, dict] = {}
    for stage, frame in verdicts.items():
        for row in np.flatnonzero(frame["status"].to_numpy() == "error").tolist():
            code, message = frame["error_code"].iat[row], frame["error_message"].iat[row]
            errors.setdefault(row, {"error_stage": stage, "error_code": code, "error_message": message})
    return errors
