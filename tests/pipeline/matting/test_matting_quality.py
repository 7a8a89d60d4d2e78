"""A matte in numbers, the rules on them, and a person's corrections; the same for every matting backend."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

from data_schemas.io import pictures
from data_schemas.schema import validate
from pipeline.core.rules import decide, resolve_rules
from pipeline.core.stage import Sample
from pipeline.matting.grabcut import GrabCut
from pipeline.matting.matting import Matting, MattingConfig
from pipeline.matting.quality import holes_share, matte_numbers, overlap, soft_share

BOXES = [[0.1, 0.2, 0.45, 0.9], [0.55, 0.2, 0.9, 0.9]]


def disc(holes=0.0, level=1.0, size=100):
    """Alpha of a disc in each planned box, each with a hole of this share of its diameter."""
    picture = Image.new("F", (size, size), 0.0)
    draw = ImageDraw.Draw(picture)
    for left, top, right, bottom in BOXES:
        x, y, r = (left + right) / 2 * size, (top + bottom) / 2 * size, (right - left) / 2 * size
        draw.ellipse((x - r, y - r, x + r, y + r), fill=level)
        if holes:
            draw.ellipse((x - r * holes, y - r * holes, x + r * holes, y + r * holes), fill=0.0)
    return np.array(picture)


class Given(Matting):
    """The matte it was given, whatever the target."""

    alpha: np.ndarray
    calls = 0

    def mattes(self, samples, targets):
        type(self).calls += 1
        return [self.alpha for _ in samples]


def run(stage, target=None, review=None, truth=None):
    """(row, saved pictures) of one sample whose target is this picture."""
    target = target or Image.fromarray(np.random.default_rng(0).integers(40, 200, (100, 100, 3), np.uint8))
    files = {"target.png": pictures.encode_png(target)}
    if truth is not None:
        files["alpha_true.png"] = pictures.encode_png(truth)
    plan = {"box_0": BOXES[0], "box_1": BOXES[1]}
    sample = Sample("s", {"plan": plan}, {"synthesis": files}.__getitem__, {}.__getitem__, review)
    (row,), saved, _ = stage.run([sample], {})
    validate(stage.schema().table([row]), stage.schema(), "test")
    return row, {name: pictures.decode(data, name) for name, data in saved.get("s", {}).items()}


def given(alpha, config=None):
    stage = Given(config)
    stage.alpha = alpha
    return stage


def reasons(row):
    frames = {"matting": pd.DataFrame([row])}
    return decide(frames, resolve_rules([Given()], {}))[0]["reasons"]


def test_shares_by_hand():
    alpha = np.zeros((10, 10), np.float32)
    alpha[0:5, 0:4] = 1
    alpha[5, 0:4] = 0.5
    numbers = matte_numbers(alpha, [[0, 0, 0.4, 0.5], [0.5, 0.5, 1, 1]])
    assert numbers["area_share"] == 0.2, "half is not above the threshold of a half"
    assert matte_numbers(alpha, BOXES, threshold=0.4)["area_share"] == 0.24
    assert numbers["border_share"] == round((4 + 5) / 40, 6)
    assert numbers["components"] == 1
    assert (numbers["box_0_share"], numbers["box_1_share"], numbers["box_min_share"]) == (1.0, 0.0, 0.0)
    assert numbers["soft_share"] == round(4 / 24, 6)
    assert (numbers["holes_share"], numbers["alpha_max"]) == (0.0, 1.0)


def test_a_hole_is_what_the_foreground_encloses():
    solid = np.zeros((10, 10), bool)
    solid[2:8, 2:8] = True
    solid[4:6, 4:7] = False
    assert holes_share(solid) == 6 / 36
    solid[4, 7] = False  # now a bay, open to the outside
    assert holes_share(solid) == 0
    solid[:] = True
    assert holes_share(solid) == 0
    ring = np.zeros((10, 10), bool)
    ring[2:8, 2:8] = True
    ring[3:7, 3:7] = False
    ring[2, 2] = False  # touching corners close a ring
    assert holes_share(ring) == 16 / 35


def test_nothing_is_neither_soft_nor_holed_and_a_box_may_be_thin():
    numbers = matte_numbers(np.zeros((8, 8), np.float32), [[0, 0, 0.01, 1], [0, 0, 1, 1]])
    assert all(value == 0 for value in numbers.values())
    assert soft_share(np.full((4, 4), 0.3)) == 1


def test_overlap_by_hand():
    solid = np.zeros((10, 10), bool)
    solid[0:5, 0:4] = True
    assert overlap(solid, np.roll(solid, 2, axis=1)) == round(10 / 30, 6)
    assert overlap(solid & False, solid & False) == 1


def fragments():
    alpha = disc()
    alpha[::, 48:52] = 0
    alpha[80:, :] = 0
    for k in range(7):
        alpha[85:98, 2 + 14 * k : 12 + 14 * k] = 1
    return alpha


BAD = {
    "matte_empty": np.where(np.arange(10_000).reshape(100, 100) < 150, 1.0, disc() * 0.45),
    "matte_full": np.pad(np.ones((98, 98)), 1),
    "matte_uncertain": disc(level=0.45),
    "matte_soft": disc(level=0.6),
    "matte_holes": disc(holes=0.8),
    "matte_fragments": fragments(),
    "matte_box_empty": disc() * (np.arange(100) < 50),
}


@pytest.mark.parametrize("reason", BAD)
def test_each_kind_of_bad_matte_is_rejected_with_its_reason(reason):
    row, _ = run(given(BAD[reason].astype(np.float32)))
    assert reason in reasons(row)
    if reason in ("matte_full", "matte_soft", "matte_holes", "matte_fragments", "matte_box_empty"):
        assert reasons(row) == [reason], "and for nothing else"


def test_a_good_matte_breaks_no_rule():
    row, _ = run(given(disc()))
    assert reasons(row) == []
    assert set(BAD) == {rule.reason for rule in Matting.rules}


@pytest.mark.parametrize("target", ["black", "grey", "white"])
def test_an_empty_picture_does_not_pass_as_a_confident_one(target):
    row, _ = run(GrabCut(), Image.new("RGB", (100, 100), target))
    assert {"matte_empty", "matte_uncertain", "matte_box_empty"} <= set(reasons(row))


def test_what_is_saved():
    target = Image.new("RGB", (100, 100), (10, 200, 30))
    alpha = np.zeros((100, 100), np.float32)
    alpha[40:60, 40:60] = 1
    alpha[40:60, 60:64] = 0.3
    _, saved = run(given(alpha, MattingConfig(dilate=2)), target)
    assert np.array_equal(np.asarray(saved["alpha.png"]), (alpha * 255).round().astype(np.uint8))
    assert saved["foreground.png"].mode == "RGBA"
    assert saved["foreground.png"].getpixel((50, 50)) == (10, 200, 30, 255)
    assert saved["foreground.png"].getpixel((62, 50)) == (10, 200, 30, 76)
    hole = np.asarray(saved["background.png"]).max(2) == 0
    assert hole[38:62, 38:62].all(), "two pixels more on every side"
    assert hole.sum() == 24 * 24, "and the haze of 0.3 stays scene"


def test_the_truth_is_compared_where_the_synthesis_knows_it():
    assert run(given(disc()))[0]["true_iou"] is None
    truth = Image.fromarray((disc() * 255).astype(np.uint8))
    assert run(given(disc()), truth=truth)[0]["true_iou"] == 1


def test_a_reviewed_threshold_takes_the_place_of_the_configs():
    alpha = disc(level=0.6)
    untouched = {"alpha_threshold": None, "matte_png": None, "verdict": "kept"}
    assert run(given(alpha), review=untouched) == run(given(alpha))
    row, saved = run(given(alpha), review={"alpha_threshold": 0.7, "matte_png": None})
    assert row["area_share"] == 0
    assert np.asarray(saved["background.png"]).min() > 0, "nothing is blacked out"
    row, saved = run(given(alpha), review={"alpha_threshold": 0.0, "matte_png": None})
    assert row["area_share"] > 0.1


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_a_reviewed_matte_takes_the_place_of_the_models(mode):
    matte = Image.new("L", (50, 50), 0)
    matte.paste(255, (10, 10, 40, 40))
    picture = matte
    if mode == "RGBA":
        picture = Image.new("RGBA", (50, 50), "red")
        picture.putalpha(matte)
    calls = Given.calls
    row, saved = run(given(disc()), review={"alpha_threshold": None, "matte_png": pictures.encode_png(picture)})
    assert Given.calls == calls, "the model is not asked"
    assert saved["alpha.png"].size == (100, 100), "it is brought to the target's size"
    assert row["area_share"] == pytest.approx(0.36, abs=0.005)


def test_a_reviewed_matte_that_is_no_picture_fails_that_sample_alone():
    stage = given(disc())
    files = {"synthesis": {"target.png": pictures.encode_png(Image.new("RGB", (100, 100), "teal"))}}
    plan = {"plan": {"box_0": BOXES[0], "box_1": BOXES[1]}}
    stage.batch_size = 2
    reviews = [{"alpha_threshold": None, "matte_png": b"not a picture"}, None]
    samples = [Sample(f"s{k}", plan, files.__getitem__, {}.__getitem__, reviews[k]) for k in range(2)]
    calls = Given.calls
    rows, saved, _ = stage.run(samples, {})
    assert [row["status"] for row in rows] == ["error", "ok"]
    assert rows[0]["error_code"] == "bad_reviewed_matte"
    assert "reviewed matte" in rows[0]["error_message"]
    assert set(saved) == {"s1"}
    assert Given.calls == calls + 1, "the good one is not made twice"


def test_a_matte_of_no_numbers_is_an_error_and_not_a_score():
    row, saved = run(given(np.full((100, 100), np.nan, np.float32)))
    assert (row["status"], row["error_code"]) == ("error", "matte_not_finite")
    assert not saved
