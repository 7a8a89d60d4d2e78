"""References shown as they are pasted, with the collage's own mattes and without judges: a run of seconds."""

import numpy as np
import pytest
from small.curation import small_config

from data_schemas.errors import UserError
from data_schemas.shards import expand_shards, read_shard
from pipeline.curate import curate
from pipeline.dataset.curated import open_run
from pipeline.report.results import write_results

STEP = 8
NONE = {"backend": "none"}
UNJUDGED = {
    "references": {"pool": "generated", "count": 16, "size": 64}, "samples": 12, "matting": {"backend": "pasted"},
    "semantics": NONE, "identity": NONE, "quality": NONE, "planning": {"test_share": 0.25, "close": True},
}  # fmt: skip


def made(root, **synthesis):
    settings = {"backend": "collage", "size": 64, "shown": "pasted", "shown_step": STEP, "fault_share": 0} | synthesis
    result = curate(small_config(root, **UNJUDGED, synthesis=settings))
    return result, write_results(result)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return made(tmp_path_factory.mktemp("shown"))


def samples(places):
    return [s for key in ("shards", "test_shards") for url in expand_shards(places[key]) for s in read_shard(url)]


def share_of_equal_pixels(shown, target):
    """Of a reference's solid pixels the share that the target shows too, at the best move by whole steps."""
    pixels, solid = np.asarray(shown.convert("RGB")), np.asarray(shown.getchannel("A")) == 255
    target, side, best = np.asarray(target), solid.shape[0], 0.0
    for down in range(-side + STEP, side, STEP):
        for right in range(-side + STEP, side, STEP):
            moved, where = (np.roll(a, (down, right), (0, 1)) for a in (pixels, solid))
            best = max(best, (moved == target).all(-1)[where].mean())
    return best


def test_the_picture_shows_what_the_references_show_whole_steps_away(run):
    found = samples(run[1])
    assert len(found) == 12
    for sample in found:
        shares = [share_of_equal_pixels(shown, sample.target) for shown in sample.references_rgba]
        assert max(shares) == 1.0, "nothing lies over the one in front"
        assert min(shares) > 0.3
        assert all(picture.size == (64, 64) for picture in sample.references)


def test_the_references_are_elsewhere(run):
    places = [[s.getchannel("A").getbbox() for s in sample.references_rgba] for sample in samples(run[1])]
    assert len({box for pair in places for box in pair}) > 12
    drawn = [(round(b[0] * 64), round(b[1] * 64)) for s in samples(run[1]) for b in s.info["boxes"]]
    shown = [box[:2] for pair in places for box in pair]
    assert sum(abs(x - a) + abs(y - b) < STEP for (x, y), (a, b) in zip(shown, drawn, strict=True)) < len(drawn) / 2


def test_mattes_are_exact_and_nothing_is_judged(run):
    result, _ = run
    manifest = open_run(result.run.config.run_url).manifest
    assert (manifest.true_iou > 0.999).all()
    assert not {"present_min", "similarity_min", "sharpness_min"} & set(manifest.columns)
    assert set(result.summaries) == {"references", "plan", "synthesis", "matting", "decide", "shards"}
    picture = open_run(result.run.config.run_url).picture(manifest.sample_id[0], "reference_0")
    assert picture is not None
    assert picture.size == (64, 64), "what the shard shows, not the pool's cut-out"


def test_both_subjects_fill_the_picture(run):
    for sample in samples(run[1]):
        (left, top), (right, bottom) = (f([b[k : k + 2] for b in sample.info["boxes"]], 0)
                                        for f, k in ((np.min, 0), (np.max, 2)))  # fmt: skip
        assert max(right - left, bottom - top) > 0.85


def test_references_of_a_spoiled_sample_are_not_spoiled(tmp_path):
    """The same plan, every sample with a fault: the references are shown as they should have been pasted."""
    clean, spoiled = made(tmp_path / "a")[0], made(tmp_path / "b", fault_share=1)[0]
    one, other = open_run(clean.run.config.run_url), open_run(spoiled.run.config.run_url)
    assert (other.manifest.planted_fault != "none").all()
    for sample_id in one.manifest.sample_id:
        for name in ("reference_0", "reference_1"):
            assert one.picture(sample_id, name) == other.picture(sample_id, name)


def test_only_a_collage_has_its_own_matte(tmp_path):
    from pipeline.core.stage import Sample
    from pipeline.matting.pasted import pasted_matte

    with pytest.raises(Exception, match="only a collage knows its matte"):
        pasted_matte(Sample("a", {}, lambda stage: {}, lambda reference: b""))
    with pytest.raises(UserError, match="matting"):
        small_config(tmp_path, matting=None)
