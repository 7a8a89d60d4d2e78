"""Parquet files from any writer: every kind of column, and none that unpacks to gigabytes."""

import io
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_schemas.errors import UserError
from pipeline.references import parquet
from pipeline.references.pools import PoolConfig, list_pool
from pipeline.references.sources import Reader


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), shade, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = [png(10), png(20), png(10)]


def listed(path, columns, **options):
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path, **options)
    return list_pool(PoolConfig(source=str(path)))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array(["red cup", "cat", "cat"]).dictionary_encode(), ["red cup", "cat", "cat"]),
        (pa.array(["red cup", "cat", None], pa.string_view()), ["red cup", "cat", "subject"]),
        (pa.array(["red_cup", "cat", "cat"], pa.large_string()), ["red cup", "cat", "cat"]),
        (pa.array([3, 4, 4], pa.int8()), ["3", "4", "4"]),
        (pa.array([3.0, 4.0, 4.0]), ["3", "4", "4"]),
        (pa.array([True, False, False]), ["True", "False", "False"]),
        (pa.array(["ca\u202et.\nKatze", "cat", "cat"]), ["cat", "cat", "cat"]),
        (pa.array([b"caf\xe9", b"cat", b"cat"]).view(pa.string()), ["café", "cat", "cat"]),
    ],
    ids=str,
)
def test_a_category_of_every_kind_of_column(tmp_path, values, expected):
    columns = {"image": PICTURES, "category": values, "name": values}
    found = listed(tmp_path / "x.parquet", columns)
    assert [source.category for source in found] == expected
    assert [source.location.column for source in found] == ["image"] * 3


def test_pandas_categories_are_found(tmp_path):
    frame = pd.DataFrame({"image": PICTURES, "category": pd.Categorical(["cup", "cat", "cat"])})
    frame.to_parquet(tmp_path / "x.parquet")
    assert [s.category for s in list_pool(PoolConfig(source=str(tmp_path / "x.parquet")))] == ["cup", "cat", "cat"]


@pytest.mark.parametrize(
    "values",
    [
        pa.array(PICTURES, pa.binary_view()),
        pa.array(PICTURES, pa.large_binary()),
        pa.array(PICTURES, pa.binary()).dictionary_encode(),
        pa.array([{"bytes": data, "path": "cat/1.png"} for data in PICTURES]),
    ],
    ids=["binary_view", "large_binary", "dictionary", "struct"],
)
def test_pictures_of_every_kind_of_column(tmp_path, values):
    found = listed(tmp_path / "x.parquet", {"a.b": values, "category": ["c"] * 3})
    reader = Reader()
    assert [reader.read(source.location, "x") for source in found] == PICTURES
    assert len({source.sha256 for source in found}) == 2


def zeros(path, size: int, rows: int, **options):
    """``rows`` pictures of ``size`` bytes that are all the same, in a file of a few kilobytes."""
    schema = pa.schema({"image": pa.large_binary(), "category": pa.string()})
    with pq.ParquetWriter(path, schema, compression="zstd", **options) as writer:
        writer.write_table(pa.table({"image": [bytes(size)] * rows, "category": ["c"] * rows}, schema))
    assert path.stat().st_size < 200_000
    return path


BOMBS = {
    "one large page": {"size": 70_000_000, "rows": 1, "use_dictionary": False},
    "a dictionary that every row repeats": {"size": 900_000, "rows": 200, "use_dictionary": True},
    "many rows": {"size": 1, "rows": 1_000_001, "use_dictionary": True},
}


@pytest.mark.slow
def test_small_files_of_gigabytes_are_refused_in_little_memory(tmp_path):
    paths = [zeros(tmp_path / f"{kind.replace(' ', '-')}.parquet", **values) for kind, values in BOMBS.items()]
    code = (
        "import resource, sys; from pathlib import Path; from pipeline.references import parquet as p\n"
        "from data_schemas.errors import UserError\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "for path in map(Path, sys.argv[1:]):\n"
        "    try: p.list_rows(path, p.find_columns(path, None, None, None, None))\n"
        "    except UserError as error: print(error)\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, timeout=60, check=True)
    *messages, grown = done.stdout.splitlines()
    for path, message in zip(paths, messages, strict=True):
        assert message.startswith(f"{path}: ")
        assert "more than" in message
    assert int(grown) < 250_000


def test_honest_large_pictures_are_read_a_row_at_a_time(tmp_path, monkeypatch):
    noise = [np.random.default_rng(k).bytes(3_000_000) for k in range(10)]
    sizes = []
    batches = pq.ParquetFile.iter_batches

    def watched(self, batch_size, **options):
        sizes.append(batch_size)
        return batches(self, batch_size, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    assert len(listed(tmp_path / "x.parquet", {"image": noise, "category": ["c"] * 10})) == 10
    assert sizes == [1]


def test_pipes_and_devices_are_no_parquet_files(tmp_path):
    os.mkfifo(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: is a pipe, socket or device, not a file; give a Parquet file"):
        list_pool(PoolConfig(source=str(tmp_path)))
    (tmp_path / "a.parquet").unlink()
    (tmp_path / "a.parquet").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"a\.parquet: is a pipe, socket or device"):
        parquet.column_names(tmp_path / "a.parquet")
