"""Encoded shards as files: what is written is read, and whatever is not whole is refused by name."""

import json
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest
import safetensors.torch
import torch
import webdataset as wds
from small.run import make_sample, write_shard

from data_schemas.errors import UserError
from tokenar.data import encoded_shards
from tokenar.data.encoded_shards import EncodedSample, EncodedShards, pad_text
from tokenar.data.shard_index import Fingerprints, Shapes, Source, is_encoded

ENCODERS = Fingerprints(tokenizer="a" * 64, text="b" * 64, teacher="c" * 64)
SHAPES = Shapes(image_tokens=16, vocabulary=65536, text_tokens=7, text_width=6, teacher=(9, 5))


def encoded(number: int, references: int = 2, length: int = 3, teacher: bool = True) -> EncodedSample:
    generator = torch.Generator().manual_seed(number)
    codes = torch.randint(65536, (references + 2, 16), generator=generator)
    codes[0, :4] = torch.tensor([0, 32767, 32768, 65535])
    text = torch.randn(length, 6, generator=generator).bfloat16().float()
    target = torch.randn(9, 5, generator=generator).bfloat16().float() if teacher else None
    return EncodedSample(f"sample-{number:03d}", codes, text, target)


def write(path, samples, encoders=ENCODERS, shapes=SHAPES):
    path.parent.mkdir(parents=True, exist_ok=True)
    source = Source(name=path.name, size=1, sha256="d" * 64)
    pairs = [(s, {"sample_id": s.sample_id, "prompt": f"prompt of {s.sample_id}"}) for s in samples]
    encoded_shards.write_shard(path, encoders, shapes, source, pairs)
    return path


@pytest.fixture
def shard(tmp_path):
    return write(tmp_path / "train-00000.tar", [encoded(i) for i in range(4)])


def same(found: EncodedSample, expected: EncodedSample) -> None:
    assert found.sample_id == expected.sample_id
    assert found.codes.dtype == torch.int64
    assert torch.equal(found.codes, expected.codes)
    assert found.text.dtype == torch.float32
    assert torch.equal(found.text, expected.text)
    if expected.teacher is None:
        assert found.teacher is None
    else:
        assert torch.equal(found.teacher, expected.teacher)


def test_what_is_written_is_read(tmp_path):
    kinds = [(1, 7), (2, 1), (3, 0), (8, 4), (2, 5)]
    samples = [encoded(i, references, length) for i, (references, length) in enumerate(kinds)]
    write(tmp_path / "train-00000.tar", samples[:2])
    write(tmp_path / "train-00001.tar", [])
    write(tmp_path / "train-00002.tar", samples[2:])
    write(tmp_path / "test-00000.tar", [encoded(9)])
    found = EncodedShards(str(tmp_path / "train-*.tar"))
    assert len(found) == 5
    assert found.references == [1, 2, 3, 8, 2]
    assert found.lengths == [7, 1, 0, 4, 5]
    assert found.sample_ids == [sample.sample_id for sample in samples]
    assert (found.encoders, found.shapes) == (ENCODERS, SHAPES)
    for i in (3, 0, 4, 1, 2, 0):
        same(found.read(i), samples[i])
    for number in (-1, 5):
        with pytest.raises(IndexError):
            found.read(number)


def test_without_a_teacher(tmp_path):
    shapes = SHAPES.model_copy(update={"teacher": None})
    sample = encoded(0, teacher=False)
    write(tmp_path / "a.tar", [sample], Fingerprints(tokenizer="a", text="b"), shapes)
    same(EncodedShards(str(tmp_path / "a.tar")).read(0), sample)


def test_types_on_disk_and_the_same_bytes_twice(shard, tmp_path):
    with tarfile.open(shard) as tar:
        names = tar.getnames()
        content = tar.extractfile("sample-001.safetensors").read()
    assert names[:3] == ["__shard__", "sample-000.json", "sample-000.safetensors"]
    stored = safetensors.torch.load(content)
    assert {name: tensor.dtype for name, tensor in stored.items()} == {
        "codes": torch.uint16, "text": torch.bfloat16, "teacher": torch.bfloat16,
    }  # fmt: skip
    again = write(tmp_path / "again" / shard.name, [encoded(i) for i in range(4)])
    assert again.read_bytes() == shard.read_bytes()
    assert sorted(path.name for path in again.parent.iterdir()) == [shard.name]


def test_webdataset_opens_them(shard):
    found = list(wds.WebDataset(str(shard), shardshuffle=False))
    assert [sample["__key__"] for sample in found] == [f"sample-{i:03d}" for i in range(4)]
    assert json.loads(found[2]["json"]) == {"sample_id": "sample-002", "prompt": "prompt of sample-002"}
    assert torch.equal(safetensors.torch.load(found[2]["safetensors"])["codes"].long(), encoded(2).codes)


