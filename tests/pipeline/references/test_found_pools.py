"""Pools as people have them: notes in any encoding, every kind of picture, copies, names of any bytes."""

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pydantic import ValidationError
from small.curation import small_config
from small.pools import CAT, CELLS, FILES, folder, listed, made, parquet, png

from data_schemas.errors import UserError
from pipeline.curate import curate
from pipeline.references.copies import mark_duplicates
from pipeline.references.cutouts import ReferencesConfig, make_references
from pipeline.references.cutouts import list_pool as list_pools
from pipeline.references.cutouts import skipped as skipped_lines
from pipeline.references.layouts import skipped
from pipeline.references.pools import PoolConfig


def cut(files: dict[str, bytes], root, **settings):
    return {row["source"]: row for row in made(PoolConfig(source=str(folder(root, files)), **settings))[0]}


def saved(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def test_a_note_gives_the_name(tmp_path):
    notes = {
        "plain": b"  a shiny\tball.", "bom": b"\xef\xbb\xbftabby cat", "utf16": "tabby cat".encode("utf-16"),
        "latin": "caf\xe9".encode("latin-1"), "long": b"x" * 700, "lines": b"\r\nKiwifruit.\r\nde=Eine Kiwi.\r\n",
        "marks": "ta\u202eb\u200bby \x1b[31mcat".encode(), "empty": b" \n", "stop": b".",
    }  # fmt: skip
    files = {f"c/{name}.png": FILES["cat/chelsea.png"] for name in notes}
    root = folder(tmp_path / "pool", files | {f"c/{name}.txt": note for name, note in notes.items()})
    assert {Path(s.source).stem: s.name for s in listed(root)} == {
        "plain": "shiny ball", "bom": "tabby cat", "utf16": "tabby cat", "latin": "café", "long": "x" * 80,
        "lines": "Kiwifruit", "marks": "tabby [31mcat", "empty": "empty", "stop": "stop",
    }  # fmt: skip
    assert set(skipped(PoolConfig(source=str(root)))) == set()


def test_a_note_that_is_no_file_is_refused_at_once(tmp_path):
    root = folder(tmp_path / "pool", {"c/a.png": CAT})
    os.mkfifo(root / "c/a.txt")
    with pytest.raises(UserError, match=r"a\.txt: is a pipe, socket or device, not a file"):
        listed(root)
    (root / "c/a.txt").unlink()
    (root / "c/a.txt").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"a\.txt: is a pipe, socket or device"):
        listed(root)


def test_every_kind_of_picture_is_taken_and_the_rest_is_counted(tmp_path):
    subject = Image.new("RGBA", (64, 64))
    subject.paste((200, 40, 40, 255), (10, 10, 50, 54))
    kinds = {"gif": "GIF", "tif": "TIFF", "tiff": "TIFF", "avif": "AVIF", "webp": "WEBP", "png": "PNG"}
    files = {
        f"c/{name}.{name}": saved(subject.resize((60 + 2 * k, 60 + 2 * k)), kind)
        for k, (name, kind) in enumerate(kinds.items())
    }
    files["c/photo.JFIF"] = saved(Image.open(io.BytesIO(CAT)).convert("RGB").resize((90, 60)), "JPEG")
    others = {
        "c/a.heic": b"", "c/b.heic": b"", "notes.pdf": b"", "README.md": b"", "LICENSE": b"", "c/gif.txt": b"gif",
        ".hidden.psd": b"", "__MACOSX/c/._png.png": b"mac", "c/._png.png": b"mac", "Thumbs.db": b"",
    }  # fmt: skip
    root = tmp_path / "pool"
    rows = cut(files | others, root)
    assert {source: row["error_message"] for source, row in rows.items()} == dict.fromkeys(files)
    assert skipped(PoolConfig(source=str(root))) == {".heic": 2, ".pdf": 1}
    assert skipped_lines(ReferencesConfig(pool=str(root))) == [
        f"references.pool {root}: files of kinds that are not read, skipped: .heic 2, .pdf 1"
    ]
    parquet(root / "all.parquet", {"image": CELLS})
    assert skipped(PoolConfig(source=str(root)))[".tiff"] == 1, "beside Parquet files pictures are not looked at"
    assert skipped_lines(ReferencesConfig(pool="packaged")) == []


