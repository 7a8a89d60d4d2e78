"""Fitting a PatchVq to pictures: principal components, k-means for the first codes, then both networks and the codes.

The loss is made of pixels and their differences only. A loss on features of a network would draw sharper pictures; but
a network that the fit has seen could not be used to measure identities afterwards.

Shape legend: B crops, Z numbers of a code, V vocabulary, M patches, S side of an image in pixels.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenar.device import own_random_numbers
from tokenar.encoders.config import PatchVqConfig
from tokenar.encoders.patch_vq import PatchNetwork, PatchVq
from tokenar.encoders.patches import different_patches, patches_of

CROPS = 32
"""Crops a step."""
CROP = 12
"""Side of a crop in patches."""
FREE_STEPS = 10
"""Steps without quantisation, after which the first codes are fitted."""
RATE = 1.5e-3
MOST_PATCHES = 20_000
"""The principal components are those of at most this many different patches."""
DECAY = 0.98
"""Of the moving averages that the codes are."""
EXACT = 0.5
"""Share of the patches that the decoder is given as the network described them, because patches that a picture has from
its sources are decoded so (see PatchVq.decode)."""
UNUSED = 0.01
"""A code that is used less often a step is replaced by a description that is far from its code."""


def fit_patch_vq(config: PatchVqConfig, pictures: Tensor) -> PatchVq:
    """Fit a tokenizer to images [B, 3, S, S] float in [-1, 1]. The same images, settings and number of threads give the
    same tokenizer.

    UserError if the images hold fewer different patches than codes.
    """
    with own_random_numbers(torch.device("cpu")):
        torch.manual_seed(config.seed)
        network = PatchNetwork(config)
        patches = different_patches(config, pictures)
        some = patches[torch.randperm(len(patches))[:MOST_PATCHES]]
        found = torch.linalg.svd(some, full_matrices=False).Vh[: config.latents]
        network.components[: len(found)] = found
        Fit(network, pictures, patches).run()
    return PatchVq(config, network)


class Fit:
    """The state of one fit."""

    def __init__(self, network: PatchNetwork, pictures: Tensor, patches: Tensor):
        self.network, self.pictures, self.patches = network, pictures, patches
        self.grid = min(CROP, network.config.image_size // network.config.patch)
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=1e-4)
        self.used, self.totals = torch.ones(len(network.codes)), torch.zeros_like(network.codes)

    def run(self) -> None:
        """Take all steps; the learning rate warms up, then falls along a cosine."""
        steps = self.network.config.steps
        for step in range(steps):
            if step == min(FREE_STEPS, steps - 1):
                self._first_codes()
            done = step / steps
            for group in self.optimizer.param_groups:
                group["lr"] = RATE * min(1.0, (step + 1) / 50) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * done)))
            self.optimizer.zero_grad()
            self._loss(self._crops(), bool(self.totals.any()), step % 10 == 0 and done < 0.8).backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()

    def _crops(self) -> Tensor:
        """Random crops, [B, 3, side, side]: of two places the one with more contrast, half of them mirrored."""
        side, size = self.grid * self.network.config.patch, self.pictures.shape[-1]
        crops = []
        for _ in range(CROPS):
            chosen = torch.randint(len(self.pictures), (2,)).tolist()
            places = torch.randint(size - side + 1, (2, 2)).tolist()
            pair = [self.pictures[i, :, y : y + side, x : x + side] for i, (y, x) in zip(chosen, places, strict=True)]
            best = max(pair, key=lambda crop: float(crop.std()))
            crops.append(best.flip(-1) if torch.rand(()) < 0.5 else best)
        return torch.stack(crops)

    @torch.no_grad()
    def _first_codes(self) -> None:
        from sklearn.cluster import MiniBatchKMeans  # slow to import, and not needed to encode
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        config = self.network.config
        some = self.patches[torch.randperm(len(self.patches))[: 20 * config.vocabulary]]
        latents = self.network.latents(some).numpy()
        means = MiniBatchKMeans(
            config.vocabulary, batch_size=4096, n_init=1, max_iter=3, init="random", random_state=config.seed
        )
        with threadpool_limits(1):
            centers = means.fit(latents).cluster_centers_
        order = np.lexsort(centers.T[::-1])
        self.network.codes.copy_(torch.from_numpy(centers[order]))
        self.totals = self.network.codes.clone()

    def _loss(self, pictures: Tensor, quantised: bool, replace: bool) -> Tensor:
        patches = patches_of(pictures, self.network.config.patch)
        with torch.autocast("cpu", torch.bfloat16):
            latents = self.network.latents(patches)
        latents = latents.float()
        commitment = torch.zeros(())
        used = latents
        if quantised:
            rows = latents.flatten(0, 1)
            numbers = self.network.nearest(rows.detach())
            codes = self.network.codes[numbers]
            commitment = F.mse_loss(rows, codes)
            used = (rows + (codes - rows).detach()).view_as(latents)  # gradients pass straight through
            used = torch.where(torch.rand(*latents.shape[:2], 1) < EXACT, latents, used)
            self._move_codes(rows.detach(), numbers, replace)
        with torch.autocast("cpu", torch.bfloat16):
            drawn = self.network.pixels(used, self.grid)
        drawn = drawn.float()
        loss = F.mse_loss(drawn, pictures) + 0.3 * F.l1_loss(drawn, pictures) + 0.25 * commitment
        for one, other in zip(_edges(drawn), _edges(pictures), strict=True):
            loss = loss + 0.2 * F.l1_loss(one, other)
        return loss

    @torch.no_grad()
    def _move_codes(self, rows: Tensor, numbers: Tensor, replace: bool) -> None:
        """Move each code towards the mean of the descriptions [M, Z] that it stood for (van den Oord et al. 2017,
        arXiv 1711.00937, appendix A.1)."""
        codes = self.network.codes
        distances = (rows - codes[numbers]).pow(2).sum(1)
        counts = torch.bincount(numbers, minlength=len(codes)).float()
        self.used.lerp_(counts, 1 - DECAY)
        self.totals.lerp_(torch.zeros_like(codes).index_add_(0, numbers, rows), 1 - DECAY)
        codes.copy_(self.totals / self.used.clamp_min(1e-4)[:, None])
        unused = (self.used < UNUSED).nonzero()[:, 0]
        if replace and len(unused):
            # Far descriptions and not just any: most patches are plain and have a code already.
            chosen = torch.multinomial(distances + 1e-9, len(unused), replacement=len(unused) > len(rows))
            codes[unused] = self.totals[unused] = rows[chosen]
            self.used[unused] = 1.0


def _edges(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbouring pixels along rows and along columns."""
    return pictures.diff(dim=-1), pictures.diff(dim=-2)
