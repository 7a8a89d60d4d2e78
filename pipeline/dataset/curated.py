"""A run that was curated, opened for reading: its manifest, its shards and the pictures of any sample."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import pyarrow.parquet as pq
from PIL import Image

from data_schemas.errors import UserError
from data_schemas.io.storage import plain
from pipeline.config import CurationConfig
from pipeline.dataset.frames.frame import Frame, Shown
from pipeline.dataset.frames.run_columns import RunColumns
from pipeline.dataset.picture_reader import PictureReader
from pipeline.dataset.publish import Tables, dataset_url, make_manifest
from pipeline.jobs import pool_digest
from pipeline.remembered import remembered
from pipeline.run import Run


@dataclass(frozen=True)
class CuratedRun:
    """Reads the files of a run and changes none of them."""

    run: Run

    @cached_property
    def manifest(self) -> pd.DataFrame:
        """A row for every planned sample: its plan, every score, the decision and its reasons."""
        return pq.read_table(io.BytesIO(make_manifest(Tables(self.run)))).to_pandas()

    @property
    def frame(self) -> Frame:
        """All samples as they are now, to be chosen from, sorted and shown; also of a run that is at work."""
        return Frame.of(self._columns.refreshed(), self.picture)

    @cached_property
    def _columns(self) -> RunColumns:
        return RunColumns(self.run)

    def show(self, count: int = 12, name: str = "target") -> Shown:
        """The first samples as a grid of pictures for a notebook."""
        return self.frame.show(count, name)

    def funnel(self) -> pd.DataFrame:
        """What each rule leaves of the planned samples, and how many break it, alone or with others."""
        return self.frame.funnel()

    def images(self, name: str = "target") -> Iterator[Image.Image | None]:
        """The samples' pictures of a name (RGB, RGBA or L, see ``picture``) in the order of the plan; None for one that
        was never made."""
        return self.frame.images(name)

    def shards(self, split: str = "train") -> str:
        """Glob of the shards of a split, "train" or "test", for ``tokenar.train_model`` and others."""
        return f"{dataset_url(self.run)}/{split}-*.tar"

    def picture(self, sample_id: str, name: str = "target") -> Image.Image | None:
        """A sample's target or background (RGB), foreground, reference_0 or reference_1 (RGBA), or alpha (L); None if
        it was never made."""
        return self._pictures.picture(sample_id, name)

    @cached_property
    def _pictures(self) -> PictureReader:
        return PictureReader(self.run, pool_digest(self.run))


def open_run(url: str) -> CuratedRun:
    """Open the folder or bucket URL of a run, such as ``runs/quickstart``; UserError if none was curated there."""
    return CuratedRun(Run.of(config_of(url)))


def config_of(url: str) -> CurationConfig:
    """The settings of the last curation of the run in a folder or bucket; UserError if none was curated there."""
    root, name = os.path.split(plain(url).rstrip("/"))  # of "/name" the root is "/"
    config = CurationConfig.parse({"name": name, "root": root or "."}, url)
    settings = remembered(config)
    if settings is None:
        raise UserError(f"{url}: no run was curated there; give the folder that holds settings.json")
    return CurationConfig.parse(settings, url)
