"""What must come of each file of the field cases, by what the file is."""

from __future__ import annotations

from field_cases.table import CASES, Case


def all_cases() -> dict[str, list[Case]]:
    """By file: what is done with it, one for each use."""
    from field_cases import notes, pictures, settings, shards  # noqa: F401  each adds its own to the table

    return CASES
