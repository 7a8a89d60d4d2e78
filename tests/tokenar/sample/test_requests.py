"""What is asked for in folders, lists and shards: upright, distinct, and nothing waits for a pipe."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image
from small.run import in_process, make_sample, write_shard

from data_schemas.errors import UserError
from data_schemas.shards import encode_sample
from tokenar.sample.requests import from_folder, from_list, from_shards


def everything(requests):
    return [request for _, request in requests.read(lambda number: True)]


def picture(path, kind="PNG", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    half = Image.new("RGB", (64, 32), "blue")
    half.paste("red", (0, 0, 32, 32))
    half.save(path, kind, **options)


@pytest.fixture
def scene(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    folder = tmp_path / "scenes/one"
    picture(folder / "ref/1.jpg", "JPEG", exif=exif)
    picture(folder / "ref/2.gif", "GIF")
    Image.fromarray(np.full((8, 8), 257 * 90, np.uint16)).save(folder / "ref/3.tiff")
    (folder / "ref/._1.jpg").write_bytes(b"mac")
    (folder / "ref/.DS_Store").write_bytes(b"mac")
    picture(folder / "background.webp", "WEBP")
    (folder / "description.txt").write_bytes("a cat\n".encode("utf-16"))
    return folder


def test_a_folder_of_any_kinds_of_pictures(scene):
    (request,) = everything(from_folder(scene.parent))
    assert request.prompt == "a cat"
    assert [reference.size for reference in request.references] == [(32, 64), (64, 32), (8, 8)]
    assert request.references[2].getpixel((0, 0)) == (90, 90, 90)
    assert request.background.size == (64, 32)
    picture(scene / "background.png")
    Image.new("RGB", (9, 9)).save(scene / "background.jpg")
    assert everything(from_folder(scene))[0].background.size == (64, 32), "the PNG comes first"


@pytest.mark.parametrize("name", ["description.txt", "ref/1.jpg", "background.webp"])
def test_a_pipe_in_a_folder_is_refused_at_once(scene, name):
    (scene / name).unlink()
    os.mkfifo(scene / name)
    with pytest.raises(UserError, match=rf"{name}: is a pipe, socket or device, not a file"):
        everything(from_folder(scene))


def test_a_list_with_a_mark_of_its_encoding(scene):
    entry = {"references": ["ref/1.jpg"], "background": "background.webp", "prompt": "x"}
    (scene / "list.json").write_bytes(json.dumps([entry]).encode("utf-8-sig"))
    assert everything(from_list(scene / "list.json"))[0].references[0].size == (32, 64)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[" * 20_000, "recursion limit exceeded"),
        (b'[{"references": ["a"], "background": "b", "prompt": "x", "seed": ' + b"9" * 5000 + b"}]", "out of range"),
        (b'[{"references": ["a"], "background": "b", "prompt": "x", "seed": NaN}]', "seed"),
        (b"\xff\xfe\x00", "list.json"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, content, words):
    (tmp_path / "list.json").write_bytes(content)
    with pytest.raises(UserError, match=words) as told:
        from_list(tmp_path / "list.json")
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 1000


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "/dev/null", "/dev/zero"])
@pytest.mark.parametrize("read", [from_list, from_folder])
def test_paths_that_cannot_be(read, name):
    with pytest.raises(UserError):
        read(name)


def two_folders(path):
    """Two samples of one number in two folders of a shard."""
    with tarfile.open(path, "w") as tar:
        for number, folder in enumerate(("x", "y", "..")):
            for name, content in encode_sample(make_sample(number, "test", side=32)).items():
                entry = tarfile.TarInfo(f"{folder}/0001.{name}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return path


@pytest.mark.slow
def test_every_sample_has_a_picture_of_its_own_and_none_leaves_the_folder(trained, tmp_path):
    shard = two_folders(tmp_path / "a.tar")
    out = tmp_path / "deep/out"
    head = ("--model", trained / "model", "--shards", shard)
    assert in_process("sample", *head, "--out", out).returncode == 0
    drawn = {"x%2F0001.png", "y%2F0001.png", "%2E.%2F0001.png"}
    assert {path.name for path in out.iterdir()} == drawn | {"samples.json"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    assert [row["sample_id"] for row in json.loads((out / "samples.json").read_text())] == [
        "x/0001",
        "y/0001",
        "../0001",
    ]
    scored = in_process("eval", "--shards", shard, "--predictions", f"x={out}", "--out", tmp_path / "eval")
    assert scored.returncode == 0, scored.stderr
    seen = in_process("attention", *head, "--out", tmp_path / "attention", "--predictions", out)
    assert seen.returncode == 0, seen.stderr
    assert (tmp_path / "attention/samples/x%2F0001.safetensors").is_file()


def test_an_id_in_two_shards_is_one_line(tmp_path):
    write_shard(tmp_path / "a.tar", [make_sample(0, side=32), make_sample(1, side=32)])
    write_shard(tmp_path / "b.tar", [make_sample(1, side=32)])
    (tmp_path / "drawn").mkdir()
    for command in (("sample", "--model", tmp_path), ("eval", "--predictions", f"x={tmp_path}/drawn")):
        done = in_process(*command, "--shards", tmp_path / "*.tar", "--out", tmp_path / "out")
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert f"{tmp_path}/b.tar: sample train-0001 is there twice, in {tmp_path}/a.tar too" in done.stderr
    assert from_shards(str(tmp_path / "*.tar"), 2).sample_ids == ["train-0000", "train-0001"], (
        "the third is not asked for"
    )
