"""tokenar-encode over what is there: it goes on, shares the work, makes again what changed, and refuses the rest."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import tarfile

import pytest
import torch
from paths import ROOT
from small.encoding import SIZE, contents, opened, settings
from small.run import make_sample, write_shard

from data_schemas.errors import UserError
from tokenar.data.encode import Encoders, encode_files, encode_shards, load_encoders
from tokenar.data.encoded_shards import EncodedShards

# Going on, and sharing the work

KILLED = """
import os, signal, sys
from tokenar.data import encode
config = encode.EncodeConfig.model_validate_json(sys.argv[1])
real, calls = encode.Encoders.encode, []
def encode_batch(self, samples):
    calls.append(1)
    if len(calls) == 3:  # two batches make the first shard: this is in the middle of the second
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, samples)
encode.Encoders.encode = encode_batch
encode.encode_shards(config)
"""


@pytest.mark.slow
def test_killed_and_gone_on_is_the_same_to_the_byte(raw, models, whole, tmp_path):
    out = tmp_path / "out"
    config = settings(raw, models, out)
    options = {"cwd": ROOT, "timeout": 120, "capture_output": True, "text": True}
    ended = subprocess.run([sys.executable, "-c", KILLED, config.model_dump_json()], **options)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert contents(out) == {"train-00000.tar": contents(whole)["train-00000.tar"]}
    left = out / ".train-00001.tar.4242.tmp"
    left.write_bytes(b"killed while it was copied")
    os.utime(left, (0, 0))
    before = (out / "train-00000.tar").stat().st_mtime_ns
    done = encode_shards(config)
    assert (done["encoded"], done["there"]) == (2, 1)
    assert contents(out) == contents(whole)
    assert (out / "train-00000.tar").stat().st_mtime_ns == before
    assert encode_shards(config)["encoded"] == 0


def test_several_processes_make_what_one_makes(raw, models, whole, tmp_path, monkeypatch):
    config = settings(raw, models, tmp_path / "out")
    monkeypatch.setenv("WORLD_SIZE", "2")
    made = []
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        made.append(encode_shards(config)["encoded"])
    assert made == [1, 2]
    assert contents(tmp_path / "out") == contents(whole)


def test_more_processes_than_shards(raw, models, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "7")
    done = encode_shards(settings(raw, models, tmp_path / "out"))
    assert (done["encoded"], done["samples"]) == (0, 0)


def test_a_raw_shard_that_changed_is_encoded_again(models, encoders, tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    out.mkdir()
    for name in ("a.tar", "b.tar"):
        write_shard(raw / name, [make_sample(0, side=32)])
    urls = [str(raw / "a.tar"), str(raw / "b.tar")]
    assert encode_files(urls, out, encoders)["encoded"] == 2
    write_shard(raw / "b.tar", [make_sample(1, side=32)])
    os.utime(raw / "a.tar")
    assert encode_files(urls, out, encoders)["encoded"] == 1
    assert EncodedShards(str(out / "*.tar")).sample_ids == ["train-0000", "train-0001"]


def test_a_damaged_encoded_shard_is_made_again(raw, models, whole, tmp_path):
    config = settings(raw, models, tmp_path / "out")
    encode_shards(config)
    shard = tmp_path / "out" / "train-00001.tar"
    os.truncate(shard, shard.stat().st_size - 100)
    assert encode_shards(config)["encoded"] == 1
    assert contents(tmp_path / "out") == contents(whole)


# What is refused


def test_other_encoders(raw, models, tmp_path):
    out = tmp_path / "out"
    encode_shards(settings(raw, models, out))
    before = contents(out)
    other = settings(raw, models, out, vq=str(models / "other.safetensors"))
    with pytest.raises(UserError, match=r"train-00000\.tar: encoded with another tokenizer; .* --overwrite"):
        encode_shards(other)
    with pytest.raises(UserError, match="encoded with another image_tokens"):
        encode_shards(settings(raw, models, out, image_size=SIZE // 2))
    with pytest.raises(UserError, match="encoded with another teacher"):
        encode_shards(settings(raw, models, out, teacher=None))
    assert contents(out) == before
    assert encode_shards(other, overwrite=True)["encoded"] == 3
    assert encode_shards(other)["encoded"] == 0
    assert opened(out).encoders.tokenizer == load_encoders(other, "cpu").tokenizer.fingerprint
    assert contents(out) != before


def test_raw_shards_are_never_written_over(raw, models):
    before = contents(raw)
    with pytest.raises(UserError, match=r"train-00000\.tar: is there and is no encoded shard; give another --out"):
        encode_shards(settings(raw, models, raw), overwrite=True)
    assert contents(raw) == before


def test_encoded_shards_are_not_encoded(whole, models, tmp_path):
    with pytest.raises(UserError, match=r"train-00000\.tar: is encoded already"):
        encode_shards(settings(whole, models, tmp_path / "out"))


def test_two_shards_of_one_name(models, tmp_path):
    for folder in ("a", "b"):
        write_shard(tmp_path / folder / "train-0.tar", [make_sample(0, side=32)])
    with pytest.raises(UserError, match=r"b/train-0\.tar: named like .*a/train-0\.tar"):
        encode_shards(settings(tmp_path, models, tmp_path / "out", shards=str(tmp_path / "*" / "train-*.tar")))


def test_a_broken_raw_shard_stops_the_work_and_what_is_done_stays(encoders, tmp_path):
    urls = [str(write_shard(tmp_path / f"{n}.tar", [make_sample(i, side=32) for i in range(3)])) for n in "abc"]
    with tarfile.open(urls[1]) as tar:
        os.truncate(urls[1], tar.getmembers()[-3].offset)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UserError, match=r"b\.tar: the tar is cut short or damaged"):
        encode_files(urls, out, encoders, batch=2)
    assert [path.name for path in out.iterdir()] == ["a.tar"]
    assert len(EncodedShards(str(out / "a.tar"))) == 3


def test_an_out_that_cannot_be(raw, models, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: cannot be made"):
        encode_shards(settings(raw, models, tmp_path / "file"))


def test_more_codes_than_a_shard_holds(encoders):
    class Wide:
        vocabulary = 65537

    with pytest.raises(UserError, match="the tokenizer has 65537 codes, shards hold up to 65536"):
        Encoders(Wide(), encoders.text)


def test_a_full_gpu(raw, encoders, tmp_path):
    class Full(Encoders):
        def encode(self, samples):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match="give a smaller --vq-batch or --batch"):
        encode_files([str(raw / "train-00000.tar")], tmp_path, Full(encoders.tokenizer, encoders.text))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_half(raw, encoders, tmp_path, monkeypatch):
    def full(source, target, length):
        target.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(UserError, match=r"train-00000\.tar: cannot be made from .* \(No space left on device\)"):
        encode_files([str(raw / "train-00000.tar")], tmp_path, encoders)
    assert list(tmp_path.iterdir()) == []


def test_shards_whose_raw_shard_is_gone_are_not_trained_on(raw, models, tmp_path):
    """Fewer shards were made by a second curation; training reads whatever the glob names."""
    here, out = tmp_path / "raw", tmp_path / "out"
    shutil.copytree(raw, here)
    config = settings(here, models, out)
    encode_shards(config)
    (out / "notes.tar").write_bytes(b"mine")
    before = contents(out)
    (here / "train-00002.tar").unlink()
    with pytest.raises(UserError, match=r"train-00002\.tar: one of 1 encoded shards whose raw shard is not there"):
        encode_shards(config)
    assert contents(out) == before
    encode_shards(config, overwrite=True)
    assert contents(out) == {name: content for name, content in before.items() if name != "train-00002.tar"}
    one = config.model_copy(update={"shards": str(here / "train-00000.tar")})
    assert encode_shards(one)["there"] == 1, "other shards are none of its business"
