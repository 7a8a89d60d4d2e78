"""BEN2 as a stage: both published file layouts, the package behind its fence, and what a user gets wrong."""

import importlib
import pickle
import random
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from doubles import ben2 as ben2_double
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file
from tiny.ben2_weights import draw_weights
from torch.backends import cudnn

from data_schemas.errors import UserError
from data_schemas.io import pictures
from data_schemas.schema import validate
from pipeline import models
from pipeline.core.stage import Sample
from pipeline.matting import ben2_network
from pipeline.matting.ben2 import Ben2, Ben2Config, stretched
from pipeline.matting.ben2_inference import matte
from pipeline.matting.ben2_network import load_network

CPU, SIDE = torch.device("cpu"), 128
PLAN = {"box_0": [0.1, 0.2, 0.45, 0.9], "box_1": [0.55, 0.2, 0.9, 0.9]}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """One set of seeded weights as the hub's folder, the official .pth, and a file of the user's own name."""
    folder = tmp_path_factory.mktemp("ben2")
    state = draw_weights(ben2_double.BEN_Base(), 401).state_dict()
    assert len(state) == 535
    save_file(state, folder / "model.safetensors")
    torch.save({"model_state_dict": state}, folder / "BEN2_Base.pth")
    (folder / "mine.safetensors").hardlink_to(folder / "model.safetensors")
    yield folder
    shutil.rmtree(folder)  # 0.8 GB


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The stand-in for the published package, importable as ben2 and not imported yet."""
    shutil.copy(ben2_double.__file__, tmp_path / "ben2.py")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ben2", raising=False)
    yield
    sys.modules.pop("ben2", None)


def photo(width=120, height=90, seed=0):
    small = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def sample(picture, sample_id="s"):
    files = {"synthesis": {"target.png": pictures.encode_png(picture)}}
    return Sample(sample_id, {"plan": PLAN}, files.__getitem__, {}.__getitem__)


def stage(source, **config):
    return Ben2(Ben2Config(source=str(source), side=SIDE, device="cpu", **config))


@pytest.fixture(scope="module")
def network(checkpoints):
    return load_network(checkpoints / "model.safetensors", CPU)


@pytest.mark.slow
def test_both_published_layouts_give_the_same_rows_and_pictures(checkpoints):
    made = []
    for source in (checkpoints, checkpoints / "BEN2_Base.pth"):
        own = stage(source, batch_size=2)
        batch = [sample(photo(120, 90, 1), "a"), sample(photo(64, 100, 2), "b")]
        rows, saved, _ = own.run(batch, {})
        validate(own.schema().table(rows), own.schema(), "test")
        assert [row["status"] for row in rows] == ["ok", "ok"], rows[0]["error_message"]
        assert all(row.pop("model").startswith(f"{source.name}@sha256-") for row in rows)
        made.append((rows, saved))
    assert made[0] == made[1]
    rows, saved = made[0]
    assert rows[0]["true_iou"] is None
    assert 0 < rows[0]["alpha_max"] < 1, "not stretched"
    assert {name: pictures.decode(data, name).size for name, data in saved["b"].items()} == dict.fromkeys(
        ("alpha.png", "foreground.png", "background.png"), (64, 100)
    )


@pytest.mark.slow
def test_a_picture_gets_the_same_alpha_alone_and_among_others(network):
    photos = [photo(120, 90, 1), photo(64, 300, 2), photo(301, 77, 3)]
    together = matte(network, photos, SIDE, CPU, torch.float32)
    assert [alpha.shape for alpha in together] == [(90, 120), (300, 64), (77, 301)]
    for picture, alpha in zip(photos, together, strict=True):
        (alone,) = matte(network, [picture], SIDE, CPU, torch.float32)
        assert alone.dtype == np.float32
        assert np.abs(alone - alpha).max() < 1e-5
    assert np.abs(together[0][:77, :64] - together[1][:77, :64]).max() > 0.01, "each has its own"


@pytest.mark.slow
def test_bfloat16_is_near_float32(network):
    exact, near = (matte(network, [photo()], SIDE, CPU, dtype)[0] for dtype in (torch.float32, torch.bfloat16))
    assert 0 < np.abs(exact - near).max() < 0.05
    assert np.abs(exact - near).mean() < 0.005


@pytest.mark.parametrize("file", ["", "mine.safetensors", "BEN2_Base.pth"])
@pytest.mark.slow
def test_package_and_network_agree(checkpoints, network, package, capfd, file):
    theirs = stage(checkpoints / file, implementation="package")
    theirs.ready()
    (alpha,) = theirs.mattes([], [photo()])
    assert sys.modules["ben2"].__file__ != ben2_double.__file__, "the package did the work"
    assert sys.modules["ben2"].inferences == 0
    assert capfd.readouterr().out == ""
    assert np.abs(matte(network, [photo()], SIDE, CPU, torch.float32)[0] - alpha).max() < 1e-6


def state():
    return (
        random.getstate(),
        [value.tolist() if isinstance(value, np.ndarray) else value for value in np.random.get_state()],
        torch.get_rng_state().tolist(),
        cudnn.deterministic,
        cudnn.benchmark,
        torch.get_float32_matmul_precision(),
    )


@pytest.mark.parametrize("implementation", ["network", "package"])
@pytest.mark.slow
def test_random_streams_flags_and_the_callers_picture_are_left_alone(checkpoints, package, implementation):
    flags, precision = (cudnn.deterministic, cudnn.benchmark), torch.get_float32_matmul_precision()
    try:
        cudnn.deterministic, cudnn.benchmark = False, True
        torch.set_float32_matmul_precision("high")
        torch.manual_seed(1234)
        before, picture = state(), photo()
        pixels = picture.tobytes()
        own = stage(checkpoints, implementation=implementation)
        own.ready()
        assert state() == before, "after loading"
        own.mattes([], [picture])
        assert state() == before, "after a matte"
        assert (picture.mode, picture.tobytes()) == ("RGB", pixels)
        if implementation == "package":
            importlib.reload(sys.modules["ben2"])
            assert state() != before, "the stand-in does not hold still by itself"
    finally:
        cudnn.deterministic, cudnn.benchmark = flags
        torch.set_float32_matmul_precision(precision)


def test_without_the_package_the_user_is_told_how_to_get_it(checkpoints, monkeypatch):
    monkeypatch.setitem(sys.modules, "ben2", None)
    with pytest.raises(UserError, match=r'pip install "ben2 @ git\+https://github.com/PramaLLC/BEN2.git"'):
        stage(checkpoints, implementation="package").ready()


class Bomb:
    def __reduce__(self):
        return (exec, ("import builtins; builtins.exploded = True",))


def wrong_file(folder, kind):
    path = folder / ("model.safetensors" if "safetensors" in kind else "model.pth")
    other = {"output.0.weight": torch.zeros(1, 128, 1, 1), "somebody.else": torch.zeros(2)}
    if kind == "safetensors of another model":
        save_file(other, path)
    elif kind == "pth of another model":
        torch.save({"model_state_dict": other}, path)
    elif kind == "pth without tensors":
        torch.save({"model_state_dict": {"epoch": 3}}, path)
    elif kind == "pth with code in it":
        path.write_bytes(pickle.dumps({"model_state_dict": Bomb()}))
    else:
        path.write_text("not a checkpoint")
    return path


WRONG = [
    "safetensors of another model",
    "pth of another model",
    "pth without tensors",
    "pth with code in it",
    "text as safetensors",
    "text as pth",
]


@pytest.mark.parametrize(
    ("implementation", "kind"), [*(("network", kind) for kind in WRONG), *(("package", kind) for kind in WRONG[:2])]
)
@pytest.mark.slow
def test_a_wrong_file_is_one_clear_line(tmp_path, package, implementation, kind):
    path = wrong_file(tmp_path, kind)
    with pytest.raises(UserError) as caught:
        stage(path, implementation=implementation).ready()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not hasattr(__import__("builtins"), "exploded")


@pytest.mark.slow
def test_a_wrong_tensor_is_named(network, monkeypatch):
    weights = dict(network.state_dict())
    weights["shallow.0.bias"] = weights["shallow.0.bias"][:5]
    del weights["conv1.0.bias"]
    monkeypatch.setattr(ben2_network, "read_checkpoint", lambda path: weights)
    with pytest.raises(UserError, match=r"1 missing \(conv1\.0\.bias\), 1 of another shape \(shallow\.0\.bias\)"):
        load_network(Path("BEN2_Base.pth"), CPU)


def test_missing_weights_are_said_before_any_work(tmp_path):
    with pytest.raises(UserError, match="BEN2"):
        models.require([stage(tmp_path / "nothing.pth")])


def test_an_empty_picture_does_not_pass_as_a_confident_one(monkeypatch, checkpoints):
    """Where the network sees nothing, the package's stretching would make a sure matte of its noise."""
    noise = torch.linspace(0.001, 0.018, SIDE * SIDE).view(1, 1, SIDE, SIDE)
    monkeypatch.setattr(ben2_network, "load_network", lambda path, device: lambda x: noise.expand(len(x), -1, -1, -1))
    for stretch in (False, True):
        rows, _, _ = stage(checkpoints, stretch=stretch).run([sample(Image.new("RGB", (90, 90), "grey"))], {})
        assert rows[0]["alpha_max"] < 0.02
        assert rows[0]["area_share"] == 0


