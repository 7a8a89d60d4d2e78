"""The transformer (spec sections 1, 2, 3, 5), with the published names in its state dict.

Shape legend: B batch, T tokens, D width, H heads, V vocabulary, R references, N tokens an image, C text width.

Where this differs from the released code, on purpose:
- the background has its own row of the index table (QUIRK 1), see positions.py;
- the two null tables are trained like every other weight (QUIRK 2: there they stay noise);
- the index embedding is added in training and inference alike (QUIRK 8);
- drops happen in training mode only (QUIRK 20).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenar.config import DropConfig, ModelConfig
from tokenar.positions import Layout, apply_rotary, grid_coordinates, make_layout, null_rows, rotary_table, source_ids


class RMSNorm(nn.Module):
    """Divide by the root mean square over the last dimension, in float32, then scale."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).type_as(x) * self.weight


class KeyValueCache:
    """Keys and values of every layer for a known number of positions, allocated once: [layers, 2, B, H, T, D/H]."""

    def __init__(self, config: ModelConfig, batch: int, positions: int, like: Tensor):
        shape = (config.layers, 2, batch, config.heads, positions, config.head_width)
        self.store = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.filled = 0

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write [B, H, t, D/H] behind what is filled; return everything up to there as views."""
        end = self.filled + keys.shape[2]
        self.store[layer, 0, :, :, self.filled : end] = keys
        self.store[layer, 1, :, :, self.filled : end] = values
        return self.store[layer, 0, :, :, :end], self.store[layer, 1, :, :, :end]


class Attention(nn.Module):
    """Causal self-attention with one fused projection and rotary positions."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads = config.heads
        self.wqkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.wo = nn.Linear(config.width, config.width, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rotary: Tensor, cache: KeyValueCache | None, layer: int) -> Tensor:
        """[B, T, D] -> [B, T, D]. With a cache, ``x`` is the whole prefix or exactly one new position."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.wqkv(x).chunk(3, dim=-1)
        )  # each [B, H, T, D/H]
        q, k = apply_rotary(q, rotary), apply_rotary(k, rotary)
        if cache is not None:
            k, v = cache.update(layer, k, v)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1)
        return self.dropout(self.wo(mixed.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.w1 = nn.Linear(config.width, config.feed_forward_width, bias=False)
        self.w3 = nn.Linear(config.width, config.feed_forward_width, bias=False)
        self.w2 = nn.Linear(config.feed_forward_width, config.width, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.w2(F.silu(self.w1(x)) * self.w3(x)))


class Block(nn.Module):
    """Pre-norm: x + attention(norm x), then x + feed_forward(norm x)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.ffn_norm = RMSNorm(config.width, config.norm_eps)

    def forward(self, x: Tensor, rotary: Tensor, cache: KeyValueCache | None, layer: int) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotary, cache, layer)
        return x + self.feed_forward(self.ffn_norm(x))


class TextProjection(nn.Module):
    """Text features to model width; without biases, so that zero features (padding) stay zero."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.text_width, config.width, bias=False)
        self.fc2 = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class TextEmbedding(nn.Module):
    """The null-text table [text_tokens, C] and the projection."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.cap_proj = TextProjection(config)
        self.uncond_embedding = nn.Parameter(
            torch.randn(config.text_tokens, config.text_width) / math.sqrt(config.text_width)
        )
        self.dropout = nn.Dropout(config.text_dropout)

    def forward(self, text: Tensor, dropped: Tensor | None) -> Tensor:
        """Features [B, text_tokens, C] -> [B, text_tokens, D]; ``dropped`` [B] bool picks the null text."""
        if dropped is not None:
            text = torch.where(dropped[:, None, None], self.uncond_embedding, text)
        return self.dropout(self.cap_proj(text))


def drop_decisions(draws: Tensor, drops: DropConfig) -> tuple[Tensor, Tensor]:
    """Uniform draws [B] in [0, 1) -> (image dropped, text dropped), both [B] bool (spec section 1).

    r < both: both dropped; then up to both + image: image only; r > 1 - text: text only; else nothing.
    """
    both = draws < drops.both
    image = both | (draws < drops.both + drops.image)
    text = both | (draws > 1 - drops.text)
    return image, text


