"""Intervals and comparisons by hand, on values whose answer is known."""

import numpy as np
import pytest

from tokenar.sweeps.statistics import compared, interval


def test_an_interval_is_about_two_standard_errors_around_the_mean():
    values = np.random.default_rng(0).normal(0.5, 0.1, 400)
    low, high = interval(values.tolist())
    assert low == pytest.approx(values.mean() - 1.96 * values.std() / 20, abs=0.001)
    assert high == pytest.approx(values.mean() + 1.96 * values.std() / 20, abs=0.001)
    assert interval(values.tolist()) == (low, high), "the same every time"
    assert interval([0.25]) == interval([0.25, 0.25]) == (0.25, 0.25)


def test_pairs_show_what_scattered_samples_hide():
    """Samples scatter by 0.2, a run is better by 0.02 on each of them."""
    rng = np.random.default_rng(1)
    base = rng.normal(0.5, 0.2, 60)
    better = compared((base + 0.02 + rng.normal(0, 0.02, 60)).tolist(), base.tolist())
    assert better["difference"] == pytest.approx(0.02, abs=0.008)
    assert better["interval"][0] > 0
    assert better["p"] < 0.001
    same = compared((base + rng.normal(0, 0.02, 60)).tolist(), base.tolist())
    assert same["p"] > 0.05
    assert same["interval"][0] < 0 < same["interval"][1]
    assert compared(base.tolist(), base.tolist())["p"] == 1.0
