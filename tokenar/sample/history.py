"""What a decoding step reads besides the cached keys and values: drawn tokens, backgrounds, and what can be copied.

Shape legend: B inputs, n seeds of an input, S guidance streams, E target blocks, N tokens an image, m positions of
every row, D model width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenar.model.copying import CopySources
from tokenar.model.neighbours import with_border
from tokenar.model.positions import Layout
from tokenar.model.transformer import TokenAR


class History:
    """Device memory that stays in place, so that a recorded step finds it again.

    ``tokens`` [B n, E N + 1] are the codes of the target as far as they are known; the last column is the border's.
    Target tokens are numbered from the first token of the target.
    """

    def __init__(self, net: TokenAR, layout: Layout, inputs: int, streams: int, seeds: int):
        config, like, count = net.config, net.norm.weight, layout.target_tokens
        self.net, self.layout, self.streams, self.seeds = net, layout, streams, seeds
        self.index = net.target_index(layout, config.index_at_inference)
        blank = torch.zeros(inputs * seeds, count, dtype=torch.int64, device=like.device)
        self.tokens = with_border(blank, config.vocabulary)
        self.backgrounds: Tensor | None = None
        if net.background_in_place is not None:
            # A row more, of zeros, for the positions that do not predict the picture.
            self.backgrounds = like.new_zeros(inputs, streams, layout.image_tokens + 1, config.width)
        self.copies: CopySources | None = None
        if net.copy_head is not None:
            keys = like.new_zeros(inputs, layout.source_tokens, config.width)
            codes = torch.zeros(keys.shape[:2], dtype=torch.int64, device=like.device)
            self.copies = CopySources(keys, codes, torch.zeros(inputs, streams, dtype=torch.bool, device=like.device))

    def begin(self, given: Tensor, prefix: Tensor) -> None:
        """Start a batch with the ``given`` [B, g] first target tokens of each input and what embed_prefix returned for
        each stream, [B S, ...]."""
        self.write(torch.arange(given.shape[1], device=given.device), given.repeat_interleave(self.seeds, 0))
        if self.backgrounds is not None:
            added = self.net.backgrounds(prefix, self.layout).unflatten(0, (-1, self.streams))
            self.backgrounds[:, :, :-1].copy_(added)

    def copy_from(self, hidden: Tensor, sources: Tensor, dropped: Tensor) -> None:
        """Keep what the copy head reads of the source codes [B, R+1, N], from their last hidden states [B or B S, ...].

        ``dropped`` [B S] bool says which streams have no images. The first stream has them if any has, and so its keys
        serve all.
        """
        if self.copies is None:
            return
        found = self.net.copy_sources(hidden.unflatten(0, (len(sources), -1))[:, 0], sources)
        assert found is not None
        self.copies.keys.copy_(found.keys)
        self.copies.codes.copy_(found.codes)
        self.copies.dropped.copy_(dropped.unflatten(0, (-1, self.streams)))

    def write(self, numbers: Tensor, tokens: Tensor) -> None:
        """Remember ``tokens`` [B n, m] as the target's tokens ``numbers`` [m]."""
        self.tokens.index_copy_(1, numbers, tokens)

    def embed(self, numbers: Tensor) -> Tensor:
        """Embeddings of the positions that predict the target's tokens ``numbers`` [m]: [B, S, n, m, D]."""
        x = self.net.embed_next(self.tokens, numbers, self.index).unflatten(0, (-1, 1, self.seeds))
        x = x.expand(-1, self.streams, *x.shape[2:])
        if self.backgrounds is None:
            return x
        places = numbers - self.layout.reference_copies * self.layout.image_tokens
        places = places.masked_fill(places < 0, self.layout.image_tokens)
        return x + self.backgrounds.index_select(2, places)[:, :, None]

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states of an input's streams one behind the other, [B, S ..., D] -> their logits [B, S ..., V]."""
        return self.net.logits(hidden, self.copies)