def test_long_and_foreign_names(tmp_path):
    samples = [encoded(0), encoded(1)]
    samples[0].sample_id, samples[1].sample_id = "x" * 150, "Käse-寿司"
    found = EncodedShards(str(write(tmp_path / "a.tar", samples)))
    for i in range(2):
        same(found.read(i), samples[i])


def test_in_a_bucket(shard):
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/train-0.tar", shard.read_bytes())
    memory.pipe("/bucket/train-1.tar", write(shard.with_name("b.tar"), [encoded(8)]).read_bytes())
    try:
        found = EncodedShards("memory://bucket/train-*.tar")
        same(found.read(4), encoded(8))
        same(found.read(3), encoded(3))
        memory.rm("/bucket/train-1.tar")
        with pytest.raises(UserError, match=r"train-1\.tar: no such shard"):
            found.read(4)
    finally:
        memory.rm("/bucket", recursive=True)


def test_reading_from_many_threads(shard):
    found = EncodedShards(str(shard))
    numbers = [i % 4 for i in range(200)]
    with ThreadPoolExecutor(8) as pool:
        for number, sample in zip(numbers, pool.map(found.read, numbers), strict=True):
            same(sample, encoded(number))


# What is refused


def test_a_shard_that_vanishes(shard, tmp_path):
    other = write(tmp_path / "train-00001.tar", [encoded(5)])
    found = EncodedShards(str(tmp_path / "train-*.tar"))
    same(found.read(4), encoded(5))
    other.unlink()
    with pytest.raises(UserError, match=r"train-00001\.tar: no such shard; put it back"):
        found.read(4)
    same(found.read(1), encoded(1))


def test_a_shard_that_is_cut_short_while_reading(shard):
    found = EncodedShards(str(shard))
    with tarfile.open(shard) as tar:
        os.truncate(shard, tar.getmembers()[-1].offset_data + 50)
    with pytest.raises(UserError, match=r"train-00000\.tar: sample sample-003: .* cut short or damaged"):
        found.read(3)
    same(found.read(0), encoded(0))


@pytest.mark.parametrize("kept", [0, 100, 511])
def test_less_than_a_header(shard, kept):
    os.truncate(shard, kept)
    assert not is_encoded(str(shard))
    with pytest.raises(UserError, match=r"train-00000\.tar: holds no codes"):
        EncodedShards(str(shard))


@pytest.mark.parametrize("kept", [0.06, 0.1, 0.5, 0.9999])
def test_a_shard_cut_short(shard, kept):
    os.truncate(shard, int(shard.stat().st_size * kept))
    with pytest.raises(UserError, match=r"train-00000\.tar: the encoded shard is cut short or damaged"):
        EncodedShards(str(shard))


def test_raw_shards_hold_no_codes(tmp_path, shard):
    raw = write_shard(tmp_path / "raw.tar", [make_sample(0, side=16)])
    assert is_encoded(str(shard))
    assert not is_encoded(str(raw))
    with pytest.raises(UserError, match=r"raw\.tar: holds no codes, and there is no encoder .* tokenar-encode"):
        EncodedShards(str(raw))


def test_no_sample_at_all(tmp_path):
    with pytest.raises(UserError, match="hold no sample"):
        EncodedShards(str(write(tmp_path / "a.tar", [])))
    with pytest.raises(UserError, match="no shard matches"):
        EncodedShards(str(tmp_path / "none-*.tar"))


@pytest.mark.parametrize(("which", "first"), [("tokenizer", "a"), ("text", "b"), ("teacher", "c")])
def test_shards_of_different_encoders(shard, which, first):
    write(shard.with_name("train-00001.tar"), [encoded(5)], ENCODERS.model_copy(update={which: "9" * 64}))
    line = rf"train-00001\.tar: encoded with {which} 9{{12}}, .*train-00000\.tar with {first}{{12}};"
    with pytest.raises(UserError, match=line):
        EncodedShards(str(shard.with_name("train-*.tar")))


def test_shards_of_different_shapes(shard):
    write(shard.with_name("train-00001.tar"), [], shapes=SHAPES.model_copy(update={"image_tokens": 64}))
    with pytest.raises(UserError, match=r"train-00001\.tar: encoded with image_tokens 64, .* with 16"):
        EncodedShards(str(shard.with_name("train-*.tar")))


def test_shards_of_other_encoders_than_expected(shard):
    found = EncodedShards(str(shard))
    found.expect()
    found.expect(tokenizer="a" * 64, text="b" * 64, teacher="c" * 64)
    for which, kept in (("tokenizer", "a"), ("text", "b"), ("teacher", "c")):
        line = rf"train-00000\.tar: encoded with {which} {kept * 12}, this run takes 777777777777; encode"
        with pytest.raises(UserError, match=line):
            found.expect(**{which: "7" * 64})


