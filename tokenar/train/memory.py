"""Estimates the GPU memory of a training step from the settings.

tests/tokenar/test_memory.py compares the estimate with what torch allocates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenar.model.config import ModelConfig
from tokenar.model.transformer import TokenAR
from tokenar.train.step import CHUNK_LOGITS

FULL, HALF, MASK = 4, 2, 1
"""Bytes of an element of a float32 tensor, a bfloat16 tensor and a dropout mask."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    ``weights``, ``gradients``, ``optimizer`` (its state) and ``averages`` stay from step to step. Within a step
    ``copies`` are the bfloat16 copies of the weights, ``activations`` are what the forward pass keeps for the backward
    pass, and ``working`` is the largest amount that a block's backward pass or the loss needs in addition.
    """

    weights: int
    gradients: int
    optimizer: int
    averages: int
    copies: int
    activations: int
    working: int

    @property
    def total(self) -> int:
        """The sum of all. A step needs a little less, because activations are freed while gradients are made."""
        lasting = self.weights + self.gradients + self.optimizer + self.averages
        return lasting + self.copies + self.activations + self.working


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
    """The memory that a step needs on each device.

    ``batch`` is the number of samples of a micro-batch on one device, each with ``references`` references.
    ``precision`` and ``activation_checkpointing`` are those of TrainConfig. With FSDP, ``shards`` ranks share the
    weights, gradients, optimiser state and averages.
    """
    with torch.device("meta"):
        net = TokenAR(model)
    parameters = sum(parameter.numel() for parameter in net.parameters())
    layout = net.layout(references)
    tokens, half = batch * (layout.total - 1), precision == "bfloat16"
    element = HALF if half else FULL  # bytes of an element where autocast applies
    block = tokens * _block_bytes(model, half)
    kept = {
        "none": block,
        "selective": tokens * (FULL * model.width + _attention_bytes(model, element)),
        "block": tokens * FULL * model.width,
    }[activation_checkpointing]
    recomputed = 0 if activation_checkpointing == "none" else block
    scored = batch * layout.target_tokens
    logits = min(scored * model.vocabulary, CHUNK_LOGITS)
    one_chunk = logits < CHUNK_LOGITS  # then the log-probabilities are kept; with several chunks they are recomputed
    # Outside the blocks: the final norm, the hidden states that are scored, the log-probabilities.
    ends = tokens * (3 * FULL * model.width + FULL) + scored * model.width * element + FULL * logits * one_chunk
    # A block's backward pass holds the gradients of its widest layer. The loss holds logits, log-probabilities and the
    # gradients of both.
    gradients = tokens * (3 * model.feed_forward_width + 2 * model.width) * element + tokens * FULL * model.width
    own = FULL * parameters // shards
    return Memory(
        weights=own, gradients=own, optimizer=2 * own, averages=own if ema else 0, copies=HALF * parameters * half,
        activations=model.layers * kept + ends, working=max(recomputed + gradients, logits * (3 * FULL + 2 * element)),
    )  # fmt: skip


def _attention_bytes(model: ModelConfig, element: int) -> int:
    """Bytes a token of attention's output, and of the log-sum-exp that its kernel keeps for each head."""
    return element * model.width + FULL * model.heads


def _block_bytes(model: ModelConfig, half: bool) -> int:
    """Bytes a token that one block keeps for its backward pass.

    The residual stream is float32. Each norm keeps its input, its root mean square and its normalised output. The
    inputs of linear layers are kept in the precision of the matrix products.
    """
    d, f, element = model.width, model.feed_forward_width, HALF if half else FULL
    key_value = model.key_value_heads * model.head_width
    norms = 2 * FULL * (2 * d + 1)
    # The normed input, the queries and keys after the rotary embedding, queries, keys and values as projected, and
    # attention's output twice: as its kernel returns it, and as the contiguous input of ``wo``.
    attention = element * (d + d + key_value + (d + 2 * key_value) + d) + _attention_bytes(model, element)
    # Under autocast w1 and w3 each keep a bfloat16 copy of the same input.
    feed_forward = element * ((2 if half else 1) * d + 4 * f)
    dropout = 2 * MASK * d if model.dropout else 0
    return norms + attention + feed_forward + dropout
