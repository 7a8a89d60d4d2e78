"""Which subjects are held out for testing. A subject's split follows from its own id and never changes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import chain, combinations

from data_schemas.errors import UserError


def split_subjects(
    categories: Mapping[str, str], groups: Mapping[str, str], share: float, known: Mapping[str, str]
) -> dict[str, str]:
    """Subject -> "train" or "test", for all that can be used. About ``share`` of them is held out for testing.

    ``categories`` maps subject to category and ``groups`` subject to its group of near-copies (by default itself),
    which stays together. ``known`` has the splits of subjects that are in samples already; a group that connects both
    splits gets no new ones. A group is held out if a hash of its name is below ``share``. In a small pool, where one
    side would be left without two groups and two categories, the groups whose hashes are nearest to ``share`` change
    sides. Raises UserError if no such split exists.
    """
    members: dict[str, list[str]] = {}
    for subject in sorted(categories):
        members.setdefault(groups.get(subject, subject), []).append(subject)
    fixed = {group: {known[s] for s in own if s in known} for group, own in members.items()}
    free = [group for group in members if not fixed[group]]
    held_out = {group for group in members if fixed[group] == {"test"} or (not fixed[group] and _hash(group) < share)}

    def whole(side: Set[str]) -> bool:
        return len(side) > 1 and len({categories[s] for group in side for s in members[group]}) > 1

    if share > 0:
        moves = (m for m in _moves(free, share) if whole(held_out ^ m) and whole(members.keys() - (held_out ^ m)))
        moved = next(moves, None)
        if moved is None:
            counts = ", ".join(f"{c} {n}" for c, n in sorted(Counter(categories.values()).items()))
            raise UserError(
                "planning: train and test each need two subjects of different categories that the other does not "
                f"have, the references are: {counts}; add subjects, or set planning.test_share to 0"
            )
        held_out ^= moved
    splits = {s: "test" if g in held_out else "train" for g, own in members.items() for s in own if len(fixed[g]) < 2}
    return splits | {subject: split for subject, split in known.items() if subject in categories}


def _hash(group: str) -> float:
    """A number in [0, 1) that follows from the group's name alone."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:7]) / 2**56


def _moves(free: Sequence[str], share: float) -> Iterator[frozenset[str]]:
    """No group, single groups and pairs of them, those first whose hashes are nearest to ``share``."""
    near = sorted(free, key=lambda group: (abs(_hash(group) - share), group))
    return map(frozenset, chain([()], combinations(near, 1), combinations(near, 2)))
