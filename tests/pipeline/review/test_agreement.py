"""Agreement between people, and of people with filters."""

import uuid

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from pipeline.report.results import read_manifest
from pipeline.review.agreement import agreement, filters, interval, kappa
from pipeline.review.log import ReviewLog


def test_kappa_is_scikit_learns_and_its_interval_is_the_bootstraps():
    chance = np.random.default_rng(3)
    one = chance.random(200) < 0.6
    other = one ^ (chance.random(200) < 0.2)
    assert kappa(one, other) == cohen_kappa_score(one, other)
    rows = chance.integers(0, 200, (2000, 200))
    drawn = [cohen_kappa_score(one[row], other[row]) for row in rows]
    assert interval(one, other) == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.02)
    assert interval(one, other) == interval(one, other)


def test_who_always_says_the_same_agrees_by_chance_alone():
    assert np.isnan(kappa([True] * 5, [True] * 5))
    assert np.isnan(interval([True] * 5, [True] * 5)).all()
    assert kappa([True, True, False, True], [True] * 4) == 0


def judged(log, reviewer, labels):
    for sample_id, keep in labels.items():
        log.append({"id": str(uuid.uuid4()), "sample_id": sample_id, "action": "verdict", "reviewer": reviewer,
                    "value": "kept" if keep else "rejected"})  # fmt: skip


def test_people_are_compared_with_each_other_and_with_what_the_filters_alone_say(copied, small_run):
    run = small_run[0].run.__class__.of(small_run[0].run.config.model_copy(update={"root": str(copied)}))
    assert agreement(run) == []
    manifest = read_manifest(small_run[0])
    decided = {i: d == "kept" for i, d in zip(manifest.sample_id, manifest.decision, strict=True)}
    log = ReviewLog(run.config.run_url)
    judged(log, "ada", decided)
    judged(log, "bob", {i: not keep for i, keep in list(decided.items())[:5]})
    rows = {(row["who"], row["with"]): row for row in agreement(run)}
    assert rows["ada", "bob"]["samples"] == 5
    assert rows["ada", "bob"]["kappa"] < 0
    assert rows["people", "all filters"]["samples"] == len(decided)
    assert rows["people", "all filters"]["kappa"] < 1, "bob's verdicts came last"
    assert {"judge", "identity filter"} <= {other for _, other in rows}
    assert filters(run, decided)["all filters"] == decided
