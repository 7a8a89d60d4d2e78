"""What cannot be unpacked from an archive costs its own row, or is named in one line; nothing else is lost."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small.pools import FILES, folder, listed, made, png
from zips import KINDS, damaged_zip

from data_schemas.errors import UserError
from pipeline.references.layouts import told
from pipeline.references.pools import PoolConfig

MASK = png(np.pad(np.ones((40, 72), np.uint8), 12))


def zipped(tmp_path, kind, files, broken):
    return folder(tmp_path, {"pool.zip": damaged_zip(kind, files, broken)}) / "pool.zip"


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_costs_only_its_own_row(tmp_path, kind):
    pool = PoolConfig(source=str(zipped(tmp_path, kind, FILES, "flower/dahlia.jpg")))
    rows, _ = made(pool)
    assert {row["source"]: row["error_code"] for row in rows} == {
        "building/pagoda.jpg": None, "cat/chelsea.png": None, "flower/dahlia.jpg": "bad_input",
    }  # fmt: skip
    assert rows[2]["error_message"].startswith("flower/dahlia.jpg: cannot be unpacked from pool.zip (")
    assert rows[2]["error_message"].endswith("pack it again, without a password")


@pytest.mark.parametrize("kind", KINDS)
def test_a_note_is_named_in_one_line(tmp_path, kind):
    path = zipped(tmp_path, kind, {**FILES, "cat/chelsea.txt": b"a tabby cat, striped"}, "cat/chelsea.txt")
    with pytest.raises(UserError, match=r"^[^\n]*cat/chelsea\.txt: cannot be unpacked from pool\.zip \([^\n]*$"):
        listed(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_costs_only_the_row_of_its_picture(tmp_path, kind):
    files = {f"images/{name}": FILES["cat/chelsea.png"] for name in ("cat/a.png", "dog/b.png")}
    files |= {name.replace("images", "masks"): MASK for name in files}
    path = zipped(tmp_path, kind, files, "masks/dog/b.png")
    rows, _ = made(PoolConfig(source=str(path), image="images", mask="masks"))
    assert [row["status"] for row in rows] == ["ok", "error"]
    assert rows[1]["error_message"].startswith("images/dog/b.png: mask: cannot be unpacked from pool.zip (")


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_is_named_in_one_line(tmp_path, kind):
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": list(FILES.values()), "category": ["a", "b", "c"]}), buffer)
    path = zipped(tmp_path, kind, {"all.parquet": buffer.getvalue()}, "all.parquet")
    with pytest.raises(UserError, match=r"^[^\n]*all\.parquet: cannot be unpacked from pool\.zip \([^\n]*$"):
        listed(path)
    there, (line,) = told(PoolConfig(source=str(path)))
    assert not there
    assert "cannot be unpacked from pool.zip" in line
