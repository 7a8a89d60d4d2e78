"""Reference pools: the packaged photographs become cut-outs, and a bad picture costs only its own row."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw

from data_schemas.errors import UserError
from data_schemas.schema import validate
from data_schemas.tables import REFERENCES
from pipeline.references.cutouts import ReferencesConfig, check_pool, list_pool, make_references
from pipeline.references.packaged import load_backgrounds, package_file


def disc(colour: str, box: tuple[int, int, int, int], size: int = 120, mode: str = "RGB") -> Image.Image:
    """A disc on noise (RGB) or on nothing (RGBA)."""
    noise = np.random.default_rng(0).integers(100, 140, (size, size, 3), np.uint8)
    picture = Image.fromarray(noise) if mode == "RGB" else Image.new("RGBA", (size, size))
    ImageDraw.Draw(picture).ellipse(box, fill=colour)
    return picture


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 20000 x 20000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.fixture
def folder(tmp_path):
    """A pool with good pictures of three categories, and one of each kind of bad one."""
    pool = tmp_path / "my_pool"
    for name in ("toys", "house_plants", ".hidden"):
        (pool / name).mkdir(parents=True)
    disc("red", (30, 40, 90, 100), mode="RGBA").save(pool / "toys/red_ball.png")
    (pool / "toys/red_ball.txt").write_text("  a shiny\n red ball ")
    disc("blue", (30, 30, 90, 90)).save(pool / "house_plants/blue-flower.jpg", quality=95)
    disc("green", (20, 40, 100, 80)).save(pool / "Leaf.WEBP")
    disc("green", (20, 40, 100, 80)).save(pool / ".hidden/no.png")
    (pool / "toys/z_copy.png").write_bytes((pool / "toys/red_ball.png").read_bytes())
    (pool / "toys/cut.png").write_bytes((pool / "toys/red_ball.png").read_bytes()[:200])
    (pool / "toys/fake.png").write_text("not a picture")
    (pool / "toys/bomb.png").write_bytes(bomb())
    Image.new("RGBA", (50, 50)).save(pool / "toys/nothing.png")
    (pool / "toys/gone.png").symlink_to("nowhere.png")
    os.mkfifo(pool / "toys/pipe.png")
    return pool


@pytest.fixture(scope="module")
def packaged():
    return make_references(list_pool(ReferencesConfig()), ReferencesConfig())


def test_packaged_pool_makes_cut_outs(packaged):
    rows, members, seconds = packaged
    validate(REFERENCES.table(rows), REFERENCES, "references")
    assert [r["error_message"] for r in rows if r["status"] != "ok"] == []
    assert len({r["subject_id"] for r in rows}) >= 12
    assert len({r["category"] for r in rows}) >= 5
    assert set(members) == set(seconds) == {r["reference_id"] for r in rows}
    for row in rows:
        cutout = Image.open(io.BytesIO(members[row["reference_id"]]["cutout.png"]))
        alpha = np.asarray(cutout.getchannel("A"))
        assert cutout.mode == "RGBA"
        assert cutout.size == (row["width"], row["height"])
        assert max(cutout.size) == 256
        assert row["area_share"] == alpha.mean() / 255
        assert 0.3 < row["area_share"] < 0.9
    check_pool(rows)


def test_cut_outs_are_the_same_bytes_every_time(packaged):
    source = list_pool(ReferencesConfig())[0]
    assert make_references([source], ReferencesConfig())[1][source.reference_id] == packaged[1][source.reference_id]


def test_backgrounds_are_photographs():
    backgrounds = load_backgrounds()
    assert len({name for name, _ in backgrounds}) == len(backgrounds) >= 6
    assert all(picture.mode == "RGB" and min(picture.size) >= 64 for _, picture in backgrounds)
    assert load_backgrounds() is backgrounds


def test_folder_names_and_categories(folder):
    sources = list_pool(ReferencesConfig(pool=str(folder)))
    assert [s.source for s in sources] == [
        "Leaf.WEBP", "house_plants/blue-flower.jpg", "toys/bomb.png", "toys/cut.png", "toys/fake.png",
        "toys/gone.png", "toys/nothing.png", "toys/pipe.png", "toys/red_ball.png", "toys/z_copy.png",
    ]  # fmt: skip
    assert [(s.category, s.name, s.subject_id) for s in sources if s.source in ("Leaf.WEBP", "toys/red_ball.png")] == [
        ("my pool", "Leaf", "my-pool/leaf"),
        ("toys", "shiny", "toys/shiny"),
    ]
    assert sources[1].name == "blue flower"
    assert sources[1].category == "house plants"
    assert len({s.reference_id for s in sources}) == len(sources)


def test_bad_pictures_cost_only_their_own_rows(folder):
    config = ReferencesConfig(pool=str(folder), size=64)
    rows, members, _ = make_references(list_pool(config), config)
    validate(REFERENCES.table(rows), REFERENCES, "references")
    assert {r["source"]: r["error_code"] for r in rows} == {
        "Leaf.WEBP": None, "house_plants/blue-flower.jpg": None, "toys/red_ball.png": None,
        "toys/bomb.png": "bad_input", "toys/cut.png": "bad_input", "toys/fake.png": "bad_input",
        "toys/gone.png": "bad_input", "toys/pipe.png": "bad_input", "toys/nothing.png": "empty_cutout",
        "toys/z_copy.png": "duplicate",
    }  # fmt: skip
    told = {r["source"]: r["error_message"] for r in rows}
    assert "too many pixels" in told["toys/bomb.png"]
    assert "toys/red_ball.png" in told["toys/z_copy.png"]
    assert set(members) == {r["reference_id"] for r in rows if r["status"] == "ok"}
    check_pool(rows)


@pytest.mark.parametrize(
    ("file", "size"),
    [("toys/red_ball.png", (64, 64)), ("house_plants/blue-flower.jpg", (64, 64)), ("Leaf.WEBP", (64, 32))],
)
def test_the_cut_out_is_the_disc(folder, file, size):
    config = ReferencesConfig(pool=str(folder), size=64)
    sources = [s for s in list_pool(config) if s.source == file]
    (row,), members, _ = make_references(sources, config)
    cutout = Image.open(io.BytesIO(members[row["reference_id"]]["cutout.png"]))
    assert max(cutout.size) == 64
    assert abs(cutout.height - size[1]) <= 3
    assert row["area_share"] == pytest.approx(np.pi / 4, abs=0.07)
    assert cutout.getpixel((1, 1))[3] < 30
    assert cutout.getpixel((32, cutout.height // 2))[3] == 255


def test_a_flat_or_opaque_picture_is_handled(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (60, 60), "white").save(tmp_path / "a/flat.png")
    Image.new("RGB", (1, 1)).save(tmp_path / "a/dot.png")
    opaque = disc("red", (30, 30, 90, 90)).convert("RGBA")
    opaque.save(tmp_path / "a/opaque.png")  # alpha without meaning: GrabCut finds the disc
    config = ReferencesConfig(pool=str(tmp_path))
    rows, _, _ = make_references(list_pool(config), config)
    assert {r["source"]: r["error_code"] for r in rows} == {
        "a/dot.png": "empty_cutout", "a/flat.png": "empty_cutout", "a/opaque.png": None,
    }  # fmt: skip
    assert rows[2]["area_share"] == pytest.approx(np.pi / 4, abs=0.07)


def test_pools_that_cannot_be_listed(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"nowhere: no such folder; give"):
        list_pool(ReferencesConfig(pool=str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match="holds no picture"):
        list_pool(ReferencesConfig(pool=str(tmp_path)))

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\); change its permissions"):
        list_pool(ReferencesConfig(pool=str(tmp_path)))


def test_a_package_that_is_not_installed():
    with pytest.raises(UserError, match=r"no_such_package/x\.png is not there"):
        package_file("no_such_package", "x.png")


def test_a_reference_id_follows_what_it_is_made_from(folder):
    def ids() -> dict[str, str]:
        return {s.source: s.reference_id for s in list_pool(ReferencesConfig(pool=str(folder)))}

    before = ids()
    (folder / "toys/red_ball.txt").write_text("ball")
    disc("yellow", (30, 30, 90, 90)).save(folder / "house_plants/blue-flower.jpg")
    after = ids()
    assert {k for k in before if before[k] != after[k]} == {
        "toys/red_ball.png",
        "house_plants/blue-flower.jpg",
    }


def test_check_pool_says_how_many_failed_and_why():
    good = {"status": "ok", "category": "cat", "error_code": None}
    bad = {"status": "error", "category": "dog", "error_code": "bad_input", "error_message": "x.png: broken"}
    with pytest.raises(UserError, match=r"0 of 2 pictures usable; failed: bad_input 2 \(first: x.png: broken\)"):
        check_pool([bad, bad])
    with pytest.raises(UserError, match=r"only one category, 'cat' \(1 of 2 pictures usable; failed: bad_input 1\)"):
        check_pool([good, bad])
    check_pool([good, {**good, "category": "dog"}])
