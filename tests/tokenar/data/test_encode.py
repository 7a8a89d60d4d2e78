"""tokenar-encode on real raw shards with tiny encoders of the real classes."""

import json
import re

import pytest
import torch
import webdataset as wds
from small.encoding import SIZE, contents, opened, raw_samples, settings
from tiny.encoders import save_tiny_clip

from data_schemas.errors import UserError
from tokenar.data.encode import Encoders, encode_files, encode_shards
from tokenar.data.encoded_shards import pad_text
from tokenar.data.samples import as_float, encode_resized, read_resized
from tokenar.encoders.config import TeacherConfig
from tokenar.encoders.teacher import Teacher


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


@pytest.mark.slow
def test_both_teachers_stand_side_by_side(raw, models, tmp_path):
    save_tiny_clip(models / "clip")
    both = TeacherConfig(kind="both", model=str(models / "dinov2"), clip=str(models / "clip"))
    encode_shards(settings(raw, models, tmp_path / "out", teacher=both))
    samples = read_resized(str(raw / "train-*.tar"), SIZE, 3)
    expected = Teacher(both, dtype=torch.float32).encode(as_float(torch.stack([s.pixels[-1] for s in samples])))
    found = torch.stack([opened(tmp_path / "out").read(i).teacher for i in range(7)])
    assert found.shape == (7, 256 + 196, 24), "DINOv2's patches, then CLIP's"
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1)


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