def test_a_teacher_is_expected_and_there_was_none(tmp_path):
    shapes = SHAPES.model_copy(update={"teacher": None})
    shard = write(tmp_path / "a.tar", [encoded(0, teacher=False)], Fingerprints(tokenizer="a", text="b"), shapes)
    with pytest.raises(UserError, match="encoded with teacher None"):
        EncodedShards(str(shard)).expect(teacher="c" * 64)


def with_index(shard, change) -> None:
    """Put another index before the samples, with a header that fits it."""
    content = shard.read_bytes()
    old = tarfile.TarInfo.frombuf(content[:512], "utf-8", "strict").size
    index = json.loads(content[512 : 512 + old])
    change(index)
    new = json.dumps(index).encode()
    entry = tarfile.TarInfo("__shard__")
    entry.size = len(new)
    body = content[512 + -(-old // 512) * 512 :]
    shard.write_bytes(entry.tobuf() + new + bytes(-len(new) % 512) + body)


def test_an_index_written_by_another_hand_is_read(shard):
    with_index(shard, lambda index: None)
    same(EncodedShards(str(shard)).read(3), encoded(3))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("samples", 1, 1), 0), (("samples", 1, 1), 9), (("samples", 1, 2), 8), (("samples", 1, 2), -1),
        (("samples", 1, 3), -5), (("samples", 1, 3), 10**12), (("samples", 1, 4), 10**12), (("samples", 1, 4), 5000),
        (("samples", 1, 4), -1), (("size",), 10**15), (("format",), 2), (("shapes", "vocabulary"), 65537),
        (("shapes", "teacher"), [-9, 5]), (("encoders",), {}), (("samples",), "all"),
    ],
)  # fmt: skip
def test_an_index_that_cannot_be(shard, place, value):
    def change(index):
        for key in place[:-1]:
            index = index[key]
        index[place[-1]] = value

    with_index(shard, change)
    with pytest.raises(UserError, match=r"train-00000\.tar: the encoded shard is cut short or damaged"):
        EncodedShards(str(shard))


def test_an_index_too_large_is_not_read(shard, monkeypatch):
    entry = tarfile.TarInfo("__shard__")
    entry.size = 10**12
    content = bytearray(shard.read_bytes())
    content[:512] = entry.tobuf(tarfile.GNU_FORMAT)
    shard.write_bytes(content)
    read = []
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, at: (read.append(size), real(file, size, at))[1])
    with pytest.raises(UserError, match="an index of 1000000000000 bytes"):
        EncodedShards(str(shard))
    assert max(read) == 512


@pytest.mark.parametrize(("row", "value"), [(2, 2), (1, 1), (3, 1024)])
def test_an_index_that_does_not_fit_its_samples(shard, row, value):
    with_index(shard, lambda index: index["samples"][1].__setitem__(row, value))
    with pytest.raises(UserError, match=r"train-00000\.tar: sample sample-001: .* damaged"):
        EncodedShards(str(shard)).read(1)


def test_codes_beyond_the_vocabulary(shard):
    with_index(shard, lambda index: index["shapes"].update(vocabulary=65535))
    with pytest.raises(UserError, match=r"sample sample-002: .* damaged \(code 65535 of 65535\)"):
        EncodedShards(str(shard)).read(2)


@pytest.mark.parametrize("header", [b"\xff" * 8, (10**9).to_bytes(8, "little"), b"\x20" + bytes(7)])
def test_a_damaged_safetensors_header(shard, header):
    content = bytearray(shard.read_bytes())
    with tarfile.open(shard) as tar:
        at = tar.getmember("sample-000.safetensors").offset_data
    content[at : at + 8] = header
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"train-00000\.tar: sample sample-000: .* damaged"):
        EncodedShards(str(shard)).read(0)


def test_a_folder_in_place_of_a_shard(tmp_path):
    (tmp_path / "train-0.tar").mkdir()
    with pytest.raises(UserError, match=r"train-0\.tar: is a folder, not a shard"):
        EncodedShards(str(tmp_path / "train-*.tar"))


def test_a_pipe_in_place_of_a_shard_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "train-0.tar")
    with pytest.raises(UserError, match=r"train-0\.tar: is a pipe"):
        EncodedShards(str(tmp_path / "train-*.tar"))


# Padding


def test_texts_are_padded_with_zeros_and_a_mask():
    rows = [torch.ones(2, 3), torch.full((4, 3), 2.0), torch.ones(0, 3)]
    padded, mask = pad_text(rows, 5)
    assert padded.shape == (3, 5, 3)
    assert padded.sum((1, 2)).tolist() == [6, 24, 0]
    assert mask.tolist() == [[True, True, False, False, False], [True] * 4 + [False], [False] * 5]
    assert torch.equal(padded[mask], torch.cat(rows))
    with pytest.raises(UserError, match="takes 4 positions of text, the model has 3"):
        pad_text(rows, 3)
