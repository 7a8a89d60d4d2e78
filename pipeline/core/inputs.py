"""What a part is made from, as the samples that a stage gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pipeline.core.parts import Part, PartPictures, content_digest
from pipeline.core.stage import Sample


@dataclass(frozen=True)
class Inputs:
    """The parts that a part is made from, by stage, and how to read their pictures."""

    parts: Mapping[str, Part]
    pictures: Mapping[str, PartPictures]
    reference_file: Callable[[str], bytes]
    reviews: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @cached_property
    def _rows(self) -> dict[str, dict[str, dict]]:
        """The rows of every part, by stage and sample id."""
        return {stage: {r["sample_id"]: r for r in p.rows()} for stage, p in self.parts.items()}

    def digests(self) -> dict[str, str]:
        """Sample id -> a digest of what that sample is made from: its rows, its earlier pictures, and its review."""
        rows = self._rows
        entries = [part.entries for part in self.parts.values()]
        digests = {}
        for i in rows["plan"]:
            made_from = [[own[i] for own in rows.values()], [own.get(i) for own in entries], self.reviews.get(i)]
            digests[i] = content_digest(repr(made_from).encode())[:16]
        return digests

    def samples(self) -> tuple[list[Sample], dict[str, str]]:
        """The samples in plan order, and those on which an earlier stage failed (sample id -> stage)."""
        rows = self._rows
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
                Sample(sample_id, own, files_of(sample_id), self.reference_file, self.reviews.get(sample_id))
            )
        return samples, failed
