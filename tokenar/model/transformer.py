"""The TokenAR transformer, with the parameter names of the published checkpoints.

Shape legend: B batch, T tokens, D model width, H heads, V vocabulary, R references, N tokens an image, C text width,
E target blocks (the images that are predicted).

Where the released program differs from the paper or from itself, a field of ModelConfig chooses the behaviour:
``config.released`` and ``config.tokenar_xl`` are the two sets of choices, and docs/differences.md explains each one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenar.model.cache import KeyValueCache
from tokenar.model.config import DropConfig, ModelConfig
from tokenar.model.copying import CopyHead, CopySources, Pointers
from tokenar.model.layers import Block, RMSNorm, TextEmbedding, add_null_table, alignment_of, start_mimetic
from tokenar.model.linear import Linear, product, stored_bytes
from tokenar.model.neighbours import Neighbours, with_border
from tokenar.model.positions import (
    Layout,
    attention_mask,
    layout_rotary,
    make_layout,
    null_rows,
    padding_last,
    source_ids,
)
from tokenar.model.published import PublishedModel

Scorer = Callable[[Tensor, Tensor, Tensor, Pointers | None], Tensor]
"""A function of the hidden states [B, E N, D] that predict the target, the output head [V, D], the target tokens
[B, E N] and, if the model has a copy head, what it says. TokenAR.forward returns its result in place of the logits."""


def drop_decisions(draws: Tensor, drops: DropConfig) -> tuple[Tensor, Tensor]:
    """Which samples lose their images or text in training: uniform draws [B] in [0, 1) -> (images, text), [B] bool.

    A draw below ``both`` drops both; from there up to ``both + image`` it drops the images only; above ``1 - text`` it
    drops the text only; in between nothing is dropped.
    """
    both = draws < drops.both
    image = both | (draws < drops.both + drops.image)
    text = both | (draws > 1 - drops.text)
    return image, text


class TokenAR(nn.Module, PublishedModel):
    """Predicts the tokens of an image from reference images, a background and a text.

    The model's images are called *sources* (the references and the background), *picture* (the image to be predicted)
    and *target* (all that is predicted: with identity disentanglement the references again, then the picture).
    """

    img_uncond_embedding: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        d, blocks = config.width, config.source_blocks
        self.tok_embeddings = nn.Embedding(config.vocabulary, d)
        self.cls_embedding = TextEmbedding(config)
        add_null_table(self, "img_uncond_embedding", blocks * config.image_tokens, d, config)
        self.ref_index_embeddings = nn.Embedding(blocks, d) if config.index_embedding else None
        sets = blocks if config.instruct_mode == "special" else 1
        instruct = nn.Embedding(sets, config.instruct_tokens * d) if config.instruct_tokens else None
        self.instruct_token_embeddings = instruct
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(d, config.norm_eps)
        self.output = None if config.tied_output else nn.Linear(d, config.vocabulary, bias=False)
        self.alignment = alignment_of(config)
        # What is not in published weights comes last, so that it does not move the others' draws.
        self.neighbours = Neighbours(config) if config.neighbours else None
        self.background_in_place = Linear(d, d, bias=False) if config.background_in_place else None
        self.copy_head = CopyHead(config) if config.copy_head else None
        self._tables: dict[tuple[int, torch.device], tuple[Tensor, Tensor, Tensor]] = {}
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw linear and embedding weights from N(0, 0.02^2) and set the output head to zero, as published."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        if self.output is not None:
            nn.init.zeros_(self.output.weight)
        for part in (self.neighbours, self.copy_head):
            if part is not None:
                part.reset_parameters()
        if self.background_in_place is not None:
            nn.init.eye_(self.background_in_place.weight)
        if self.config.mimetic_start:
            start_mimetic(self.layers)

    def layout(self, references: int) -> Layout:
        """The sequence layout of samples with ``references`` references."""
        return make_layout(self.config, references)

    def layout_of(self, sources: Tensor) -> Layout:
        """The sequence layout that fits source codes [B, R+1, N], or [B, R, N] for a model without a background."""
        return self.layout(sources.shape[1] - self.config.background)

    def tables(self, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """(rotary table [T, head width / 2, 2], source ids [S], null-image rows [S]) of a layout with S source tokens.

        See positions.py. They are on the model's device, and computed once for each layout and device.
        """
        key = (layout.references, self.norm.weight.device)
        if key not in self._tables:
            tables = (layout_rotary(layout), source_ids(layout), null_rows(layout))
            self._tables[key] = tuple(table.to(key[1]) for table in tables)  # type: ignore[assignment]
        return self._tables[key]

    def mask(self, layout: Layout, length: int, text_mask: Tensor | None, text_dropped: Tensor | None) -> Tensor | None:
        """The attention mask of the first ``length`` positions, or None where plain causal attention is meant.

        ``text_mask`` [B, text_tokens] bool is False at the caption's padding. Where ``text_dropped`` [B] bool is True
        the null text fills all text positions, so none of them is padding.
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
        """Embeddings [B, prefix, D] of everything before the target, from source codes [B, R+1, N] and text features
        [B, text_tokens, C].

        Samples for which ``image_dropped`` or ``text_dropped`` [B] bool is True get the null tables instead. In
        "special" mode ``instruct`` [B] int64 is the number of each sample's set of instruct tokens, None the picture's.
        ``index=False`` leaves the index embedding out.
        """
        _, ids, rows = self.tables(self.layout_of(sources))
        source = self.tok_embeddings(sources.flatten(1))
        if self.neighbours is not None:
            source = source + self.neighbours.of_sources(sources.flatten(1), self.tok_embeddings)
        if self.ref_index_embeddings is not None and index:
            source = source + self.ref_index_embeddings(ids)
        if image_dropped is not None:
            source = torch.where(image_dropped[:, None, None], self.img_uncond_embedding[rows], source)
        parts = [source, self.cls_embedding(text, text_dropped)]
        if self.instruct_token_embeddings is not None:
            parts.append(self._instruct(len(sources), instruct))
        return torch.cat(parts, dim=1)

    def _instruct(self, batch: int, sets: Tensor | None) -> Tensor:
        """Instruct tokens of every sample, [B, instruct_tokens, D]; ``sets`` [B] counts in "special" mode only."""
        assert self.instruct_token_embeddings is not None
        if self.config.instruct_mode == "casual":
            return self.instruct_token_embeddings.weight.view(1, self.config.instruct_tokens, -1).expand(batch, -1, -1)
        if sets is None:
            sets = torch.full((batch,), self.config.picture_row, device=self.norm.weight.device)
        return self.instruct_token_embeddings(sets).unflatten(1, (self.config.instruct_tokens, -1))

    def embed_target(self, tokens: Tensor, layout: Layout, index: bool = True) -> Tensor:
        """Embeddings [B, t, D] of the positions of the target's first t tokens, given as codes [B, t]."""
        numbers = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
        return self.embed_next(with_border(tokens, self.config.vocabulary), numbers, self.target_index(layout, index))

    def embed_next(self, history: Tensor, numbers: Tensor, index_rows: Tensor | None) -> Tensor:
        """Embeddings [B, m, D] of the positions that predict the target's tokens ``numbers`` [m], each at least 1.

        ``history`` [B, L + 1] has the target's tokens as ``with_border`` makes it, of which only earlier ones are read.
        A position has the embedding of the token before, or with ``neighbours`` of those around the predicted one.
        ``index_rows`` is the result of ``target_index``.
        """
        if self.neighbours is None:
            numbers = numbers - 1
            x = self.tok_embeddings(history.index_select(1, numbers))
        else:
            x = self.neighbours.of_targets(history, numbers, self.tok_embeddings)
        return x if index_rows is None else x + index_rows.index_select(0, numbers)

    def embed(self, prefix: Tensor, tokens: Tensor, layout: Layout, index: bool = True) -> Tensor:
        """A sequence [B, prefix + t, D] of what embed_prefix returned and the target's first t tokens [B, t]."""
        x = torch.cat([prefix, self.embed_target(tokens, layout, index)], dim=1)
        first = layout.prefix + layout.reference_copies * layout.image_tokens - 1  # predicts the picture's first token
        if self.background_in_place is None or x.shape[1] <= first:
            return x
        background = self.backgrounds(prefix, layout)[:, : x.shape[1] - first]
        return torch.cat([x[:, :first], x[:, first:] + background], dim=1)

    def backgrounds(self, prefix: Tensor, layout: Layout) -> Tensor:
        """What ``background_in_place`` adds to the positions that predict the picture, [B, N, D]."""
        assert self.background_in_place is not None
        return self.background_in_place(prefix[:, layout.source_tokens - layout.image_tokens : layout.source_tokens])

    def target_index(self, layout: Layout, index: bool = True) -> Tensor | None:
        """The index embedding of every target token, [E N, D]; None if the target gets none.

        With ``index_on_targets`` the copy of a reference gets that reference's index embedding, and the picture gets
        zeros.
        """
        if self.ref_index_embeddings is None or not self.config.index_on_targets or not index:
            return None
        ids = self.tables(layout)[1][: layout.reference_copies * layout.image_tokens]
        return F.pad(self.ref_index_embeddings(ids), (0, 0, 0, layout.image_tokens))

    def hidden(
        self,
        x: Tensor,
        rotary: Tensor,
        cache: KeyValueCache | None = None,
        mask: Tensor | None = None,
        last: int | None = None,
        block: Callable[..., Tensor] = Block.__call__,
    ) -> Tensor:
        """Hidden states after the blocks and the final norm, [B, T, D] -> [B, T, D]. A cache grows by T positions.

        With ``last`` only those last positions are returned, [B, last, D], and computed by the last block. ``block``
        may be another way to call a Block, such as a compiled one."""
        positions = x.shape[1]
        for number, layer in enumerate(self.layers):
            ends = last if number == len(self.layers) - 1 else None
            x = block(layer, x, rotary, cache and cache.layer(number), mask, ends)
        if cache is not None:
            cache.advance(positions)
        return self.norm(x)

    def whole(self, x: Tensor, layout: Layout, text_mask: Tensor | None, text_dropped: Tensor | None) -> Tensor:
        """Hidden states of a whole sequence in one pass without a cache, [B, T, D] -> [B, T, D]; the text arguments
        are those of ``mask``.

        Masked padding is moved to the end of the sequence, where causal attention hides it from all other positions.
        No mask is needed then, and the fast attention kernels, which accept none, can be used. This is not possible
        without instruct tokens: the last text position, which may be padding, then predicts the first target token.
        """
        config, length, rotary = self.config, x.shape[1], self.tables(layout)[0][: x.shape[1]]
        movable = config.text_padding == "masked" and config.source_attention == "causal" and config.instruct_tokens
        if not movable or text_mask is None:
            return self.hidden(x, rotary, mask=self.mask(layout, length, text_mask, text_dropped))
        own_text = text_mask if text_dropped is None else text_mask | text_dropped[:, None]
        order = padding_last(layout, length, own_text)[..., None]
        hidden = self.hidden(x.gather(1, order.expand_as(x)), rotary[order[..., 0]][:, None])
        return hidden.gather(1, order.argsort(dim=1).expand_as(x))

    @property
    def head(self) -> Tensor:
        """Weight of the output head, [V, D]."""
        return self.tok_embeddings.weight if self.output is None else self.output.weight

    def logits(self, hidden: Tensor, sources: CopySources | None = None) -> Tensor:
        """Hidden states [..., D] -> logits [..., V] float32.

        A model with a copy head needs ``sources`` and hidden states [B, t, D]. Its logits are logarithms of
        probabilities.
        """
        logits = product(hidden, self.head).float()
        if self.copy_head is None:
            return logits
        assert sources is not None
        return self.copy_head(hidden, sources).log_probabilities(logits)

    def copy_sources(self, hidden: Tensor, sources: Tensor, dropped: Tensor | None = None) -> CopySources | None:
        """What the copy head reads of source codes [B, R+1, N], from hidden states [B, T, D] that begin with theirs;
        None without a copy head. Samples for which ``dropped`` [B] bool is True have no images."""
        codes = sources.flatten(1)
        return self.copy_head.sources(hidden[:, : codes.shape[1]], codes, dropped) if self.copy_head else None

    def reference_copies(self, sources: Tensor) -> Tensor:
        """The part of the target before the picture, [B, R N] codes: the references with identity disentanglement,
        else nothing ([B, 0])."""
        return sources[:, : self.layout_of(sources).reference_copies].flatten(1)

    def target_tokens(self, sources: Tensor, picture: Tensor) -> Tensor:
        """All target tokens, [B, E N]: the references' copies, then the picture [B, N]."""
        return torch.cat([self.reference_copies(sources), picture], dim=1)

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
        """Logits [B, E N, V] float32 of the target tokens. Position p of the sequence predicts token p + 1, so they
        come from the last position before the target and from all target positions but the last.

        sources [B, R+1, N] int64: codes of the references, then of the background
        text [B, text_tokens, C]: text features
        picture [B, N] int64: codes of the image to predict
        draws [B]: uniform random numbers that decide the guidance drops (see ``drop_decisions``). Without them, and
            in evaluation mode, nothing is dropped (docs/differences.md, "Guidance drops").
        text_mask [B, text_tokens] bool: False at padding; needed with ``text_padding="masked"``
        instruct [B] int64: each sample's set of instruct tokens in "special" mode; None: the picture's
        with_features: return (logits, alignment features [B, n, 768]); the features are those of the positions that
            predict the picture
        score: return its result in place of the logits. In training the logits are the largest tensor in memory, and a
            scorer need not compute them all at once.
        """
        layout = self.layout_of(sources)
        image_dropped = text_dropped = None
        if self.training and draws is not None:
            image_dropped, text_dropped = drop_decisions(draws, drops or DropConfig())
        prefix = self.embed_prefix(sources, text, image_dropped, text_dropped, instruct)
        target_tokens = self.target_tokens(sources, picture)
        hidden = self.whole(self.embed(prefix, target_tokens[:, :-1], layout), layout, text_mask, text_dropped)
        predicting = hidden[:, layout.prefix - 1 :]
        copies = self.copy_sources(hidden, sources, image_dropped)
        if score is None:
            logits = self.logits(predicting, copies)
        else:
            pointers = self.copy_head(predicting, copies) if self.copy_head else None
            logits = score(predicting, self.head, target_tokens, pointers)
        if not with_features:
            return logits
        if self.alignment is None:
            raise ValueError("the model has no alignment layer: distill is not set")
        return logits, self.alignment(hidden[:, -layout.image_tokens :])

    def flops(self, references: int) -> int:
        """Floating-point operations of one sample's forward pass: two for each multiply-add. Of attention only the
        causal half of the scores is counted."""
        config, length = self.config, self.layout(references).total - 1
        attention = 2 * config.width * (config.heads + config.key_value_heads) * config.head_width
        block = attention + 3 * config.width * config.feed_forward_width
        head = config.width * config.vocabulary * self.layout(references).target_tokens
        return 2 * (config.layers * (length * block + length**2 * config.width) + head)

    def kv_bytes(self, positions: int) -> int:
        """Bytes of the keys and values of ``positions`` cached positions of one sequence, in the norm weights' type."""
        width = self.config.key_value_heads * self.config.head_width
        return 2 * self.config.layers * width * positions * self.norm.weight.element_size()

    def weight_bytes(self) -> int:
        """Bytes of the weights that a decoding step reads: blocks, final norm and output head."""
        weights = [*self.layers.parameters(), self.norm.weight, self.head]
        return sum(stored_bytes(weight) for weight in weights)
