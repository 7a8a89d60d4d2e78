"""What the tokenizer and the teacher see of a picture, against the published program's tensors."""

import hashlib

import golden
import numpy as np
import pytest
import torch
from PIL import Image

from data_schemas.io.pictures import on_white
from tokenar.encoders.patches import picture_tensor
from tokenar.encoders.teacher import teacher_pixels


def test_golden_data_is_there():
    golden.check_present("tokenar", "image_preprocessing", "dino_teacher_preprocessing")


def opened(case, entry) -> Image.Image:
    picture, times = Image.open(case.parent / entry["file"]), entry["pixel_repeat"]
    return picture if times == 1 else Image.fromarray(np.asarray(picture).repeat(times, 0).repeat(times, 1))


def digest(pixels) -> str:
    bytes_ = ((pixels * 0.5 + 0.5) * 255).round().byte().permute(1, 2, 0)
    return hashlib.sha256(bytes_.contiguous().numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("case", golden.cases("tokenar/image", "image_preprocessing"))
def test_pictures(case):
    values, stored = golden.read(case), golden.tensors(case)
    for entry in values["images"]:
        picture, name = opened(case, entry), entry["file"].rsplit(".", 1)[0]
        pixels = picture_tensor(picture.convert("RGB"), values["target"])
        torch.testing.assert_close(
            pixels[:, ::8, ::8], stored[f"{name}/as_released"], rtol=0, atol=values["tolerance"]["atol"]
        )
        assert digest(pixels) == entry["as_released"]["sha256_u8_hwc"]
        white = picture_tensor(on_white(picture), values["target"])
        # the published whitening truncates where on_white rounds: a level at most, three where bicubic overshoots
        atol = 4 / 127.5 if entry["variants_differ"] else values["tolerance"]["atol"]
        torch.testing.assert_close(white[:, ::8, ::8], stored[f"{name}/whitened"], rtol=0, atol=atol)


@pytest.mark.parametrize("case", golden.cases("tokenar/dino", "dino_teacher_preprocessing"))
def test_teacher_pixels(case):
    values, stored = golden.read(case), golden.tensors(case)
    for part in values["cases"]:
        times = part["pixel_repeat"]
        bytes_ = stored[f"{part['case']}/image_u8"].repeat_interleave(times, 1).repeat_interleave(times, 2)
        assert list(bytes_.shape[1:]) == part["input_hw"]
        found = teacher_pixels(((bytes_.float() / 255 - 0.5) / 0.5)[None])
        assert list(found.shape) == part["output"]
        expected = stored[f"{part['case']}/pixel_values_every4th"]
        torch.testing.assert_close(found[:, :, ::4, ::4], expected, rtol=0, atol=values["tolerance"]["atol"])
        assert found.mean().item() == pytest.approx(part["mean"], abs=1e-5)
        assert found.std().item() == pytest.approx(part["std"], abs=1e-5)


@pytest.mark.parametrize("cell", [(0, 0), (0, 15), (7, 3), (15, 15)])
def test_with_whole_every_patch_shows_its_own_cell(cell):
    row, column = cell
    picture = torch.full((1, 3, 512, 512), -1.0)
    picture[..., row * 32 : row * 32 + 32, column * 32 : column * 32 + 32] = 1
    patches = teacher_pixels(picture, whole=True)[0].unfold(1, 14, 14).unfold(2, 14, 14).mean((0, 3, 4))  # [16, 16]
    assert divmod(patches.argmax().item(), 16) == cell
    assert patches.max() > 2.0
    assert patches.flatten().sort().values[-2] < -1.0


def test_as_published_the_edge_is_not_seen():
    """The release's crop (docs/differences.md, "Teacher crop")."""
    picture = torch.full((1, 3, 512, 512), -1.0)
    picture[..., :24, :] = 1
    assert teacher_pixels(picture).unique().numel() == 3  # black, in three channels
    assert teacher_pixels(picture, whole=True).unique().numel() > 3


def test_a_wide_picture_keeps_its_shape_and_loses_its_sides():
    wide = torch.cat(
        [torch.full((1, 3, 60, 15), 1.0), torch.full((1, 3, 60, 60), -1.0), torch.full((1, 3, 60, 15), 1.0)], 3
    )
    assert teacher_pixels(wide).shape == (1, 3, 224, 224)
    assert teacher_pixels(wide).unique().numel() == 3


def test_truncation_to_bytes():
    grey = torch.full((1, 3, 32, 32), 127 / 127.5 - 1 - 1e-4)  # a little darker than byte 127
    expected = (126 / 255 - 0.485) / 0.229
    assert teacher_pixels(grey)[0, 0, 0, 0].item() == pytest.approx(expected, abs=1e-6)
