"""Plans: the split shares no subject, boxes keep their rules, and the same seed plans the same."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from small.plans import make_plan

from data_schemas.errors import UserError
from data_schemas.schema import validate
from data_schemas.tables import PLAN
from pipeline.config import CurationConfig
from pipeline.planning import relations
from pipeline.planning.planning import PlanningConfig
from pipeline.planning.relations import boxes_fit, draw_boxes, height_of, is_animate, relation_data
from pipeline.planning.splits import split_subjects
from pipeline.planning.wording import sentence


def reference(category: str, number: int, status: str = "ok", picture: int = 0) -> dict:
    name = f"{category} {number}"
    return {
        "reference_id": f"{category}-{number}-{picture}",
        "status": status,
        "subject_id": f"{category}/{number}",
        "name": name,
        "category": category,
        "width": 100 if status == "ok" else None,
        "height": 200 if status == "ok" else None,
        "mirror": True,
    }


def pool(**counts: int) -> list[dict]:
    return [reference(category, k) for category, n in counts.items() for k in range(n)]


FOUR_EACH = pool(cat=4, person=4, building=4, cup=4)


def test_rows_follow_the_schema_and_are_exact():
    rows = make_plan(FOUR_EACH, PlanningConfig(), 100, 7)
    validate(PLAN.table(rows), PLAN, "plan")
    assert [r["index"] for r in rows] == list(range(100))
    assert Counter(r["split"] for r in rows) == {"train": 83, "test": 17}
    assert len({r["sample_id"] for r in rows}) == 100
    assert all(len(r["sample_id"]) == 16 and 0 <= r["seed"] < 2**31 for r in rows)
    assert {r["relation"] for r in rows} == set(relation_data()["relations"])
    for row in rows:
        templates = relation_data()["relations"][row["relation"]]["templates"]
        names = (row["reference_0_name"], row["reference_1_name"])
        assert row["prompt"] in {sentence(template, *names) for template in templates}
        assert row["layout"] == relation_data()["relations"][row["relation"]]["layout"]
        assert row["reference_0_category"] != row["reference_1_category"]


def test_the_papers_eleven_relations_and_two_of_things():
    relations = relation_data()["relations"]
    assert list(relations) == ["hug", "shake_hands", "kiss", "fence", "dance", "carry", "fight", "ride", "hold",
                               "lean_against", "stand_beside", "lie_on", "stand_in_front_of"]  # fmt: skip
    assert {r["layout"] for r in relations.values()} == {"embrace", "reach", "carry", "beside"}
    shown = {(str(r["slots"]), str(r["tilt"]), r["overlap"], r.get("front")) for r in relations.values()}
    assert len(shown) == len(relations), "no two relations look alike"
    assert all(len(r["templates"]) >= 3 for r in relations.values())
    paper = CurationConfig.load("paper").planning
    assert paper.relations == list(relations)[:11]


def test_same_seed_same_plan_in_any_order_of_references():
    rows = make_plan(FOUR_EACH, PlanningConfig(), 40, 3)
    assert make_plan(FOUR_EACH[::-1], PlanningConfig(), 40, 3) == rows
    assert make_plan(FOUR_EACH, PlanningConfig(), 40, 4) != rows


def test_only_usable_references_are_planned():
    rows = make_plan([*FOUR_EACH, reference("cat", 9, "error")], PlanningConfig(), 60, 0)
    assert "cat/9" not in {r[f"subject_{i}_id"] for r in rows for i in (0, 1)}


def test_subjects_and_relations_are_used_evenly():
    rows = make_plan(pool(cat=8, person=8, building=8, cup=8), PlanningConfig(), 400, 0)
    for split in ("train", "test"):
        own = [r for r in rows if r["split"] == split]
        used = Counter(r[f"subject_{i}_id"] for r in own for i in (0, 1))
        assert max(used.values()) <= 2 * min(used.values()) + 3
        told = Counter(r["relation"] for r in own)
        assert len(told) == (13 if split == "train" else 7), "few test subjects: all animate ones of one category"
        assert max(told.values()) <= 1.5 * min(told.values())
    first = Counter(r["reference_0_category"] for r in rows)
    assert min(first.values()) > 20


def test_every_picture_of_a_subject_is_used():
    several = [*FOUR_EACH, *(reference("cat", 0, picture=k) for k in range(1, 4))]
    rows = make_plan(several, PlanningConfig(), 300, 0)
    used = {r[f"reference_{i}_id"] for r in rows for i in (0, 1)}
    assert used == {r["reference_id"] for r in several}


def test_ride_puts_the_rider_above():
    rows = make_plan(FOUR_EACH, PlanningConfig(relations=["ride"], jitter=0), 20, 0)
    assert all(r["box_0"][3] < r["box_1"][3] and r["front"] == 0 for r in rows)
    rows = make_plan(FOUR_EACH, PlanningConfig(relations=["carry", "carry"], jitter=0), 20, 0)
    assert all(r["box_0"][3] > r["box_1"][3] for r in rows)


def test_relations_suit_the_categories():
    rows = make_plan(pool(cat=3, person=3, building=3, car=3), PlanningConfig(), 300, 0)
    between = {}
    for row in rows:
        kinds = tuple("animate" if is_animate(row[f"reference_{i}_category"]) else "thing" for i in (0, 1))
        if row["relation"] in ("carry", "hold", "ride"):
            assert row["reference_1_category"] != "building"
        if row["relation"] in ("lie_on", "lean_against"):
            assert row["reference_0_category"] != "building"
        between.setdefault(row["relation"], set()).add(kinds)
    assert between["hug"] == between["kiss"] == {("animate", "animate")}
    assert all(first == "animate" for first, _ in between["carry"] | between["ride"] | between["hold"])
    assert all(first == "thing" for first, _ in between["lie_on"])
    assert len(between["stand_beside"]) >= 3
    things = make_plan(pool(cup=3, building=3, car=3), PlanningConfig(), 60, 0)
    assert {r["relation"] for r in things} == {"lean_against", "stand_beside", "lie_on", "stand_in_front_of"}


def test_a_few_animate_subjects_do_not_stand_in_most_samples():
    rows = make_plan(pool(cat=1, person=1, cup=10, building=10), PlanningConfig(test_share=0), 200, 0)
    used = Counter(r[f"subject_{i}_id"] for r in rows for i in (0, 1))
    assert max(used.values()) <= 2 * min(used.values()) + 3
    assert len({r["relation"] for r in rows}) == 13


def test_a_relation_that_was_asked_for_is_planned_also_where_it_makes_no_sense():
    hugs = make_plan(pool(cat=3, person=3, building=3), PlanningConfig(relations=["hug"], test_share=0), 40, 0)
    assert all(is_animate(r[f"reference_{i}_category"]) for r in hugs for i in (0, 1))
    things = make_plan(pool(cup=2, building=2), PlanningConfig(relations=["hug"], test_share=0), 10, 0)
    assert {r["relation"] for r in things} == {"hug"}
    lone = make_plan(pool(cat=4, building=2), PlanningConfig(relations=["hug"], test_share=0), 10, 0)
    assert len(lone) == 10


def test_tilted_subjects_lean_towards_or_away_from_each_other():
    for relation, sign in (("kiss", 1), ("fight", -1)):
        for row in make_plan(FOUR_EACH, PlanningConfig(relations=[relation]), 20, 0):
            left, right = sorted((0, 1), key=lambda i: row[f"box_{i}"][0] + row[f"box_{i}"][2])
            assert sign * row[f"turn_{left}"] < 0 < sign * row[f"turn_{right}"]
    for row in make_plan(pool(cup=2, car=2), PlanningConfig(relations=["lie_on"], test_share=0), 8, 0):
        assert abs(row["turn_0"]) == 90


def test_whether_a_reference_may_be_mirrored_reaches_the_plan():
    signs = [{**r, "mirror": r["category"] != "building"} for r in FOUR_EACH]
    for row in make_plan(signs, PlanningConfig(), 40, 0):
        for i in (0, 1):
            assert row[f"mirror_{i}"] == (row[f"reference_{i}_category"] != "building")


@settings(max_examples=100, deadline=None)
@given(
    counts=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    share=st.floats(0, 0.5),
    seed=st.integers(0, 2**31 - 1),
    samples=st.integers(1, 40),
)
def test_no_subject_is_in_both_splits(counts, share, seed, samples):
    references = pool(**{f"kind{k}": n for k, n in enumerate(counts)})
    tests = int(samples * share)
    # Two categories must remain on each side: two with a subject to spare, or enough categories for both.
    possible = sum(min(n, 2) for n in counts) >= 4
    try:
        rows = make_plan(references, PlanningConfig(test_share=share), samples, seed)
    except UserError:
        assert tests
        assert not possible
        return
    assert possible or not tests
    assert Counter(r["split"] for r in rows)["test"] == tests
    train, test = (
        {r[f"subject_{i}_id"] for r in rows if r["split"] == split for i in (0, 1)} for split in ("train", "test")
    )
    assert not train & test


@settings(max_examples=100, deadline=None)
@given(
    counts=st.lists(st.integers(1, 6), min_size=4, max_size=6),
    share=st.floats(0.01, 0.5),
    added=st.lists(st.integers(0, 5), min_size=1, max_size=9),
)
def test_a_split_has_two_categories_and_a_planned_subject_keeps_its_own(counts, share, added):
    categories = {f"{k}/{n}": str(k) for k, count in enumerate(counts) for n in range(count)}
    splits = split_subjects(categories, {}, share, {})
    for split in ("train", "test"):
        assert len({categories[s] for s in categories if splits[s] == split}) >= 2
    more = categories | {f"{k}/new {n}": str(k) for n, k in enumerate(added)}
    planned = dict(list(splits.items())[::2])
    again = split_subjects(more, {}, share, planned)
    assert planned.items() <= again.items()
    assert again.keys() == more.keys()


def test_about_the_share_of_a_large_pool_is_held_out_whoever_else_is_in_it():
    categories = {f"{k % 7}/{k}": str(k % 7) for k in range(4000)}
    splits = split_subjects(categories, {}, 0.17, {})
    assert 0.155 < Counter(splits.values())["test"] / 4000 < 0.185
    few = dict(list(categories.items())[:900])
    assert split_subjects(few, {}, 0.17, {}).items() <= splits.items()


def test_copies_stay_together_and_one_that_connects_both_splits_is_not_used():
    categories = {s: s[0] for s in ("a1", "a2", "b1", "b2", "c1", "c2", "d1", "d2")}
    groups = dict.fromkeys(("a1", "b1"), "a1") | dict.fromkeys(("c1", "d1"), "c1")
    for share in (0.1, 0.3, 0.5):
        splits = split_subjects(categories, groups, share, {})
        assert splits["a1"] == splits["b1"]
        assert splits["c1"] == splits["d1"]
    known = {"a1": "test", "a2": "train", "c1": "test", "d2": "train"}
    joined = split_subjects(categories, dict.fromkeys(("a1", "b1", "a2"), "a1"), 0.3, known)
    assert "b1" not in joined
    assert known.items() <= joined.items()


def test_near_copies_are_never_paired_nor_shown_as_another():
    references = pool(cat=6, person=6, cup=6)
    groups = {f"{category}/{k}": f"cat/{k}" for category in ("cat", "person") for k in range(6)}
    rows = make_plan(references, PlanningConfig(), 300, 0, groups)
    for row in rows:
        own = [groups.get(row[f"subject_{i}_id"], row[f"subject_{i}_id"]) for i in (0, 1)]
        other = row["other_reference_id"].rsplit("-", 1)[0].replace("-", "/")
        assert len({*own, groups.get(other, other)}) == 3
    split_of = {groups.get(r[f"subject_{i}_id"], r[f"subject_{i}_id"]): r["split"] for r in rows for i in (0, 1)}
    assert all(split_of[groups.get(r["subject_0_id"], r["subject_0_id"])] == r["split"] for r in rows)
    copies_alone = dict.fromkeys((r["subject_id"] for r in references if r["category"] != "cup"), "cat/0")
    assert {"cup"} < {
        r["reference_1_category"] for r in make_plan(references, PlanningConfig(test_share=0), 40, 0, groups)
    }
    lone = make_plan(references, PlanningConfig(test_share=0), 40, 0, copies_alone)
    assert all("cup" in (r["reference_0_category"], r["reference_1_category"]) for r in lone)


@settings(max_examples=300, deadline=None)
@given(
    relation=st.sampled_from(list(relation_data()["relations"])),
    aspects=st.tuples(*[st.floats(0.05, 20)] * 2),
    heights=st.tuples(*[st.floats(0.3, 1)] * 2),
    jitter=st.floats(0, 0.1),
    seed=st.integers(0, 10_000),
)
def test_boxes_keep_their_rules(relation, aspects, heights, jitter, seed):
    boxes, _ = draw_boxes(relation, aspects, heights, jitter, np.random.default_rng(seed))
    for left, top, right, bottom in boxes:
        assert all(edge * 32 == int(edge * 32) and 0.02 <= edge <= 0.98 for edge in (left, top, right, bottom))
        assert right - left >= 0.16
        assert bottom - top >= 0.16
    cells = np.zeros((2, 32, 32), bool)
    for k, box in enumerate(boxes):
        l, t, r, b = (int(edge * 32) for edge in box)  # noqa: E741
        cells[k, t:b, l:r] = True
    shared = (cells[0] & cells[1]).sum()
    assert shared / (cells[0] | cells[1]).sum() <= 0.45
    assert all(shared / own.sum() <= 0.55 for own in cells)


def test_slots_are_the_fallback_and_keep_the_rules(monkeypatch):
    monkeypatch.setattr(relations, "ATTEMPTS", 0)
    for relation, seed in product(relation_data()["relations"], range(6)):
        draw_boxes(relation, (1, 1), (1, 1), 0, np.random.default_rng(seed))
    boxes = {draw_boxes("hug", (1, 1), (1, 1), 0, np.random.default_rng(seed))[0] for seed in range(20)}
    assert ((0.125, 0.125, 0.59375, 0.9375), (0.40625, 0.125, 0.875, 0.9375)) in boxes
    assert len(boxes) == 2  # as it stands and mirrored


@pytest.mark.parametrize("relation", ["hug", "stand_beside", "shake_hands"])
def test_the_first_stands_left_unless_pictures_are_mirrored(relation):
    def lefts(mirrored):
        draws = (np.random.default_rng(seed) for seed in range(20))
        drawn = [draw_boxes(relation, (1, 1), (1, 1), 0.03, rng, True, mirrored)[0] for rng in draws]
        return [a[0] + a[2] < b[0] + b[2] for a, b in drawn]

    assert all(lefts(False))
    assert 3 < sum(lefts(True)) < 17


def test_boxes_fit_at_its_limits():
    whole = (0.0, 0.0, 1.0, 1.0)
    assert not boxes_fit(whole, (0.0, 0.0, 0.5, 1.0))  # the second is covered wholly
    assert boxes_fit((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0))
    assert not boxes_fit((0.0, 0.0, 0.15, 1.0), (0.5, 0.0, 1.0, 1.0))
    assert boxes_fit((0.0, 0.0, 0.5, 0.5), (0.25, 0.0, 0.75, 0.5))
    assert not boxes_fit((0.0, 0.0, 0.5, 0.5), (0.2, 0.0, 0.7, 0.5))


@pytest.mark.parametrize(
    ("category", "animate"),
    [
        ("person", True),
        ("Wild Cats", True),
        ("plushie", True),
        ("category", False),
        ("car", False),
        ("catalogue", False),
    ],
)
def test_animate_categories(category, animate):
    assert is_animate(category) == animate


@pytest.mark.parametrize(
    ("category", "height"),
    [("person", 1.0), ("wild cat", 0.9), ("cat", 0.6), ("Toy car", 0.6), ("category", 0.75), ("dog", 0.75)],
)
def test_height_by_category(category, height):
    assert height_of(category) == height


def test_mistakes_are_named():
    with pytest.raises(UserError, match=r"no relation 'juggle'; there is: hug, shake_hands"):
        make_plan(FOUR_EACH, PlanningConfig(relations=["juggle"]), 4, 0)
    with pytest.raises(UserError, match="4 usable subjects of 1 categories"):
        make_plan(pool(cat=4), PlanningConfig(), 10, 0)
    with pytest.raises(UserError, match=r"cat 3, dog 1; add subjects, or set planning.test_share to 0"):
        make_plan(pool(cat=3, dog=1), PlanningConfig(), 10, 0)
    assert len(make_plan(pool(cat=3, dog=1), PlanningConfig(test_share=0), 10, 0)) == 10
    for wrong in ({"relations": []}, {"test_share": 0.6}, {"jitter": -1}, {"typo": 1}):
        with pytest.raises(ValidationError):
            PlanningConfig(**wrong)
