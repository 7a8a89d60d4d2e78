"""Names of runs, stages and parts, and which samples a part has."""

from __future__ import annotations

import re

FIRST_PARTS, LARGEST_PART = 16, 1024


def part_bounds(samples: int, size: int | None) -> list[tuple[int, int]]:
    """The numbers of the first sample of each part and of the one behind its last.

    Without a ``size`` there are FIRST_PARTS parts of 16 samples, then as many of 32, and so on up to LARGEST_PART: a
    small run has parts for several workers, a large one does not pay for a hundred thousand files. Bounds never depend
    on the number of samples, so that old parts stay as they are when a run grows.
    """
    bounds: list[tuple[int, int]] = []
    end = 0
    while end < samples:
        grown = 16 << min(len(bounds) // FIRST_PARTS, LARGEST_PART.bit_length() - 5)  # 16 to LARGEST_PART
        bounds.append((end, min(samples, end + (size or grown))))
        end = bounds[-1][1]
    return bounds


def part_names(count: int, prefix: str = "part") -> list[str]:
    """The names part-00000, part-00001, ..."""
    return [f"{prefix}-{k:05d}" for k in range(count)]


def check_name(name: str) -> str:
    """Return the name of a run, stage or part if it is safe in a path; otherwise raise ValueError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(
            f"{name!r} is not a name: use at most 100 letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit"
        )
    return name
