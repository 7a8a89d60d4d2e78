"""What a pool's columns and folders become is told before work starts, and is what listing the pool then does."""

import json
import pickle
import tarfile
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
    assert lines[0].endswith(": 2 pictures in folders")
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


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, file in files.items():
            archive.write(file, name)


def tarred(path, files):
    with tarfile.open(path, "w") as archive:
        for name, file in files.items():
            archive.add(file, name)


def pool_files(folder):
    """A folder with a picture and a note for each of two categories: the files by their paths in it."""
    for category in ("cat", "dog"):
        (folder / "images" / category).mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(folder / "images" / category / "1.png")
        (folder / "images" / category / "1.txt").write_text(f"a small {category}")
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*.*"))}


@pytest.mark.parametrize(("pack", "suffix"), [(zipped, "zip"), (tarred, "tar")])
def test_archives_are_read_as_the_folder_that_they_hold(tmp_path, pack, suffix):
    files = pool_files(tmp_path / "plain")
    names = list(files)
    for folder, count in (("one", 4), ("two", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
        for k in range(4 // count):
            pack(tmp_path / folder / f"images-{k}.{suffix}", {n: files[n] for n in names[k * count : (k + 1) * count]})
    plain = list_pool(PoolConfig(source=str(tmp_path / "plain")))
    for source in ("one", f"one/images-0.{suffix}", "two"):
        pool = PoolConfig(source=str(tmp_path / source))
        packed = list_pool(pool)
        assert [replace(p, location=None) for p in packed] == [replace(p, location=None) for p in plain]
        assert Reader().read(packed[1].location, "x") == Reader().read(plain[1].location, "x")
        assert told(pool)[1][0].endswith(": 2 pictures in zip or tar archives")
        assert "  category  its 2 folders: cat, dog" in told(pool)[1]
        again = pickle.loads(pickle.dumps(packed))
        assert again == packed
        assert Reader().read(again[0].location, "x") == Reader().read(plain[0].location, "x"), "workers get it"
    assert _stated_licence(pool_folder(PoolConfig(source=str(tmp_path / "two")))) == "cc-by-4.0"


def test_a_flat_archive_has_the_pools_own_name_as_category(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "tom.png")
    tarred(tmp_path / "kittens.tar", {"./tom.png": tmp_path / "tom.png"})
    (found,) = list_pool(PoolConfig(source=str(tmp_path / "kittens.tar")))
    assert (found.category, found.name, found.source) == ("kittens", "tom", "tom.png")


def test_an_archive_that_was_written_anew_is_read_anew(tmp_path):
    for colour in ("red", "blue"):
        Image.new("RGB", (8, 8), colour).save(tmp_path / "tom.png")
        tarred(tmp_path / "pool.tar", {f"{colour}.png": tmp_path / "tom.png"})
        (found,) = list_pool(PoolConfig(source=str(tmp_path / "pool.tar")))
        assert found.name == colour


def test_archives_that_cannot_be_one_folder_are_refused_by_name(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "tom.png")
    (tmp_path / "pool").mkdir()
    for name in ("a.tar", "b.tar"):
        tarred(tmp_path / "pool" / name, {"tom.png": tmp_path / "tom.png"})
    pool = PoolConfig(source=str(tmp_path / "pool"))
    with pytest.raises(UserError, match=r"pool: b\.tar and a\.tar: each holds tom\.png; unpack them into folders"):
        list_pool(pool)
    tarred(tmp_path / "pool/b.tar", {"../tom.png": tmp_path / "tom.png"})
    with pytest.raises(UserError, match=r"b.tar: member '../tom.png' leaves the archive; pack it again"):
        list_pool(pool)
    whole = (tmp_path / "pool/a.tar").read_bytes()
    (tmp_path / "pool/b.tar").write_bytes(whole[:700])
    with pytest.raises(UserError, match=r"b\.tar: the tar is cut short or damaged"):
        list_pool(pool)
