"""tokenar-encode on real raw shards with tiny encoders of the real classes."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
import webdataset as wds
from paths import ROOT
from safetensors.torch import save_file
from small.run import make_sample, write_shard
from tiny.encoders import TINY_VQ, save_tiny_dinov2, save_tiny_t5, tiny_vq

from data_schemas.errors import UserError
from data_schemas.shards import read_shard
from tokenar.data.encode import EncodeConfig, Encoders, encode_files, encode_shards, load_encoders
from tokenar.data.encoded_shards import EncodedShards, pad_text
from tokenar.data.samples import as_float, encode_resized, read_resized
from tokenar.encoders.config import T5Config, TeacherConfig

SIZE = 16
"""Pixels a side; with two of them a token, 64 tokens an image."""


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """Three raw shards: 3 samples of one reference, 2 of two, 2 of three."""
    folder = tmp_path_factory.mktemp("raw")
    for number, (count, references) in enumerate([(3, 1), (2, 2), (2, 3)]):
        samples = [make_sample(10 * number + i, side=32, references=references) for i in range(count)]
        write_shard(folder / f"train-{number:05d}.tar", samples)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder with vq.safetensors, other.safetensors (another VQ), t5 and dinov2."""
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("vq", 0), ("other", 1)):
        save_file({k: v.contiguous() for k, v in tiny_vq(seed).state_dict().items()}, folder / f"{name}.safetensors")
    save_tiny_t5(folder / "t5")
    save_tiny_dinov2(folder / "dinov2")
    return folder


def settings(raw, models, out, **changes) -> EncodeConfig:
    values = {
        "shards": str(raw / "train-*.tar"), "out": str(out), "vq": str(models / "vq.safetensors"),
        "vq_config": TINY_VQ, "image_size": SIZE, "text": T5Config(model=str(models / "t5"), tokens=40),
        "teacher": TeacherConfig(model=str(models / "dinov2")), "batch": 2, "threads": 2,
    }  # fmt: skip
    return EncodeConfig.model_validate(values | changes)


@pytest.fixture(scope="module")
def encoders(raw, models) -> Encoders:
    return load_encoders(settings(raw, models, "unused"), "cpu")


@pytest.fixture(scope="module")
def whole(raw, models, tmp_path_factory) -> Path:
    """The folder that one uninterrupted process makes."""
    out = tmp_path_factory.mktemp("whole") / "encoded"
    done = encode_shards(settings(raw, models, out))
    assert {key: done[key] for key in ("encoded", "there", "samples")} == {"encoded": 3, "there": 0, "samples": 7}
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def opened(folder: Path) -> EncodedShards:
    return EncodedShards(str(folder / "train-*.tar"))


def raw_samples(raw: Path) -> list:
    return [sample for path in sorted(raw.glob("*.tar")) for sample in read_shard(str(path))]


# What is inside


def test_one_shard_for_each_raw_one(raw, whole, encoders):
    assert list(contents(whole)) == [path.name for path in sorted(raw.iterdir())]
    found = opened(whole)
    assert found.sample_ids == [sample.sample_id for sample in raw_samples(raw)]
    assert found.references == [1, 1, 1, 2, 2, 3, 3]
    assert found.encoders == encoders.fingerprints()
    found.expect(
        tokenizer=encoders.tokenizer.fingerprint, text=encoders.text.fingerprint, teacher=encoders.teacher.fingerprint
    )
    assert found.shapes == encoders.shapes()
    assert found.shapes.model_dump() == {
        "image_tokens": 64, "vocabulary": 64, "text_tokens": 40, "text_width": 16, "teacher": (256, 24),
    }  # fmt: skip


def margin(encoders: Encoders, pixels: torch.Tensor) -> float:
    """The smallest lead in cosine of a chosen code over the next best one."""
    network = encoders.tokenizer.network
    latents = torch.nn.functional.normalize(network.latents(as_float(pixels)).flatten(2).transpose(1, 2), dim=-1)
    best = (latents @ network.quantize.unit_codes().T).topk(2).values
    return float((best[..., 0] - best[..., 1]).min())


