"""A pool in a bucket of a real S3 server is the pool on a disk: the same ids, rows and cut-outs."""

import errno
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from s3fs import S3FileSystem
from small.pools import CELLS, FILES, folder, made, parquet, png
from troubled.runs import config

from data_schemas.errors import UserError
from data_schemas.io import pictures, storage
from data_schemas.io.storage import Unreadable
from pipeline.curate import curate
from pipeline.references.cutouts import ReferencesConfig, make_references
from pipeline.references.layouts import skipped
from pipeline.references.pools import PoolConfig, list_pool
from pipeline.report.card import _licences

CAT, FLOWER, PAGODA = FILES.values()
LABELS = png(np.pad(np.ones((40, 40), np.uint8), 20))
FOLDERS = {
    "notes": {
        "cat/chelsea.png": CAT, "cat/chelsea.txt": b"a tabby cat.\n", "flower/x y.jpg": FLOWER,
        "flower/two.JPG": FLOWER,
        "house/pagoda+1.jpg": PAGODA, "house/deep/er/x.png": CAT, "README.md": b"---\nlicense: cc-by-4.0\n---\n",
        "LICENSE": b"MIT\n", "cat/movie.mp4": b"x", "broken/a.png": b"no picture", "broken/empty.png": b"",
        "broken/long.txt": b"no note of anything", "broken/caf\xc3\xa9.png".encode().decode(): CAT[:-400],
    },
    "hidden": {
        "cat/chelsea.png": CAT, "flower/a.jpg": FLOWER, ".git/a.png": CAT, "cat/.a.png": CAT, "__MACOSX/cat/a.png": CAT,
    },
    "splits": {
        "outer/train/cat/a.png": CAT, "outer/train/flower/b.jpg": FLOWER, "outer/test/cat/c.png": PAGODA,
        "outer/val/cat/d.png": PAGODA,
    },
    "flat": {"one.png": CAT, "two.jpg": FLOWER},
    "masks": {
        "images/cat/a.png": CAT, "images/flower/b.jpg": FLOWER, "images/house/c.jpg": PAGODA,
        "masks/cat/a.png": LABELS, "masks/flower/b.gif": LABELS,
    },
}  # fmt: skip
SETTINGS = {"masks": {"image": "images", "mask": "masks"}, "flat": {"subject": "picture", "category": "thing"}}


def uploaded(bucket: str, root: Path) -> str:
    """The URL of a copy of a folder, which has its name."""
    fs = fsspec.filesystem("s3")
    for path in [root, *root.rglob("*")]:
        key = f"pools/{root.name}/{path.relative_to(root)}".removesuffix("/.")
        if path.is_file():
            fs.pipe_file(f"{bucket}/{key}", path.read_bytes())
        else:  # consoles that make a folder leave an empty object
            fs.call_s3("put_object", Bucket=bucket.removeprefix("s3://"), Key=f"{key}/", Body=b"")
    return f"{bucket}/pools/{root.name}"


def assert_same(on_disk: PoolConfig, in_bucket: PoolConfig) -> None:
    here, there = ([replace(s, location=None, mask=None) for s in list_pool(pool)] for pool in (on_disk, in_bucket))
    assert here == there
    assert here
    assert made(on_disk) == made(in_bucket)
    assert skipped(on_disk) == skipped(in_bucket)
    assert _licences(on_disk, {}, ()) == _licences(in_bucket, {}, ())


@pytest.mark.parametrize("kind", FOLDERS)
def test_folders(bucket, tmp_path, kind):
    root = folder(tmp_path / kind, FOLDERS[kind])
    settings = SETTINGS.get(kind, {})
    assert_same(PoolConfig(source=str(root), **settings), PoolConfig(source=uploaded(bucket, root), **settings))


@pytest.mark.parametrize("settings", [{}, {"limit": 2}, {"split": "test"}])
def test_parquet_files(bucket, tmp_path, settings):
    columns = {"image": CELLS, "label": ["cat", "flower", "house"], "name": ["a", "b", "c"]}
    root = tmp_path / "tables"
    parquet(root / "train-1.parquet", columns, row_group_size=1)
    parquet(root / "deep/train-2.parquet", {"image": CELLS[:2], "label": ["x", "y"], "name": ["d", None]})
    parquet(root / "test-1.parquet", columns)
    (root / "README.md").write_text("---\nlicense: mit\n---\n")
    url = uploaded(bucket, root)
    assert_same(PoolConfig(source=str(root), **settings), PoolConfig(source=url, **settings))
    one = "train-1.parquet"
    assert_same(PoolConfig(source=str(root / one), **settings), PoolConfig(source=f"{url}/{one}", **settings))


