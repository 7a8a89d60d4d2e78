"""`instructar prune` removes what no current config reaches, and nothing else."""

import os
import shutil
import time
from pathlib import Path

import fsspec
import pytest
from commands import run_here
from troubled.runs import config

from pipeline import cli
from pipeline.curate import curate
from pipeline.dataset.versions import published
from pipeline.run import Run
from pipeline.upkeep.lock import held
from pipeline.upkeep.prune import prunable


def ask(run, *options):
    return run_here(cli.main, "instructar", "prune", run, *options)


def settings(root, low: float, version: int = 0):
    """A run with a threshold; another ``version`` is another setting of the stage, whose parts are made anew."""
    trouble = {"nan": [version]} if version else {}
    return config(root, trouble=trouble, decide={"thresholds": {"troubled": low}})


def files(root) -> dict[str, bytes]:
    """Every file of a run but its lock, without following links."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if ".lock" not in path.parts:
                found[str(path.relative_to(root))] = (
                    os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
                )
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run that was curated with three configs, the last of which counts."""
    root = tmp_path_factory.mktemp("prune")
    for low, version in [(0.0, 0), (8.0, 1), (4.0, 0)]:
        result = curate(settings(root, low, version))
    return root, result


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made[0], tmp_path, dirs_exist_ok=True, symlinks=True)
    return tmp_path / "stubs"


def reached(run) -> set[str]:
    current = Run.of(settings(run.parent, 4.0)).fingerprints
    return {f"{stage}/{own}" for stage, own in current}


def test_it_is_told_first_and_removed_with_yes(run):
    before, newest = files(run), os.readlink(run / "dataset")
    told = ask(run)
    assert told.returncode == 0, told.stderr
    assert files(run) == before, "told only"
    lines = [line.split() for line in told.stdout.splitlines()[:-1]]
    assert sorted(line[0] for line in lines) == ["dataset"] * 2 + ["parts"] * 5
    assert "remove them with --yes" in told.stdout
    done = ask(run, "--yes")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:-1] == told.stdout.splitlines()[:-1]
    after = files(run)
    assert after.items() <= before.items()
    gone = before.keys() - after.keys()
    assert {str(Path(name).parent) for name in gone} == {line[3] for line in lines}
    assert {f"{path.parent.name}/{path.name}" for path in run.glob("*/" + "[0-9a-f]" * 16)} - {newest} == reached(run)
    assert [path.name for path in (run / "datasets").iterdir() if path.is_dir()] == [Path(newest).name]
    assert ask(run, "--yes").stdout == "nothing to remove\n"


def test_what_is_left_is_whole(run):
    assert ask(run, "--yes").returncode == 0
    result = curate(settings(run.parent, 4.0))
    assert all(part.cached for parts in result.summaries.values() for part in parts)
    known = published(fsspec.filesystem("file"), str(run / "datasets"))
    assert [entry.version for entry in known] == ["1.0.0", "2.0.0", "2.1.0"], "no version is given twice"
    curate(settings(run.parent, 8.0, 1))
    assert os.path.realpath(run / "dataset").endswith(known[1].dataset)


def test_the_newest_datasets_are_kept(run):
    known = [entry.dataset for entry in published(fsspec.filesystem("file"), str(run / "datasets"))]
    assert ask(run, "--yes", "--keep", "2").returncode == 0
    assert {p.name for p in (run / "datasets").iterdir() if p.is_dir()} == set(known[1:])
    assert ask(run, "--keep", "0").returncode == 2


def test_a_shard_that_a_dataset_shares_frees_its_space_with_the_dataset(made):
    last = settings(made[0], 4.0)
    parts = [file for piece in prunable(last, keep=3).pieces for file in piece.files]
    assert {file["nlink"] for file in parts} == {1, 2}
    assert prunable(last, keep=3).freed() == sum(file["size"] for file in parts if file["nlink"] == 1)
    everything = [file for piece in prunable(last).pieces for file in piece.files]
    assert prunable(last).freed() == sum({file["ino"]: file["size"] for file in everything}.values())


