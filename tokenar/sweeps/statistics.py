"""What is chance in a sweep: bootstrap intervals over the test samples, and paired comparisons of two runs.

A figure of a test sample is first averaged over the seeds. Test samples are what intervals are drawn over: other
pictures might have been held out. How far seeds scatter is given beside them as a standard deviation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

RESAMPLES = 5000
LEVEL = 0.95
SEED = 0


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % percentile-bootstrap interval of the mean of N values; of one value, the value itself."""
    if len(values) < 2 or len(set(values)) == 1:
        return float(values[0]), float(values[0])
    found = stats.bootstrap(
        (np.array(values),), np.mean, confidence_level=LEVEL, n_resamples=RESAMPLES, method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


def compared(values: Sequence[float], others: Sequence[float]) -> dict[str, float | list[float]]:
    """How N values differ from N others of the same samples: mean difference, its interval, and the probability of a
    difference at least as large if it were chance which of a pair is which (paired permutation test, two-sided)."""
    differences = np.array(values) - np.array(others)
    low, high = interval(differences.tolist())
    chance = 1.0
    if differences.any():
        chance = stats.permutation_test(
            (np.array(values), np.array(others)), lambda a, b, axis: (a - b).mean(axis=axis), vectorized=True,
            permutation_type="samples", n_resamples=RESAMPLES, rng=np.random.default_rng(SEED),
        ).pvalue  # fmt: skip
    return {"difference": float(differences.mean()), "interval": [low, high], "p": float(chance)}