def test_masks_are_not_counted_as_skipped(tmp_path):
    root = folder(tmp_path / "hp", {"image/1.png": CAT, "mask/1.npy": b"", "mask/1.png": b"", "more/x.mp4": b""})
    assert skipped(PoolConfig(preset="human_parsing", source=str(root))) == {".mp4": 1}


def test_a_picture_saved_again_without_loss_is_a_duplicate(tmp_path):
    photo = Image.open(io.BytesIO(FILES["cat/chelsea.png"]))
    subject = Image.new("RGBA", (60, 60), (9, 9, 9, 0))
    subject.paste((200, 40, 40, 255), (10, 10, 50, 54))
    exif = Image.Exif()
    exif[0x0112] = 6
    same = {
        "a.png": FILES["cat/chelsea.png"], "b.png": saved(photo, "PNG", compress_level=9),
        "c.webp": saved(photo, "WEBP", lossless=True), "d.bmp": saved(photo, "BMP"), "e.tif": saved(photo, "TIFF"),
        "f.png": saved(photo.convert("RGBA"), "PNG"), "g.png": saved(photo.rotate(90, expand=True), "PNG", exif=exif),
    }  # fmt: skip
    cutouts = {"x.png": saved(subject, "PNG"), "y.webp": saved(subject, "WEBP", lossless=True)}
    files = {f"c/{name}": data for name, data in (same | cutouts).items()} | {"d/1.png": FILES["flower/dahlia.jpg"]}
    rows = cut(files, tmp_path / "pool")
    usable = [source for source, row in rows.items() if row["status"] == "ok"]
    assert usable == ["c/a.png", "c/x.png", "d/1.png"]
    assert {row["error_code"] for source, row in rows.items() if source not in usable} == {"duplicate"}
    assert rows["c/g.png"]["error_message"] == "c/g.png: the same picture as c/a.png; remove one"
    assert rows["c/g.png"]["width"] is None


def test_the_same_picture_with_another_mask_is_another_reference(tmp_path):
    masks = np.zeros((3, 300, 451), np.uint8)
    masks[0, 50:250, 50:150] = masks[1, 50:250, 250:400] = masks[2, 50:250, 50:150] = 1
    cells = {"image": [CAT] * 3, "mask": [png(mask) for mask in masks], "category": ["c"] * 3}
    rows, members = made(PoolConfig(source=str(parquet(tmp_path / "x.parquet", cells)), mask="mask"))
    assert [row["error_code"] for row in rows] == [None, None, "duplicate"]
    assert len(members) == 2
    assert len({row["pixels_sha256"] for row in rows}) == 2


def test_parts_marked_by_themselves_can_be_marked_together():
    def row(source: str, digest: str, **values) -> dict:
        return {"source": source, "pixels_sha256": digest, "box": None, "status": "ok", "error_code": None, **values}

    error = {"status": "error", "error_code": "bad_input"}
    parts = [[row("a", "1"), row("b", "1")], [row("c", "1"), row("d", "1"), row("e", "2"), row("f", "1", **error)]]
    together = mark_duplicates([r for part in parts for r in mark_duplicates(part)])
    assert [r["error_code"] for r in together] == [None, *["duplicate"] * 3, None, "bad_input"]
    assert {r["error_message"].split(": ")[1] for r in together[1:4]} == {"the same picture as a; remove one"}
    assert mark_duplicates(together) == together
    assert mark_duplicates([row("a", "1", box=[0, 0, 1, 1]), row("b", "1", box=[0, 0, 0.5, 1])])[1]["status"] == "ok"


@pytest.mark.parametrize("size", [(9, 1500), (1500, 9), (3, 200)])
def test_a_subject_one_pixel_wide_shows_nothing(tmp_path, size):
    pole = Image.new("RGBA", size)
    thickness = 5 if 9 in size else 1
    pole.paste((80, 80, 80, 255), (2, 2, size[0] - 2, size[1] - 2) if thickness == 5 else (1, 0, 2, 200))
    (row,) = cut({"c/pole.png": saved(pole, "PNG")}, tmp_path / "pool").values()
    assert row["error_code"] == "thin_subject"
    assert row["error_message"].startswith("c/pole.png: its subject is")
    assert "1 pixel wide at size 64" in row["error_message"] or thickness == 1


@pytest.mark.slow
def test_stored_rows_name_no_place_on_this_machine(tmp_path):
    files = {"c/empty.png": b"", "c/text.png": b"no picture", "c/cut.png": CAT[:200], "c/ok.png": CAT}
    tables = [cut(files, tmp_path / place / "pool") for place in ("one", "another")]
    assert tables[0] == tables[1]
    assert not any(str(tmp_path) in str(row) or "0x" in str(row) for row in tables[0].values())


