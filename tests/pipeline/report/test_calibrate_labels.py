"""Calibration on labels: who knows that a sample is bad, what a threshold does to it, and when nothing is suggested."""

import datetime

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from small.curation import small_config

from data_schemas.tables import REVIEW
from pipeline.core.stage import Rule
from pipeline.report.calibration.figures import rule_figures
from pipeline.report.calibration.labels import CLEAN, KEPT, REJECTED, labels
from pipeline.report.calibration.measure import measure
from pipeline.report.calibration.page import calibrate
from pipeline.report.calibration.suggestion import ENOUGH, from_labels, suggestion
from pipeline.report.planted import wilson

LOW = Rule("similarity", "min", 0.5, "identity_low", "Too unlike.")
HIGH = Rule("extremity", "max", 0.5, "colour_extreme", "Too gaudy.")


def test_people_win_over_planting():
    found = labels({"a": "none", "b": "jpeg", "c": "none", "d": "hue"}, {"c": "rejected", "d": "kept", "e": "rejected"})
    assert found.bad.to_dict() == {"a": False, "b": True, "c": True, "d": False, "e": True}
    assert found.kind.to_dict() == {"a": CLEAN, "b": "jpeg", "c": REJECTED, "d": KEPT, "e": REJECTED}
    assert found.labelled_by.value_counts().to_dict() == {"person": 3, "planted": 2}
    assert found.planted_fault["d"] == "hue", "what was planted is told whatever a person said"
    assert labels({}, {}).empty


@pytest.mark.parametrize(
    ("good", "bad", "why"),
    [
        (0, 0, "No sample is labelled"),
        (30, 0, "All 30 labelled samples are good: nothing says what should be rejected"),
        (0, 30, "All 30 labelled samples are bad: nothing says what should be kept"),
        (30, ENOUGH - 1, f"Only {ENOUGH - 1} bad and 30 good samples are labelled; it takes {ENOUGH} of each"),
        (ENOUGH - 1, 30, f"Only 30 bad and {ENOUGH - 1} good samples are labelled"),
    ],
)
def test_without_the_evidence_nothing_is_suggested_and_a_line_says_why(good, bad, why):
    nothing = pd.Series(dtype=float)
    place, note = suggestion(LOW, nothing, nothing, np.linspace(0.8, 0.9, good), np.linspace(0.1, 0.2, bad))
    assert place is None
    assert note.startswith("No threshold is suggested. ")
    assert why in note
    assert "\n" not in note


def test_labels_place_a_threshold_where_they_tell_good_from_bad():
    good, bad = np.linspace(0.6, 0.9, ENOUGH), np.linspace(0.1, 0.4, ENOUGH)
    assert from_labels(LOW, good, bad)[0] == 0.5
    assert from_labels(HIGH, bad, good)[0] == 0.5
    place, why = from_labels(LOW, good, good)
    assert place is None
    assert "about as well as good ones (AUC 0.500)" in why


def test_the_floor_is_asked_where_labels_do_not_tell():
    scores = pd.Series(np.linspace(0.6, 0.9, ENOUGH), index=[f"s{i}" for i in range(ENOUGH)])
    place, why = suggestion(LOW, scores, scores - 0.5, np.array([]), np.array([]))
    assert place == 0.5
    assert "floor are furthest apart" in why
    assert "No sample is labelled" in why
    place, why = suggestion(LOW, scores, (scores - 0.5).iloc[: ENOUGH - 1], np.array([]), np.array([]))
    assert place is None
    assert f"The floor has {ENOUGH - 1} samples of {ENOUGH}" in why


def test_the_rates_of_every_threshold_follow_from_counting():
    rng = np.random.default_rng(0)
    scores = pd.Series(rng.random(200).round(2), index=[f"s{i}" for i in range(200)])
    bad = rng.random(200) > scores + 0.2
    known = labels({i: "blurred" if b else "none" for i, b in zip(scores.index, bad, strict=True)}, {})
    frame = pd.DataFrame({"sample_id": scores.index, "status": "ok", "similarity": scores.to_numpy()})
    table = frame[["sample_id", "similarity"]].assign(kind="run")
    found = rule_figures(LOW, table, {"identity": frame}, [("identity", LOW)], known)
    assert len(found.curve) > 50
    assert {0.5, scores.min(), scores.max()} <= {c.threshold for c in found.curve}
    for candidate in (*found.curve, *found.candidates):
        fails, rates = (scores < candidate.threshold).to_numpy(), candidate.rates
        assert candidate.together == (~fails).sum()
        assert (rates.caught, rates.lost) == ((fails & bad).sum(), (fails & ~bad).sum())
        assert rates.recall == pytest.approx((fails & bad).sum() / bad.sum(), abs=1e-4)
        assert rates.recall_interval == wilson(rates.caught, int(bad.sum()))
        if fails.any():
            assert rates.precision == pytest.approx((fails & bad).sum() / fails.sum(), abs=1e-4)
        else:
            assert rates.precision is None


def test_a_persons_decisions_are_read_shown_and_win(copied):
    before = measure(small_config(copied), "identity", floor_samples=0)
    ids = before.table.sample_id.tolist()
    (planted, *_), clean = (before.table[before.table.label == kind].sample_id.tolist() for kind in ("bad", "good"))
    said = {planted: "kept", clean[0]: "rejected", clean[1]: None}
    rows = [
        {"sample_id": i, "alpha_threshold": None, "matte": None, "verdict": verdict, "reason": "<b>looked</b>",
         "reviewer": "me", "time": datetime.datetime.now(datetime.UTC)}
        for i, verdict in said.items()
    ]  # fmt: skip
    pq.write_table(REVIEW.table(rows), copied / "small/review.parquet")
    after = measure(small_config(copied), "identity", floor_samples=0).table.set_index("sample_id")
    assert (after.label[planted], after.label[clean[0]], after.label[clean[1]]) == ("good", "bad", "good")
    assert after.labelled_by.value_counts().to_dict() == {"person": 2, "planted": len(ids) - 2}
    with open(calibrate(small_config(copied), "identity", floor_samples=0)["calibration"]) as file:
        page = file.read()
    rules = len(before.figures)
    assert page.count(f">{KEPT}</span>") == page.count(f">{REJECTED}</span>") == rules
    assert page.count("2 from people") == 1