def test_foreign_files_and_what_links_lead_to_are_never_touched(run, tmp_path):
    outside = tmp_path / "outside"
    (outside / "0123456789abcdef").mkdir(parents=True)
    (outside / "0123456789abcdef" / "part-00000.parquet").write_text("precious")
    os.symlink(outside, run / "linked")
    (run / "elsewhere").mkdir()
    os.symlink(outside / "0123456789abcdef", run / "elsewhere" / "0123456789abcdef")
    mine = run / "notes" / "0123456789abcdef"
    mine.mkdir(parents=True)
    os.symlink(outside / "0123456789abcdef" / "part-00000.parquet", mine / "part-00000.parquet")
    (run / "training" / "model").mkdir(parents=True)
    (run / "training" / "model" / "model.safetensors").write_text("precious")
    old = next(p for p in (run / "trouble").iterdir() if f"trouble/{p.name}" not in reached(run))
    (old / "my-notes.txt").write_text("precious")
    dataset = next(p for p in (run / "datasets").iterdir() if p.is_dir() and p.name not in os.readlink(run / "dataset"))
    (dataset / "subset.tar").write_text("precious")
    before = files(tmp_path)
    done = ask(run, "--yes")
    assert done.returncode == 0, done.stderr
    for folder in (old, dataset, mine):
        assert f"left alone            {folder.relative_to(run)}: holds what" in done.stdout
    after = files(tmp_path)
    kept = [name for name in before if "precious" in before[name].decode(errors="replace")
            or any(Path(tmp_path, name).is_relative_to(folder) for folder in (old, dataset, mine))]  # fmt: skip
    assert len(kept) > 6
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert (run / "linked").is_symlink()
    assert (run / "elsewhere" / "0123456789abcdef").is_symlink()


def test_temporary_files_go_when_they_are_old(run):
    ask(run, "--yes")
    name = f".part-00001.tar.{'a' * 32}.tmp"
    stage = next((run / "trouble").iterdir())
    folder = run / "datasets" / f".{'b' * 32}.tmp"
    folder.mkdir()
    (folder / "train-00000.tar").write_text("half")
    for path in (stage / name, run / ".lock" / name, run / name.replace("a", "c"), run / ".mine.tmp", folder):
        if path != folder:
            path.write_text("half")
        os.utime(path, (time.time() - 4000,) * 2)
    (run / name).write_text("young")
    told = {tuple(line.split()[::3]) for line in ask(run).stdout.splitlines()[:-1]}
    names = (name.replace("a", "c"), f".lock/{name}", f"{stage.relative_to(run)}/{name}", f"datasets/{folder.name}")
    assert told == {("temporary", name) for name in names}
    assert ask(run, "--yes").returncode == 0
    assert not folder.exists()
    assert not (stage / name).exists()
    assert (run / name).exists()
    assert (run / ".mine.tmp").exists()


def test_nothing_is_removed_while_a_curation_is_at_work(run):
    before = files(run)
    with held(str(run)):
        assert ask(run).returncode == 0, "who only reads is not kept waiting"
        done = ask(run, "--yes")
    assert done.returncode == 2
    assert f"is being worked on by process {os.getpid()}" in done.stderr
    assert files(run) == before


@pytest.mark.parametrize("where", ["nowhere", "empty"])
def test_what_is_no_run_is_named(tmp_path, where):
    (tmp_path / "empty").mkdir()
    done = ask(tmp_path / where, "--yes")
    assert done.returncode == 2
    assert f"{where}: no run was curated there" in done.stderr


def test_a_run_at_the_top_of_the_disk_is_not_one_of_this_folder(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    run.rename("run-that-only-this-folder-has")
    for url in ("/run-that-only-this-folder-has", "file:///run-that-only-this-folder-has"):
        done = ask(url, "--yes")
        assert done.returncode == 2
        assert f"{url}: no run was curated there" in done.stderr
    assert ask("run-that-only-this-folder-has").returncode == 0


@pytest.mark.slow
def test_a_bucket_is_pruned_too(bucket):
    for low, version in [(8.0, 1), (4.0, 0)]:
        result = curate(settings(bucket, low, version))
    fs, path = fsspec.core.url_to_fs(bucket)
    before = set(fs.find(path))
    done = ask(f"{bucket}/stubs", "--yes")
    assert done.returncode == 0, done.stderr
    fs.invalidate_cache()
    gone = before - set(fs.find(path))
    assert {name.split("/stubs/")[1].split("/")[0] for name in gone} >= {"trouble", "decide", "shards", "datasets"}
    assert ask(f"{bucket}/stubs").stdout == "nothing to remove\n"
    left = {name.split("/stubs/")[1] for name in fs.find(path)}
    assert {f"{stage}/{own}/part-00000.parquet" for stage, own in result.run.fingerprints[1:-1]} <= left
    assert len(fs.glob(f"{path}/stubs/datasets/*/run.json")) == 1
