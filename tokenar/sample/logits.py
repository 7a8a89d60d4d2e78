"""From logits to a token: guidance, temperature, top-k and top-p filters, and the draw.

Shape legend: B rows, S guidance streams, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenar.config import SampleConfig


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance on float32 logits: u + s (c - u)."""
    return unconditional + scale * (conditional - unconditional)


def filter_logits(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Logits [B, V] divided by the temperature, with -inf for the tokens that top-k or top-p remove.

    ``top_k`` of 0 and ``top_p`` of 1 are off. Top-k keeps all tokens that are equal to the k-th largest. Top-p removes
    a token if the more probable ones before it add up to more than ``top_p``; the most probable token always stays.
    """
    logits = logits / max(temperature, 1e-5)
    if top_k:
        kth = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(-1)
        removed = probabilities.cumsum(-1) - probabilities > top_p
        logits = logits.masked_fill(torch.zeros_like(removed).scatter(-1, order, removed), -torch.inf)
    return logits


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Sample one token for each row of logits [B, V]: [B] int64.

    ``uniform`` [B] in [0, 1) decides: it is looked up in the cumulative distribution. With numbers drawn beforehand
    from each sample's own seed, a picture does not depend on the batch it is drawn in.
    """
    cumulative = logits.double().softmax(-1).cumsum(-1)
    tokens = torch.searchsorted(cumulative, uniform.double()[:, None] * cumulative[:, -1:], right=True)[:, 0]
    return tokens.clamp_max(logits.shape[-1] - 1)


def pick(logits: Tensor, uniform: Tensor, config: SampleConfig) -> Tensor:
    """Choose one token for each row of logits [B, V] as ``config`` says: the most probable, or one that is sampled
    with ``uniform`` [B]. Returns [B] int64."""
    assert config.temperature is not None, "the decoder sets the model's"
    if config.temperature == 0:
        return logits.argmax(-1)
    return draw(filter_logits(logits, config.temperature, config.top_k, config.top_p), uniform)


def streams(config: SampleConfig) -> list[tuple[bool, bool]]:
    """The guidance streams: (image dropped, text dropped) for each. The first keeps both."""
    text, image = config.guidance != 1, config.image_guidance != 1
    if image and text:
        return [(False, False), (False, True), (True, True)]
    return [(False, False)] + [(False, True)] * text + [(True, False)] * image


def combine(logits: Tensor, config: SampleConfig) -> Tensor:
    """Combine the logits of the streams [B, S, ...] to guided ones [B, ...].

    Text guidance is as released. Image guidance is ours (docs/differences.md, "Image guidance"); the two together
    follow InstructPix2Pix (arXiv 2211.09800, Eq. 3).
    """
    if logits.shape[1] == 1:
        return logits[:, 0]
    if logits.shape[1] == 2:
        return guide(logits[:, 0], logits[:, 1], config.guidance if config.guidance != 1 else config.image_guidance)
    full, no_text, neither = logits.unbind(1)
    return neither + config.image_guidance * (no_text - neither) + config.guidance * (full - no_text)
