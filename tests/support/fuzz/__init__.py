"""Hostile inputs for every command. ``python -m fuzz [words]`` runs the cases whose names hold one of the words."""

from __future__ import annotations

from fuzz.runner import Case


def all_cases() -> list[Case]:
    """Every case of every group; names are unique."""
    from fuzz import checks, exchange, flags, own_stages, pools, published, settings, shards, trained

    groups = (settings, flags, own_stages, pools, checks, shards, trained, exchange, published)
    cases = [case for group in groups for case in group.CASES]
    assert len({case.name for case in cases}) == len(cases)
    return cases
