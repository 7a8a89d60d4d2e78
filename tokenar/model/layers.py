"""The layers of the transformer: norm, attention, feed-forward, block, text embedding and alignment.

Their attribute names are the published state dict's.

Shape legend: B batch, T tokens, D model width, H query heads, K key/value heads, N tokens an image, C text width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenar.model.cache import LayerCache, causal_attention
from tokenar.model.config import CLIP_SIDE, ModelConfig
from tokenar.model.linear import Linear
from tokenar.model.positions import apply_rotary

TEACHER_WIDTH = 768
FIRST_SCORE = 11.0
"""The largest score that attention can give at first with ``qk_norm``. With ten times as much it was too sharp to
learn."""
MIMETIC_SHARE = 0.8
"""Correlation of query and key weights in ``start_mimetic``."""


class RMSNorm(nn.Module):
    """Divide by the root mean square over the last dimension, then multiply by a learned weight.

    The quotient is computed in float32 and rounded to the input's type before the weight is applied, as in the
    published code. torch.nn.functional.rms_norm rounds after the weight, which gives other bits in bfloat16.
    """

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).type_as(x) * self.weight


class Attention(nn.Module):
    """Self-attention with one fused projection for q, k and v, and rotary position embedding.

    With K < H, key/value head j serves the H/K consecutive query heads that start at j * H/K.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads, self.kv_heads, self.head_width = config.heads, config.key_value_heads, config.head_width
        projected = (self.heads + 2 * self.kv_heads) * self.head_width
        self.wqkv = Linear(config.width, projected, bias=False)
        self.wo = Linear(config.width, config.width, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        # One dimension, so that it does not decay.
        gain = torch.full((config.width,), FIRST_SCORE / math.sqrt(self.head_width))
        self.query_gain = nn.Parameter(gain) if config.qk_norm else None

    def project(self, x: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, D] -> rotated queries [B, H, T, D/H], rotated keys and values [B, K, T, D/H].

        With ``qk_norm`` queries and keys are divided by their root mean square, and queries multiplied by a learned
        gain for each head and channel (Henry et al. 2020, arXiv 2010.04245).
        """
        heads = self.wqkv(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
        qk, v = heads.split([self.heads + self.kv_heads, self.kv_heads], dim=1)  # [B, H + K or K, T, D/H]
        if self.query_gain is not None:
            gain = F.pad(self.query_gain.view(self.heads, 1, -1), (0, 0, 0, 0, 0, self.kv_heads), value=1.0)
            qk = (F.rms_norm(qk.float(), (self.head_width,)) * gain).type_as(qk)
        q, k = apply_rotary(qk, rotary).split([self.heads, self.kv_heads], dim=1)
        return q, k, v

    def forward(
        self, x: Tensor, rotary: Tensor, cache: LayerCache | None, mask: Tensor | None, last: int | None
    ) -> Tensor:
        """[B, T, D] -> [B, T, D], or [B, last, D] if ``last`` is given: the output of the last positions only.

        With a cache, this layer's, ``x`` holds the positions that follow the cached ones. ``mask`` is as
        positions.attention_mask returns it; None means causal.
        """
        q, k, v = self.project(x, rotary)
        if last is not None:
            q, mask = q[:, :, -last:], None if mask is None else mask[..., -last:, :]
        mixed = causal_attention(q, k, v, mask) if cache is None else cache.attend(q, k, v, mask)
        return self.dropout(self.wo(mixed.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.w1 = Linear(config.width, config.feed_forward_width, bias=False)
        self.w3 = Linear(config.width, config.feed_forward_width, bias=False)
        self.w2 = Linear(config.feed_forward_width, config.width, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.silu(self.w1(x), inplace=not torch.is_grad_enabled())
        return self.dropout(self.w2(gate * self.w3(x)))


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm x), then x + feed_forward(norm x)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.ffn_norm = RMSNorm(config.width, config.norm_eps)

    def forward(
        self, x: Tensor, rotary: Tensor, cache: LayerCache | None, mask: Tensor | None, last: int | None
    ) -> Tensor:
        """[B, T, D] -> [B, T or last, D]; the arguments are those of Attention."""
        mixed = self.attention(self.attention_norm(x), rotary, cache, mask, last)
        x = x[:, -mixed.shape[1] :] + mixed
        return x + self.feed_forward(self.ffn_norm(x))


@torch.no_grad()
def start_mimetic(blocks: nn.ModuleList) -> None:
    """Draw the blocks' weights anew, so that attention begins as a look-up (Trockman and Kolter 2023,
    arXiv 2305.09828).

    Key weights resemble query weights, so that a position attends to positions like itself. The output weights of the
    first block resemble the transpose of its value weights, so that what is attended to is copied.
    """
    for number, block in enumerate(blocks):
        assert isinstance(block, Block)
        attention, feed = block.attention, block.feed_forward
        for linear in (attention.wqkv, attention.wo, feed.w1, feed.w3, feed.w2):
            nn.init.normal_(linear.weight, std=attention.wo.in_features**-0.5)
        for linear in (attention.wo, feed.w2):  # what a block adds begins small beside what it reads
            linear.weight.mul_(0.5)
        heads, groups = attention.heads, attention.kv_heads
        weights = attention.wqkv.weight.unflatten(0, (-1, attention.head_width))
        q, k, v = weights.split([heads, groups, groups])
        k.mul_(math.sqrt(1 - MIMETIC_SHARE**2)).add_(q[:: heads // groups], alpha=MIMETIC_SHARE)
        if number == 0:
            attention.wo.weight.add_(v.repeat_interleave(heads // groups, 0).flatten(0, 1).T, alpha=groups / heads)


class TextProjection(nn.Module):
    """Text features [..., C] to model width [..., D]. There are no biases, so zero features (padding) stay zero."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.fc1 = Linear(config.text_width, config.width, bias=False)
        self.fc2 = Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def add_null_table(module: nn.Module, name: str, rows: int, width: int, config: ModelConfig) -> None:
    """Give ``module`` a null table: the embeddings [rows, width] that replace a dropped image or text.

    Its rows are drawn from N(0, 1 / width). With ``null_embeddings="frozen"`` it is a buffer: in the state dict, but
    never trained (docs/differences.md, "Null tables").
    """
    table = torch.randn(rows, width) / math.sqrt(width)
    if config.null_embeddings == "frozen":
        module.register_buffer(name, table)
    else:
        module.register_parameter(name, nn.Parameter(table))


