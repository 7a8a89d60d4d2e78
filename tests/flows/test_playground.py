"""The playground's command: how subjects are cut out, which device is seen, and its mistakes."""

import os

import numpy as np
import pytest
from commands import run_here
from PIL import Image, ImageDraw

from data_schemas.errors import UserError
from flows import playground


def plate() -> Image.Image:
    """A red disc on a green table."""
    noise = np.random.default_rng(0).integers(0, 12, (160, 200, 3), dtype=np.uint8)
    picture = Image.fromarray(noise + np.array([40, 140, 60], np.uint8))
    ImageDraw.Draw(picture).ellipse((60, 40, 140, 120), fill=(200, 30, 30))
    return picture


def test_a_subject_is_cut_out_close_to_its_edge():
    cut = playground.cut_out(plate())
    assert cut.mode == "RGBA"
    assert all(76 <= side <= 92 for side in cut.size)
    assert cut.getpixel((cut.width // 2, cut.height // 2)) == (200, 30, 30, 255)


def test_own_transparency_is_used_as_it_is():
    own = Image.new("RGBA", (100, 60))
    ImageDraw.Draw(own).rectangle((10, 20, 39, 49), fill=(1, 2, 3, 255))
    assert playground.cut_out(own) == own.crop((10, 20, 40, 50))


def test_a_background_is_black_where_its_subject_was():
    left = playground.without_subject(plate())
    assert (left.mode, left.size) == ("RGB", (200, 160))
    black = np.asarray(left).max(2) == 0
    assert black[80, 100]
    assert black[80, 58]  # the margin
    assert not black[10:30].any()


def test_a_picture_without_a_subject_is_said_to_have_none():
    with pytest.raises(UserError, match="no subject was found"):
        playground.cut_out(Image.new("RGBA", (50, 50)))


def test_a_device_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    playground.choose_device("cpu")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    playground.choose_device("cuda:1")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    for name in ("cuda:2", "tpu", "cuda:x", "cuda:-1"):
        with pytest.raises(UserError, match=f"--device {name}"):
            playground.choose_device(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "--model nowhere: no model there"),
        (["--shards", "nowhere-*.tar"], "nowhere-*.tar: no shard matches"),
    ],
)
def test_wrong_options_are_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_here(playground.main, "tokenar-playground", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1
