"""Pictures: read as one sees them, or refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from data_schemas.io import pictures
from field_cases.shared import asked_for, pool_of, references
from field_cases.table import case
from pipeline.config import CurationConfig
from pipeline.curate import curate
from pipeline.jobs import pool_rows
from pipeline.references.packaged import package_file
from tokenar.sample.requests import from_list


@case("grey16.png")
def grey_is_scaled(file: Path, folder: Path) -> None:
    twin = Image.fromarray(np.round(np.asarray(Image.open(file)) / 257).astype(np.uint8))
    decoded = pictures.decode(file.read_bytes(), file.name)
    assert np.array_equal(np.asarray(decoded.convert("L")), np.asarray(twin))
    assert np.asarray(decoded).min() < 255
    assert np.array_equal(np.asarray(asked_for(folder / "scene", file)), np.asarray(twin.convert("RGB")))
    twin.save(folder / "twin.png")
    rows = [references(pool_of(folder / name, of)) for name, of in (("a", file), ("b", folder / "twin.png"))]
    own, other = rows[0][file.name], rows[1]["twin.png"]
    assert [own[key] for key in ("status", "error_code", "width", "height", "area_share")] == [
        other[key] for key in ("status", "error_code", "width", "height", "area_share")
    ]


@case("colour-key.png")
def the_key_is_transparent(file: Path, folder: Path) -> None:
    decoded = pictures.decode(file.read_bytes(), file.name)
    assert decoded.mode == "RGBA"
    assert pictures.on_white(decoded).getpixel((0, 0)) == (255, 255, 255)
    assert asked_for(folder / "scene", file).getpixel((0, 0)) == (255, 255, 255)
    row = references(pool_of(folder / "pool", file))[file.name]
    assert row["status"] == "ok", row["error_message"]


@case("phone-orientation6.jpg")
def a_list_entry_is_upright(file: Path, folder: Path) -> None:
    Image.new("RGB", (32, 32)).save(folder / "b.png")
    entry = {"references": [str(file)], "background": "b.png", "prompt": "a cat"}
    (folder / "list.json").write_text(json.dumps([entry]))
    ((_, request),) = from_list(folder / "list.json").read(lambda number: True)
    assert request.references[0].size == (64, 128)


@case("thin-pole.png")
def a_pole_is_unusable(file: Path, folder: Path) -> None:
    row = references(pool_of(folder / "pool", file))[file.name]
    assert row["status"] == "error"
    assert "1 pixel wide" in row["error_message"]


@case("zero.png", slow=True)
def an_unreadable_picture_changes_nothing(file: Path, folder: Path) -> None:
    pool = pool_of(folder / "pool", file)
    Image.open(package_file("skimage", "data/coffee.png")).resize((150, 100)).save(pool / "given/cup.png")

    def settings(root: str) -> list[str]:
        return [f"root={folder / root}", "name=run", "samples=2", "planning.test_share=0", f"references.pool={pool}"]

    config = CurationConfig.load("embedded", None, settings("a"))
    made = curate(config)
    row = next(r for r in pool_rows(made.run) if r["source"] == "given/zero.png")
    assert row["status"] == "error"
    assert row["error_message"] == "given/zero.png: not a readable picture (it is empty); replace or remove it"
    again = curate(config)
    assert all(part.cached for parts in again.summaries.values() for part in parts)
    code = "import sys; from pipeline.config import CurationConfig as C; from pipeline.curate import curate; "
    code += "curate(C.load('embedded', None, sys.argv[1:]))"
    subprocess.run([sys.executable, "-c", code, *settings("b")], check=True, capture_output=True, timeout=120)
    files = [
        {path.relative_to(folder / root): path.read_bytes() for path in sorted((folder / root).rglob("*.*"))
         if path.is_file() and path.suffix in (".parquet", ".tar")}
        for root in "ab"
    ]  # fmt: skip
    assert files[0].keys() == files[1].keys()
    assert [name for name in files[0] if files[0][name] != files[1][name]] == []
