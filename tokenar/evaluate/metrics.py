"""Metrics as pure functions: the distance of two pictures, of two sets of features, and the swap margin of identities.

Pictures are [S, S, 3] float64 arrays in [0, 1], masks are [S, S] bool. docs/evaluation.md says how the figures of the
tables are computed from these.
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
"""dB. The PSNR of equal pictures would be infinite, and so would be any mean with it."""

SSIM_WINDOW = 11
"""Pixels. scikit-image cuts off its Gaussian of sigma 1.5 at this width."""

CANNY = (100, 200)
"""Canny's lower and upper threshold for the gradient of 8-bit grey values."""

FID_SAMPLES = 2048
"""The number of Inception's features. With fewer pictures their covariance is singular, and FID is far too high."""


def composite(picture: Pixels, truth: Pixels, part: Mask) -> Pixels:
    """The picture inside ``part`` and the truth everywhere else.

    Metrics with a window or a gradient then see true pixels on the other side of the part's border, so that the figure
    of a part does not depend on what was drawn outside of it.
    """
    return np.where(part[..., None], picture, truth)


def mse(a: Pixels, b: Pixels, mask: Mask | None = None) -> float:
    """Mean squared error, over the pixels of ``mask`` if given. nan if the mask is empty."""
    difference = ((a - b) ** 2).mean(axis=-1)
    return _mean(difference, mask)


def psnr(a: Pixels, b: Pixels, mask: Mask | None = None) -> float:
    """Peak signal-to-noise ratio in dB for a peak of 1, at most PSNR_CAP. nan if the mask is empty."""
    error = mse(a, b, mask)
    return PSNR_CAP if error == 0 else min(PSNR_CAP, -10 * math.log10(error)) if error > 0 else math.nan


def ssim(a: Pixels, b: Pixels, mask: Mask | None = None) -> float:
    """Structural similarity (Wang et al. 2004: Gaussian window of 11 pixels, sigma 1.5), 1 for equal pictures.

    The mean of the similarity map, over ``mask`` if given; nan if the mask is empty. Pictures are reflected at their
    edges, which gives the same values as torchmetrics. scikit-image computes it, because torchmetrics is ten times
    slower on a CPU in float64, and in float32 it finds a difference between equal white pictures.
    """
    reach = SSIM_WINDOW // 2
    first, second = (np.pad(p, ((reach, reach), (reach, reach), (0, 0)), "reflect") for p in (a, b))
    _, full = structural_similarity(
        first, second, channel_axis=2, data_range=1.0, gaussian_weights=True, use_sample_covariance=False, full=True
    )
    return _mean(full[reach:-reach, reach:-reach].mean(axis=-1), mask)


def edges(picture: Pixels) -> Mask:
    """Canny edges (OpenCV, thresholds CANNY, aperture 3) of the picture in 8-bit grey, [S, S] bool."""
    grey = cv2.cvtColor((picture * 255).round().astype(np.uint8), cv2.COLOR_RGB2GRAY)
    return cv2.Canny(grey, *CANNY) > 0


def edge_f1(picture: Pixels, truth: Pixels, tolerance: float, mask: Mask | None = None) -> float:
    """F1 score of Canny edges. An edge pixel matches if the other picture has one within ``tolerance`` pixels.

    Precision is the share of drawn edge pixels that match, recall the share of true ones. With a mask only edge pixels
    inside it are counted. 1 if neither picture has an edge, 0 if only one has.
    """
    drawn, true = edges(picture), edges(truth)
    counted = np.ones(drawn.shape, bool) if mask is None else mask
    drawn_inside, true_inside = drawn & counted, true & counted
    if not drawn_inside.any() or not true_inside.any():
        return float(drawn_inside.any() == true_inside.any())
    precision = float((_distance(true) <= tolerance)[drawn_inside].mean())
    recall = float((_distance(drawn) <= tolerance)[true_inside].mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _distance(edge: Mask) -> NDArray[np.float64]:
    """Euclidean distance of every pixel to the nearest edge pixel, [S, S] in pixels."""
    distance = cv2.distanceTransform((~edge).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return distance.astype(np.float64)


def mask_f1(picture: Pixels, background: Pixels, foreground: Mask, threshold: float) -> float:
    """F1 score of the drawn foreground against the true one.

    A pixel counts as drawn foreground if a channel differs from ``background``, which is black where the true
    foreground is, by more than ``threshold``. 1 if there is no foreground in either, 0 if only in one.
    """
    drawn = np.abs(picture - background).max(axis=-1) > threshold
    total = int(drawn.sum()) + int(foreground.sum())
    return 2 * int((drawn & foreground).sum()) / total if total else 1.0


def cosine(a: Features, b: Features) -> float:
    """Cosine similarity of two vectors [D] of length 1."""
    return float(np.clip(np.dot(a.astype(np.float64), b.astype(np.float64)), -1, 1))


def swap_margin(matrix: NDArray[np.float64]) -> float:
    """How much more two subjects resemble their own references than each other's. Negative means swapped.

    ``matrix`` [2, 2] has the similarity s_ij of subject i and reference j. The margin is
    (s_00 + s_11 - s_01 - s_10) / 2, as in the curation's identity stage.
    """
    return float((matrix[0, 0] + matrix[1, 1] - matrix[0, 1] - matrix[1, 0]) / 2)


def fid(drawn: Features, true: Features) -> float:
    """Frechet inception distance of two sets of features [N, D] (Heusel et al. 2017), computed by torch-fidelity.

    nan with fewer than two pictures, which have no covariance.
    """
    if min(len(drawn), len(true)) < 2:
        return math.nan
    from torch_fidelity import metric_fid

    # float64, because with few pictures the covariances are singular, and rounding errors would dominate the result.
    statistics = [
        metric_fid.fid_features_to_statistics(torch.from_numpy(features.astype(np.float64)))
        for features in (drawn, true)
    ]
    value = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)[metric_fid.KEY_METRIC_FID]
    return max(0.0, float(value))


def kid(drawn: Features, true: Features, subsets: int, size: int, seed: int) -> tuple[float, float]:
    """Kernel inception distance of two sets of features [N, D] (Binkowski et al. 2018): mean and standard deviation.

    Computed by torch-fidelity over ``subsets`` random subsets of ``size`` pictures. Both are nan if a set is smaller.
    """
    if min(len(drawn), len(true)) < size:
        return math.nan, math.nan
    from torch_fidelity import metric_kid

    tensors = (torch.from_numpy(features.astype(np.float64)) for features in (drawn, true))
    values = metric_kid.kid_features_to_metric(
        *tensors, kid_subsets=subsets, kid_subset_size=size, rng_seed=seed, verbose=False
    )
    return float(values[metric_kid.KEY_METRIC_KID_MEAN]), float(values[metric_kid.KEY_METRIC_KID_STD])


def _mean(values: NDArray[np.float64], mask: Mask | None) -> float:
    chosen = values if mask is None else values[mask]
    return float(chosen.mean()) if chosen.size else math.nan
