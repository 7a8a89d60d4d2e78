"""Pairs of one subject in Parquet files, as SubjectSpatial200K has them, become samples with one reference."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import run_here
from PIL import Image
from small.run import photo

from data_schemas.shards import read_shard
from pipeline import cli
from pipeline.exchange.pairs_in import suits

BOX = [0.25, 0.5, 0.25, 0.25]
"""Middle, width and height in shares of the pair: the middle of the left half, half as wide, a quarter as high."""


def pair(side=128, border=0):
    whole = Image.new("RGB", (2 * side, side), "white")
    for k, name in enumerate(("coffee", "chelsea")):
        inner = photo(name).resize((side - 2 * border,) * 2)
        whole.paste(inner, (k * side + border, border))
    return whole


def row(rating=5, whole=None, **changes):
    buffer = io.BytesIO()
    (whole or pair()).save(buffer, "PNG")
    ratings = {"compositeStructure": rating, "objectConsistency": 5, "imageQuality": 5}
    told = {"item": "Coffee cup", "description_0": "A cup on a table.", "description_1": "A cat."}
    return {
        "image": {"bytes": buffer.getvalue(), "path": "x.png"}, "bbox": BOX, "description": told,
        "quality_assessment": ratings, "canny": {"bytes": b"", "path": ""},
    } | changes  # fmt: skip


def bring(tmp_path, rows, *options):
    (tmp_path / "pairs").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs/data.parquet")
    return run_here(
        cli.main, "instructar", "import", tmp_path / "pairs", "--out", tmp_path / "out", *options
    )  # fmt: skip


def test_a_pair_is_cut_into_picture_reference_and_background(tmp_path):
    done = bring(tmp_path, [row(), row(rating=4), row(quality_assessment=None), row()])
    assert done.returncode == 0, done.stderr
    assert "left out: row 2 (its ratings), row 3 (its ratings)" in done.stdout
    first, second = read_shard(str(tmp_path / "out/train-00000.tar"))
    assert [first.sample_id, second.sample_id] == ["pair0000001", "pair0000004"]
    assert first.prompt == "A cup on a table."
    whole = np.asarray(pair())
    target, scene = np.asarray(first.target), np.asarray(first.background)
    assert np.array_equal(target, whole[:, :128])
    assert np.array_equal(np.asarray(first.references[0]), whole[:, 128:])
    assert not scene[48:80, 32:96].any()
    outside = np.ones((128, 128), bool)
    outside[48:80, 32:96] = False
    assert np.array_equal(scene[outside], target[outside])
    assert first.info["boxes"] == [[0.25, 0.375, 0.75, 0.625]]
    assert first.info["subjects"] == [{"name": "Coffee cup"}]


def test_the_border_of_a_half_is_cut_off(tmp_path):
    done = bring(tmp_path, [row(whole=pair(528, 8))])
    assert done.returncode == 0, done.stderr
    (sample,) = read_shard(str(tmp_path / "out/train-00000.tar"))
    assert sample.target.size == sample.references[0].size == (512, 512)
    left, top, right, bottom = (round(edge * 512) for edge in sample.info["boxes"][0])
    assert (left + 8, top + 8, right + 8, bottom + 8) == (132, 198, 396, 330), "a quarter of 1056 and of 528"


@pytest.mark.parametrize(
    ("split", "scores", "expected"),
    [
        ("train", (5, 5, 5), True), ("train", (4, 5, 5), False), ("test", (5, 5, 5), False), ("test", (3, 5, 5), True),
        ("test", (2, 5, 5), False), ("test", (4, 4, 5), False), ("test", (4, 5, 4), False),
    ],
)  # fmt: skip
def test_ratings_choose_the_split_as_the_makers_do(split, scores, expected):
    names = ("compositeStructure", "imageQuality", "objectConsistency")
    assert suits(dict(zip(names, scores, strict=True)), split) == expected
    assert not suits(None, split)


def test_mistakes_name_file_and_row(tmp_path):
    for rows, told in (
        ([row(whole=photo("coffee"))], "data.parquet: row 1: 128 x 128 pixels, not two squares side by side"),
        ([row(), row(bbox=[0.9, 0.5, 0.1, 0.1])], "row 2: its bbox [0.9, 0.5, 0.1, 0.1] has nothing of the left half"),
        ([row(bbox=[0.5])], "row 1: its bbox [0.5] is not four numbers"),
        ([{"image": row()["image"]}], "there is no column 'description'; there is: image"),
        ([row(rating=2)], "no pair is rated for train"),
    ):
        done = bring(tmp_path, rows)
        assert done.returncode == 2
        assert told in done.stderr
        assert not (tmp_path / "out").exists()
