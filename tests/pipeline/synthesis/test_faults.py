"""Planted faults by hand, on drawn pictures: each is what its name says, and can be seen."""

from typing import get_args

import numpy as np
import pytest
from PIL import Image

from data_schemas.tables import FAULTS
from pipeline.synthesis.faults import (
    HIDDEN_SHARE,
    KINDS,
    Fault,
    choose_fault,
    free_box,
    hide,
    spoil_cutout,
    spoil_picture,
    visible_fault,
)


def disc(colour=(200, 40, 40), side=64):
    rows, columns = np.indices((side, side)) - (side - 1) / 2
    alpha = np.where(np.hypot(rows, columns) < side * 0.4, 255, 0)
    return Image.fromarray(np.dstack([np.full((side, side, 3), colour), alpha]).astype(np.uint8), "RGBA")


def noise(side=64):
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3)).astype(np.uint8))


def test_the_table_knows_every_kind():
    assert ("none", *get_args(Fault)) == FAULTS


def test_every_kind_is_equally_likely_and_only_the_asked_ones_are_planted():
    rng = np.random.default_rng(0)
    drawn = [choose_fault(k, rng, 1.0)[0] for k in range(2200)]
    assert min(drawn.count(kind) for kind in KINDS) > 150
    assert {choose_fault(k, rng, 1.0, ["hue", "jpeg"])[0] for k in range(50)} == {"hue", "jpeg"}


def test_faults_of_the_whole_picture_hit_no_subject():
    rng = np.random.default_rng(1)
    for kind in ("colour", "jpeg", "third"):
        assert {choose_fault(k, rng, 1.0, [kind])[1] for k in range(20)} == {None}
    assert {choose_fault(k, rng, 1.0, ["blurred"])[1] for k in range(60)} == {None, 0, 1}
    assert {choose_fault(k, rng, 1.0, ["hidden"])[1] for k in range(60)} == {0, 1}


def test_a_fault_that_could_not_be_seen_is_replaced_by_one_that_can():
    grey, red = disc((90, 90, 90)), disc()
    assert visible_fault("hue", 0, [red, grey], True) == ("hue", 0)
    assert visible_fault("hue", 1, [red, grey], True) == ("hue", 0)
    assert visible_fault("hue", 1, [grey, grey], True) == ("inverted", 1)
    assert visible_fault("third", None, [red, red], False) == ("duplicated", 0)
    assert visible_fault("replaced", 1, [red, red], False) == ("swapped", 1)
    assert visible_fault("third", None, [red, red], True) == ("third", None)


def test_a_hue_turns_by_a_third_of_the_circle_and_inverted_is_the_complement():
    assert spoil_cutout(disc((200, 40, 40)), "hue").getpixel((32, 32)) == pytest.approx((40, 200, 40, 255), abs=3)
    assert spoil_cutout(disc((200, 40, 40)), "inverted").getpixel((32, 32)) == (55, 215, 215, 255)
    assert spoil_cutout(disc(), "missing").tobytes() == disc().tobytes()


def test_a_blurred_cutout_keeps_its_outline_and_no_colour_shines_in():
    spoiled = spoil_cutout(disc(), "blurred")
    assert spoiled.getchannel("A").tobytes() == disc().getchannel("A").tobytes()
    inside = np.asarray(spoiled)[np.asarray(disc().getchannel("A")) > 0]
    assert np.abs(inside[:, :3].astype(int) - (200, 40, 40)).max() <= 3


@pytest.mark.parametrize("seed", range(5))
def test_four_fifths_of_a_subject_are_hidden(seed):
    layer, rng = disc(), np.random.default_rng(seed)
    total = np.asarray(layer.getchannel("A"), float).sum()
    left = np.asarray(hide(layer, None, rng).getchannel("A"), float).sum()
    assert left / total == pytest.approx(1 - HIDDEN_SHARE, abs=0.03)
    cover = Image.new("L", layer.size, 0)
    cover.paste(255, (0, 0, 32, 64))  # the other subject lies over the left half
    shown = np.asarray(hide(layer, cover, rng).getchannel("A"), float)[:, 32:].sum()
    assert shown / total == pytest.approx(1 - HIDDEN_SHARE, abs=0.03)


def test_an_extra_subject_goes_where_nothing_lies():
    covered = np.zeros((100, 100), np.float32)
    covered[:, :55] = 1
    left, top, right, bottom = free_box(covered, np.random.default_rng(0))
    assert left > 0.5
    assert 0 <= top < bottom <= 1
    assert right <= 1


def test_a_bad_jpeg_and_a_blur_change_the_picture_and_other_faults_do_not():
    picture, rng = noise(), np.random.default_rng(0)
    detail = {kind: np.abs(np.diff(np.asarray(spoil_picture(picture, kind, rng), float), axis=1)).mean()
              for kind in ("none", "jpeg", "blurred", "hidden")}  # fmt: skip
    assert detail["none"] == detail["hidden"]
    assert detail["jpeg"] < 0.7 * detail["none"]
    assert detail["blurred"] < 0.6 * detail["none"]
