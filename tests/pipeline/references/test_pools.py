"""Pools from folders, Parquet files and the hub's cache give the same references; what cannot be read is one line."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants
from PIL import Image
from pydantic import ValidationError
from small.pools import CAT, CELLS, FILES, folder, listed, made, parquet, png

from data_schemas.errors import UserError
from pipeline.config import CurationConfig
from pipeline.references.cutouts import ReferencesConfig, check_pool, read_labels
from pipeline.references.cutouts import list_pool as list_pools
from pipeline.references.parquet import PictureColumn
from pipeline.references.pools import PoolConfig, list_pool, pool_folder, presets, take
from pipeline.references.sources import Reader

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def hub(cache: Path, name: str, files: dict[str, bytes], revision: str = "main") -> Path:
    """A data set as huggingface_hub keeps it: blobs, links to them in a snapshot, and what the revision stands for."""
    repo = cache / f"datasets--{name.replace('/', '--')}"
    for number, (file, data) in enumerate(files.items()):
        blob = folder(repo / "blobs", {f"{number:064x}": data}) / f"{number:064x}"
        link = repo / "snapshots" / COMMIT / file
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    folder(repo / "refs", {revision: COMMIT.encode()})
    return repo


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_the_same_pictures_are_the_same_references_in_every_container(tmp_path, cache):
    containers = {
        "folder": PoolConfig(source=str(folder(tmp_path / "folder", FILES))),
        "structs": PoolConfig(source=str(parquet(tmp_path / "one.parquet", {"image": CELLS}))),
        "bytes": PoolConfig(
            source=str(parquet(tmp_path / "plain/data/train-00000-of-00001.parquet", {
                "id": [7, 8, 9],
                "picture": list(FILES.values()),
                "category": [name.split("/")[0] for name in FILES],
                "name": [Path(name).stem for name in FILES],
            }).parents[1])
        ),
    }  # fmt: skip
    hub(cache, "makers/pictures", {f"pictures/train/{name}": data for name, data in FILES.items()})
    containers["hub"] = PoolConfig(source="hf:makers/pictures")
    tables = {kind: made(pool) for kind, pool in containers.items()}
    rows, members = tables["folder"]
    assert sorted((r["category"], r["name"], r["subject_id"], r["status"]) for r in rows) == [
        ("building", "pagoda", "building/pagoda", "ok"),
        ("cat", "chelsea", "cat/chelsea", "ok"),
        ("flower", "dahlia", "flower/dahlia", "ok"),
    ]
    for kind, (others, cutouts) in tables.items():
        assert cutouts == members, kind
        assert {r["reference_id"]: r["source_sha256"] for r in others} == {
            r["reference_id"]: r["source_sha256"] for r in rows
        }, kind
    sources = {kind: sorted(r["source"] for r in table)[0] for kind, (table, _) in tables.items()}
    assert sources == {
        "folder": "building/pagoda.jpg",
        "structs": "one.parquet#0",
        "bytes": "data/train-00000-of-00001.parquet#0",
        "hub": "makers/pictures/pictures/train/building/pagoda.jpg",
    }


def test_a_limit_takes_the_same_pictures_from_every_container(tmp_path):
    shuffled = dict(reversed(FILES.items()))
    columns = {"image": [{"bytes": data, "path": name} for name, data in shuffled.items()]}
    one, other = folder(tmp_path / "folder", FILES), parquet(tmp_path / "a.parquet", columns)
    for limit in (1, 2, 3, 4):
        pools = [PoolConfig(source=str(place), limit=limit) for place in (one, other)]
        ids = [{s.reference_id for s in list_pools(ReferencesConfig(pool=[pool]))} for pool in pools]
        assert ids[0] == ids[1]
        assert len(ids[0]) == min(limit, 3)
    (one / "cat/gone.png").symlink_to("nowhere")
    assert [s.source for s in take(listed(one), 3)] == sorted(FILES), "what cannot be read is taken last, order kept"


def test_a_mask_is_the_alpha_of_the_cut_out(tmp_path):
    photo = np.asarray(Image.open(io.BytesIO(CAT)).convert("RGB"))
    labels = np.zeros(photo.shape[:2], np.uint8)
    labels[50:250, 100:200], labels[50:250, 200:300], labels[0:20] = 4, 11, 16
    palette = Image.fromarray(labels)
    palette.putpalette([255 - v % 256 for v in range(768)])  # label 0 is white: only the index says what is what
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    kinds = [png(labels), buffer.getvalue(), png(labels, "RGB"), png(labels.astype(np.uint16))]
    cells = [{"bytes": png(np.roll(photo, k, 1)), "path": None} for k in range(4)]
    path = parquet(tmp_path / "hp.parquet", {"mask": [{"bytes": k, "path": None} for k in kinds], "image": cells})
    pool = {"preset": "human_parsing", "source": str(path), "subject_labels": (4, 11)}
    rows, members = made(PoolConfig(**pool), size=202)
    assert [(r["error_message"], r["category"], r["name"]) for r in rows] == [(None, "person", "person")] * 4
    assert len({r["subject_id"] for r in rows}) == 4, "every portrait is a person of its own"
    for k, row in enumerate(rows):
        cutout = np.asarray(Image.open(io.BytesIO(members[row["reference_id"]]["cutout.png"])))
        assert cutout.shape == (202, 202, 4), "the 200 x 200 pixels of labels 4 and 11, and one more of soft edge"
        assert (cutout[1:-1, 1:-1, :3] == np.roll(photo, k, 1)[50:250, 100:300]).all()
        assert cutout[3:-3, 3:-3, 3].min() == 255
        assert 40 < cutout[0, 101, 3] < 90
    everything = made(PoolConfig(preset="human_parsing", source=str(path)), size=202)[0]
    assert {r["area_share"] for r in everything}.isdisjoint(r["area_share"] for r in rows)
    assert {r["reference_id"] for r in everything}.isdisjoint(r["reference_id"] for r in rows)


def test_masks_lie_beside_pictures_in_folders(tmp_path):
    mask = np.zeros((300, 451), np.uint8)
    mask[50:250, 100:300] = 1
    root = folder(tmp_path / "hp", {
        "image/1.png": CAT, "mask/1.png": png(mask),
        "image/2.jpg": FILES["flower/dahlia.jpg"],
        "image/3.jpg": FILES["building/pagoda.jpg"], "mask/3.png": png(mask),
    })  # fmt: skip
    rows, _ = made(PoolConfig(preset="human_parsing", source=str(root)))
    assert {r["source"]: r["error_code"] for r in rows} == {
        "image/1.png": None, "image/2.jpg": "bad_input", "image/3.jpg": "bad_mask",
    }  # fmt: skip
    assert rows[1]["error_message"].startswith("image/2.jpg: mask: not a file")
    assert "the mask has 451 x 300 pixels, the picture 96 x 64" in rows[2]["error_message"]


def test_read_labels_takes_coloured_maps():
    colours = np.zeros((2, 2, 3), np.uint8)
    colours[0, 1] = (0, 200, 0)
    assert read_labels(png(colours), "x").tolist() == [[0, 200], [0, 0]]


def test_relationbench_has_a_folder_a_subject(tmp_path, cache):
    photos = list(FILES.values())
    hub(cache, "QingyuShi/RelationBench", {
        "README.md": b"---\nlicense: mit\n---\n", "RelationBench/dog/00.jpg": photos[1],
        "RelationBench/dog2/00.jpg": photos[2], "RelationBench/bear_plushie/1.png": photos[0],
        "RelationBench/bear_plushie/2.png": photos[0] + b"\0",
    })  # fmt: skip
    (entry,) = ReferencesConfig(pool="relationbench").pools()
    assert [(s.category, s.name, s.subject_id) for s in list_pool(entry)] == [
        ("bear plushie", "bear plushie", "bear-plushie/bear-plushie"),
        ("bear plushie", "bear plushie", "bear-plushie/bear-plushie"),
        ("dog", "dog", "dog/dog"),
        ("dog", "dog", "dog/dog2"),
    ]
    flat = folder(tmp_path / "flat", {"wolf_plushie_3.png": photos[0], "toy2.jpg": photos[1]})
    assert [s.subject_id for s in listed(flat, preset="relationbench")] == ["toy/toy2", "wolf-plushie/wolf-plushie-3"]


def test_a_number_is_no_name_but_tells_subjects_apart(tmp_path):
    root = folder(
        tmp_path / "pool", {"cat/001.png": FILES["cat/chelsea.png"], "cat/002.jpg": FILES["flower/dahlia.jpg"]}
    )
    assert [(s.name, s.subject_id) for s in listed(root)] == [("cat", "cat/001"), ("cat", "cat/002")]


def test_classes_by_number_get_their_names(tmp_path):
    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dahlia_flower"], "_type": "ClassLabel"}}
    table = pa.table({"image": CELLS[:2], "label": [0, 1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [s.category for s in listed(tmp_path / "a.parquet")] == ["cat", "dahlia flower"]
    (tmp_path / "b").mkdir()
    pq.write_table(table.replace_schema_metadata({"huggingface": "[]"}), tmp_path / "b/b.parquet")
    assert [s.category for s in listed(tmp_path / "b")] == ["0", "1"]


def test_only_the_files_of_the_split_are_read(tmp_path):
    for split, cell in zip(("train", "test"), CELLS, strict=False):
        parquet(tmp_path / f"data/{split}-00000-of-00001.parquet", {"image": [cell]})
    assert [s.category for s in listed(tmp_path)] == ["cat"]
    assert [s.category for s in listed(tmp_path, split="test")] == ["flower"]
    with pytest.raises(UserError, match=r"no Parquet file of split 'dev'; there is: data/test-00000-of-00001\.parquet"):
        listed(tmp_path, split="dev")


def test_rows_that_hold_no_picture_cost_only_themselves(tmp_path):
    cells = [None, {"bytes": None, "path": "/etc/passwd"}, {"bytes": b"no", "path": "a/b.png"}, CELLS[0], CELLS[0]]
    path = parquet(tmp_path / "x.parquet", {"image": cells, "category": ["c", "c", "c", "c", None]})
    rows, members = made(PoolConfig(source=str(path)))
    assert [r["error_code"] for r in rows] == ["bad_input", "bad_input", "bad_input", None, "duplicate"]
    assert "x.parquet#1: column 'image' holds no bytes in this row" in rows[1]["error_message"]
    assert len(members) == 1
    assert len({r["reference_id"] for r in rows}) == 5


def test_copies_have_rows_of_their_own(tmp_path):
    root = folder(tmp_path / "pool", {"cat/a/x.png": FILES["cat/chelsea.png"], "cat/b/x.png": FILES["cat/chelsea.png"]})
    rows, _ = made(PoolConfig(source=str(root), category="cat"), PoolConfig(source=str(root), category="cat"))
    assert [r["error_code"] for r in rows] == [None, "duplicate", "duplicate", "duplicate"]


def test_any_row_can_be_read_in_any_order(tmp_path):
    names = [f"{k} {k * 'x'}".encode() for k in range(100)]
    path = parquet(tmp_path / "x.parquet", {"image": names}, row_group_size=30)
    column = PictureColumn(path, "image")
    order = [0, 1, 17, 3, 59, 60, 99, 30, 29, 29, 98]
    assert [column.at(k) for k in order] == [names[k] for k in order]
    assert [column.at(k) for k in range(100)] == names


def test_a_reader_keeps_one_file_open(tmp_path):
    reader = Reader()
    for k in range(3):
        path = parquet(tmp_path / f"{k}.parquet", {"image": [b"p%d" % k], "mask": [b"m"], "category": ["c"]})
        (source,) = listed(path, mask="mask")
        assert reader.read(source.location, "x") == b"p%d" % k
        assert reader.read(source.mask, "x") == b"m"
        assert len(reader._columns) == 2


@pytest.mark.parametrize(
    ("columns", "settings", "expected"),
    [
        ({"image": CELLS}, {"image": "photo"}, "there is no column 'photo'; there is: image"),
        ({"image": CELLS}, {"mask": "mask"}, "there is no column 'mask'; there is: image"),
        ({"image": CELLS, "note": ["a"] * 3}, {"image": "note"}, "column 'note' holds string, not pictures"),
        ({"image": CELLS}, {"category_column": "kind"}, "there is no column 'kind'"),
        ({"url": ["a"]}, {}, "no column holds pictures (struct of bytes and path, or binary); there is: url"),
        ({"image": list(FILES.values())}, {}, "no column says what a picture shows; set category_column"),
        ({"image": pa.array([], pa.binary()), "category": pa.array([], pa.string())}, {}, "hold no row"),
    ],
)  # fmt: skip
def test_parquet_files_that_cannot_be_used(tmp_path, columns, settings, expected):
    path = parquet(tmp_path / "x.parquet", columns)
    with pytest.raises(UserError) as told:
        listed(path, **settings)
    assert expected in str(told.value)
    assert str(path) in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("damage", [lambda d: b"", lambda d: d[:-100], lambda d: d[:4] + bytes(300) + d[304:]])
def test_a_broken_parquet_file(tmp_path, damage):
    path = parquet(tmp_path / "x.parquet", {"image": CELLS}, use_dictionary=False)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"x\.parquet: not a Parquet file that can be read \(.*\); get it again"):
        listed(path)


def test_a_data_set_that_is_not_here(cache):
    with pytest.raises(UserError) as told:
        list_pools(ReferencesConfig(pool="relationbench"))
    assert "`hf download --repo-type dataset QingyuShi/RelationBench`" in str(told.value)
    assert "\n" not in str(told.value)
    hub(cache, "makers/pictures", {"a.png": b""}, revision="v1")
    assert pool_folder(PoolConfig(source="hf:makers/pictures", revision="v1")).name == COMMIT
    with pytest.raises(UserError, match="dataset makers/pictures`"):
        listed("hf:makers/pictures")
    with pytest.raises(UserError, match="dataset makers/pictures --revision v2`"):
        listed("hf:makers/pictures", revision="v2")
    with pytest.raises(UserError, match="hf:no owner: not on this machine"):
        listed("hf:no owner")


def test_a_data_set_of_neither_pictures_nor_parquet(tmp_path, cache):
    hub(cache, "makers/archive", {"data/all.tar.gz": b"x", "README.md": b"x"})
    with pytest.raises(UserError, match=r"hf:makers/archive.* holds no picture and no Parquet file .*\.gz 1.*unpack"):
        listed("hf:makers/archive")
    hub(cache, "makers/damaged", {"data/all.tar": b"x", "README.md": b"x"})
    with pytest.raises(UserError, match=r"hf:makers/damaged: .*all\.tar: the tar is cut short or damaged"):
        listed("hf:makers/damaged")
    root = folder(tmp_path / "hp", {"picture/1.png": CAT, "mask/1.png": b""})
    with pytest.raises(UserError, match=r"hp: image: holds no picture"):
        listed(root, preset="human_parsing")
    (tmp_path / "round").mkdir()
    (tmp_path / "round/again").symlink_to(".")
    with pytest.raises(UserError, match="round: holds no picture"):
        listed(tmp_path / "round")
    with pytest.raises(UserError, match=r"notes\.txt: not a folder, a Parquet, zip or tar file; give"):
        listed(folder(tmp_path, {"notes.txt": b""}) / "notes.txt")


def test_pools_are_added_up(tmp_path, cache):
    mask = np.zeros((300, 451), np.uint8)
    mask[50:250, 100:300] = 1
    people = {"image": [CAT], "mask": [png(mask)]}
    data = parquet(tmp_path / "t.parquet", people).read_bytes()
    hub(cache, "mattmdjaga/human_parsing_dataset", {"data/train-00000-of-00001.parquet": data})
    hub(cache, "QingyuShi/RelationBench", {k: v for k, v in FILES.items() if not k.startswith("cat/")})
    rows, _ = made("relationbench", {"preset": "human_parsing", "limit": 10})
    assert [r["category"] for r in rows] == ["building", "flower", "person"]
    assert rows[2]["source"] == "mattmdjaga/human_parsing_dataset/data/train-00000-of-00001.parquet#0"
    assert [r["error_message"] for r in rows if r["status"] != "ok"] == []
    check_pool(rows)
    assert len(list_pools(ReferencesConfig(pool=["relationbench", "packaged"]))) == 2 + 16


def test_a_preset_is_where_a_pool_starts_from():
    assert set(presets()) == {"relationbench", "human_parsing"}
    pool = PoolConfig(preset="human_parsing", category="man")
    assert (pool.source, pool.mask, pool.category) == ("hf:mattmdjaga/human_parsing_dataset", "mask", "man")
    assert PoolConfig.model_validate(pool.model_dump()) == pool
    config = ReferencesConfig(pool=["relationbench", "/photos"])
    assert ReferencesConfig.model_validate(config.model_dump(mode="json")) == config
    assert [p.source for p in config.pools()] == ["hf:QingyuShi/RelationBench", "/photos"]
    assert ReferencesConfig().model_dump(mode="json") == {"pool": "packaged", "count": None, "size": 256}


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        ([], "at least 1 item"),
        ("", "at least 1 character"),
        ([{"preset": "relationbanch"}], "there is no preset 'relationbanch'; did you mean relationbench?"),
        ([{"sorce": "x"}], "source: Field required"),
        ([{"source": "x", "colour": 1}], "colour: no such setting; there is: preset"),
        ([{"source": "x", "limit": 0}], "limit: Input should be greater than or equal to 1"),
        ([{"source": "x", "subject_labels": [1]}], "name the mask too"),
    ],
)  # fmt: skip
def test_a_misspelt_pool_is_one_line(pool, expected):
    with pytest.raises(UserError) as told:
        CurationConfig.parse({"references": {"pool": pool}}, "test")
    assert "references.pool" in str(told.value)
    assert expected in str(told.value)
    with pytest.raises(ValidationError):
        ReferencesConfig(pool=pool)
