"""What a training step takes in memory, counted from the settings; test_memory.py compares with what torch allocates.

B batch, T tokens, D width, F feed-forward width, H heads, K heads of keys and values, V vocabulary, R references.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenar.model.config import ModelConfig
from tokenar.model.transformer import TokenAR
from tokenar.train.step import CHUNK_LOGITS

FULL, HALF, MASK = 4, 2, 1
"""Bytes of a number: float32, bfloat16, a dropout mask."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. Kept from step to step: weights, gradients, optimizer, averages. Within a step:
    ``copies`` are bfloat16 copies of the weights, ``activations`` is what the forward pass keeps for the backward
    pass, ``working`` the most that a block's backward pass or the loss needs besides."""

    weights: int
    gradients: int
    optimizer: int
    averages: int
    copies: int
    activations: int
    working: int

    @property
    def total(self) -> int:
        """All of it at once; the step needs a little less, as gradients come while activations go."""
        kept = self.weights + self.gradients + self.optimizer + self.averages
        return kept + self.copies + self.activations + self.working


def training_memory(
    model: ModelConfig,
    batch: int,
    references: int,
    *,
    precision: str = "bfloat16",
    activation_checkpointing: str = "none",
    ema: bool = False,
    shards: int = 1,
) -> Memory:
    """What a step on ``batch`` samples with R references takes on each device. ``precision`` and
    ``activation_checkpointing`` as in TrainConfig; ``shards`` processes divide what is kept from step to step (FSDP).
    """
    with torch.device("meta"):
        net = TokenAR(model)
    parameters = sum(parameter.numel() for parameter in net.parameters())
    layout = net.layout(references)
    tokens, half = batch * (layout.total - 1), precision == "bfloat16"
    number = HALF if half else FULL
    block = tokens * _block_bytes(model, half)
    kept = {
        "none": block,
        "selective": tokens * (FULL * model.width + _attention_bytes(model, number)),
        "block": tokens * FULL * model.width,
    }[activation_checkpointing]
    again = 0 if activation_checkpointing == "none" else block
    scored = batch * layout.target_tokens
    logits = min(scored * model.vocabulary, CHUNK_LOGITS)
    in_one = logits < CHUNK_LOGITS  # then their logarithms are kept; those of chunks are made again
    ends = tokens * (3 * FULL * model.width + FULL) + scored * model.width * number + FULL * logits * in_one
    # A block's backward pass holds the gradients of its widest layer; the loss logits, their logarithms, gradients.
    gradients = tokens * (3 * model.feed_forward_width + 2 * model.width) * number + tokens * FULL * model.width
    own = FULL * parameters // shards
    return Memory(
        weights=own, gradients=own, optimizer=2 * own, averages=own if ema else 0, copies=HALF * parameters * half,
        activations=model.layers * kept + ends, working=max(again + gradients, logits * (3 * FULL + 2 * number)),
    )  # fmt: skip


def _attention_bytes(model: ModelConfig, number: int) -> int:
    """Of a token: what attention gives, and the logarithms of its sums."""
    return number * model.width + FULL * model.heads


def _block_bytes(model: ModelConfig, half: bool) -> int:
    """What a whole block keeps of a token.

    The residual stream is float32 and each norm keeps what came in, what it was divided by and the quotient. What
    linear layers read is kept in the precision of the products, under autocast once for each layer that reads it.
    """
    d, f, number = model.width, model.feed_forward_width, HALF if half else FULL
    key_value = model.key_value_heads * model.head_width
    norms = 2 * FULL * (2 * d + 1)
    # What is normed, the turned queries and keys, all three projected, and what attention gives, in order for ``wo``.
    attention = number * (d + d + key_value + (d + 2 * key_value) + d) + _attention_bytes(model, number)
    feed_forward = number * ((2 if half else 1) * d + 4 * f)
    dropout = 2 * MASK * d if model.dropout else 0
    return norms + attention + feed_forward + dropout
