"""Decisions of whole columns: those of ``decide``, sample for sample, and what becomes of them."""

import numpy as np
import pandas as pd
import pytest

from data_schemas.tables import DECISIONS
from pipeline.core.rules import decide, outcomes
from pipeline.core.stage import Rule
from pipeline.dataset.frames.decisions import NOT_PLANNED, Decided, change, counts, funnel, transitions

RULES = [
    ("one", Rule("a", "min", 0.3, "a_low", "")), ("one", Rule("b", "max", 0.8, "b_high", "")),
    ("two", Rule("c", "min", 0.2, "c_low", "")),
]  # fmt: skip


def test_they_are_those_of_decide_with_errors_reviews_and_missing_scores():
    rng = np.random.default_rng(0)
    count = 2000
    ids = [f"s{k}" for k in range(count)]

    def frame(columns):
        scores = {name: np.where(rng.random(count) < 0.05, np.nan, rng.random(count).round(2)) for name in columns}
        status = np.where(rng.random(count) < 0.05, "error", "ok")
        return pd.DataFrame({"sample_id": ids, "status": status, "error_code": "x", "error_message": "x", **scores})

    verdicts = {"one": frame("ab"), "two": frame("c")}
    reviews = {
        i: {"verdict": [None, "kept", "rejected"][rng.integers(3)], "reviewer": "Ada", "reason": None}
        for i in ids if rng.random() < 0.2
    }  # fmt: skip
    rows = decide(verdicts, RULES, reviews)
    assert {row["decision"] for row in rows} == set(DECISIONS), "nothing is left out"
    said = np.array([reviews.get(i, {}).get("verdict") for i in ids], object)
    failed = np.any([frame["status"] == "error" for frame in verdicts.values()], axis=0)
    scores = [verdicts[stage][rule.column].to_numpy() for stage, rule in RULES]
    decisions, broken = outcomes(scores, [rule for _, rule in RULES], failed, said)
    assert decisions.tolist() == [row["decision"] for row in rows]
    by_rules = [row for row in range(count) if rows[row]["decision"] == "rejected" and said[row] is None]
    assert [[RULES[r][1].reason for r in np.flatnonzero(broken[:, row])] for row in by_rules] == [
        rows[row]["reasons"] for row in by_rules
    ]


def test_a_threshold_itself_passes():
    scores = [np.array([0.5, 0.4999, 0.5001]), np.array([0.5, 0.5, 0.5001])]
    rules = [Rule("a", "min", 0.5, "low", ""), Rule("b", "max", 0.5, "high", "")]
    decisions, _ = outcomes(scores, rules, np.zeros(3, bool), np.full(3, None))
    assert decisions.tolist() == ["kept", "rejected", "rejected"]


@pytest.fixture
def found():
    decisions = np.array(["kept", "rejected", "rejected", "error", "undecided", None, "kept"], object)
    broken = np.zeros((3, 7), bool)
    broken[0, [1, 2]] = True
    broken[1, [2, 6]] = True  # the last was kept by a reviewer
    return Decided([rule for _, rule in RULES], decisions, broken, decisions == "error")


def test_the_funnel_counts_what_each_rule_leaves(found):
    assert funnel(found) == [
        {"step": "planned", "left": 7},
        {"step": "scored without error", "left": 5},
        {"step": "a_low", "left": 3, "breaks": 2, "alone": 1},
        {"step": "b_high", "left": 2, "breaks": 2, "alone": 1},
        {"step": "c_low", "left": 2, "breaks": 0, "alone": 0},
        {"step": "kept", "left": 2},
    ]
    assert [line["left"] for line in funnel(found, np.array([1, 3]))] == [2, 1, 0, 0, 0, 0]
    assert counts(found.decisions) == {"kept": 2, "rejected": 2, "undecided": 1, "error": 1, "not decided": 1}


def test_what_enters_and_what_leaves():
    before = np.array(["kept", "kept", "rejected", "rejected", "error", NOT_PLANNED, NOT_PLANNED, None, "kept"], object)
    after = np.array(["kept", "error", "kept", "rejected", "rejected", "kept", "rejected", "kept", None], object)
    assert change(before, after).tolist() == [
        "same", "leaves", "enters", "same", "otherwise", "enters", "otherwise", None, None,
    ]  # fmt: skip
    assert {(line["was"], line["is"]): line["count"] for line in transitions(before[:5], after[:5])} == {
        ("kept", "error"): 1, ("rejected", "kept"): 1, ("error", "rejected"): 1,
    }  # fmt: skip
