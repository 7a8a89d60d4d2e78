"""What the cases share."""

from __future__ import annotations

import contextlib
import resource
import shutil
import subprocess
import tarfile
import time
from pathlib import Path

from commands import run_here
from PIL import Image
from small.run import make_sample, tiny_config, write_shard

from pipeline import cli as curation
from pipeline.references.cutouts import ReferencesConfig, make_references
from pipeline.references.cutouts import list_pool as list_pools
from pipeline.references.packaged import package_file
from tokenar.sample.requests import from_folder
from tokenar.train.loop import train_model


def curation_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_here(curation.main, "instructar", *arguments)


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
