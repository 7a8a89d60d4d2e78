"""A whole plan at once."""

from typing import Any

from pipeline.planning.planning import planned


def make_plan(*given: Any, **named: Any) -> list[dict]:
    """The rows of ``planned``."""
    return list(planned(*given, **named))