def test_a_picture_that_is_too_large_is_the_same_error(bucket, tmp_path, monkeypatch):
    root = folder(tmp_path / "large", {"cat/a.png": CAT, "cat/b.png": png(np.zeros((4, 4), np.uint8))})
    monkeypatch.setattr(pictures, "MAX_BYTES", 1000)
    assert_same(PoolConfig(source=str(root)), PoolConfig(source=uploaded(bucket, root)))
    assert "more than the limit of 1000" in made(PoolConfig(source=str(root)))[0][0]["error_message"]


@pytest.mark.slow
def test_a_run_has_the_references_of_one_with_the_pool_on_a_disk(bucket, tmp_path):
    root = folder(tmp_path / "notes", FOLDERS["notes"])
    runs = {}
    for name, source in (("disk", str(root)), ("bucket", uploaded(bucket, root))):
        engine = "local" if name == "bucket" else "threads"
        settings = config(tmp_path / name, engine, references={"pool": source}, planning={"test_share": 0})
        runs[name] = curate(settings).run
    stores = [run.store("references") for run in runs.values()]
    parts = runs["disk"].pool_parts()
    assert runs["bucket"].pool_parts() == parts
    for part in parts:
        here, there = (store.read(part) for store in stores)
        assert here.table.replace_schema_metadata().equals(there.table.replace_schema_metadata())
        assert here.tar_sha256 == there.tar_sha256
        assert here.entries == there.entries


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("s3://no-such-bucket/x", "there is no bucket 'no-such-bucket'; create it, or correct the address"),
        ("{bucket}/nothing", "no such folder; give a folder of pictures"),
        ("{bucket}/pools/other/text/a.md", "not a folder, a Parquet, zip or tar file"),
        ("{bucket}/pools/other/text", r"holds no picture and no Parquet file \(there is: .md 1, .zip 1\)"),
        ("{bucket}/pools/other/text/a.zip", "archives are read on a disk only; copy it to this machine"),
        ("foo://x", "there is no protocol 'foo'"),
    ],
)
def test_what_is_no_pool_is_one_line(bucket, tmp_path, source, words):
    uploaded(bucket, folder(tmp_path / "other", {"text/a.md": b"x", "text/a.zip": b"x"}))
    with pytest.raises(UserError, match=words) as told:
        list_pool(PoolConfig(source=source.format(bucket=bucket)))
    assert source.format(bucket=bucket) in str(told.value)


@pytest.fixture
def failing(monkeypatch):
    """Has so many requests for files whose key holds a text fail with an error."""
    real = S3FileSystem._call_s3

    def fail(text, times, error):
        async def call(self, method, *rest, **options):
            if text in options.get("Key", "") + options.get("Prefix", "") and fail.left:
                fail.left -= 1
                raise error
            return await real(self, method, *rest, **options)

        fail.left = times
        monkeypatch.setattr(S3FileSystem, "_call_s3", call)

    monkeypatch.setattr(storage, "PAUSES", (0.0, 0.0))
    return fail


BUSY = OSError(errno.EBUSY, "Please reduce your request rate.")


@pytest.mark.parametrize("text", ["a.png", "b.parquet"])
def test_a_bucket_that_throttles_neither_loses_a_picture_nor_makes_an_error_of_it(bucket, tmp_path, failing, text):
    if text == "a.png":
        root = folder(tmp_path / "pool", {"cat/a.png": CAT, "flower/b.png": FLOWER})
    else:
        root = parquet(tmp_path / "pool/b.parquet", {"image": CELLS[:2], "label": ["cat", "flower"]}).parent
    pool = PoolConfig(source=uploaded(bucket, root))
    failing(text, 2, BUSY)
    sources = list_pool(pool)
    assert failing.left == 0
    failing(text, 2, BUSY)
    rows, members = made(pool)
    assert failing.left == 0
    assert (rows, members) == made(PoolConfig(source=str(root)))
    failing(text, 10_000, BUSY)
    with pytest.raises(Unreadable, match=rf"{text} cannot be read .*request rate.*same command"):
        list_pool(pool)
    with pytest.raises(Unreadable, match=rf"{text} cannot be read"):
        make_references(sources, ReferencesConfig(pool=[pool], size=64))


def test_a_picture_that_is_refused_is_an_error_of_that_picture(bucket, tmp_path, failing):
    root = folder(tmp_path / "pool", {"cat/a.png": CAT, "flower/b.png": FLOWER})
    pool = PoolConfig(source=uploaded(bucket, root))
    failing("a.png", 10_000, PermissionError("Forbidden"))
    first, second = made(pool)[0]
    assert (first["status"], second["status"]) == ("error", "ok")
    assert first["error_message"] == "cat/a.png: cannot be read (Permission denied); replace or remove it"
