"""The plan stage: which samples a run makes. It pairs subjects and chooses relations; splits.py splits the subjects."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import chain
from types import MappingProxyType
from typing import Any

import numpy as np
from pydantic import Field

from data_schemas.errors import UserError
from data_schemas.settings import suggest
from data_schemas.tables import SPLITS
from pipeline.core.parts import fingerprint
from pipeline.core.stage import StageConfig
from pipeline.planning.relations import draw_boxes, height_of, relation_data, suits
from pipeline.planning.splits import split_subjects
from pipeline.planning.wording import sentence

OFTEN = 2
"""How many times as often as another a subject may be drawn for the sake of relations that few subjects suit."""


class PlanningConfig(StageConfig):
    """Settings of the plan."""

    relations: list[str] | None = Field(
        None, min_length=1, max_length=1000, description="Names of relations; without any, all that fit the subjects"
    )
    test_share: float = Field(0.17, ge=0, le=0.5, description="Share of the samples in the test split")
    jitter: float = Field(
        0.03, ge=0, le=0.1, description="Largest shift of a box's edge, as a share of the picture's side"
    )
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


NONE: Mapping[Any, Any] = MappingProxyType({})


def planned(
    references: Sequence[dict],
    config: PlanningConfig,
    samples: int,
    seed: int,
    groups: Mapping[str, str] = NONE,
    before: Mapping[int, dict] = NONE,
) -> Iterator[dict]:
    """``samples`` rows of the plan table. The order of ``references`` does not matter; unusable ones are skipped.

    A sample pairs subjects of different categories, in a relation that makes sense between them if a chosen one does.
    Relations and subjects are drawn as evenly as this allows. No subject of the test split appears in train.

    ``groups`` maps a subject to its group of near-copies (by default itself): they are in one split and are never
    paired. ``before`` has rows of an earlier plan by position. They stay as they are, so a plan grows with the number
    of samples and with the pool. A row depends on the rows in front of it alone, so it does not matter in how many
    steps a plan has grown, or which of its rows were lost.
    """
    pictures = _by_subject(references)
    categories = {subject: rows[0]["category"] for subject, rows in sorted(pictures.items())}
    known = {row[f"subject_{i}_id"]: row["split"] for row in before.values() for i in (0, 1)}
    try:
        splits = split_subjects(categories, groups, config.test_share, known)
    except UserError:
        if math.floor(samples * config.test_share):
            raise
        splits = dict.fromkeys(categories, "train")  # so small a plan has no sample for testing
    relations = chosen_relations(config)
    drawers = {
        split: _Drawer({s: c for s, c in categories.items() if splits.get(s) == split}, groups, relations)
        for split in SPLITS
    }
    taken = {row["sample_id"] for row in before.values()}
    draws: Counter[tuple[str, str, str]] = Counter()
    for index in range(samples):
        row = before.get(index)
        if row is None:
            split = "test" if is_test(index, config.test_share) else "train"
            row = _new_row(index, split, drawers[split], pictures, config, seed, draws, taken)
            taken.add(row["sample_id"])
        drawers[row["split"]].count(row)
        draws[_drawn(row)] += 1
        yield row


def is_test(index: int, share: float) -> bool:
    """Whether the sample at this position of a plan is for testing. They are spread evenly over it."""
    return math.floor((index + 1) * share) > math.floor(index * share)


def _by_subject(references: Sequence[dict]) -> dict[str, list[dict]]:
    """The usable references of each subject. Raises UserError unless there are two categories."""
    pictures: dict[str, list[dict]] = {}
    for reference in sorted(references, key=lambda r: r["reference_id"]):
        if reference["status"] == "ok":
            pictures.setdefault(reference["subject_id"], []).append(reference)
    kinds = len({rows[0]["category"] for rows in pictures.values()})
    if kinds < 2:
        raise UserError(
            f"planning: {len(pictures)} usable subjects of {kinds} categories, but a sample pairs two categories; add "
            "references"
        )
    return pictures


class _Drawer:
    """Draws relations and pairs of one split that suit each other, always among those drawn least so far."""

    def __init__(self, categories: Mapping[str, str], groups: Mapping[str, str], relations: Sequence[str]):
        self.subjects = list(categories)
        self.number = {subject: k for k, subject in enumerate(self.subjects)}
        codes = {c: k for k, c in enumerate(dict.fromkeys(categories.values()))}
        self.category = np.array([codes[c] for c in categories.values()], int)
        own = {g: k for k, g in enumerate(dict.fromkeys(groups.get(s, s) for s in self.subjects))}
        self.group = np.array([own[groups.get(s, s)] for s in self.subjects], int)
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
                    return self._in_roles(pair, int(relation), rng)
        pair = self._pair(everyone, everyone, rng)
        assert pair is not None, "a split has two groups and two categories"
        return self._in_roles(pair, int(order[0]), rng)

    def _pair(self, firsts: np.ndarray, seconds: np.ndarray, rng: np.random.Generator) -> tuple[int, int] | None:
        """Two subjects of different categories and groups, the first of ``firsts`` [N], the other of ``seconds`` [N].

        None if there is no such pair."""
        left = np.flatnonzero(np.bincount(self.category[seconds], minlength=1))
        if len(left) == 1:
            firsts = firsts & (self.category != left[0])
        while len(left) and firsts.any():
            first = _least(self.drawn, firsts, rng)
            others = seconds & (self.category != self.category[first]) & (self.group != self.group[first])
            if others.any():
                return first, _least(self.drawn, others, rng)
            firsts = firsts.copy()  # all that it could be paired with are near-copies of it
            firsts[first] = False
        return None

    def _in_roles(self, pair: tuple[int, int], relation: int, rng: np.random.Generator) -> tuple[list[str], str]:
        """The names of a pair and a relation. Where either subject can do it, chance says which of them does."""
        roles = self.suited[relation]
        either = all(roles[k][pair[1 - k]] == roles[k][pair[k]] for k in (0, 1))
        names = [self.subjects[k] for k in pair]
        return (names[::-1] if either and rng.random() < 0.5 else names), self.relations[relation]

    def count(self, row: Mapping[str, Any]) -> None:
        """Remember that the subjects and the relation of a row of the plan were drawn."""
        for i in (0, 1):
            self.drawn[self.number[row[f"subject_{i}_id"]]] += 1
        self.related[self.relations.index(row["relation"])] += 1

    def another(self, pair: Sequence[str], rng: np.random.Generator) -> str | None:
        """A subject of the split that is no near-copy of either of a pair; None if there is none."""
        own = [self.group[self.number[subject]] for subject in pair]
        others = np.flatnonzero((self.group != own[0]) & (self.group != own[1]))
        return self.subjects[others[rng.integers(len(others))]] if len(others) else None


def _least(counts: np.ndarray, allowed: np.ndarray, rng: np.random.Generator) -> int:
    """The index of the smallest allowed count [N], chosen at random among equal ones."""
    equals = np.flatnonzero(allowed & (counts == counts[allowed].min()))
    return int(equals[rng.integers(len(equals))])


def _drawn(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """What a row has in common with those that differ from it by their number of draws alone."""
    return row["reference_0_id"], row["reference_1_id"], row["relation"]


def _new_row(
    index: int,
    split: str,
    drawer: _Drawer,
    pictures: Mapping[str, Sequence[dict]],
    config: PlanningConfig,
    seed: int,
    draws: Mapping[tuple[str, str, str], int],
    taken: Set[str],
) -> dict:
    """A row that the plan does not have yet."""
    rng = np.random.default_rng([seed, index])
    pair, relation = drawer.draw(rng)
    chosen = [pictures[s][int(rng.integers(len(pictures[s])))] for s in pair]
    third = drawer.another(pair, rng)
    other = None if third is None else pictures[third][int(rng.integers(len(pictures[third])))]["reference_id"]
    draw = draws[chosen[0]["reference_id"], chosen[1]["reference_id"], relation]
    while (content := _content(chosen, relation, draw, config, seed))["sample_id"] in taken:
        draw += 1  # a row behind this one has it, which is older
    return {**content, "index": index, "split": split, "other_reference_id": other}


def _content(chosen: Sequence[dict], relation: str, draw: int, config: PlanningConfig, seed: int) -> dict:
    """What a sample shows. It follows from its references, its relation and the number of its draw, and its id from
    it; neither its place in the plan nor the rest of the pool has a part in it."""
    entry = relation_data()["relations"][relation]
    made_from = [seed, *(reference["reference_id"] for reference in chosen), relation, draw]
    rng = np.random.default_rng(int(fingerprint(sample=made_from), 16))
    boxes, turns = draw_boxes(
        relation,
        [reference["width"] / reference["height"] for reference in chosen],
        [height_of(reference["category"]) for reference in chosen],
        config.jitter,
        rng,
        config.close,
        config.mirrored,
    )
    row: dict = {"seed": int(rng.integers(2**31)), "draw": draw}
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
