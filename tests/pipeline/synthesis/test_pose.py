"""Poses of a collage: letters stay readable, what stands stays upright, a strength of 0 bends nothing."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.synthesis.collage import drawing_order
from pipeline.synthesis.pose import Pose, anchor, draw_pose, posed, stands

PLAN = {
    "box_0": [0.1, 0.2, 0.5, 0.9], "box_1": [0.45, 0.2, 0.9, 0.9], "turn_0": 0.0, "turn_1": 17.0, "mirror_0": False,
    "mirror_1": True,
}  # fmt: skip
STILL = Pose(False, 0.0, 0.0, 0.0, 0.0, 0.0, (0.5, 1.0))


def disc(size=(80, 60)):
    picture = Image.new("RGBA", size)
    ImageDraw.Draw(picture).ellipse((0, 0, size[0] - 1, size[1] - 1), fill=(200, 30, 30, 255))
    ImageDraw.Draw(picture).rectangle((8, 24, 30, 36), fill=(30, 30, 200, 255))
    return picture


def poses(index, strength, count=200):
    return [draw_pose(PLAN, index, strength, np.random.default_rng(k)) for k in range(count)]


def test_only_what_may_be_mirrored_is():
    assert not any(pose.mirrored for pose in poses(0, 0.5))
    assert 60 < sum(pose.mirrored for pose in poses(1, 0.5)) < 140


def test_the_strength_bounds_the_pose():
    for pose in poses(0, 0.0):
        assert abs(pose.turn) <= 7
        assert (pose.free, pose.shear, pose.narrowing, pose.receding) == (0, 0, 0, 0)
    strong = poses(0, 1.0)
    assert max(abs(pose.turn + pose.free) for pose in strong) > 20
    assert 0.2 < max(abs(pose.shear) for pose in strong) <= 0.24
    assert all(abs(pose.turn - 17) <= 3 and pose.free == 0 for pose in poses(1, 1.0)), "a relation's turn is kept"


def test_the_same_pose_gives_the_same_pixels_and_no_pose_gives_the_cut_out():
    pose = poses(0, 1.0)[3]
    assert posed(disc(), pose).tobytes() == posed(disc(), pose).tobytes()
    still = np.asarray(posed(disc(), STILL), int)
    assert np.abs(still - np.asarray(disc(), int)).max() <= 1


def test_a_turn_is_counter_clockwise():
    turned = np.asarray(posed(disc(), Pose(False, 90.0, 0.0, 0.0, 0.0, 0.0, (0.5, 1.0))))
    assert turned.shape[:2] == (80, 60)
    blue = np.argwhere(turned[..., 2] > 150).mean(0)
    assert blue[0] > 45, "what was left is now below"


def test_what_stands_on_a_flat_base_is_not_turned_freely():
    box = Image.new("RGBA", (50, 50), (90, 90, 90, 255))
    free = Pose(False, 0.0, 25.0, 0.0, 0.0, 0.0, (0.5, 1.0))
    assert stands(box)
    assert not stands(disc())
    assert posed(box, free).size == (50, 50)
    assert posed(disc((60, 60)), free).size > (60, 60)


@pytest.mark.parametrize(
    ("box", "other", "expected"),
    [
        ((0.1, 0.2, 0.5, 0.9), (0.45, 0.2, 0.9, 0.9), (1.0, 1.0)),
        ((0.45, 0.2, 0.9, 0.9), (0.1, 0.2, 0.5, 0.9), (0.0, 1.0)),
        ((0.1, 0.2, 0.4, 0.9), (0.6, 0.2, 0.9, 0.9), (0.5, 1.0)),
        ((0.3, 0.5, 0.7, 0.9), (0.35, 0.1, 0.65, 0.6), (0.5, 0.0)),
        ((0.35, 0.1, 0.65, 0.6), (0.3, 0.5, 0.7, 0.9), (0.5, 1.0)),
    ],
)
def test_subjects_whose_boxes_touch_stand_at_each_other(box, other, expected):
    assert anchor(box, other) == expected


def test_the_front_subject_is_pasted_last():
    rng = np.random.default_rng(0)
    assert [drawing_order(k, rng)[-1] for k in (0, 1)] == [0, 1]
    assert {tuple(drawing_order(None, rng)) for _ in range(20)} == {(0, 1), (1, 0)}
