"""The plan stage: which samples a run makes. It pairs subjects, chooses relations and splits the subjects."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from itertools import chain, combinations

import numpy as np
from pydantic import Field

from data_schemas.errors import UserError
from data_schemas.settings import suggest
from pipeline.core.parts import fingerprint
from pipeline.core.stage import StageConfig
from pipeline.planning.relations import draw_boxes, height_of, relation_data, suits
from pipeline.planning.wording import sentence

PLAN_STREAM = 2**31
"""Number of the random stream of the plan as a whole. Each row's stream is its index, which is smaller."""

OFTEN = 2
"""How many times as often as another a subject may be drawn for the sake of relations that few subjects suit."""


class PlanningConfig(StageConfig):
    """Settings of the plan. ``jitter`` is the largest shift of a box's edge, as a fraction of the picture."""

    relations: list[str] | None = Field(
        None, min_length=1, max_length=1000, description="Names of relations; without any, all that fit the subjects"
    )
    test_share: float = Field(0.17, ge=0, le=0.5, description="Share of the samples in the test split")
    jitter: float = Field(0.03, ge=0, le=0.1)
    close: bool = Field(False, description="Both subjects together fill the picture")
    mirrored: bool = Field(
        True, description="Half of the pictures are mirrored; if not, the first of two side by side stands left"
    )


def chosen_relations(config: PlanningConfig) -> list[str]:
    """The names of the relations to plan, without duplicates. Raises UserError for an unknown one."""
    known = relation_data()["relations"]
    for name in config.relations or ():
        if name not in known:
            raise UserError(f"planning.relations: there is no relation {name!r}; {suggest(name, known)}")
    return list(dict.fromkeys(config.relations or known))


def make_plan(references: Sequence[dict], config: PlanningConfig, samples: int, seed: int) -> list[dict]:
    """The rows of ``planned``."""
    return list(planned(references, config, samples, seed))


def planned(references: Sequence[dict], config: PlanningConfig, samples: int, seed: int) -> Iterator[dict]:
    """``samples`` rows of the plan table. The order of ``references`` does not matter; unusable ones are skipped.

    A sample pairs subjects of different categories, in a relation that makes sense between them if a chosen one does.
    Relations and subjects are drawn as evenly as this allows. No subject of the test split appears in train.
    """
    relations = chosen_relations(config)
    subjects: dict[str, list[dict]] = {}
    for reference in sorted(references, key=lambda r: r["reference_id"]):
        if reference["status"] == "ok":
            subjects.setdefault(reference["subject_id"], []).append(reference)
    categories = {subject_id: rows[0]["category"] for subject_id, rows in sorted(subjects.items())}
    if len(set(categories.values())) < 2:
        raise UserError(
            f"planning: {len(categories)} usable subjects of {len(set(categories.values()))} categories, but a "
            "sample pairs two categories; add references"
        )
    rng = np.random.default_rng([seed, PLAN_STREAM])
    tests = round(samples * config.test_share)
    held_out = split_subjects(categories, config.test_share if tests else 0.0, rng)
    test_rows = set(rng.permutation(samples)[:tests].tolist())
    drawers = {
        "train": _Drawer({s: c for s, c in categories.items() if s not in held_out}, relations),
        "test": _Drawer({s: c for s, c in categories.items() if s in held_out}, relations),
    }
    split_of: dict[str, str] = {}
    for index in range(samples):
        split = "test" if index in test_rows else "train"
        row_rng = np.random.default_rng([seed, index])
        pair, relation = drawers[split].draw(row_rng)
        chosen = [subjects[s][int(row_rng.integers(len(subjects[s])))] for s in pair]
        for subject in pair:
            if split_of.setdefault(subject, split) != split:
                raise RuntimeError(f"subject {subject!r} is in train and in test")  # that would be a bug of ours
        yield _plan_row(index, split, chosen, relation, config, row_rng)


def split_subjects(categories: dict[str, str], share: float, rng: np.random.Generator) -> set[str]:
    """The subjects held out for testing: about ``share`` of all. Test and train each have at least two categories.

    ``categories`` maps subject to category. Raises UserError if no such split exists.
    """
    if share == 0:
        return set()
    ordered = sorted(categories)
    shuffled = [ordered[i] for i in rng.permutation(len(ordered))]
    left = Counter(categories.values())

    def can_spare(*taken: str) -> bool:
        rest = left.copy()
        for subject in taken:
            rest[categories[subject]] -= 1
        return sum(n > 0 for n in rest.values()) >= 2

    held_out: set[str] = set()

    def hold(subject: str) -> None:
        held_out.add(subject)
        left[categories[subject]] -= 1

    pairs = ((a, b) for a, b in combinations(shuffled, 2) if categories[a] != categories[b] and can_spare(a, b))
    pair = next(pairs, None)
    if pair is None:
        counts = ", ".join(f"{c} {n}" for c, n in sorted(left.items()))
        raise UserError(
            "planning: train and test each need two subjects of different categories that the other does not "
            f"have, the references are: {counts}; add subjects, or set planning.test_share to 0"
        )
    for subject in pair:
        hold(subject)
    used = Counter(categories[s] for s in held_out)
    waiting: dict[str, deque[tuple[int, str]]] = {}
    for position, subject in enumerate(shuffled):
        if subject not in held_out:
            waiting.setdefault(categories[subject], deque()).append((position, subject))
    while len(held_out) < math.ceil(len(categories) * share):
        alive = sum(n > 0 for n in left.values())
        free = [c for c, queue in waiting.items() if queue and alive - (left[c] == 1) >= 2]
        if not free:
            break
        # the category used least, so that the pairs of the test split vary
        category = min(free, key=lambda c: (used[c], waiting[c][0][0]))
        hold(waiting[category].popleft()[1])
        used[category] += 1
    return held_out


