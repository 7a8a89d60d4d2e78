"""Jobs, each of which makes one part, and functions that read the parts and pictures that exist already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa

from data_schemas.errors import UserError
from pipeline.core.parts import Part, PartPictures, join_digests
from pipeline.references import copies
from pipeline.run import Run


@dataclass(frozen=True)
class PartJob:
    """One part of a stage to make, unless it is already complete.

    ``made_from`` is the digest of everything that the part is made from. ``shared`` is the digest of what all parts of
    the stage read (the reference pool, or all decisions); data that a process caches between parts is cached under it.
    ``force`` makes the part again, ``retry_errors`` makes it again if any of its samples failed. ``doubted`` are
    samples at work when a process died over this part, once for each time; the stage is given them one by one.
    ``given_up`` are samples that killed or blocked it by themselves, each with the code and message of its error row.
    """

    run: Run
    stage: str
    part: str
    made_from: str
    shared: str
    force: bool = False
    retry_errors: bool = False
    doubted: tuple[str, ...] = ()
    given_up: tuple[tuple[str, str, str], ...] = ()

    def may_keep(self, part: Part | None) -> bool:
        """Whether a part that was read is complete, is not forced to be made again, and has no errors to retry."""
        return part is not None and not self.force and not (self.retry_errors and _has_errors(part))


def _has_errors(part: Part) -> bool:
    return "status" in part.table.column_names and "error" in part.table.column("status").to_pylist()


def need_part(run: Run, stage: str, part: str) -> Part:
    """The part. Raises UserError if it is missing or damaged."""
    whole = run.store(stage).read(part)
    if whole is None:
        raise UserError(f"{run.store(stage).url(part, 'parquet')} is missing or damaged; run the curation again")
    return whole


def planned_part(run: Run, stage: str, part: str, plan: Part) -> Part | None:
    """The part of a stage if it has the samples of this part of the plan, in their order; None if it is not made.

    A plan that grows, or whose pool changed, has new samples in a part before the stages come to it. What a stage has
    of it until then was made of the earlier plan: its rows are those of other samples.
    """
    found = run.store(stage).read(part)
    same = found is not None and found.table["sample_id"].equals(plan.table["sample_id"])
    return found if same else None


def read_all(run: Run, stage: str) -> pa.Table:
    """All parts of a stage as one table, in plan order."""
    return pa.concat_tables([need_part(run, stage, part).table.replace_schema_metadata() for part in run.parts()])


def pool_rows(run: Run) -> list[dict]:
    """The rows of all reference pictures in the pool's order, with duplicates across parts marked as errors."""
    rows = [row for part in run.pool_parts() for row in need_part(run, "references", part).rows()]
    return copies.mark_duplicates(rows)


def pool_digest(run: Run) -> str:
    """The digest that identifies the content of the reference pool."""
    return join_digests(need_part(run, "references", part).digest for part in run.pool_parts())


@lru_cache(maxsize=2)
def cutout_reader(run: Run, pool: str) -> Callable[[str, str], bytes]:
    """A function that reads a picture of a reference, given its id and the picture's name.

    ``pool`` is the digest of the reference pool; it makes the cache tell one pool from the next.
    """
    store = run.store("references")
    pictures_of: dict[str, PartPictures] = {}
    for part in run.pool_parts():
        pictures = store.pictures(part, need_part(run, "references", part))
        pictures_of |= dict.fromkeys(pictures.entries, pictures)
    return lambda reference_id, name: pictures_of[reference_id].read(reference_id, name)