class TokenAR(nn.Module):
    """Predicts the tokens of a picture from reference pictures, a background and a text."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        d, blocks = config.width, config.max_references + 1
        self.tok_embeddings = nn.Embedding(config.vocabulary, d)
        self.cls_embedding = TextEmbedding(config)
        self.img_uncond_embedding = nn.Parameter(torch.randn(blocks * config.image_tokens, d) / math.sqrt(d))
        self.ref_index_embeddings = nn.Embedding(blocks, d) if config.index_embedding else None
        self.instruct_token_embeddings = nn.Embedding(1, config.instruct_tokens * d) if config.instruct_tokens else None
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(d, config.norm_eps)
        self.output = None if config.tied_output else nn.Linear(d, config.vocabulary, bias=False)
        self._tables: dict[tuple[int, torch.device], tuple[Tensor, Tensor, Tensor]] = {}
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Linear and embedding weights N(0, 0.02^2), zero output head (spec section 5)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        if self.output is not None:
            nn.init.zeros_(self.output.weight)

    def layout(self, references: int) -> Layout:
        """The sequence layout for samples with ``references`` references."""
        return make_layout(self.config, references)

    def tables(self, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """(rotary table, source ids, null-image rows) on the model's device; computed once a layout."""
        key = (layout.references, self.norm.weight.device)
        if key not in self._tables:
            rotary = rotary_table(grid_coordinates(layout), self.config.head_width, self.config.rotary_base)
            made = (rotary, source_ids(layout), null_rows(layout))
            self._tables[key] = tuple(table.to(key[1]) for table in made)  # type: ignore[assignment]
        return self._tables[key]

    def embed_prefix(
        self, sources: Tensor, text: Tensor, image_dropped: Tensor | None = None, text_dropped: Tensor | None = None
    ) -> Tensor:
        """Sources [B, R+1, N] codes and text [B, text_tokens, C] -> [B, prefix, D]; drops are [B] bool."""
        _, ids, rows = self.tables(self.layout(sources.shape[1] - 1))
        source = self.tok_embeddings(sources.flatten(1))
        if self.ref_index_embeddings is not None:
            source = source + self.ref_index_embeddings(ids)
        if image_dropped is not None:
            source = torch.where(image_dropped[:, None, None], self.img_uncond_embedding[rows], source)
        parts = [source, self.cls_embedding(text, text_dropped)]
        if self.instruct_token_embeddings is not None:
            instruct = self.instruct_token_embeddings.weight.view(1, self.config.instruct_tokens, -1)
            parts.append(instruct.expand(len(sources), -1, -1))
        return torch.cat(parts, dim=1)

    def hidden(self, x: Tensor, rotary: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Run the blocks and the final norm over [B, T, D]; a cache is advanced by T positions."""
        for number, layer in enumerate(self.layers):
            x = layer(x, rotary, cache, number)
        if cache is not None:
            cache.filled += x.shape[1]
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V] float32."""
        head = self.tok_embeddings if self.output is None else self.output
        return F.linear(hidden, head.weight).float()

    def target_tokens(self, sources: Tensor, picture: Tensor) -> Tensor:
        """Everything that is predicted, [B, E N]: with disentanglement the references, then the picture [B, N]."""
        if not self.config.identity_disentanglement:
            return picture
        return torch.cat([sources[:, :-1].flatten(1), picture], dim=1)

    def forward(
        self,
        sources: Tensor,
        text: Tensor,
        picture: Tensor,
        draws: Tensor | None = None,
        drops: DropConfig | None = None,
    ) -> Tensor:
        """Logits [B, E N, V] float32, only where a target token is predicted (spec section 3).

        sources [B, R+1, N] int64: codes of the references and then the background; text [B, text_tokens, C];
        picture [B, N] int64. ``draws`` [B] are uniform numbers of the caller's generator that decide the guidance
        drops; in evaluation mode, or without them, nothing is dropped.
        """
        layout = self.layout(sources.shape[1] - 1)
        image_dropped = text_dropped = None
        if self.training and draws is not None:
            image_dropped, text_dropped = drop_decisions(draws, drops or DropConfig())
        prefix = self.embed_prefix(sources, text, image_dropped, text_dropped)
        target = self.tok_embeddings(self.target_tokens(sources, picture)[:, :-1])
        rotary = self.tables(layout)[0][: layout.total - 1]
        hidden = self.hidden(torch.cat([prefix, target], dim=1), rotary)
        return self.logits(hidden[:, layout.prefix - 1 :])

    def flops(self, references: int) -> int:
        """Multiply-adds times two of one sample's forward pass, the causal half of attention counted once."""
        config, length = self.config, self.layout(references).total - 1
        block = 4 * config.width**2 + 3 * config.width * config.feed_forward_width
        head = config.width * config.vocabulary * self.layout(references).target_tokens
        return 2 * (config.layers * (length * block + length**2 * config.width) + head)

    def kv_bytes(self, batch: int, references: int) -> int:
        """Bytes of the key-value cache for ``batch`` samples in float32."""
        return 4 * 2 * self.config.layers * batch * self.config.width * self.layout(references).total