class _Drawer:
    """Draws relations and pairs of one split that suit each other, always among those drawn least so far."""

    def __init__(self, categories: dict[str, str], relations: Sequence[str]):
        self.subjects = list(categories)
        codes = {c: k for k, c in enumerate(dict.fromkeys(categories.values()))}
        self.category = np.array([codes[c] for c in categories.values()], int)
        self.drawn = np.zeros(len(self.subjects), int)
        self.relations = list(relations)
        self.related = np.zeros(len(self.relations), int)
        self.everyone = np.ones(len(self.subjects), bool)
        needs = [relation_data()["relations"][name]["between"] for name in relations]
        suited = {n: np.array([suits(c, n) for c in codes], bool)[self.category] for n in {*chain(*needs)}}
        self.suited = [[suited[need] for need in pair] for pair in needs]

    def draw(self, rng: np.random.Generator) -> tuple[list[str], str]:
        """The ids of two subjects of different categories, the first of which does what the relation says, and it.

        Subjects that have been drawn OFTEN times as often as another wait, and so do relations that suit no others. If
        no relation suits any pair, the pair is drawn without regard to it: relations that were asked for are planned.
        """
        order = np.argsort(self.related + rng.random(len(self.related)))
        rested = self.drawn <= OFTEN * self.drawn.min() + 1
        everyone = self.everyone
        for firsts, seconds in ((rested, rested), (rested, everyone), (everyone, rested), (everyone, everyone)):
            for relation in order:
                first, second = self.suited[relation]
                pair = self._pair(first & firsts, second & seconds, rng)
                if pair is not None:
                    return self._take(pair, int(relation), rng)
        pair = self._pair(everyone, everyone, rng)
        assert pair is not None, "a split has two categories"
        return self._take(pair, int(order[0]), rng)

    def _pair(self, firsts: np.ndarray, seconds: np.ndarray, rng: np.random.Generator) -> tuple[int, int] | None:
        """Two subjects of different categories, the first one of ``firsts`` [N], the other of ``seconds`` [N]."""
        left = np.flatnonzero(np.bincount(self.category[seconds], minlength=1))
        if len(left) == 1:
            firsts = firsts & (self.category != left[0])
        if not len(left) or not firsts.any():
            return None
        first = _least(self.drawn, firsts, rng)
        return first, _least(self.drawn, seconds & (self.category != self.category[first]), rng)

    def _take(self, pair: tuple[int, int], relation: int, rng: np.random.Generator) -> tuple[list[str], str]:
        """Count a drawn pair and relation. Where either subject can do it, chance says which of them does."""
        self.drawn[list(pair)] += 1
        self.related[relation] += 1
        roles = self.suited[relation]
        either = all(roles[k][pair[1 - k]] == roles[k][pair[k]] for k in (0, 1))
        names = [self.subjects[k] for k in pair]
        return (names[::-1] if either and rng.random() < 0.5 else names), self.relations[relation]


def _least(counts: np.ndarray, allowed: np.ndarray, rng: np.random.Generator) -> int:
    """The index of the smallest allowed count [N], chosen at random among equal ones."""
    equals = np.flatnonzero(allowed & (counts == counts[allowed].min()))
    return int(equals[rng.integers(len(equals))])


def _plan_row(
    index: int, split: str, chosen: Sequence[dict], relation: str, config: PlanningConfig, rng: np.random.Generator
) -> dict:
    entry = relation_data()["relations"][relation]
    boxes, turns = draw_boxes(
        relation,
        [reference["width"] / reference["height"] for reference in chosen],
        [height_of(reference["category"]) for reference in chosen],
        config.jitter,
        rng,
        config.close,
        config.mirrored,
    )
    row: dict = {"index": index, "split": split, "seed": int(rng.integers(2**31))}
    for i, reference in enumerate(chosen):
        row[f"reference_{i}_id"] = reference["reference_id"]
        row[f"reference_{i}_name"] = reference["name"]
        row[f"reference_{i}_category"] = reference["category"]
        row[f"subject_{i}_id"] = reference["subject_id"]
        row[f"box_{i}"] = list(boxes[i])
        row[f"turn_{i}"] = turns[i]
        row[f"mirror_{i}"] = reference["mirror"]
    row["relation"] = relation
    row["layout"] = entry["layout"]
    row["front"] = entry.get("front")
    template = entry["templates"][int(rng.integers(len(entry["templates"])))]
    row["prompt"] = sentence(template, chosen[0]["name"], chosen[1]["name"])
    return {"sample_id": fingerprint(**row), **row}
