"""Nothing is published whose test split was seen in training."""

import hashlib

import numpy as np
import pytest
from small.plans import make_plan

from data_schemas.errors import RunFailed
from data_schemas.tables import PLAN
from pipeline.dataset.leaks import check_leaks
from pipeline.planning.planning import PlanningConfig

NO_HASHES = [None] * 60


def reference(number: int, category: str, features: np.ndarray) -> dict:
    return {
        "reference_id": f"{number:016x}", "status": "ok", "subject_id": f"{category}/{number}", "name": f"n{number}",
        "category": category, "width": 10, "height": 10, "mirror": True, "source": f"{number}.png",
        "phash": hashlib.sha256(bytes([number])).hexdigest(), "colours": bytes(192),
        "features": (features / np.linalg.norm(features)).astype(np.float16).tobytes(),
    }  # fmt: skip


@pytest.fixture
def references():
    rng = np.random.default_rng(0)
    return [reference(k, "abcd"[k % 4], rng.normal(size=1280)) for k in range(24)]


@pytest.fixture
def plan(references):
    return make_plan(references, PlanningConfig(test_share=0.3), 60, 0)


def test_splits_that_are_apart_are_counted(references, plan):
    facts = check_leaks(PLAN.table(plan), range(60), references, NO_HASHES)
    assert sum(facts["subjects"].values()) == sum(facts["references"].values()) == 24
    assert -0.2 < facts["nearest"] < 0.2
    train = [k for k, row in enumerate(plan) if row["split"] == "train"]
    assert check_leaks(PLAN.table(plan), train, references, NO_HASHES)["nearest"] is None


def test_a_subject_in_both_splits_stops_the_export(references, plan):
    plan[0]["split"] = {"train": "test", "test": "train"}[plan[0]["split"]]
    with pytest.raises(RunFailed, match=r"subject ./\d+ is in both, and \d+ more; remove one"):
        check_leaks(PLAN.table(plan), range(60), references, NO_HASHES)
    assert check_leaks(PLAN.table(plan), range(1, 60), references, NO_HASHES), "what is not in a shard cannot leak"


def test_a_near_copy_in_the_other_split_stops_the_export(references, plan):
    of = {s: next(r for r in plan if r["split"] == s)["reference_0_id"] for s in ("train", "test")}
    one, two = (next(r for r in references if r["reference_id"] == of[s]) for s in ("train", "test"))
    two["features"] = one["features"]
    with pytest.raises(RunFailed, match=rf"{one['source']} of train|{two['source']} of test"):
        check_leaks(PLAN.table(plan), range(60), references, NO_HASHES)


def test_a_target_that_the_other_split_nearly_has_stops_the_export(references, plan):
    hashes = [hashlib.sha256(row["sample_id"].encode()).hexdigest() for row in plan]
    assert check_leaks(PLAN.table(plan), range(60), references, hashes)["repeated_targets"] == 0
    train, test = (next(k for k, row in enumerate(plan) if row["split"] == s) for s in ("train", "test"))
    twins = next(k for k, row in enumerate(plan) if row["split"] == "train" and k != train)
    repeated = [*hashes[:twins], hashes[train], *hashes[twins + 1 :]]
    assert check_leaks(PLAN.table(plan), range(60), references, repeated)["repeated_targets"] == 1
    hashes[test] = f"{int(hashes[train], 16) ^ (2**40 - 1):064x}"  # 40 of 256 bits
    with pytest.raises(RunFailed, match=rf"target of {plan[train]['sample_id']} of train is a near-copy of that of"):
        check_leaks(PLAN.table(plan), range(60), references, hashes)
    hashes[test] = f"{int(hashes[train], 16) ^ (2**41 - 1):064x}"
    check_leaks(PLAN.table(plan), range(60), references, hashes)
