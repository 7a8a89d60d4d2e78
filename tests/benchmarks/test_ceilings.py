"""The figures of benchmarks/ceilings.py where they are known: of the true picture, and of one without subjects."""

import sys
from functools import partial

import pytest
import torch
from paths import ROOT
from PIL import Image
from small.run import make_sample

from tokenar.evaluate.cache import Cache, CachedFeatures
from tokenar.evaluate.config import EvalConfig
from tokenar.evaluate.encoders import Encoders
from tokenar.evaluate.rows import Scorer

sys.path.insert(0, str(ROOT / "benchmarks"))
import ceilings


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    config = EvalConfig()
    features = CachedFeatures(Cache(tmp_path_factory.mktemp("features")))
    scorer = Scorer(config, Encoders(config, torch.device("cpu")), features)
    return partial(ceilings.measured, scorer, [make_sample(number) for number in range(3)], 96)


@pytest.mark.slow
def test_the_true_picture_goes_the_whole_way(measured):
    found = measured(partial(ceilings.shown, 96))
    assert found["way"] == 1.0
    assert found["identity"] == found["identity_target"] > found["identity_wrong"]


@pytest.mark.slow
def test_a_picture_without_subjects_goes_no_way(measured):
    found = measured(lambda item: Image.new("RGB", (96, 96), (128, 128, 128)))
    assert found["way"] < 0.2
    assert found["psnr_subjects"] < 20