@torch.no_grad()
def test_codes_are_those_of_encoding_on_the_fly(raw, whole, encoders):
    samples = read_resized(str(raw / "train-*.tar"), SIZE, 3)
    assert min(margin(encoders, sample.pixels) for sample in samples) > 1e-6  # or rounding could choose
    on_the_fly = encode_resized(samples, encoders.tokenizer, encoders.text)
    found = opened(whole)
    for i, expected in enumerate(on_the_fly):
        sample = found.read(i)
        assert torch.equal(sample.codes[:-1], expected.sources)
        assert torch.equal(sample.codes[-1], expected.picture)
        assert sample.references == expected.references
    assert len(torch.cat([found.read(i).codes for i in range(7)]).unique()) > 5


@pytest.mark.parametrize("changes", [{"batch": 1}, {"batch": 7, "vq_batch": 3}, {"threads": 1, "vq_batch": 1}])
def test_codes_do_not_depend_on_the_batch(raw, models, whole, tmp_path, changes):
    encode_shards(settings(raw, models, tmp_path / "out", **changes))
    found, expected = opened(tmp_path / "out"), opened(whole)
    for i in range(7):
        here, there = found.read(i), expected.read(i)
        assert torch.equal(here.codes, there.codes)
        torch.testing.assert_close(here.text, there.text, rtol=0, atol=0.05)
        torch.testing.assert_close(here.teacher, there.teacher, rtol=0, atol=0.1)


def test_text_is_stored_without_its_padding(raw, whole, encoders):
    samples = raw_samples(raw)
    found = opened(whole)
    features, mask = encoders.text.encode_with_mask([sample.prompt for sample in samples])
    assert found.lengths == mask.sum(1).tolist()
    assert 1 < min(found.lengths) < max(found.lengths) <= 40
    rows = [found.read(i).text for i in range(7)]
    padded, again = pad_text(rows, 40)
    assert torch.equal(again, mask)
    torch.testing.assert_close(padded[mask], features.float()[mask], rtol=0, atol=0.05)
    assert padded[~mask].abs().max() == 0
    for row in rows:
        assert torch.equal(row, row.bfloat16().float())


def test_what_stands_at_padding_can_be_kept(raw, models, whole, encoders, tmp_path):
    encode_shards(settings(raw, models, tmp_path / "out", keep_padding=True))
    found, without = opened(tmp_path / "out"), opened(whole)
    assert found.lengths == [40] * 7
    sample, short = found.read(0), without.read(0)
    assert torch.equal(sample.text[: len(short.text)], short.text)
    assert sample.text[len(short.text) :].abs().max() > 0.01
    with pytest.raises(UserError, match="encoded with text"):
        found.expect(text=encoders.text.fingerprint)


def test_teacher_sees_the_target(raw, whole, encoders):
    samples = read_resized(str(raw / "train-*.tar"), SIZE, 3)
    expected = encoders.teacher.encode(as_float(torch.stack([sample.pixels[-1] for sample in samples])))
    found = torch.stack([opened(whole).read(i).teacher for i in range(7)])
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1)
    assert (found[0] - expected[1]).abs().mean() > 10 * (found[0] - expected[0]).abs().mean()


def test_without_a_teacher(raw, models, whole, tmp_path):
    encode_shards(settings(raw, models, tmp_path / "out", teacher=None))
    found = opened(tmp_path / "out")
    assert found.encoders.teacher is None
    assert found.read(6).teacher is None
    assert torch.equal(found.read(6).codes, opened(whole).read(6).codes)


def test_webdataset_finds_what_the_raw_shard_says(raw, whole):
    urls = [str(path) for path in sorted(whole.iterdir())]
    found = list(wds.WebDataset(urls, shardshuffle=False))
    for sample, expected in zip(found, raw_samples(raw), strict=True):
        assert sample["__key__"] == expected.sample_id
        info = json.loads(sample["json"])
        assert (info["prompt"], info["split"], info["subjects"]) == (
            expected.prompt, "train", expected.info["subjects"],
        )  # fmt: skip
        assert info["references"] == len(expected.references)


def test_progress_tells_rate_and_time_left(raw, encoders, tmp_path, capsys):
    encode_files([str(raw / "train-00000.tar")], tmp_path, encoders)
    assert re.search(r"^encode, megabytes read 1/1 .* left$", capsys.readouterr().err, re.M)
    encode_files([str(raw / "train-00001.tar")], tmp_path, encoders, show=False)
    assert capsys.readouterr().err == ""


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
    with pytest.raises(UserError, match=r"b\.tar: the shard is cut short or damaged"):
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
