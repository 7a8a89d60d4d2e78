"""The grounding resampler: CLIP tokens of a reference, with its phrase and box, become sixteen prompt tokens.

Parameter names are those of the published file. Shapes: R rows (sample * subjects + subject), T image tokens, Q
queries, D width of the resampler, H heads.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.synthesis.dreamrelation.sizes import ResamplerSizes

FREQUENCIES = 8
BOX_FEATURES = FREQUENCIES * 2 * 4


class Resampler(nn.Module):
    """A perceiver whose first latents are computed from the subject's phrase and box.

    ``image_width``, ``phrase_width`` and ``token_width`` are the widths of the image encoder, of the first text encoder
    and of the UNet's text tokens.
    """

    def __init__(self, sizes: ResamplerSizes, image_width: int, phrase_width: int, token_width: int):
        super().__init__()
        width, grounding = sizes.width, phrase_width + BOX_FEATURES
        self.sizes = sizes
        self.grounding_latents = nn.Parameter(torch.zeros(1, sizes.queries, width))
        self.latent_proj = nn.Sequential(
            nn.Linear(grounding, 2 * grounding), nn.GELU(), nn.Linear(2 * grounding, sizes.queries * width)
        )
        self.latent_norm = nn.LayerNorm(width)
        self.proj_in = nn.Linear(image_width, width)
        self.attention_norm = nn.LayerNorm(width)
        self.proj_out = nn.Linear(width, token_width)
        self.norm_out = nn.LayerNorm(token_width)
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(sizes), feed_forward(width, sizes.ff_mult)]) for _ in range(sizes.layers)
        )

    def forward(self, image: Tensor, phrases: Tensor, boxes: Tensor, drop: Tensor | None = None) -> Tensor:
        """Tokens [R, Q, token width] from CLIP tokens [R, T, .], phrase vectors [R, .] and boxes [R, 4].

        Rows marked in ``drop`` [R] start from learned latents and ignore phrase and box.
        """
        latents = self.start_latents(phrases, boxes)
        if drop is not None:
            latents = torch.where(drop[:, None, None], self.grounding_latents, latents)
        image = self.proj_in(image)
        for attention, mlp in cast("Any", self.layers):
            latents = latents + attention(image, latents)
            latents = latents + mlp(latents)
        return self.norm_out(self.proj_out(self.attention_norm(latents)))

    def start_latents(self, phrases: Tensor, boxes: Tensor) -> Tensor:
        """The first latents [R, Q, D]."""
        grounding = torch.cat([phrases, box_features(boxes).to(phrases.dtype)], dim=-1)
        latents = self.latent_proj(grounding).unflatten(-1, (self.sizes.queries, self.sizes.width))
        return self.latent_norm(latents)


class PerceiverAttention(nn.Module):
    """Attention of the latents to the image tokens and to themselves."""

    def __init__(self, sizes: ResamplerSizes):
        super().__init__()
        width, inner = sizes.width, sizes.heads * sizes.head_width
        self.heads = sizes.heads
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, image: Tensor, latents: Tensor) -> Tensor:
        """From image tokens [R, T, D] and latents [R, Q, D] to [R, Q, D]."""
        image, latents = self.norm1(image), self.norm2(latents)
        keys, values = self.to_kv(torch.cat([image, latents], dim=1)).chunk(2, dim=-1)
        query, keys, values = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.to_q(latents), keys, values)
        )
        attended = functional.scaled_dot_product_attention(query, keys, values)  # [R, H, Q, D / H]
        return self.to_out(attended.transpose(1, 2).flatten(2))


def feed_forward(width: int, mult: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, mult * width, bias=False),
        nn.GELU(),
        nn.Linear(mult * width, width, bias=False),
    )


def box_features(boxes: Tensor) -> Tensor:
    """Fourier features [R, 64] of boxes [R, 4] in float32: by frequency, then sine and cosine, then coordinate."""
    frequencies = 100 ** (torch.arange(FREQUENCIES, device=boxes.device) / FREQUENCIES)
    angles = frequencies[:, None] * boxes.float()[:, None, :]  # [R, frequencies, 4]
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)
