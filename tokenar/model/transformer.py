"""The transformer (spec/tokenar.md sections 1 to 5), with the published names in its state dict.

Shape legend: B batch, T tokens, D width, H heads, V vocabulary, R references, N tokens an image, C text width,
K heads of keys and values, E target blocks.

Where the release contradicts the paper or itself, ModelConfig has a field (see ``config.released`` and
``config.tokenar_xl``). Different from the release whatever is set: guidance drops happen in training mode only
(QUIRK 20), and the null-text table has ``text_tokens`` rows (QUIRK 7; the same at 120).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenar.model.cache import KeyValueCache, attend
from tokenar.model.config import DropConfig, ModelConfig
from tokenar.model.linear import Linear, product
from tokenar.model.positions import (
    Layout,
    apply_rotary,
    attention_mask,
    layout_rotary,
    make_layout,
    null_rows,
    padding_last,
    source_ids,
)
from tokenar.model.published import PublishedModel

TEACHER_WIDTH = 768
Scorer = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From hidden states [B, E N, D], the output head [V, D] and the tokens to predict [B, E N]: what to give back."""


class RMSNorm(nn.Module):
    """Divide by the root mean square over the last dimension, in float32, then scale."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).type_as(x) * self.weight


class Attention(nn.Module):
    """Self-attention with one fused projection and rotary positions; key head j serves H/K query heads in a row."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads, self.kv_heads, self.head_width = config.heads, config.key_value_heads, config.head_width
        projected = (self.heads + 2 * self.kv_heads) * self.head_width
        self.wqkv = Linear(config.width, projected, bias=False)
        self.wo = Linear(config.width, config.width, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, rotary: Tensor, cache: KeyValueCache | None, layer: int, mask: Tensor | None, last: int | None
    ) -> Tensor:
        """[B, T, D] -> [B, T, D], or with ``last`` only its last so many positions, [B, last, D].

        With a cache, ``x`` is what comes behind the cached positions. ``mask`` as from positions.attention_mask; None
        is causal.
        """
        heads = self.wqkv(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
        turned, v = heads.split([self.heads + self.kv_heads, self.kv_heads], dim=1)  # [B, H + K or K, T, D/H]
        q, k = apply_rotary(turned, rotary).split([self.heads, self.kv_heads], dim=1)
        if last is not None:
            q, mask = q[:, :, -last:], None if mask is None else mask[..., -last:, :]
        mixed = attend(q, k, v, mask) if cache is None else cache.attend(layer, q, k, v, mask)
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
    """Pre-norm: x + attention(norm x), then x + feed_forward(norm x)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.ffn_norm = RMSNorm(config.width, config.norm_eps)

    def forward(
        self, x: Tensor, rotary: Tensor, cache: KeyValueCache | None, layer: int, mask: Tensor | None, last: int | None
    ) -> Tensor:
        mixed = self.attention(self.attention_norm(x), rotary, cache, layer, mask, last)
        x = x[:, -mixed.shape[1] :] + mixed
        return x + self.feed_forward(self.ffn_norm(x))


class TextProjection(nn.Module):
    """Text features to model width; without biases, so that zero features (padding) stay zero."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.fc1 = Linear(config.text_width, config.width, bias=False)
        self.fc2 = Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def _add_null_table(module: nn.Module, name: str, rows: int, width: int, config: ModelConfig) -> None:
    """A table [rows, width] drawn from N(0, 1 / width); frozen it is in the state dict all the same (QUIRK 2)."""
    table = torch.randn(rows, width) / math.sqrt(width)
    if config.null_embeddings == "frozen":
        module.register_buffer(name, table)
    else:
        module.register_parameter(name, nn.Parameter(table))


class TextEmbedding(nn.Module):
    """The null-text table [text_tokens, C] and the projection."""

    uncond_embedding: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.cap_proj = TextProjection(config)
        _add_null_table(self, "uncond_embedding", config.text_tokens, config.text_width, config)
        self.dropout = nn.Dropout(config.text_dropout)

    def forward(self, text: Tensor, dropped: Tensor | None) -> Tensor:
        """Features [B, text_tokens, C] -> [B, text_tokens, D]; ``dropped`` [B] bool picks the null text."""
        if dropped is not None:
            text = torch.where(dropped[:, None, None], self.uncond_embedding, text)
        return self.dropout(self.cap_proj(text))


def drop_decisions(draws: Tensor, drops: DropConfig) -> tuple[Tensor, Tensor]:
    """Uniform draws [B] in [0, 1) -> (image dropped, text dropped), both [B] bool (spec/tokenar.md section 1).

    r < both: both dropped; then up to both + image: image only; r > 1 - text: text only; else nothing.
    """
    both = draws < drops.both
    image = both | (draws < drops.both + drops.image)
    text = both | (draws > 1 - drops.text)
    return image, text


class Alignment(nn.Conv2d):
    """Hidden states of a picture to what a teacher sees in it (spec/tokenar.md section 4): 2 x 2 tokens make one."""

    def __init__(self, config: ModelConfig):
        super().__init__(config.width, TEACHER_WIDTH, kernel_size=2, stride=2)
        self.grid, self.teacher = config.grid, config.distill

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, N, D] -> [B, (grid / 2)^2, 768] in raster order; for CLIP brought to its 14 x 14 cells."""
        features = super().forward(hidden.transpose(1, 2).unflatten(2, (self.grid, self.grid)))
        if self.teacher == "clip":
            features = F.interpolate(features, size=(14, 14), mode="bilinear", antialias=True)
        return features.flatten(2).transpose(1, 2)


class TokenAR(nn.Module, PublishedModel):
    """Predicts the tokens of a picture from reference pictures, a background and a text."""

    img_uncond_embedding: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        d, blocks = config.width, config.source_blocks
        self.tok_embeddings = nn.Embedding(config.vocabulary, d)
        self.cls_embedding = TextEmbedding(config)
        _add_null_table(self, "img_uncond_embedding", blocks * config.image_tokens, d, config)
        self.ref_index_embeddings = nn.Embedding(blocks, d) if config.index_embedding else None
        sets = blocks if config.instruct_mode == "special" else 1
        instruct = nn.Embedding(sets, config.instruct_tokens * d) if config.instruct_tokens else None
        self.instruct_token_embeddings = instruct
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(d, config.norm_eps)
        self.output = None if config.tied_output else nn.Linear(d, config.vocabulary, bias=False)
        self.alignment = Alignment(config) if config.distill else None
        self._tables: dict[tuple[int, torch.device], tuple[Tensor, Tensor, Tensor]] = {}
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Linear and embedding weights N(0, 0.02^2), zero output head (spec/tokenar.md section 5)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        if self.output is not None:
            nn.init.zeros_(self.output.weight)

    def layout(self, references: int) -> Layout:
        """The sequence layout for samples with ``references`` references."""
        return make_layout(self.config, references)

    def layout_of(self, sources: Tensor) -> Layout:
        """The sequence layout for source codes [B, R+1, N] (without a background [B, R, N])."""
        return self.layout(sources.shape[1] - self.config.background)

    def tables(self, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """(rotary table, source ids, null-image rows) on the model's device; computed once a layout."""
        key = (layout.references, self.norm.weight.device)
        if key not in self._tables:
            made = (layout_rotary(layout), source_ids(layout), null_rows(layout))
            self._tables[key] = tuple(table.to(key[1]) for table in made)  # type: ignore[assignment]
        return self._tables[key]

    def mask(self, layout: Layout, length: int, text_mask: Tensor | None, text_dropped: Tensor | None) -> Tensor | None:
        """What ``hidden`` needs for the first ``length`` positions; None where plain causal attention is meant.

        ``text_mask`` [B, text_tokens] bool is True at the text's own positions; a dropped text has no padding.
        """
        if self.config.text_padding == "attended":
            text_mask = None
        elif text_mask is None:
            raise ValueError("text_padding is masked: text_mask is needed")
        elif text_dropped is not None:
            text_mask = text_mask | text_dropped[:, None]
        if text_mask is None and self.config.source_attention == "causal":
            return None
        return attention_mask(layout, length, text_mask).to(self.norm.weight.device)

    def embed_prefix(
        self,
        sources: Tensor,
        text: Tensor,
        image_dropped: Tensor | None = None,
        text_dropped: Tensor | None = None,
        instruct: Tensor | None = None,
        index: bool = True,
    ) -> Tensor:
        """Sources [B, R+1, N] codes and text [B, text_tokens, C] -> [B, prefix, D]; drops are [B] bool.

        ``instruct`` [B] int64 picks each sample's set of instruct tokens in "special" mode; without ``index`` no index
        embedding is added.
        """
        _, ids, rows = self.tables(self.layout_of(sources))
        source = self.tok_embeddings(sources.flatten(1))
        if self.ref_index_embeddings is not None and index:
            source = source + self.ref_index_embeddings(ids)
        if image_dropped is not None:
            source = torch.where(image_dropped[:, None, None], self.img_uncond_embedding[rows], source)
        parts = [source, self.cls_embedding(text, text_dropped)]
        if self.instruct_token_embeddings is not None:
            parts.append(self._instruct(len(sources), instruct))
        return torch.cat(parts, dim=1)

    def _instruct(self, batch: int, sets: Tensor | None) -> Tensor:
        """[B, instruct_tokens, D]."""
        assert self.instruct_token_embeddings is not None
        if self.config.instruct_mode == "casual":
            return self.instruct_token_embeddings.weight.view(1, self.config.instruct_tokens, -1).expand(batch, -1, -1)
        if sets is None:
            raise ValueError("instruct_mode is special: the number of each sample's instruct tokens is needed")
        return self.instruct_token_embeddings(sets).unflatten(1, (self.config.instruct_tokens, -1))

    def embed_target(self, tokens: Tensor, layout: Layout, start: int = 0, index: bool = True) -> Tensor:
        """Target tokens number ``start`` and on, [B, t] codes -> [B, t, D]."""
        x, added = self.tok_embeddings(tokens), self.target_index(layout, index)
        return x if added is None else x + added[start : start + tokens.shape[1]]

    def target_index(self, layout: Layout, index: bool = True) -> Tensor | None:
        """What is added to the target's tokens, [E N, D], or None for nothing.

        With ``index_on_targets`` a reference's copy gets the reference's index embedding; the picture gets none.
        """
        if self.ref_index_embeddings is None or not self.config.index_on_targets or not index:
            return None
        copied = self.tables(layout)[1][: layout.copies * layout.image_tokens]
        return F.pad(self.ref_index_embeddings(copied), (0, 0, 0, layout.image_tokens))

    def hidden(
        self,
        x: Tensor,
        rotary: Tensor,
        cache: KeyValueCache | None = None,
        mask: Tensor | None = None,
        last: int | None = None,
    ) -> Tensor:
        """Run the blocks and the final norm over [B, T, D]; a cache is advanced by T positions.

        With ``last`` only the last so many positions come back, and the last block computes no others.
        """
        positions = x.shape[1]
        for number, layer in enumerate(self.layers):
            x = layer(x, rotary, cache, number, mask, last if number == len(self.layers) - 1 else None)
        if cache is not None:
            cache.advance(positions)
        return self.norm(x)

    def whole(self, x: Tensor, layout: Layout, text_mask: Tensor | None, text_dropped: Tensor | None) -> Tensor:
        """Hidden states of all positions of a sequence at once, [B, T, D] -> [B, T, D]; ``mask`` tells of the others.

        Padding that nobody may see is moved behind everything else, where causal attention hides it without a mask:
        the fast attention kernels take none. Only a model without instruct tokens predicts from a padding position.
        """
        config, length, rotary = self.config, x.shape[1], self.tables(layout)[0][: x.shape[1]]
        moved = config.text_padding == "masked" and config.source_attention == "causal" and config.instruct_tokens
        if not moved or text_mask is None:
            return self.hidden(x, rotary, mask=self.mask(layout, length, text_mask, text_dropped))
        kept = text_mask if text_dropped is None else text_mask | text_dropped[:, None]
        order = padding_last(layout, length, kept)[..., None]
        hidden = self.hidden(x.gather(1, order.expand_as(x)), rotary[order[..., 0]][:, None])
        return hidden.gather(1, order.argsort(dim=1).expand_as(x))

    @property
    def head(self) -> Tensor:
        """The output head, [V, D]."""
        return self.tok_embeddings.weight if self.output is None else self.output.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V] float32."""
        return product(hidden, self.head).float()

    def copies(self, sources: Tensor) -> Tensor:
        """What is predicted before the picture, [B, copies N] codes: with disentanglement the references."""
        return sources[:, : self.layout_of(sources).copies].flatten(1)

    def target_tokens(self, sources: Tensor, picture: Tensor) -> Tensor:
        """Everything that is predicted, [B, E N]: with disentanglement the references, then the picture [B, N]."""
        return torch.cat([self.copies(sources), picture], dim=1)

    def forward(
        self,
        sources: Tensor,
        text: Tensor,
        picture: Tensor,
        draws: Tensor | None = None,
        drops: DropConfig | None = None,
        *,
        text_mask: Tensor | None = None,
        instruct: Tensor | None = None,
        with_features: bool = False,
        score: Scorer | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits [B, E N, V] float32, only where a target token is predicted (spec/tokenar.md section 3).

        sources [B, R+1, N] int64: codes of the references and then the background; text [B, text_tokens, C];
        picture [B, N] int64. ``draws`` [B] are uniform numbers of the caller's generator that decide the guidance
        drops; in evaluation mode, or without them, nothing is dropped. ``text_mask`` [B, text_tokens] bool is needed
        with masked padding, ``instruct`` [B] in special mode. ``with_features`` asks for the pair (logits, alignment
        features [B, n, 768]), the features from where the picture's own tokens are predicted. What ``score`` makes of
        the hidden states comes in place of the logits, which in training are the largest thing in memory.
        """
        layout = self.layout_of(sources)
        image_dropped = text_dropped = None
        if self.training and draws is not None:
            image_dropped, text_dropped = drop_decisions(draws, drops or DropConfig())
        prefix = self.embed_prefix(sources, text, image_dropped, text_dropped, instruct)
        wanted = self.target_tokens(sources, picture)
        target = self.embed_target(wanted[:, :-1], layout)
        hidden = self.whole(torch.cat([prefix, target], dim=1), layout, text_mask, text_dropped)
        scored = hidden[:, layout.prefix - 1 :]
        logits = self.logits(scored) if score is None else score(scored, self.head, wanted)
        if not with_features:
            return logits
        if self.alignment is None:
            raise ValueError("the model has no alignment layer: distill is not set")
        return logits, self.alignment(hidden[:, -layout.image_tokens :])

    def flops(self, references: int) -> int:
        """Multiply-adds times two of one sample's forward pass, the causal half of attention counted once."""
        config, length = self.config, self.layout(references).total - 1
        attention = 2 * config.width * (config.heads + config.key_value_heads) * config.head_width
        block = attention + 3 * config.width * config.feed_forward_width
        head = config.width * config.vocabulary * self.layout(references).target_tokens
        return 2 * (config.layers * (length * block + length**2 * config.width) + head)

    def kv_bytes(self, positions: int) -> int:
        """Bytes of the keys and values of so many positions of one row, in the precision of the norms."""
        width = self.config.key_value_heads * self.config.head_width
        return 2 * self.config.layers * width * positions * self.norm.weight.element_size()

    def weight_bytes(self) -> int:
        """Bytes of the weights that a decoding step reads: blocks, norm and head."""
        read = [*self.layers.parameters(), self.norm.weight, self.head]
        return sum(weight.numel() * weight.element_size() for weight in read)
