"""What a part is made from, as the samples that a stage gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.core.parts import Part, PartPictures
from pipeline.core.stage import Sample


@dataclass(frozen=True)
class Inputs:
    """The parts that a part is made from, by stage, and how to read their pictures."""

    parts: Mapping[str, Part]
    pictures: Mapping[str, PartPictures]
    reference_file: Callable[[str], bytes]
    reviews: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pool: Callable[[], Sequence[Mapping[str, Any]]] = tuple

    def samples(self) -> tuple[list[Sample], dict[str, str]]:
        """The samples in plan order, and those on which an earlier stage failed (sample id -> stage)."""
        rows = {stage: {r["sample_id"]: r for r in p.rows()} for stage, p in self.parts.items()}
        failed: dict[str, str] = {}

        def files_of(sample_id: str) -> Callable[[str], Mapping[str, bytes]]:
            return lambda stage: self.pictures[stage].of(sample_id)

        samples = []
        for sample_id in rows["plan"]:
            for stage in self.parts:
                if rows[stage][sample_id].get("status", "ok") == "error":
                    failed.setdefault(sample_id, stage)
            own = {stage: rows[stage][sample_id] for stage in self.parts}
            samples.append(
                Sample(sample_id, own, files_of(sample_id), self.reference_file, self.reviews.get(sample_id), self.pool)
            )
        return samples, failed
