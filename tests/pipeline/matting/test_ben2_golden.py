"""BEN2's numbers: the published network's masks and intermediates, and what the package makes of a mask."""

import re

import golden
import numpy as np
import pytest
import torch
from PIL import Image
from tiny.ben2_weights import draw_weights

from pipeline.matting.ben2 import foreground_colours, stretched
from pipeline.matting.ben2_inference import fitted, prepared
from pipeline.matting.ben2_network import UNUSED, Ben2Network

FORWARD = [
    pytest.param(
        *case.values, id=case.id, marks=(*case.marks, *[pytest.mark.slow, pytest.mark.long] * ("1024" in case.id))
    )
    for case in golden.cases("ben2", "ben2_forward")
]
POST = sorted((golden.ROOT / "ben2").rglob("ben2_post*.json"))  # these have no "kind"


def test_golden_data_is_there():
    golden.check_present("ben2", "ben2_forward")
    assert POST
    assert golden.has("ben2", "ben2_keys.json")


@pytest.fixture(scope="module")
def network():
    return Ben2Network().eval().requires_grad_(False)


def test_parameters_bear_the_checkpoints_names_and_shapes(network):
    published = golden.read(golden.near(golden.ROOT / "ben2/any.json", "ben2_keys.json"))
    used = {name: tuple(shape) for name, (shape, _) in published.items() if not UNUSED.fullmatch(name)}
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == used
    assert len(published) - len(used) == 24 + 10, "24 index buffers, weight and bias of 5 side heads"
    assert sum(p.numel() for p in network.backbone.parameters()) == 86_880_376


@pytest.mark.parametrize("case", FORWARD)
@pytest.mark.slow
def test_masks_and_intermediates_are_the_published_networks(case, network):
    about, expected = golden.read(case), golden.tensors(case)
    draw_weights(network, about["weight_seed"])
    scale = about["size"] // expected["in.seed_image"].shape[-1]
    pictures = expected["in.seed_image"].repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    seen: dict = {}
    names = [k.removeprefix("mid.").removesuffix("_sub") for k in expected if k.startswith("mid.")]
    hooks = [
        network.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
        for name in names
        if not name.startswith("backbone")
    ]
    hooks.append(
        network.backbone.register_forward_hook(
            lambda _m, _i, out: seen.update({f"backbone{k}": maps for k, maps in enumerate(out)})
        )
    )
    with torch.inference_mode():
        mask = network(pictures)
    for hook in hooks:
        hook.remove()
    for name in names:
        compare(f"mid.{name}", thin(name, seen[name], len(pictures)), expected[f"mid.{name}_sub"], about)
    (sub,) = (k for k in expected if k.startswith("out.mask_sub"))
    step = int(sub.removeprefix("out.mask_sub"))
    compare(sub, mask[:, :, ::step, ::step], expected[sub], about)
    compare("mean", mask.mean((1, 2, 3)), expected["out.mask_mean"], about)
    compare("std", mask.std((1, 2, 3)), expected["out.mask_std"], about)


def thin(name, maps, batch):
    """The golden file's subsample of an intermediate."""
    if name.startswith("backbone"):
        channels, side = maps.shape[1], maps.shape[-1]
        return maps[:, :: max(1, channels // 16), :: max(1, side // 8), :: max(1, side // 8)]
    maps = maps if maps.ndim == 5 else maps.unflatten(0, (batch, -1))
    channels, side = maps.shape[2], maps.shape[-1]
    return maps[:, :, :: max(1, channels // 8), :: max(1, side // 8), :: max(1, side // 8)]


def compare(name, found, expected, about):
    torch.testing.assert_close(found, expected, **about["tolerance"], msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("case", POST or [pytest.param(None, marks=pytest.mark.skip(reason="no golden case"))])
def test_what_becomes_of_a_picture_and_of_a_mask(case):
    about, expected = golden.read(case), golden.tensors(case)
    pixels, size = expected["in.rgb"].numpy(), tuple(about["size_wh"])
    seen = expected["mid.tensor_sub16"]
    tensor = prepared(Image.fromarray(pixels), 16 * seen.shape[-1])
    torch.testing.assert_close(tensor[:, ::16, ::16], seen, atol=1e-6, rtol=0)

    mask = mask_of(about["mask"])
    assert [float(mask.min()), float(mask.max())] == pytest.approx(about["mask_min_max"], abs=1e-6)
    plain = levels(stretched(fitted(mask, size, antialias=False)))
    assert np.abs(plain - expected["out.plain_alpha"].numpy()).max() <= 1
    refined = expected["out.refine_alpha"].numpy()
    assert np.abs(levels(fitted(mask, size)) - refined).max() <= 6, "ours is not cut to 8 bits, and bilinear"

    colours = foreground_colours(pixels, refined / 255)
    assert np.abs(colours.astype(int) - expected["out.refine_rgb"].numpy()).max() <= 2


def mask_of(formula):
    """The analytic mask [1, side, side] that a case writes as a formula."""
    number = r"\(?(-?[\d.]+)\)?"
    found = re.match(
        rf"sigmoid\({number}\*tanh\({number}\*\({number} - hypot\(x-{number}, y-{number}\)\)\) - {number}\)", formula
    )
    assert found, formula
    height, slope, radius, x0, y0, offset = (float(value) for value in found.groups())
    side = re.search(r"linspace\(-1, ?1, ?(\d+)\)", formula)
    assert side, formula
    line = torch.linspace(-1, 1, int(side[1]))
    distance = torch.hypot(line[None, :] - x0, line[:, None] - y0)
    return torch.sigmoid(height * torch.tanh(slope * (radius - distance)) - offset)[None]


def levels(alpha):
    return (alpha * 255).round().astype(int)
