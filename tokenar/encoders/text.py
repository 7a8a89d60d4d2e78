"""Prompts to features: the interface, an encoder without weights for machines that have none, and T5.

B batch, T tokens, C width of the text.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tokenar.encoders.config import T5Config, TextConfig
from tokenar.encoders.frozen import LOCAL, cannot_load, fingerprint, load_pretrained, transformers


class TextEncoder(Protocol):
    """What the trainer and the sampler ask of a text encoder."""

    tokens: int
    width: int

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """B prompts -> [B, tokens, width] float32."""
        ...

    def encode_with_mask(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B prompts -> (features [B, tokens, width], [B, tokens] bool, True where a prompt is)."""
        ...

    def length(self, prompt: str) -> int:
        """How many tokens a prompt has; what is beyond ``tokens`` is cut off."""
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

    def encode_with_mask(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B prompts -> (features as from ``encode``, [B, tokens] bool, True where there is a word)."""
        features = self.encode(prompts)
        return features, features.any(dim=-1)

    def length(self, prompt: str) -> int:
        """How many words a prompt has."""
        return len(words(prompt))


class T5Encoder:
    """The encoder half of a T5 (spec/tokenar.md section 8); UserError if the model is not on this machine.

    ``batch`` prompts are encoded at once; results are on the CPU.
    """

    def __init__(
        self,
        config: T5Config,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        batch: int = 32,
    ):
        library = transformers()
        try:
            self.tokenizer = library.AutoTokenizer.from_pretrained(
                config.model, revision=config.revision, padding_side="right", truncation_side="right", **LOCAL
            )
        except Exception as error:  # a foreign folder fails in many ways
            raise cannot_load("text encoder", config.model, error) from error
        network = load_pretrained(library.T5EncoderModel, "text encoder", config.model, config.revision, dtype)
        self.config, self.batch = config, batch
        self.network = network.to(device)
        self.tokens, self.width = config.tokens, int(network.config.d_model)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides the features: the weights, the tokenizer, the length and the cleaning."""
        words = self.tokenizer.backend_tokenizer.to_str()
        return fingerprint(self.network, words, f"tokens={self.tokens} clean={self.config.clean}")

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """B prompts -> [B, T, C] float32; at padding too the encoder's own outputs, as the published model reads."""
        return self.encode_with_mask(prompts)[0].float()

    @torch.no_grad()
    def encode_with_mask(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B prompts -> (last hidden states [B, T, C] in the model's type, [B, T] bool, True where a prompt is).

        The mask's row sums are the lengths without padding, each with the token that ends a prompt.
        """
        found = [self._encode(prompts[start : start + self.batch]) for start in range(0, len(prompts), self.batch)]
        features, masks = zip(*found, strict=True)
        return torch.cat(features), torch.cat(masks)

    def length(self, prompt: str) -> int:
        """How many tokens a prompt has, with the one that ends it."""
        return len(self.tokenizer(self._read([prompt])[0]).input_ids)

    def _encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        inputs = self.tokenizer(
            self._read(prompts), max_length=self.tokens, padding="max_length", truncation=True,
            return_attention_mask=True, return_tensors="pt",
        ).to(self.network.device)  # fmt: skip
        features = self.network(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).last_hidden_state
        return features.cpu(), inputs.attention_mask.bool().cpu()

    def _read(self, prompts: Sequence[str]) -> list[str]:
        if not self.config.clean:
            return list(prompts)
        from tokenar.encoders.caption_cleaning import clean

        return [clean(prompt) for prompt in prompts]
