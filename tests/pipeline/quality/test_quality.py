"""The scores of stage quality by hand, and that each fault moves its own score on real photographs."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps
from skimage import data as photos

from pipeline.core.stage import Sample
from pipeline.quality import correspondence
from pipeline.quality.artefacts import blockiness, sharpness
from pipeline.quality.correspondence import Cells, box_cells, compare_region, likeness_outside
from pipeline.quality.stage import Quality, outside_share, relative_sharpness
from pipeline.synthesis.collage import paste, place
from pipeline.synthesis.faults import spoil_cutout
from pipeline.synthesis.pose import Pose

BOXES = ([0.05, 0.4, 0.45, 0.95], [0.55, 0.4, 0.95, 0.95])


def encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def oval(name: str) -> Image.Image:
    """An oval out of the middle of a photograph, RGBA."""
    photo = ImageOps.fit(Image.fromarray(getattr(photos, name)()).convert("RGB"), (200, 220))
    rows, columns = np.indices((220, 200))
    alpha = np.hypot((rows - 110) / 108, (columns - 100) / 98) < 1
    photo.putalpha(Image.fromarray((alpha * 255).astype(np.uint8)))
    return photo


CUTOUTS = {"cat": oval("chelsea"), "cup": oval("coffee")}
GRASS = ImageOps.fit(Image.fromarray(photos.grass()).convert("RGB"), (256, 256))


def scores(cutouts=CUTOUTS, extra=(), spoil=lambda picture: picture) -> dict:
    """The scores of a picture with the cut-outs in BOXES and ``extra`` (cut-out, box), compared with CUTOUTS."""
    picture, matte = GRASS, np.zeros((256, 256), np.uint8)
    for cutout, box in [*zip(cutouts.values(), BOXES, strict=True), *extra]:
        layer = place(cutout, box, 256, Pose(True, 4.0, 0.0, 0.0, 0.0, 0.0, (0.5, 1.0)))
        picture = paste(picture, layer)
        matte = np.maximum(matte, np.asarray(layer.getchannel("A")))
    files = {
        "synthesis": {"target.png": encoded(spoil(picture))},
        "matting": {"alpha.png": encoded(Image.fromarray(matte))},
    }
    plan = {"box_0": BOXES[0], "box_1": BOXES[1], "reference_0_id": "cat", "reference_1_id": "cup"}
    references = {name: encoded(cutout) for name, cutout in CUTOUTS.items()}
    rows, _, _ = Quality().run([Sample("s", {"plan": plan}, files.__getitem__, references.__getitem__)], {})
    assert rows[0]["status"] == "ok", rows[0]["error_message"]
    return rows[0]


@pytest.fixture(scope="module")
def clean():
    return scores()


def broken(row: dict) -> set[str]:
    return {
        rule.reason for rule in Quality.rules
        if (row[rule.column] < rule.threshold if rule.bound == "min" else row[rule.column] > rule.threshold)
    }  # fmt: skip


def test_a_clean_picture_breaks_no_rule(clean):
    assert broken(clean) == set()
    assert clean["outside_share"] == 0


@pytest.mark.parametrize("fault", ["hue", "inverted"])
def test_other_colours_are_seen_in_the_subject_that_has_them(clean, fault):
    row = scores({**CUTOUTS, "cup": spoil_cutout(CUTOUTS["cup"], fault)})
    assert "colours_differ" in broken(row)
    assert row["colour_difference_1"] > 2 * clean["colour_difference_1"]
    assert row["colour_difference_0"] == pytest.approx(clean["colour_difference_0"], abs=2)


def test_another_subject_in_its_place_is_not_found(clean):
    row = scores({**CUTOUTS, "cat": oval("astronaut")})
    assert "subject_incomplete" in broken(row)
    assert row["found_0"] < clean["found_0"] - 0.15


@pytest.mark.parametrize("extra", ["cat", "astronaut"])
def test_one_subject_more_is_seen_whether_it_is_known_or_not(clean, extra):
    more = CUTOUTS["cat"] if extra == "cat" else oval("astronaut")
    row = scores(extra=[(more, [0.3, 0.02, 0.6, 0.36])])
    assert "subject_extra" in broken(row)
    assert row["likeness_outside"] > clean["likeness_outside"] + 0.2
    assert row["outside_share"] > 0.15


def test_blur_and_blocks_are_seen(clean):
    def as_jpeg(picture):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=5)
        return Image.open(buffer).convert("RGB")

    assert "jpeg_blocks" in broken(scores(spoil=as_jpeg))
    blurred = scores(spoil=lambda picture: picture.filter(ImageFilter.GaussianBlur(4)))
    assert blurred["sharpness_min"] < clean["sharpness_min"] - 0.4


# By hand


def test_blockiness_is_nothing_without_a_grid_and_finds_one_wherever_it_begins():
    flat = np.full((64, 64), 90.0)
    assert blockiness(flat) == 0
    blocks = np.kron(np.arange(64).reshape(8, 8) % 7 * 8.0, np.ones((8, 8)))
    assert blockiness(blocks) > 2
    assert blockiness(blocks[3:, 5:]) > 2
    assert abs(blockiness(np.random.default_rng(0).uniform(0, 255, (256, 256)))) < 0.15


def test_sharpness_falls_with_blur_and_not_with_contrast():
    grey = np.random.default_rng(0).uniform(0, 255, (64, 64))
    whole = np.ones(grey.shape, bool)
    assert sharpness(grey / 4, whole) == pytest.approx(sharpness(grey, whole), abs=0.02)
    image = Image.fromarray(grey.astype(np.uint8))
    assert sharpness(np.asarray(image.filter(ImageFilter.GaussianBlur(2))), whole) < sharpness(grey, whole) - 0.5
    assert np.isnan(sharpness(grey, np.zeros(grey.shape, bool)))


def test_a_subject_too_small_to_tell_has_no_sharpness():
    nothing = np.zeros((256, 256), bool)
    assert relative_sharpness(GRASS, nothing, CUTOUTS["cat"], BOXES[0]) is None


def test_the_share_of_the_foreground_outside_the_boxes():
    solid = np.zeros((100, 100), bool)
    solid[40:60, 10:30] = True
    assert outside_share(solid, [[0.1, 0.4, 0.3, 0.6]], 0.0) == 0
    assert outside_share(solid, [[0.1, 0.4, 0.2, 0.6]], 0.0) == 0.5
    assert outside_share(solid, [[0.1, 0.4, 0.2, 0.6]], 0.05) == 0.25
    assert outside_share(np.zeros((9, 9), bool), [[0, 0, 1, 1]], 0.0) == 0


def test_box_cells_are_the_shares_of_cells():
    cells = box_cells([0.0, 0.0, 0.5, 1 / 48])
    assert cells.shape == (24, 24)
    assert cells[0, :12] == pytest.approx(0.5)
    assert cells.sum() == pytest.approx(6)


def test_cells_are_matched_wherever_they_lie_and_the_better_view_counts():
    features, colours = np.eye(6), np.arange(18.0).reshape(6, 3)
    own, mirrored = Cells(features[:4], colours[:4]), Cells(-features[:4], colours[:4])
    shares = np.ones(4)
    region = Cells(features[::-1], colours[::-1])
    assert compare_region([(mirrored, shares), (own, shares)], region) == (1.0, 0.0)
    lighter = Cells(region.features, region.colours + np.array([10, 0, 0]))
    assert compare_region([(own, shares)], lighter)[1] <= 10 * correspondence.LIGHTNESS
    assert compare_region([(own, shares)], Cells(features[:0], colours[:0])) == (0.0, correspondence.WORST_COLOUR)


def test_boxes_that_leave_nothing_free_hide_no_extra_subject(clean):
    grid = correspondence.grid_of(GRASS)
    assert likeness_outside(grid, [[0, 0, 1, 1]], [grid.part(box_cells(BOXES[0]) > 0)]) == correspondence.ORDINARY
