"""The copy head: one attention from the last hidden states to the source tokens, whose codes get its weights.

A pointer-generator network (See et al. 2017, arXiv 1704.04368): at each position a gate g mixes the distribution over
the vocabulary with the one that copying gives,

    p(code) = (1 - g) softmax(logits)[code] + g * (sum of the attention to source tokens that have this code).

To copy a token the model only has to find it. Without this head it also has to learn, for each code by itself, to bring
it from the embedding through all layers to the output.

Shape legend: B batch, t positions, S source tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenar.model.config import ModelConfig
from tokenar.model.linear import Linear, few_rows

FIRST_SHARPNESS = 2.0
"""Logarithm of what the cosines are multiplied by at first."""
SMALLEST = 1e-30
"""Copied codes have at least this probability, because the logarithm of 0 has no gradient."""


@dataclass
class CopySources:
    """The source tokens as the copy head sees them.

    keys [B, S, D]: unit vectors; codes [B, S] int64. dropped [B, s] bool: where the images are dropped nothing can be
    copied from them. Column i is for the i-th of s equal parts of the positions.
    """

    keys: Tensor
    codes: Tensor
    dropped: Tensor


@dataclass
class Pointers:
    """What the copy head says at t positions.

    queries [B, t, D], keys [B, S, D] and codes [B, S] of the source tokens. copied [B, t] and written [B, t] are the
    logarithms of g and 1 - g, float64: on a CPU the last bit of a logarithm depends on the place in its tensor, and so
    on the batch, unless it is computed in float64 and rounded.
    """

    queries: Tensor
    keys: Tensor
    codes: Tensor
    copied: Tensor
    written: Tensor

    def split(self, size: int | list[int]) -> list[Pointers]:
        """The same in parts of at most ``size`` positions, or of these sizes."""
        parts = zip(*(each.split(size, dim=1) for each in (self.queries, self.copied, self.written)), strict=True)
        return [Pointers(queries, self.keys, self.codes, copied, written) for queries, copied, written in parts]

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Logits [B, t, V] float32 -> logarithms of the mixed probabilities [B, t, V]."""
        weights = self._weights()
        codes = self.codes[:, None].expand_as(weights)
        copied = torch.zeros_like(logits).scatter_add(2, codes, weights).double()
        written = F.log_softmax(logits, dim=-1).double()
        return self._mixed(written, copied, self.written[..., None], self.copied[..., None]).float()

    def losses(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """Cross entropies [B, t] of the tokens ``wanted`` [B, t], without the mixed probabilities of all others."""
        written = F.log_softmax(logits, dim=-1).gather(2, wanted[..., None])[..., 0]
        copied = (self._weights() * (self.codes[:, None] == wanted[..., None])).sum(-1)
        return -self._mixed(written, copied, self.written, self.copied).float()

    def _weights(self) -> Tensor:
        """Attention to the source tokens, [B, t, S] float32."""
        return few_rows(self.queries, self.keys).float().softmax(-1)

    @staticmethod
    def _mixed(written: Tensor, copied: Tensor, log_written: Tensor, log_copied: Tensor) -> Tensor:
        return torch.logaddexp(written + log_written, copied.clamp_min(SMALLEST).log() + log_copied)


class CopyHead(nn.Module):
    """Queries, keys and the gate."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.query, self.key = (Linear(config.width, config.width, bias=False) for _ in range(2))
        # Tensors of one dimension do not decay.
        self.sharpness = nn.Parameter(torch.full((1,), FIRST_SHARPNESS))
        self.gate, self.gate_bias = nn.Parameter(torch.zeros(config.width)), nn.Parameter(torch.zeros(1))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Queries and keys begin equal, so that a position points at positions like itself, and the gate half open."""
        nn.init.normal_(self.query.weight, std=0.02)
        self.key.weight.copy_(self.query.weight)

    def sources(self, hidden: Tensor, codes: Tensor, dropped: Tensor | None = None) -> CopySources:
        """From the last hidden states [B, S, D] of the source tokens, and their codes [B, S]. Samples for which
        ``dropped`` [B] bool is True have no images."""
        if dropped is None:
            dropped = torch.zeros(len(codes), dtype=torch.bool, device=codes.device)
        return CopySources(F.normalize(self.key(hidden).float(), dim=-1).type_as(hidden), codes, dropped[:, None])

    def forward(self, hidden: Tensor, sources: CopySources) -> Pointers:
        """Hidden states [B, t, D] -> what to copy there."""
        queries = F.normalize(self.query(hidden).float(), dim=-1) * self.sharpness.exp()
        odds = (hidden.double() * self.gate).sum(-1) + self.gate_bias
        dropped = sources.dropped.repeat_interleave(hidden.shape[1] // sources.dropped.shape[1], 1)
        copied = F.logsigmoid(odds).masked_fill(dropped, -torch.inf)
        written = F.logsigmoid(-odds).masked_fill(dropped, 0.0)
        return Pointers(queries.type_as(sources.keys), sources.keys, sources.codes, copied, written)
