"""A person's corrections of single samples, read from ``<run>/review.parquet``. Matting and ``decide`` use them."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_schemas.errors import UserError
from data_schemas.io import pictures
from data_schemas.io.storage import patiently, read_bounded, url_to_fs
from data_schemas.schema import validate
from data_schemas.tables import REVIEW
from pipeline.core.parts import fingerprint

FILE = "review.parquet"
MAX_TABLE = 1_000_000_000
"""Largest review table that is read, in bytes; a reviewed sample takes about a hundred."""
STAGES = {"matting": ("alpha_threshold", "matte_png"), "decide": ("verdict", "reason", "reviewer")}
"""The stages that use reviews, and the columns that each of them reads."""


class Reviews:
    """The review table of a run by sample id; empty if the run has none."""

    def __init__(self, run_url: str):
        self.fs, root = url_to_fs(run_url)
        self.root = root.rstrip("/")
        path = f"{self.root}/{FILE}"
        self.rows: dict[str, dict[str, Any]] = {}
        if not patiently(lambda: self.fs.exists(path), path):
            return
        data = read_bounded(self.fs, path, "write the review again", MAX_TABLE)
        try:
            table = pq.read_table(io.BytesIO(data))
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path}: not a readable Parquet file ({error}); write the review again") from error
        self.rows = {row["sample_id"]: row for row in validate(table, REVIEW, path).to_pylist()}

    def of(self, sample_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The review rows of these samples by id, with the bytes of the replacement matte under "matte_png"."""
        return {i: self.rows[i] | {"matte_png": self._matte(self.rows[i])} for i in sample_ids if i in self.rows}

    def _matte(self, row: dict[str, Any]) -> bytes | None:
        if row["matte"] is None:
            return None
        path, where = str(row["matte"]), f"{FILE}: the matte {row['matte']} of sample {row['sample_id']}"
        if not is_below(path):
            raise UserError(f"{where} is outside the run's folder; put it there and name it relative to it")
        advice = f"{where} cannot be read; put it there, relative to the run's folder"
        return read_bounded(self.fs, f"{self.root}/{path}", advice, pictures.MAX_BYTES)

    def digest(self, stage: str, sample_ids: Iterable[str]) -> list[str]:
        """A list with one digest of the reviews that affect this stage and these samples, or an empty list.

        It is part of the input of a part. A part without reviews has the same input as before reviews existed, so it
        stays cached.
        """
        columns = STAGES.get(stage, ())
        if not columns:
            return []
        said = {i: [str(row[c]) for c in columns] for i, row in self.of(sample_ids).items()
                if any(row[c] is not None for c in columns if c != "reviewer")}  # fmt: skip
        return [fingerprint(said=said)] if said else []


def is_below(path: str) -> bool:
    """Whether a relative path stays in the folder that it starts from."""
    return not path.startswith("/") and ".." not in path.split("/")
