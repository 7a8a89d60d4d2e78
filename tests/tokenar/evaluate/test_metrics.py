"""Known answers, and agreement with other implementations of the same figures."""

import math

import numpy as np
import pytest
import torch
from scipy import linalg
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from tokenar.evaluate import metrics


@pytest.fixture
def picture():
    return np.random.default_rng(0).random((24, 24, 3))


@pytest.fixture
def other():
    return np.random.default_rng(1).random((24, 24, 3))


@pytest.fixture
def left():
    mask = np.zeros((24, 24), bool)
    mask[:, :6] = True
    return mask


def test_equal_pictures(picture):
    assert metrics.mse(picture, picture) == 0
    assert metrics.psnr(picture, picture) == metrics.PSNR_CAP == 100
    assert metrics.ssim(picture, picture) == pytest.approx(1.0)
    assert metrics.ssim(np.ones((16, 16, 3)), np.ones((16, 16, 3))) == pytest.approx(1, abs=1e-9), "flat ones too"
    assert metrics.edge_f1(picture, picture, 0) == 1


def test_known_difference():
    black, grey = np.zeros((16, 16, 3)), np.full((16, 16, 3), 0.1)
    assert metrics.mse(black, grey) == pytest.approx(0.01)
    assert metrics.psnr(black, grey) == pytest.approx(20.0)
    assert metrics.psnr(black, black + 1e-9) == 100


def test_only_the_mask_is_looked_at(picture, left):
    changed = picture.copy()
    changed[left] = 1 - changed[left]
    assert metrics.mse(picture, changed, ~left) == 0
    assert metrics.mse(picture, changed, left) == pytest.approx(4 * metrics.mse(picture, changed))
    right = metrics.composite(changed, picture, ~left)
    assert metrics.ssim(right, picture, ~left) == pytest.approx(1, abs=1e-12), "no window sees the changed pixels"
    assert metrics.ssim(changed, picture, ~left) < 0.99, "without the composite windows at the border do"


def test_an_empty_mask_has_no_figure(picture):
    nothing = np.zeros((24, 24), bool)
    assert all(math.isnan(figure(picture, picture, nothing)) for figure in (metrics.mse, metrics.psnr, metrics.ssim))


def test_pixels_agree_with_others(picture, other, left):
    tensors = torch.from_numpy(picture), torch.from_numpy(other)
    assert metrics.psnr(picture, other) == pytest.approx(peak_signal_noise_ratio(*tensors, data_range=1.0).item())
    whole, full = structural_similarity(
        picture, other, channel_axis=2, data_range=1, gaussian_weights=True, use_sample_covariance=False, full=True
    )
    inside = np.zeros((24, 24), bool)
    inside[5:-5, 5:-5] = True  # what windows reach without leaving the picture; scikit-image's mean is over these
    assert metrics.ssim(picture, other, inside) == pytest.approx(whole, abs=1e-6)
    assert metrics.ssim(picture, other, inside & left) == pytest.approx(
        full.mean(axis=2)[inside & left].mean(), abs=1e-6
    )
    batch = [tensor.permute(2, 0, 1)[None] for tensor in tensors]
    theirs = structural_similarity_index_measure(*batch, data_range=1.0).item()
    assert metrics.ssim(picture, other) == pytest.approx(theirs, abs=1e-6)
    assert metrics.ssim(picture, other, np.ones((24, 24), bool)) == pytest.approx(theirs, abs=1e-6)


def square(left):
    picture = np.zeros((40, 40, 3))
    picture[10:30, left : left + 20] = 1
    return picture


def test_edges_match_within_the_tolerance():
    assert metrics.edge_f1(square(12), square(10), 2) == 1
    assert 0 < metrics.edge_f1(square(12), square(10), 1) < 0.9
    assert metrics.edge_f1(square(12), np.zeros((40, 40, 3)), 2) == 0
    assert metrics.edge_f1(np.zeros((40, 40, 3)), np.ones((40, 40, 3)), 2) == 1, "neither has an edge"
    upper = np.arange(40)[:, None].repeat(40, axis=1) < 5
    assert metrics.edge_f1(square(12), square(10), 0, upper) == 1, "no edge up there"


