"""Where a threshold belongs, or why the evidence does not say."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from pipeline.core.stage import Rule

TELLS = 0.7
"""Least AUC at which two groups of samples say where a threshold belongs between them."""
ENOUGH = 10
"""Least number in either group. With fewer a share is known to no better than half of all there is."""


def suggestion(
    rule: Rule, scores: pd.Series, floor: pd.Series, good: np.ndarray, bad: np.ndarray
) -> tuple[float | None, str]:
    """(threshold or None, why in one line).

    ``good`` and ``bad`` are the scores of labelled samples, which are asked first. ``scores`` of the run and ``floor``,
    both by sample id, are asked if they do not tell.
    """
    place, why = from_labels(rule, good, bad)
    if place is not None:
        return place, why
    second, reason = from_floor(rule, scores, floor)
    return second, f"{reason} {why}" if second is not None else f"No threshold is suggested. {why} {reason}"


def from_labels(rule: Rule, good: np.ndarray, bad: np.ndarray) -> tuple[float | None, str]:
    """The same from labelled samples alone."""
    if not len(good) and not len(bad):
        return None, "No sample is labelled: no fault was planted and nobody has reviewed any."
    if not len(good) or not len(bad):
        kind, lack = ("good", "rejected") if len(good) else ("bad", "kept")
        return None, f"All {len(good) + len(bad)} labelled samples are {kind}: nothing says what should be {lack}."
    if min(len(good), len(bad)) < ENOUGH:
        return None, f"Only {len(bad)} bad and {len(good)} good samples are labelled; it takes {ENOUGH} of each."
    auc = area_under_curve(good, bad, rule.bound)
    if auc < TELLS:
        return None, f"Bad samples pass this rule about as well as good ones (AUC {auc:.3f}): labels cannot place it."
    return youden(good, bad, rule.bound), (
        f"The suggestion is where {len(good)} good and {len(bad)} bad samples are furthest apart (Youden's J)."
    )


def from_floor(rule: Rule, scores: pd.Series, floor: pd.Series) -> tuple[float | None, str]:
    """The same from the samples and the floor of wrong references."""
    if floor.empty:
        return None, "There is no floor to compare with."
    if is_blind(scores, floor):
        return None, "Wrong references leave this score as it is, so the floor says nothing about it."
    if min(len(scores), len(floor)) < ENOUGH:
        return None, f"The floor has {len(floor)} samples of {len(scores)}; it takes {ENOUGH}."
    if area_under_curve(scores.to_numpy(), floor.to_numpy(), rule.bound) < TELLS:
        return None, "Wrong references pass this rule about as well as right ones: the floor cannot place it."
    return youden(scores.to_numpy(), floor.to_numpy(), rule.bound), (
        "The suggestion is where samples and floor are furthest apart (Youden's J)."
    )


def is_blind(scores: pd.Series, floor: pd.Series) -> bool:
    """Whether wrong references change nothing of this score."""
    return np.array_equal(scores.reindex(floor.index).to_numpy(), floor.to_numpy())


def area_under_curve(scores: np.ndarray, floor: np.ndarray, bound: str) -> float:
    """The share of (sample, floor) pairs in which the sample is further on the passing side; a tie counts half."""
    if not len(scores) or not len(floor):
        return math.nan
    ordered = np.sort(floor)
    below = (np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")) / 2
    share = float(below.mean() / len(floor))
    return share if bound == "min" else 1 - share


def youden(scores: np.ndarray, floor: np.ndarray, bound: str) -> float:
    """The threshold that separates ``scores`` from ``floor`` best, to four digits (Youden's J).

    It has the largest difference between the passing shares of both, and lies midway between two neighbouring values.
    If several are equally good, the one in the widest gap wins.
    """
    values = np.unique(np.concatenate([scores, floor]))
    between, gaps = (values[1:] + values[:-1]) / 2, np.diff(values)
    below = [np.searchsorted(np.sort(x), between) / len(x) for x in (scores, floor)]  # no value lies on a midpoint
    gain = below[1] - below[0] if bound == "min" else below[0] - below[1]
    best = np.flatnonzero(gain >= gain.max() - 1e-12)
    return round(float(between[best[gaps[best].argmax()]]), 4)