def test_stretching_is_minmax_and_keeps_off_what_has_no_range():
    ramp = np.linspace(0.2, 0.9, 64, dtype=np.float32).reshape(8, 8)
    assert (stretched(ramp).min(), stretched(ramp).max()) == (0, 1)
    assert np.allclose(stretched(ramp), (ramp - 0.2) / 0.7, atol=1e-6)
    for same in (np.full((8, 8), 0.7, np.float32), ramp * 0.1):
        assert stretched(same) is same


def test_foreground_colours_are_freed_of_the_background_where_asked(checkpoints, monkeypatch):
    """A red subject, half transparent over blue: its own colour is red."""
    alpha = torch.zeros(1, 1, SIDE, SIDE)
    alpha[..., 32:96] = 1
    alpha[..., 96:104] = 0.5
    monkeypatch.setattr(ben2_network, "load_network", lambda path, device: lambda x: alpha)
    share = alpha[0, 0].numpy()[..., None]
    target = Image.fromarray((share * (255, 0, 0) + (1 - share) * (0, 0, 255)).round().astype(np.uint8))
    found = {}
    for wanted in (False, True):
        _, saved, _ = stage(checkpoints, foreground_colours=wanted).run([sample(target)], {})
        found[wanted] = pictures.decode(saved["s"]["foreground.png"], "foreground").getpixel((99, 64))
    assert found[False] == (128, 0, 128, 128)
    red, _, blue, opacity = found[True]
    assert red > 240
    assert blue < 40
    assert opacity == 128


def test_settings_that_cannot_work_are_refused(checkpoints):
    with pytest.raises(ValidationError):
        Ben2Config(side=1000)
    with pytest.raises(UserError, match="float16 on a CPU"):
        stage(checkpoints, precision="float16").ready()


def test_only_what_changes_the_matte_changes_the_fingerprint(checkpoints):
    def name(**config):
        return stage(checkpoints, **config).fingerprint({"synthesis": "x"})

    assert name() == name(batch_size=7)
    assert len({name(), name(stretch=True), name(implementation="package"), name(alpha_threshold=0.4)}) == 4


@pytest.mark.skipif(find_spec("ben2") is None, reason="the package ben2 is not installed")
def test_the_true_package_agrees(checkpoints, network):
    theirs = Ben2(Ben2Config(source=str(checkpoints), implementation="package", side=256, device="cpu"))
    theirs.ready()
    (alpha,) = theirs.mattes([], [photo()])
    assert "site-packages" in Path(sys.modules["ben2"].__file__).parts
    assert np.abs(matte(network, [photo()], 256, CPU, torch.float32)[0] - alpha).max() < 1e-4