def test_the_drawn_foreground():
    background, drawn, foreground = np.full((10, 10, 3), 0.5), np.full((10, 10, 3), 0.55), np.zeros((10, 10), bool)
    foreground[:4] = True
    drawn[2:6, :, 1] = 0.7  # 2 rows right, 2 rows wrong, 2 rows missing; one channel is enough
    assert metrics.mask_f1(drawn, background, foreground, 0.1) == pytest.approx(0.5)
    assert metrics.mask_f1(background, background, foreground, 0.1) == 0
    assert metrics.mask_f1(background, background, foreground & False, 0.1) == 1


def test_swap_margin():
    assert metrics.swap_margin(np.array([[0.9, 0.2], [0.4, 0.7]])) == pytest.approx(0.5)
    assert metrics.swap_margin(np.array([[0.2, 0.9], [0.7, 0.4]])) == pytest.approx(-0.5)


class Flat(torch.nn.Module):
    """Six numbers a picture, for torchmetrics' FID and KID."""

    num_features = 6

    def forward(self, pictures):
        return pictures.float().mean(dim=(2, 3)).repeat(1, 2) * torch.tensor([1.0, 2, 3, -1, 0.5, 0.1])


@pytest.fixture(scope="module")
def sets():
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(0, 200, (40, 3, 4, 4), generator=generator, dtype=torch.uint8)
    b = torch.randint(50, 256, (50, 3, 4, 4), generator=generator, dtype=torch.uint8)
    return a, b


def test_fid_agrees_with_the_formula_and_with_torchmetrics(sets):
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(60, 8)), rng.normal(0.5, 2, size=(70, 8)))
    root = linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert metrics.fid(a, b) == pytest.approx(expected, abs=1e-6)
    theirs = FrechetInceptionDistance(feature=Flat(), input_img_size=(3, 4, 4))
    theirs.set_dtype(torch.float64)
    theirs.update(sets[0], real=False)
    theirs.update(sets[1], real=True)
    ours = [Flat()(pictures).numpy() for pictures in sets]
    assert metrics.fid(*ours) == pytest.approx(theirs.compute().item(), rel=1e-4)


def test_fid_of_equal_sets_is_zero():
    features = np.random.default_rng(0).normal(size=(30, 64)).astype(np.float32)
    assert metrics.fid(features, features) == pytest.approx(0, abs=1e-4), "singular covariances too"
    assert metrics.fid(features, features + 1) == pytest.approx(64, rel=1e-5)
    assert math.isnan(metrics.fid(features[:1], features))


def test_kid_agrees_with_the_formula_and_with_torchmetrics(sets):
    a, b = (Flat()(pictures).double().numpy()[:40] / 100 for pictures in sets)
    xx, yy, xy = ((x @ y.T / 6 + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    unlike = sum((k.sum() - np.trace(k)) / (40 * 39) for k in (xx, yy))
    mean, deviation = metrics.kid(a, b, subsets=3, size=40, seed=0)
    assert mean == pytest.approx(unlike - 2 * xy.mean(), rel=1e-9)
    assert deviation == pytest.approx(0, abs=1e-9), "every subset is the whole set"
    theirs = KernelInceptionDistance(feature=Flat(), subsets=3, subset_size=40)
    theirs.update(sets[0], real=False)
    theirs.update(sets[1][:40], real=True)
    ours = [Flat()(pictures).numpy()[:40] for pictures in sets]
    assert metrics.kid(*ours, 3, 40, 0)[0] == pytest.approx(theirs.compute()[0].item(), rel=1e-4)
    assert metrics.kid(a, b, subsets=20, size=10, seed=0)[1] > 0
    assert metrics.kid(a, b, 20, 10, seed=0) == metrics.kid(a, b, 20, 10, seed=0) != metrics.kid(a, b, 20, 10, seed=1)
    assert all(map(math.isnan, metrics.kid(a[:9], b, 20, 10, 0)))