class TextEmbedding(nn.Module):
    """The text projection, and the null-text table [text_tokens, C] that replaces dropped text."""

    uncond_embedding: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.cap_proj = TextProjection(config)
        add_null_table(self, "uncond_embedding", config.text_tokens, config.text_width, config)
        self.dropout = nn.Dropout(config.text_dropout)

    def forward(self, text: Tensor, dropped: Tensor | None) -> Tensor:
        """Text features [B, text_tokens, C] -> [B, text_tokens, D].

        Samples for which ``dropped`` [B] bool is True get the null text instead of their own.
        """
        if dropped is not None:
            text = torch.where(dropped[:, None, None], self.uncond_embedding, text)
        return self.dropout(self.cap_proj(text))


class Alignment(nn.Conv2d):
    """Map the hidden states of an image to the features of the distillation ``teacher`` (paper, Eq. A2).

    A convolution of kernel and stride 2 maps every 2 x 2 tokens to one feature vector of the teacher's width.
    """

    def __init__(self, config: ModelConfig, teacher: str):
        super().__init__(config.width, TEACHER_WIDTH, kernel_size=2, stride=2)
        self.grid, self.teacher = config.grid, teacher

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, N, D] -> [B, (grid / 2)^2, 768] in raster order; for CLIP interpolated to its 14 x 14 patches."""
        features = super().forward(hidden.transpose(1, 2).unflatten(2, (self.grid, self.grid)))
        if self.teacher == "clip":
            features = F.interpolate(features, size=(CLIP_SIDE, CLIP_SIDE), mode="bilinear", antialias=True)
        return features.flatten(2).transpose(1, 2)


class Alignments(nn.ModuleList):
    """An Alignment for each of several teachers."""

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, N, D] -> the features for all teachers one after the other, [B, n, 768]."""
        return torch.cat([alignment(hidden) for alignment in self], dim=1)


def alignment_of(config: ModelConfig) -> Alignment | Alignments | None:
    """What a model has for its teachers. The names in the state dict are those of the release: ``alignment.weight`` of
    one teacher, ``alignment.0.weight`` and so on of several."""
    each = [Alignment(config, teacher) for teacher in config.teachers]
    return Alignments(each) if len(each) > 1 else next(iter(each), None)
