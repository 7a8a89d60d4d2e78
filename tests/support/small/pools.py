"""Small pools of photographs in folders and Parquet files, and the references made of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_schemas.schema import validate
from data_schemas.tables import REFERENCES
from pipeline.references.cutouts import ReferencesConfig, make_references
from pipeline.references.cutouts import list_pool as list_pools
from pipeline.references.packaged import package_file
from pipeline.references.pools import PoolConfig, list_pool

PHOTOS = {
    "cat/chelsea.png": ("skimage", "data/chelsea.png"),
    "flower/dahlia.jpg": ("sklearn", "datasets/images/flower.jpg"),
    "building/pagoda.jpg": ("sklearn", "datasets/images/china.jpg"),
}


def small(data: bytes, side: int = 96) -> bytes:
    """The photograph made small, so that GrabCut is quick."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    picture.thumbnail((side, side))
    return png(np.asarray(picture))


def png(pixels: np.ndarray, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels)
    (picture if mode is None else picture.convert(mode)).save(buffer, "PNG")
    return buffer.getvalue()


CAT = package_file("skimage", "data/chelsea.png").read_bytes()
FILES = {name: small(package_file(*where).read_bytes()) for name, where in PHOTOS.items()}
CELLS = [{"bytes": data, "path": name} for name, data in FILES.items()]


def folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def parquet(path: Path, columns: dict, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def listed(source, **settings):
    return list_pool(PoolConfig(source=str(source), **settings))


def made(*pools, size=64):
    config = ReferencesConfig(pool=list(pools), size=size)
    rows, members, _ = make_references(list_pools(config), config)
    validate(REFERENCES.table(rows), REFERENCES, "references")
    return rows, members
