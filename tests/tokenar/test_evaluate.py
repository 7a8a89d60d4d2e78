"""Metrics with known answers, and the evaluation end to end."""

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from small_run import make_sample

from tokenar import metrics
from tokenar.config import SampleConfig
from tokenar.evaluate import evaluate


@pytest.fixture
def picture():
    return np.random.default_rng(0).random((16, 16, 3))


def test_equal_pictures(picture):
    assert metrics.mse(picture, picture) == 0
    assert metrics.psnr(picture, picture) == math.inf
    assert metrics.ssim(picture, picture) == pytest.approx(1.0)


def test_known_difference():
    black, grey = np.zeros((16, 16, 3)), np.full((16, 16, 3), 0.1)
    assert metrics.mse(black, grey) == pytest.approx(0.01)
    assert metrics.psnr(black, grey) == pytest.approx(20.0)


def test_a_changed_background_changes_background_figures_only(picture):
    mask = np.zeros((16, 16), bool)
    mask[:, :4] = True
    other = picture.copy()
    other[:, :4] = 1 - other[:, :4]
    assert metrics.mse(picture, other, ~mask) == 0
    assert metrics.psnr(picture, other, ~mask) == math.inf
    assert metrics.mse(picture, other, mask) == pytest.approx(4 * metrics.mse(picture, other))
    assert metrics.ssim(picture, other, mask) < metrics.ssim(picture, other, ~mask)


def test_an_empty_mask_has_no_figure(picture):
    nothing = np.zeros((16, 16), bool)
    assert math.isnan(metrics.mse(picture, picture, nothing))
    assert math.isnan(metrics.psnr(picture, picture, nothing))


def test_crop_by_fractions():
    picture = Image.new("RGB", (100, 50))
    assert metrics.crop(picture, [0.1, 0.2, 0.5, 1.0]).size == (40, 40)
    assert metrics.crop(picture, [1.0, 1.0, 1.0, 1.0]).size == (1, 1)


def test_identity_tells_subjects_apart():
    encoder = metrics.IdentityEncoder()
    sample = make_sample(0)
    regions = [metrics.crop(sample.target, box) for box in sample.info["boxes"]]
    (a, b), (c, d) = encoder.similarity(regions, sample.references)
    assert min(a, d) > max(b, c)


def test_the_true_pictures_get_full_marks(shards, tmp_path):
    from data_schemas.shards import read_shard

    for sample in read_shard(str(shards / "test-00000.tar")):
        sample.target.save(tmp_path / f"{sample.sample_id}.png")
    result = evaluate(None, str(shards / "test-*.tar"), tmp_path / "out", predictions=tmp_path, quiet=True)
    assert result["mse"] == 0
    assert result["ssim"] == pytest.approx(1)
    assert result["psnr"] is None
    assert result["identity"] == pytest.approx(result["identity_target"])
    assert result["identity"] > result["identity_wrong"]


def test_evaluation_writes_its_files(trained, shards, tmp_path):
    result = evaluate(trained / "model", str(shards / "test-*.tar"), tmp_path, config=SampleConfig(seed=3), quiet=True)
    assert json.loads((tmp_path / "metrics.json").read_text()) == result
    assert result["samples"] == 3
    assert result["seed"] == 3
    assert "torch" in result["versions"]
    table = pq.read_table(tmp_path / "per_sample.parquet").to_pandas()
    assert list(table.sample_id) == ["test-0000", "test-0001", "test-0002"]
    assert table.background_mse.mean() == pytest.approx(result["background_mse"])
    assert result["round_trip_mse"] > 0
    assert result["loss_target"] > 0
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 3
    assert len(list((tmp_path / "samples").glob("*.png"))) == 3
