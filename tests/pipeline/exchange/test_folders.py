"""Shards to the published program's folders and back: to the byte, and from folders that others made."""

import json
import shutil

import numpy as np
import pytest
from commands import run_here
from exchanged import write_example
from PIL import Image
from small.datasets import row, write_shards
from small.run import make_sample, write_shard

from data_schemas.errors import UserError
from data_schemas.io.tars import expand_shards
from data_schemas.shards import encode_sample, read_shard
from pipeline import cli
from pipeline.core.tar_writer import write_tar
from pipeline.exchange.folders_in import import_folders
from pipeline.exchange.folders_out import export_to_folders


def ask(*arguments):
    return run_here(cli.main, "instructar", *arguments)


def shard(path, samples):
    """A shard as a curation writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        write_tar(file, ((sample.sample_id, encode_sample(sample)) for sample in samples))
    return path


def shards_in(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


@pytest.fixture
def dataset(tmp_path):
    """Two shards of a split and one of the other, of samples with one to three references."""
    own = tmp_path / "own"
    shard(own / "train-00000.tar", [make_sample(n, side=64, references=n % 3 + 1) for n in range(3)])
    shard(own / "train-00001.tar", [make_sample(3, side=64)])
    shard(own / "test-00000.tar", [make_sample(4, "test", side=64)])
    return own


def test_there_and_back_gives_the_same_bytes(dataset, tmp_path):
    out = ask("export", f"{dataset}/*.tar", "--to", "folders", "--out", tmp_path / "folders")
    assert out.returncode == 0, out.stderr
    assert "4 examples in train, 1 examples in test" in out.stdout
    back = ask("import", tmp_path / "folders", "--out", tmp_path / "back")
    assert back.returncode == 0, back.stderr
    assert shards_in(tmp_path / "back") == shards_in(dataset)
    assert "left out" not in back.stdout


def test_the_published_program_finds_its_files(dataset, tmp_path):
    export_to_folders(f"{dataset}/train-*.tar", str(tmp_path / "folders"))
    third = tmp_path / "folders/train/example3"
    names = sorted(str(path.relative_to(third)) for path in third.rglob("*") if path.is_file())
    assert names == [
        "background.png", "description.txt", "real.png", "ref/ref_1.png", "ref/ref_2.png", "ref/ref_3.png",
    ]  # fmt: skip
    sample = make_sample(2, side=64, references=3)
    assert (third / "description.txt").read_text() == sample.prompt
    for name, picture in {"real.png": sample.target, "background.png": sample.background, "ref/ref_2.png":
                          sample.references[1]}.items():  # fmt: skip
        stored = Image.open(third / name)
        assert stored.mode == "RGB"
        assert np.array_equal(np.asarray(stored), np.asarray(picture)), name


def test_a_run_and_a_datasets_folder_can_be_exported(tmp_path):
    folder = write_shards(tmp_path / "dataset", [row(0), row(1), row(4, "test")])
    assert export_to_folders(folder, str(tmp_path / "folders")) == {"train": 2, "test": 1}


def test_what_was_changed_since_the_export_is_taken_as_it_is_now(dataset, tmp_path):
    export_to_folders(f"{dataset}/*.tar", str(tmp_path / "folders"))
    (tmp_path / "folders/train/example1/description.txt").write_text("a red cat")
    shutil.rmtree(tmp_path / "folders/train/example2")
    write_example(tmp_path / "folders/train/mine.1", 9)
    done = import_folders(str(tmp_path / "folders"), str(tmp_path / "back"))
    assert done.changed == ["example1"]
    first = {sample.sample_id: sample for sample in read_shard(str(tmp_path / "back/train-00000.tar"))}
    assert list(first) == ["train-0000", "train-0002"]
    assert first["train-0000"].prompt == first["train-0000"].info["prompt"] == "a red cat"
    assert "boxes" not in first["train-0000"].info, "they belonged to the other prompt's files"
    (new,) = read_shard(str(tmp_path / "back/train-00002.tar"))
    assert new.sample_id == "mine_1"


def test_folders_of_others(tmp_path):
    """Twenty examples as people have them: cut-outs with transparency, one to three references, one that is broken."""
    root = tmp_path / "data"
    made = {n: write_example(root / f"example{n}", n, references=n % 3 + 1) for n in range(1, 21)}
    (root / "example7/real.png").unlink()
    shutil.rmtree(root / "example8/ref")
    (root / "example8/ref").mkdir()
    out = ask("import", root, "--out", tmp_path / "shards")
    assert out.returncode == 0, out.stderr
    assert "left out: example7 (no real.png), example8 (no picture in ref/)" in out.stdout
    samples = list(read_shard(str(tmp_path / "shards/train-00000.tar")))
    assert [sample.sample_id for sample in samples] == [f"example{n}" for n in range(1, 21) if n not in (7, 8)]
    for sample in samples:
        true = made[int(sample.sample_id.removeprefix("example"))]
        assert sample.prompt == true.prompt
        for name in ("target", "background"):
            assert np.array_equal(np.asarray(getattr(sample, name)), np.asarray(getattr(true, name)))
        for own, other in zip(sample.references, true.references, strict=True):
            assert np.array_equal(np.asarray(own), np.asarray(other)), "transparency is white"
        soft = np.asarray(true.alpha)
        black = np.asarray(true.target).max(axis=2) <= 8
        matte = np.asarray(sample.alpha) == 255
        assert not matte[soft == 0].any()
        assert matte[(soft == 255) & ~black].all()


def test_examples_beside_train_and_test_get_the_split_that_is_asked_for(tmp_path):
    root = tmp_path / "data"
    names = ("train/example1", "example1", "example2", "test/other", "validation/x")
    made = {name: write_example(root / name, number) for number, name in enumerate(names)}
    (root / "figures").mkdir()
    out = ask("import", root, "--out", tmp_path / "shards", "--split", "test")
    assert out.returncode == 0, out.stderr
    assert "1 samples in train, 3 samples in test" in out.stdout
    assert "left out: validation (neither train nor test; import it by itself, with --split)" in out.stdout
    held = {
        sample.sample_id: (sample.info["split"], sample.prompt)
        for path in (tmp_path / "shards").glob("*.tar")
        for sample in read_shard(str(path))
    }
    assert held == {
        "example1": ("train", made["train/example1"].prompt), "other": ("test", made["test/other"].prompt),
        "example1-2": ("test", made["example1"].prompt), "example2": ("test", made["example2"].prompt),
    }  # fmt: skip
    done = import_folders(str(root), str(tmp_path / "two"), split="test", limit=2)
    assert done.samples == {"train": 1, "test": 2}, "the limit is that of a split, wherever its examples stand"


def test_a_folder_named_like_a_split_that_is_an_example_is_taken_once(tmp_path):
    write_example(tmp_path / "data/train", 1)
    write_example(tmp_path / "data/mine", 2)
    done = import_folders(str(tmp_path / "data"), str(tmp_path / "shards"))
    assert done.samples == {"train": 2}


def test_new_examples_beside_an_exports_splits_leave_its_shards_as_they_are(dataset, tmp_path):
    export_to_folders(f"{dataset}/*.tar", str(tmp_path / "folders"))
    write_example(tmp_path / "folders/mine", 9)
    import_folders(str(tmp_path / "folders"), str(tmp_path / "back"))
    back = shards_in(tmp_path / "back")
    (new,) = read_shard(str(tmp_path / "back/train-00002.tar"))
    assert new.sample_id == "mine"
    del back["train-00002.tar"]
    assert back == shards_in(dataset)


def test_the_same_folders_give_the_same_bytes(tmp_path):
    for n in (1, 2):
        write_example(tmp_path / f"data/{n}", n)
    for name in ("a", "b"):
        import_folders(str(tmp_path / "data"), str(tmp_path / name))
    assert shards_in(tmp_path / "a") == shards_in(tmp_path / "b")


def test_a_missing_background_stops_unless_it_is_allowed(tmp_path):
    write_example(tmp_path / "data/one", 1, background=False)
    refused = ask("import", tmp_path / "data", "--out", tmp_path / "out")
    assert refused.returncode == 2
    assert "one: no background.png" in refused.stderr
    assert "--black-background" in refused.stderr
    assert not (tmp_path / "out").exists()
    import_folders(str(tmp_path / "data"), str(tmp_path / "out"), black_background=True)
    (sample,) = read_shard(str(tmp_path / "out/train-00000.tar"))
    assert not np.asarray(sample.background).any()
    assert (np.asarray(sample.alpha) == 255).all()


def test_mistakes_are_one_line_and_leave_nothing(dataset, tmp_path):
    (tmp_path / "empty").mkdir()
    write_example(tmp_path / "data/one", 1)
    (tmp_path / "data/one/real.png").write_bytes(b"no picture")
    for arguments, told in {
        ("import", tmp_path / "empty"): "no example there",
        ("import", tmp_path / "nothing"): "no example there",
        ("import", tmp_path / "data"): "one/real.png: not a readable picture",
        ("import", tmp_path / "data", "--split", "tset"): "--split tset: no such split",
        ("export", tmp_path / "empty", "--to", "folders"): "no dataset is there",
        ("export", f"{dataset}/*.tar", "--to", "folder"): "--to folder: no such layout",
    }.items():
        out = ask(*arguments, "--out", tmp_path / "out")
        assert out.returncode == 2
        assert told in out.stderr
        assert out.stderr.splitlines()[-1].startswith("error: ")
        assert "Traceback" not in out.stderr
        assert not (tmp_path / "out").exists()
    assert "is there already" in ask("export", f"{dataset}/*.tar", "--to", "folders", "--out", dataset).stderr


def test_a_damaged_note_of_the_export_is_named(dataset, tmp_path):
    export_to_folders(f"{dataset}/*.tar", str(tmp_path / "folders"))
    (beside,) = (tmp_path / "folders/test/instructar").glob("*.tar")
    content = {"format": 1, "example": "example1", "files": "x", "without": [], "sample": 3}
    with open(beside, "wb") as file:
        write_tar(file, [("a", {"example.json": json.dumps(content | {"format": 9}).encode()})])
    with pytest.raises(UserError, match="no export of this program's format; remove the folder"):
        import_folders(str(tmp_path / "folders"), str(tmp_path / "back"))


def test_who_gives_folders_for_shards_is_told_what_to_do(tmp_path):
    write_example(tmp_path / "data/example1", 1)
    with pytest.raises(UserError, match=r"instructar import .*data --out .*data-shards, and give '.*train-\*\.tar'"):
        expand_shards(str(tmp_path / "data"))
    write_shard(tmp_path / "shards/train-0.tar", [make_sample(1)])
    with pytest.raises(UserError, match="is a folder, not a shard; give a glob"):
        expand_shards(str(tmp_path / "shards"))
