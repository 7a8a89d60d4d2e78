"""Generated subjects: the same bytes for the same seed and number, exact alpha, names that say what they are."""

import hashlib
import re

import numpy as np
import pytest

from data_schemas.errors import UserError
from data_schemas.schema import validate
from data_schemas.tables import REFERENCES
from pipeline.config import CurationConfig
from pipeline.references.cutouts import ReferencesConfig, check_pool, list_pool, make_references
from pipeline.references.generated.fills import COLOURS, PATTERNS, texture_names
from pipeline.references.generated.subjects import KINDS, Generated, draw, recipe
from pipeline.report.card import pool_facts


def pool(**values):
    return ReferencesConfig(pool=[{"source": "generated", **values}], size=64)


@pytest.fixture(scope="module")
def forty():
    return make_references(list_pool(pool(count=40)), pool(count=40))


def test_a_seed_and_a_number_give_the_same_pixels_on_every_machine():
    picture = draw(Generated(3, 14), 96)
    assert recipe(Generated(3, 14)).name == "yellow and red ringed drop"
    assert hashlib.sha256(np.asarray(picture).tobytes()).hexdigest()[:16] == "b3ad28c693a4470b"


def test_a_subject_depends_on_neither_the_count_nor_its_neighbours(forty):
    few, many = list_pool(pool(count=5)), list_pool(pool(count=40))
    assert few == many[:5]
    alone = make_references(many[7:8], pool(count=40))
    assert alone[1] == {many[7].reference_id: forty[1][many[7].reference_id]}
    other = list_pool(pool(count=5, seed=1))
    assert not {s.reference_id for s in few} & {s.reference_id for s in other}


def test_the_pool_makes_whole_references_of_many_categories(forty):
    rows, members, _ = forty
    validate(REFERENCES.table(rows), REFERENCES, "references")
    assert {r["status"] for r in rows} == {"ok"}
    assert set(members) == {r["reference_id"] for r in rows}
    assert len({r["subject_id"] for r in rows}) == 40
    assert len({r["category"] for r in rows}) >= 15
    assert all(max(r["width"], r["height"]) == 64 for r in rows)
    check_pool(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_alpha_is_exact(kind):
    """Outside is nothing, inside is solid, and only a line of pixels between is soft."""
    number = next(k for k in range(10_000) if recipe(Generated(5, k)).kind == kind)
    pixels = np.asarray(draw(Generated(5, number), 128))
    alpha = pixels[..., 3]
    assert max(alpha.shape) == 128
    assert (alpha == 255).mean() > 0.08
    assert ((alpha > 0) & (alpha < 255)).mean() < 0.12
    assert not pixels[alpha == 0].any()
    solid = np.nonzero(alpha > 0)
    assert [int(axis.min()) for axis in solid] == [0, 0], "it is trimmed"


def test_names_say_what_it_is():
    words = {*COLOURS, *PATTERNS, "and", *(texture for texture, _ in texture_names())}
    made = [recipe(Generated(0, k)) for k in range(300)]
    for what in made:
        described = re.sub(f" {what.kind}$", "", what.name)
        assert described != what.name
        assert set(described.split()) <= words, what.name
    assert {what.kind for what in made} == set(KINDS)
    assert {what.pattern for what in made} == set(PATTERNS)
    assert any(what.texture and not what.tinted for what in made)
    assert all(what.first != what.second for what in made)


def test_it_is_one_pool_among_others():
    named = CurationConfig.parse({"references": {"pool": "generated", "count": 3}}, "x").references
    assert len(list_pool(named)) == 3
    mixed = ReferencesConfig(pool=["packaged", {"source": "generated", "count": 3}])
    assert len(list_pool(mixed)) == 16 + 3
    rows = [{"reference_id": s.reference_id, "status": "ok", "category": s.category} for s in list_pool(mixed)]
    card = pool_facts(mixed, rows, backgrounds=False)[1]
    assert (card.name, card.found, card.licences[0].licence) == ("generated subjects", 3, "MIT")
    assert "brick.png: CC0Textures" in " ".join(licence.of for licence in card.licences)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pool": "packaged", "count": 3}, "count belongs to the pool 'generated'"),
        ({"pool": [{"source": "packaged", "seed": 3}]}, "count and seed belong to the pool 'generated'"),
        ({"pool": "generated", "count": 0}, "count"),
    ],
)
def test_mistakes_are_named(values, message):
    with pytest.raises(UserError, match=message):
        CurationConfig.parse({"references": values}, "x")
