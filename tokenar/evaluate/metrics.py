"""How close two pictures are, how alike two sets of pictures, and who was taken for whom: pure functions.

Pictures are [S, S, 3] float64 arrays in [0, 1], masks [S, S] bool. docs/evaluation.md says how the figures of a table
are put together from these.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

Pixels = NDArray[np.float64]
Mask = NDArray[np.bool_]
Features = NDArray[np.float32]

PSNR_CAP = 100.0
"""dB; equal pictures count as this much, so that a mean over samples exists."""

SSIM_WINDOW = 11
"""Pixels: scikit-image's Gaussian of sigma 1.5 is cut there."""

CANNY = (100, 200)
"""Lower and upper threshold of the gradient of 8-bit grey values."""

FID_SAMPLES = 2048
"""Fewer pictures than Inception has features leave the covariance singular, and FID far too high."""


def composite(picture: Pixels, truth: Pixels, part: Mask) -> Pixels:
    """The picture inside ``part`` and the truth everywhere else.

    What is measured on it around the border of the part sees true pixels beyond, whatever was drawn there.
    """
    return np.where(part[..., None], picture, truth)


def mse(a: Pixels, b: Pixels, mask: Mask | None = None) -> float:
    """Mean squared difference, over the pixels of ``mask`` if given; nan where the mask is empty."""
    difference = ((a - b) ** 2).mean(axis=-1)
    return _mean(difference, mask)


def psnr(a: Pixels, b: Pixels, mask: Mask | None = None) -> float:
    """Peak signal to noise ratio in dB for a peak of 1, at most PSNR_CAP; nan where the mask is empty."""
    error = mse(a, b, mask)
    return PSNR_CAP if error == 0 else min(PSNR_CAP, -10 * math.log10(error)) if error > 0 else math.nan


def ssim(a: Pixels, b: Pixels, mask: Mask | None = None) -> float:
    """Structural similarity (Wang et al. 2004: Gaussian window of 11 pixels, sigma 1.5), 1 for equal pictures.

    Mean of the similarity map, over ``mask`` if given; nan where that is empty. torchmetrics' figure: pictures are
    reflected at their edges. Computed by scikit-image, as torch's double precision is ten times slower on a CPU and
    single precision calls equal white pictures different.
    """
    reach = SSIM_WINDOW // 2
    first, second = (np.pad(p, ((reach, reach), (reach, reach), (0, 0)), "reflect") for p in (a, b))
    _, full = structural_similarity(
        first, second, channel_axis=2, data_range=1.0, gaussian_weights=True, use_sample_covariance=False, full=True
    )
    return _mean(full[reach:-reach, reach:-reach].mean(axis=-1), mask)


def edges(picture: Pixels) -> Mask:
    """[S, S] bool: Canny edges (OpenCV, thresholds CANNY, aperture 3) of the picture as 8-bit grey."""
    grey = cv2.cvtColor((picture * 255).round().astype(np.uint8), cv2.COLOR_RGB2GRAY)
    return cv2.Canny(grey, *CANNY) > 0


def edge_f1(picture: Pixels, truth: Pixels, tolerance: float, mask: Mask | None = None) -> float:
    """F1 of Canny edges: an edge pixel matches if the other picture has one within ``tolerance`` pixels (Euclidean).

    Precision is the share of drawn edge pixels that match, recall that of the true ones; with a mask only edge pixels
    inside are counted. 1 where neither has an edge, 0 where only one has.
    """
    drawn, true = edges(picture), edges(truth)
    counted = np.ones(drawn.shape, bool) if mask is None else mask
    found, wanted = drawn & counted, true & counted
    if not found.any() or not wanted.any():
        return float(found.any() == wanted.any())
    precision = float((_distance(true) <= tolerance)[found].mean())
    recall = float((_distance(drawn) <= tolerance)[wanted].mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _distance(edge: Mask) -> NDArray[np.float64]:
    """Pixels to the next edge pixel, exact."""
    found = cv2.distanceTransform((~edge).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return found.astype(np.float64)


def mask_f1(picture: Pixels, background: Pixels, foreground: Mask, threshold: float) -> float:
    """F1 of the drawn foreground against the true one.

    A pixel was drawn as foreground if some channel differs from the given background, which is black where the true
    foreground is, by more than ``threshold``. 1 where there is neither, 0 where there is only one.
    """
    drawn = np.abs(picture - background).max(axis=-1) > threshold
    total = int(drawn.sum()) + int(foreground.sum())
    return 2 * int((drawn & foreground).sum()) / total if total else 1.0


def cosine(a: Features, b: Features) -> float:
    """Of two vectors of unit length."""
    return float(np.clip(np.dot(a.astype(np.float64), b.astype(np.float64)), -1, 1))


def swap_margin(matrix: NDArray[np.float64]) -> float:
    """How much better two regions fit their own references than each other's: [2, 2], regions by references.

    Half of (trace minus the other diagonal), as the identity stage of the curation scores a sample.
    """
    return float((matrix[0, 0] + matrix[1, 1] - matrix[0, 1] - matrix[1, 0]) / 2)


def fid(drawn: Features, true: Features) -> float:
    """Frechet distance of two sets of Inception features [N, D] (Heusel et al. 2017), by torch-fidelity.

    nan below two pictures, which have no covariance.
    """
    if min(len(drawn), len(true)) < 2:
        return math.nan
    from torch_fidelity import metric_fid

    # In double precision: with few pictures the covariances are singular and rounding is all there is.
    statistics = [
        metric_fid.fid_features_to_statistics(torch.from_numpy(features.astype(np.float64)))
        for features in (drawn, true)
    ]
    value = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)[metric_fid.KEY_METRIC_FID]
    return max(0.0, float(value))


def kid(drawn: Features, true: Features, subsets: int, size: int, seed: int) -> tuple[float, float]:
    """Kernel distance of two sets of Inception features [N, D] (Binkowski et al. 2018): mean and deviation.

    torch-fidelity's, over ``subsets`` random subsets of ``size`` pictures; nan for both where a set is smaller.
    """
    if min(len(drawn), len(true)) < size:
        return math.nan, math.nan
    from torch_fidelity import metric_kid

    tensors = (torch.from_numpy(features.astype(np.float64)) for features in (drawn, true))
    found = metric_kid.kid_features_to_metric(
        *tensors, kid_subsets=subsets, kid_subset_size=size, rng_seed=seed, verbose=False
    )
    return float(found[metric_kid.KEY_METRIC_KID_MEAN]), float(found[metric_kid.KEY_METRIC_KID_STD])


def _mean(values: NDArray[np.float64], mask: Mask | None) -> float:
    chosen = values if mask is None else values[mask]
    return float(chosen.mean()) if chosen.size else math.nan
