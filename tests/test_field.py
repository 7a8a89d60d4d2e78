"""The field cases: small inputs that went wrong somewhere, each with what it must give.

They lie in $FIELD, or in ../shared/field beside the project, with a README.md whose table says of each file how it is
used and what must come of it. Every file in the table needs a case here; a new one without a case fails.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from small.run import in_process, make_sample, tiny_config, write_config, write_shard
from tiny.encoders import TINY_VQ, save_tiny_t5, tiny_vq

from data_schemas.io import pictures
from pipeline import cli as curation
from pipeline.config import CurationConfig
from pipeline.curate import curate
from pipeline.jobs import pool_rows
from pipeline.references.cutouts import ReferencesConfig, make_references
from pipeline.references.cutouts import list_pool as list_pools
from pipeline.references.packaged import package_file
from pipeline.references.pools import PoolConfig, list_pool
from tokenar.data.encode import EncodeConfig
from tokenar.encoders.config import T5Config
from tokenar.sample.requests import from_folder, from_list
from tokenar.train.loop import train_model

FOLDER = Path(os.environ.get("FIELD", Path(__file__).parents[2] / "shared/field"))

Case = Callable[[Path, Path], None]
CASES: dict[str, list[Case]] = {}
"""By file: functions of that file and an empty folder, one for each use."""


SLOW: set[Case] = set()
"""Those that take more than ten seconds."""


def case(*files: str, slow: bool = False) -> Callable[[Case], Case]:
    def register(function: Case) -> Case:
        for file in files:
            CASES.setdefault(file, []).append(function)
        if slow:
            SLOW.add(function)
        return function

    return register


def rows() -> list[tuple[list[str], str, str]]:
    """(files, used as, must give) of every row of the README's table."""
    if not (FOLDER / "README.md").is_file():
        return []
    lines = [line for line in (FOLDER / "README.md").read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip().strip("|").split("|", 2)] for line in lines[2:]]
    return [(re.split(r",\s*", files), used, expected) for files, used, expected in cells]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "field_case" not in metafunc.fixturenames:
        return
    found = [
        pytest.param(
            file,
            function,
            f"{used}: {expected}",
            id=f"{file}-{getattr(function, '__name__', 'no-case')}",
            marks=[pytest.mark.slow] if function in SLOW else [],
        )
        for files, used, expected in rows()
        for file in files
        for function in CASES.get(file, [None])
    ]
    if not found:
        skip = pytest.mark.skip(reason=f"no field cases under {FOLDER}")
        found = [pytest.param("", None, "", id="no-field", marks=skip)]
    metafunc.parametrize(("file", "field_case", "row"), found)


def test_field(file: str, field_case: Case | None, row: str, tmp_path: Path) -> None:
    assert field_case is not None, f"{FOLDER / file}: its row has no case in this file; write one ({row})"
    field_case(FOLDER / file, tmp_path)


def test_every_file_there_stands_in_the_table() -> None:
    if not rows():
        pytest.skip(f"no field cases under {FOLDER}")
    told = {file for files, _, _ in rows() for file in files}
    assert {path.name for path in FOLDER.iterdir()} - {"README.md"} == told


# What the cases share


def curation_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The ``instructar`` command in this process, as a finished process has it."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["instructar", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            curation.main()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
    finally:
        sys.argv = before
    return subprocess.CompletedProcess(before, code, out.getvalue(), err.getvalue())


def check_refused(done: subprocess.CompletedProcess[str], *words: object) -> None:
    """Exit code 2, and one line that holds these words."""
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert len(lines[0]) < 2000, "short enough to be read"
    for word in words:
        assert str(word) in lines[0]


@contextlib.contextmanager
def bounds(seconds: float, megabytes: float):
    """Time, and memory above what the process has had so far."""
    begun, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.monotonic() - begun < seconds
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < megabytes * 1000


def pool_of(folder: Path, *files: Path) -> Path:
    """A pool of these files in one category and a photograph in another."""
    for category in ("given", "cat"):
        (folder / category).mkdir(parents=True)
    photo = Image.open(package_file("skimage", "data/chelsea.png"))
    photo.resize((150, 100)).save(folder / "cat/cat.png")
    for file in files:
        shutil.copy(file, folder / "given" / file.name)
    return folder


def references(pool: Path, size: int = 256) -> dict[str, dict]:
    """Rows of the references table by the name of the file."""
    config = ReferencesConfig(pool=str(pool), size=size)
    return {Path(row["source"]).name: row for row in make_references(list_pools(config), config)[0]}


def asked_for(folder: Path, reference: Path) -> Image.Image:
    """The reference that ``tokenar-sample --folder`` reads."""
    (folder / "ref").mkdir(parents=True)
    shutil.copy(reference, folder / "ref")
    Image.new("RGB", (32, 32)).save(folder / "background.png")
    (folder / "description.txt").write_text("a cat")
    ((_, request),) = from_folder(folder).read(lambda number: True)
    return request.references[0]


def tiny_model(folder: Path) -> Path:
    write_shard(folder / "shards/train-0.tar", [make_sample(k, side=32) for k in range(4)])
    train_model(tiny_config(folder / "shards", folder / "run", val_shards=None, steps=2, variations=0))
    return folder / "run/model"