@pytest.mark.parametrize("name", ["a" * 5000, "~nobody-of-this-name/x", "a\0b", "x/" * 3000])
def test_folders_that_cannot_be(name):
    told = "control characters" if "\0" in name else "give a folder of pictures"
    with pytest.raises((UserError, ValidationError), match=told):
        listed(name)


@pytest.mark.slow
def test_names_of_any_bytes_are_text_in_the_table(tmp_path):
    place = os.path.join(os.fsencode(tmp_path), b"pool", b"caf\xe9")
    os.makedirs(place)
    with open(os.path.join(place, b"\xff_\xe2\x80\xae1.png"), "wb") as file:
        file.write(CAT)
    (row,) = made(PoolConfig(source=str(tmp_path / "pool")))[0]
    assert row["category"] == "caf\\xe9"
    assert row["source"] == "caf\\xe9/\\xff_\u202e1.png"
    assert row["name"] == "\\xff 1"


def test_a_run_says_once_what_it_skipped(tmp_path, capsys):
    root = folder(tmp_path / "pool", {"cat/1.png": FILES["cat/chelsea.png"], "cat/1.heic": b""})
    for _ in range(2):
        with pytest.raises(UserError, match="only one category"):
            curate(small_config(tmp_path / "runs", references={"pool": str(root)}))
        told = [line for line in capsys.readouterr().err.splitlines() if "skipped" in line]
        assert told == [f"references.pool {root}: files of kinds that are not read, skipped: .heic 1"]


@pytest.mark.parametrize("kind", ["folder", "parquet"])
@pytest.mark.parametrize("first", ["with masks", "without"])
def test_a_setting_of_masks_that_are_not_there_leaves_nothing_behind(tmp_path, kind, first):
    """A pool of one category is refused once its cut-outs are made, in a line that counts the usable ones."""
    if kind == "folder":
        source = folder(tmp_path / "pool", {"pics/cat/1.png": FILES["cat/chelsea.png"], "masks/other.png": CAT})
        read = {"source": str(source), "image": "pics"}
        masks = {"mask": "maks"}
    else:
        cells = {"image": CELLS[:1], "mask": pa.array([None], pa.binary()), "category": ["cat"]}
        read = {"source": str(parquet(tmp_path / "x.parquet", cells)), "image": "image"}
        masks = {"mask": "mask"}
    told = {"with masks": (masks, "no usable picture, 0 of 1"), "without": ({}, "only one category.*1 of 1 pictures")}
    for name in (first, *told.keys() - {first}):
        settings, words = told[name]
        with pytest.raises(UserError, match=words):
            curate(small_config(tmp_path / "runs", references={"pool": [read | settings]}))


def test_a_mask_is_drawn_over_the_picture_as_one_sees_it(tmp_path):
    """A phone's picture is stored on its side; its mask was drawn upright, and its own EXIF data change nothing."""
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = Image.open(io.BytesIO(CAT)).convert("RGB")
    stored = saved(photo.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    mask = np.zeros((300, 451), np.uint8)
    mask[50:250, 100:200] = 1
    masks = [png(mask), saved(Image.fromarray(mask), "PNG", exif=exif), png(mask.T)]
    cells = {"image": [stored] * 3, "mask": masks, "category": ["c"] * 3}
    rows, members = made(PoolConfig(source=str(parquet(tmp_path / "x.parquet", cells)), mask="mask"), size=202)
    assert [row["error_code"] for row in rows] == [None, "duplicate", "bad_mask"]
    cutout = np.asarray(Image.open(io.BytesIO(members[rows[0]["reference_id"]]["cutout.png"])))
    assert (cutout[1:-1, 1:-1, :3] == np.asarray(photo)[50:250, 100:200]).all()


def test_a_parquet_file_that_vanished_is_named_as_the_pool_names_it(tmp_path):
    path = parquet(tmp_path / "x.parquet", {"image": CELLS})
    sources = list_pools(ReferencesConfig(pool=str(path)))
    path.unlink()
    rows, _, _ = make_references(sources, ReferencesConfig(pool=str(path)))
    assert {row["error_code"] for row in rows} == {"bad_input"}
    assert not any(str(tmp_path) in row["error_message"] for row in rows)
    assert rows[0]["error_message"].startswith("x.parquet#0: cannot be read (No such file")
