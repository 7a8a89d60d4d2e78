"""Prompts to features: the interface, and an encoder without weights for machines that have none."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tokenar.config import TextConfig


class TextEncoder(Protocol):
    """What the trainer and the sampler ask of a text encoder."""

    tokens: int
    width: int

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """B prompts -> [B, tokens, width] float32."""
        ...


def words(prompt: str) -> list[str]:
    """Lower-case words without punctuation around them."""
    stripped = (word.strip(string.punctuation) for word in prompt.lower().split())
    return [word for word in stripped if word]


def word_vector(word: str, width: int) -> np.ndarray:
    """A fixed pseudo-random vector of about unit length, [width] float32; the same on every machine."""
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
    # RandomState's stream is frozen by numpy's policy; Generator's may change between releases.
    normal = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed))).standard_normal(width)
    return (normal / np.sqrt(width)).astype(np.float32)


class HashedWords:
    """One vector a word, in order; zeros behind the last word; words beyond the limit are cut."""

    def __init__(self, config: TextConfig):
        self.tokens, self.width = config.tokens, config.width

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """B prompts -> [B, tokens, width] float32."""
        features = np.zeros((len(prompts), self.tokens, self.width), np.float32)
        for row, prompt in enumerate(prompts):
            for column, word in enumerate(words(prompt)[: self.tokens]):
                features[row, column] = word_vector(word, self.width)
        return torch.from_numpy(features)
