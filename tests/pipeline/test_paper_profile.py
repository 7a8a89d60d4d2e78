"""The paper profile as a whole: the true classes of every stage on small random weights, cached and re-run."""

import json

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from doubles.openai_server import Reply, lists, serve
from judged import GOOD, MODEL
from PIL import Image
from safetensors.torch import save_file
from skimage import data as photos
from small.curation import made
from tiny.ben2_weights import draw_weights
from tiny.sdxl import lay_out, needs_tiny
from tiny.vlm import save_tiny_gemma

from data_schemas.errors import UserError
from pipeline.config import CurationConfig
from pipeline.curate import curate
from pipeline.dataset.picture_reader import PictureReader
from pipeline.matting.ben2_network import Ben2Network
from pipeline.report.results import write_results

ENCODER = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
SUBJECTS = {"cat": "chelsea", "person": "astronaut", "drink": "coffee", "vehicle": "rocket"}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Small random weights of every model and a pool, where a download would have put the real ones."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    save_file(draw_weights(Ben2Network(), 401).state_dict(), root / "ben2.safetensors")
    (root / "encoder").mkdir()
    save_file(timm.create_model(ENCODER).state_dict(), root / "encoder" / "model.safetensors")
    save_tiny_gemma(root / "gemma")
    for category, name in SUBJECTS.items():
        (root / "pool" / category).mkdir(parents=True)
        picture = Image.fromarray(getattr(photos, name)())
        picture.thumbnail((200, 200))
        picture.save(root / "pool" / category / f"{name}.png")
    return root


def settings(published, folder, judge):
    """What a user would set to run the profile on weights of their own."""
    small = {
        "root": str(folder), "name": "tiny", "samples": 4, "part_size": 2, "workers": 2,
        "planning": {"test_share": 0, "relations": ["hug", "fence"]},
        "references": {"pool": [{"preset": "relationbench", "source": str(published / "pool")}], "size": 64},
        "synthesis": lay_out(folder / "sdxl") | {"loras": {"hug": "newer.safetensors"}},
        "matting": {"source": str(published / "ben2.safetensors"), "side": 128, "device": "cpu"},
        "semantics": judge,
        "identity": {"encoder": ENCODER, "source": str(published / "encoder"), "device": "cpu"},
        "decide": {"thresholds": {"identity_low": -1, "identity_swapped": -2, "identity_copied": 1,
                                  "matte_soft": 1, "matte_holes": 1, "matte_uncertain": 0, "matte_full": 1,
                                  "subject_incomplete": -1, "colours_differ": 60, "subject_extra": 2,
                                  "foreground_outside": 1, "subject_blurred": -9}},
    }  # fmt: skip
    (folder / "mine.yaml").write_text(json.dumps(small))
    return CurationConfig.load("paper", str(folder / "mine.yaml"))


def changed(config, **sections):
    return CurationConfig.parse({**config.model_dump(mode="json"), **sections}, "test")


@needs_tiny
@pytest.mark.slow
@pytest.mark.long
def test_every_stage_runs_its_true_classes_and_is_cached_like_the_embedded_ones(published, tmp_path):
    with serve(lambda body, number: Reply(GOOD), lists(MODEL)) as server:
        config = settings(published, tmp_path, {"backend": "openai", "base_url": server.url})
        first = curate(config)
        asked = len(server.asked)
    manifest = pd.read_parquet(first.manifest_url)
    assert asked == 4
    assert list(manifest.error_message.dropna()) == []
    assert set(manifest.colours_natural) == {1.0}
    assert manifest.true_iou.isna().all(), "nobody knows the true matte of a generated picture"
    assert set(manifest.decision) <= {"kept", "rejected"}
    assert (manifest.decision == "kept").any(), manifest[["decision", "reasons"]]
    reader = PictureReader(first.run, first.pool_digest)
    kept = manifest[manifest.decision == "kept"].sample_id.iloc[0]
    assert reader.picture(kept, "target").size == (64, 64)
    assert np.asarray(reader.picture(kept, "alpha")).std() > 0
    report = open(write_results(first)["report"]).read()
    assert "No faults were planted" in report

    assert made(curate(config)) == set(), "the second time nothing is made, though the judge's server is gone"
    other_crops = {"identity": {**config.identity.model_dump(), "padding": 0.3}}
    assert made(curate(changed(config, **other_crops))) == {"identity", "decide", "shards"}

    gemma = {"backend": "transformers", "model": str(published / "gemma"), "device": "cpu",
             "precision": "float32", "max_tokens": 8, "attempts": 1, "image_side": 128}  # fmt: skip
    babbling = curate(changed(config, semantics=gemma))
    assert made(babbling) == {"semantics", "decide"}
    rows = pd.read_parquet(babbling.manifest_url)
    outcome = dict(zip(manifest.decision, rows.decision, strict=True))
    assert outcome["kept"] == "undecided", "what cannot be read is neither a pass nor a silent reject"
    assert rows.raw_text.str.len().gt(0).all()


def test_missing_weights_are_all_named_before_any_work(tmp_path):
    config = CurationConfig.load("paper", overrides=[f"root={tmp_path}", "references.pool=packaged"])
    with pytest.raises(UserError) as caught:
        curate(config)
    line = str(caught.value)
    assert "\n" not in line
    for name in (
        "stabilityai/stable-diffusion-xl-base-1.0", "laion/CLIP-ViT-bigG-14", "doge1516/MS-Diffusion",
        "QingyuShi/DreamRelation", "PramaLLC/BEN2", "google/gemma-3n-E4B-it", "timm/vit_base_patch14_dinov2.lvd142m",
    ):  # fmt: skip
        assert name in line
    assert list(tmp_path.iterdir()) == []
