"""What a pool's columns and folders become is told before work starts, and is what listing the pool then does."""

import json
import pickle
import zipfile
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_schemas.errors import UserError
from data_schemas.io.pictures import encode_png
from pipeline.references.layouts import told
from pipeline.references.pools import PoolConfig, list_pool, pool_folder
from pipeline.references.sources import Reader
from pipeline.report.card import _stated_licence


def picture(colour):
    return {"bytes": encode_png(Image.new("RGB", (8, 8), colour)), "path": None}


def pool_of(path, columns, features=None):
    """A Parquet file with three pictures and other columns, as a repository of the Hub may hold it."""
    schema = pa.Table.from_pydict({"image": [picture(c) for c in ("red", "green", "blue")], **columns})
    if features:
        schema = schema.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    (path / "data").mkdir(parents=True)
    pq.write_table(schema, path / "data/train-00000-of-00001.parquet")
    return str(path)


@pytest.mark.parametrize(
    ("columns", "features", "line", "categories"),
    [
        ({"label": [0, 1, 1]}, {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}},
         "category  column 'label': cat, dog, ...", ["cat", "dog", "dog"]),
        ({"text": ["a cat", "a dog", "a fox"]}, None, "category  column 'text': a cat, a dog, a fox, ...",
         ["a cat", "a dog", "a fox"]),
        ({"text": ["one", "two", "three"], "class_name": ["cup", "cup", "pot"], "id": [1, 2, 3]}, None,
         "category  column 'class_name': cup, pot, ...", ["cup", "cup", "pot"]),
    ],
)  # fmt: skip
def test_columns_of_a_parquet_pool(tmp_path, columns, features, line, categories):
    source = pool_of(tmp_path / "pool", columns, features)
    there, lines = told(PoolConfig(source=source))
    assert there
    assert lines[0] == f"pool {source}: 1 Parquet files, 3 rows"
    assert "  image     column 'image'" in lines
    assert f"  {line}" in lines
    assert [found.category for found in list_pool(PoolConfig(source=source))] == categories
    rest = [c for c in columns if c in ("id", "text") and "class_name" in columns]
    assert any(text.startswith("  not read") and all(r in text for r in rest) for text in lines) == bool(rest)


def test_the_settings_choose_another_column(tmp_path):
    source = pool_of(tmp_path / "pool", {"label": [3, 4, 5], "what": ["cup", "pot", "pan"]})
    assert "  category  column 'label': 3, 4, 5, ..." in told(PoolConfig(source=source))[1]
    chosen = PoolConfig(source=source, category_column="what")
    assert "  category  column 'what': cup, pot, pan, ..." in told(chosen)[1]
    assert "  category  'person', as the pool's settings say" in told(PoolConfig(source=source, category="person"))[1]


def test_a_folder_a_category(tmp_path):
    for category in ("cat", "dog"):
        (tmp_path / category).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / category / "1.png")
    (tmp_path / "more.zip").write_bytes(b"")
    there, lines = told(PoolConfig(source=str(tmp_path)))
    assert there
    assert lines[0].endswith(": a folder of 2 pictures")
    assert "  category  its 2 folders: cat, dog" in lines
    assert "  not read  files .zip 1" in lines


def test_what_cannot_be_read_is_told_and_counts_as_missing(tmp_path):
    there, (line,) = told(PoolConfig(source=str(tmp_path / "nowhere")))
    assert not there
    assert line.startswith(f"pool {tmp_path / 'nowhere'}: no such folder; give a folder")
    (tmp_path / "images.tar.gz").write_bytes(b"")
    there, (line,) = told(PoolConfig(source=str(tmp_path)))
    assert not there
    assert "(there is: .gz 1); unpack archives" in line
    (tmp_path / "images.zip").write_bytes(b"cut short")
    there, (line,) = told(PoolConfig(source=str(tmp_path)))
    assert not there
    assert line.endswith("images.zip is no zip archive that can be read; get it again")


def test_a_zip_archive_is_a_folder(tmp_path):
    for category in ("cat", "dog"):
        (tmp_path / "plain/images" / category).mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(tmp_path / "plain/images" / category / "1.png")
        (tmp_path / "plain/images" / category / "1.txt").write_text(f"a small {category}")
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed/README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    with zipfile.ZipFile(tmp_path / "packed/images.zip", "w") as archive:
        for path in sorted((tmp_path / "plain").rglob("*.*")):
            archive.write(path, path.relative_to(tmp_path / "plain"))
    plain = list_pool(PoolConfig(source=str(tmp_path / "plain")))
    for source in ("packed", "packed/images.zip"):
        pool = PoolConfig(source=str(tmp_path / source))
        packed = list_pool(pool)
        assert [replace(p, location=None) for p in packed] == [replace(p, location=None) for p in plain]
        assert Reader().read(packed[1].location, "x") == Reader().read(plain[1].location, "x")
        assert told(pool)[1][0].endswith(": a zip archive of 2 pictures")
        assert "  category  its 2 folders: cat, dog" in told(pool)[1]
        assert pickle.loads(pickle.dumps(packed)) == packed, "workers get it"
    assert _stated_licence(pool_folder(PoolConfig(source=str(tmp_path / "packed")))) == "cc-by-4.0"
    (tmp_path / "packed/masks.zip").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds 2 archives; name one of them \(images.zip, masks.zip\)"):
        list_pool(PoolConfig(source=str(tmp_path / "packed")))