def samples_in(*shards: Path) -> list[str]:
    """Folder and stem of the samples in tars as Python's tarfile lists them, each once a tar."""
    found = []
    for shard in shards:
        with tarfile.open(shard) as tar:
            names = [name for name in tar.getnames() if not Path(name).name.startswith("._")]
        found += dict.fromkeys(str(Path(name).parent / Path(name).name.partition(".")[0]) for name in names)
    return found


# Pictures


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


# Notes and columns


def noted(file: Path, folder: Path) -> str:
    shutil.copy(FOLDER / "grey16.png", folder / "001.png")
    shutil.copy(file, folder / "001.txt")
    return list_pool(PoolConfig(source=str(folder)))[0].name


@case("note-bom.txt", "note-utf16.txt")
def a_note_is_decoded(file: Path, folder: Path) -> None:
    assert noted(file, folder) == "tabby cat"


@case("note-translations.txt")
def a_note_is_its_first_line(file: Path, folder: Path) -> None:
    assert noted(file, folder) == "Kiwifruit"


@case("pool-categorical.parquet")
def a_categorical_column_is_found(file: Path, folder: Path) -> None:
    found = list_pool(PoolConfig(source=str(file)))
    assert len({source.category for source in found}) > 1
    assert "subject" not in {source.category for source in found}


# Shards


@case("folders-in-keys.tar")
def folders_are_part_of_the_id(file: Path, folder: Path) -> None:
    done = in_process("sample", "--model", tiny_model(folder), "--shards", file, "--out", folder / "out")
    assert done.returncode == 0, done.stderr
    listed = json.loads((folder / "out/samples.json").read_text())
    assert [row["sample_id"] for row in listed] == samples_in(file)
    assert len(list((folder / "out").glob("*.png"))) == len(samples_in(file))


@case("same-id-1.tar", "same-id-2.tar")
def an_id_that_is_there_twice_is_named(file: Path, folder: Path) -> None:
    shards = sorted(file.parent.glob("same-id-*.tar"))
    ids = samples_in(*shards)
    twice = next(sample_id for sample_id in ids if ids.count(sample_id) > 1)
    pattern = file.parent / "same-id-*.tar"
    done = in_process("sample", "--model", tiny_model(folder), "--shards", pattern, "--out", folder / "out")
    check_refused(done, twice, *shards)
    assert not list(folder.glob("out/*.png"))


@case("mac-members.tar")
def what_a_mac_adds_is_passed_over(file: Path, folder: Path) -> None:
    shutil.copy(file, folder / "train-0.tar")
    config = tiny_config(folder, folder / "run", val_shards=None, steps=2, variations=0)
    done = in_process("train", "--config", write_config(config, folder / "c.json"))
    assert done.returncode == 0, done.stderr


@case("sparse-2gb.tar")
def a_size_is_checked_before_it_is_read(file: Path, folder: Path) -> None:
    model, pattern = tiny_model(folder), str(file)
    (folder / "drawn").mkdir()
    save_file(tiny_vq().state_dict(), folder / "vq.safetensors")
    encoding = EncodeConfig(
        shards=pattern, out=str(folder / "out"), vq=str(folder / "vq.safetensors"), vq_config=TINY_VQ, image_size=16,
        text=T5Config(model=str(save_tiny_t5(folder / "t5")), tokens=8), teacher=None,
    )  # fmt: skip
    config = tiny_config(folder, folder / "other", val_shards=None).model_copy(update={"shards": pattern})
    for command in (
        ("train", "--config", write_config(config, folder / "c.json")),
        ("sample", "--model", model, "--shards", pattern),
        ("eval", "--predictions", f"x={folder / 'drawn'}", "--shards", pattern),
        ("attention", "--model", model, "--shards", pattern),
        ("encode", "--config", write_config(encoding, folder / "encode.json")),
    ):
        out = () if "--config" in command else ("--out", folder / "out")
        with bounds(seconds=20, megabytes=200):
            check_refused(in_process(*command, *out), file.name, "2147483648 bytes, more than the limit")


# Settings


@case("alias-bomb.yaml", "impossible-date.yaml")
def settings_that_cannot_be_read(file: Path, folder: Path) -> None:
    with bounds(seconds=5, megabytes=300):
        key = {"alias-bomb.yaml": " f: ", "impossible-date.yaml": " name: "}[file.name]
        check_refused(curation_command("curate", "--config", file, "--root", folder), file.name, key)


@case("alias-bomb.yaml", "impossible-date.yaml")
def thresholds_that_cannot_be_read(file: Path, folder: Path) -> None:
    arguments = ("--root", folder, "--set", f"decide.thresholds_file={file}")
    with bounds(seconds=5, megabytes=300):
        check_refused(curation_command("curate", *arguments), file.name)


@case("deep.json")
def a_deep_list(file: Path, folder: Path) -> None:
    done = in_process("sample", "--model", tiny_model(folder), "--list", file, "--out", folder / "out")
    check_refused(done, file.name)


@case("deep.json")
def a_deep_model_config(file: Path, folder: Path) -> None:
    model = tiny_model(folder)
    (model / "config.json").write_bytes(file.read_bytes())
    shards = folder / "shards/train-0.tar"
    check_refused(in_process("sample", "--model", model, "--shards", shards, "--out", folder / "out"), "config.json")
