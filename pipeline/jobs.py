"""A part of a run to be made or read: what it is made from, and the tables and pictures that are there already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa

from data_schemas.errors import UserError
from pipeline.core.parts import Part, PartPictures, join_digests
from pipeline.references import cutouts
from pipeline.run import Run


@dataclass(frozen=True)
class PartJob:
    """One part to be made, or found whole.

    ``made_from`` is the digest of everything it reads, ``shared`` of what all parts of the stage read (the reference
    pool, or every decision): what a process may keep between parts is kept under it.
    """

    run: Run
    stage: str
    part: str
    made_from: str
    shared: str
    force: bool = False
    retry_errors: bool = False

    def may_keep(self, part: Part | None) -> bool:
        """May this part, as read, stay: is it whole, not asked for again, and without errors to retry?"""
        return part is not None and not self.force and not (self.retry_errors and _has_errors(part))

    def whole(self) -> bool:
        """Is the part on disk, undamaged, made from this input, and not asked for again?"""
        return self.may_keep(self.run.store(self.stage).read(self.part, self.made_from))


def _has_errors(part: Part) -> bool:
    return "status" in part.table.column_names and "error" in part.table.column("status").to_pylist()


def need_part(run: Run, stage: str, part: str) -> Part:
    found = run.store(stage).read(part)
    if found is None:
        raise UserError(f"{run.store(stage).url(part, 'parquet')} is missing or damaged; run the curation again")
    return found


def read_all(run: Run, stage: str) -> pa.Table:
    """All parts of a stage in plan order, as one table."""
    return pa.concat_tables([need_part(run, stage, part).table.replace_schema_metadata() for part in run.parts()])


def pool_rows(run: Run) -> list[dict]:
    """The row of every reference picture, in the pool's order; one that shows what an earlier one shows is an error."""
    rows = [row for part in run.pool_parts() for row in need_part(run, "references", part).rows()]
    return cutouts.mark_duplicates(rows)


def pool_digest(run: Run) -> str:
    """What tells the reference pool as it was made from others."""
    return join_digests(need_part(run, "references", part).digest for part in run.pool_parts())


@lru_cache(maxsize=2)
def cutout_reader(run: Run, pool: str) -> Callable[[str, str], bytes]:
    """Reads a picture of a reference by its id and the picture's name; ``pool`` tells one pool from the next."""
    store = run.store("references")
    pictures_of: dict[str, PartPictures] = {}
    for part in run.pool_parts():
        pictures = store.pictures(part, need_part(run, "references", part))
        pictures_of |= dict.fromkeys(pictures.entries, pictures)
    return lambda reference_id, name: pictures_of[reference_id].read(reference_id, name)
