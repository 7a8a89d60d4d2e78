"""Text encoders: their interface, an encoder that needs no weights, and T5.

Shape legend: B batch, T text tokens, C text width.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tokenar.encoders.config import T5Config, TextConfig
from tokenar.encoders.frozen import LOCAL, cannot_load, fingerprint, load_pretrained, transformers


class TextEncoder(Protocol):
    """The interface of a text encoder: prompts to ``tokens`` positions (T) of ``width`` numbers (C)."""

    tokens: int
    width: int

    def encode_with_mask(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B prompts -> (features [B, T, C], mask [B, T] bool, False at padding)."""
        ...

    def length(self, prompt: str) -> int:
        """Number of tokens of a prompt. Those after the first ``tokens`` are not encoded."""
        ...


def words(prompt: str) -> list[str]:
    """The words of a prompt in lower case, without punctuation at their ends."""
    stripped = (word.strip(string.punctuation) for word in prompt.lower().split())
    return [word for word in stripped if word]


@lru_cache(maxsize=1 << 14)
def word_vector(word: str, width: int) -> np.ndarray:
    """A pseudo-random vector of about unit length for each word, [width] float32, the same on every machine."""
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
    # numpy guarantees that RandomState's numbers never change; those of Generator may change between releases.
    normal = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed))).standard_normal(width)
    return (normal / np.sqrt(width)).astype(np.float32)


class HashedWords:
    """A text encoder without weights: one position for each word, in order, with the word's ``word_vector``.

    Positions after the last word are zero. Words after the first ``tokens`` are not encoded.
    """

    def __init__(self, config: TextConfig):
        self.tokens, self.width = config.tokens, config.width

    def encode_with_mask(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B prompts -> (features [B, T, C] float32, mask [B, T] bool, True where there is a word)."""
        vectors = np.zeros((len(prompts), self.tokens, self.width), np.float32)
        for row, prompt in enumerate(prompts):
            for column, word in enumerate(words(prompt)[: self.tokens]):
                vectors[row, column] = word_vector(word, self.width)
        features = torch.from_numpy(vectors)
        return features, features.any(dim=-1)

    def length(self, prompt: str) -> int:
        """Number of words of a prompt."""
        return len(words(prompt))


class T5Encoder:
    """The encoder of a T5. Prompts are padded on the right or cut to ``config.tokens`` tokens.

    ``batch`` prompts are encoded at once; results are on the CPU. UserError if the model is not on this machine.
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
        except Exception as error:  # any other folder raises anything
            raise cannot_load("text encoder", config.model, error) from error
        network = load_pretrained(library.T5EncoderModel, "text encoder", config.model, config.revision, dtype)
        self.config, self.batch = config, batch
        self.network = network.to(device)
        self.tokens, self.width = config.tokens, int(network.config.d_model)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that the features depend on: weights, tokenizer, number of tokens and cleaning."""
        words = self.tokenizer.backend_tokenizer.to_str()
        return fingerprint(self.network, words, f"tokens={self.tokens} clean={self.config.clean}")

    @torch.no_grad()
    def encode_with_mask(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B prompts -> (last hidden states [B, T, C] in the network's type, mask [B, T] bool, False at padding).

        The end-of-sequence token is part of the prompt. The hidden states at padding are the encoder's own outputs,
        which the published model reads.
        """
        encoded = [self._encode(prompts[start : start + self.batch]) for start in range(0, len(prompts), self.batch)]
        features, masks = zip(*encoded, strict=True)
        return torch.cat(features), torch.cat(masks)

    def length(self, prompt: str) -> int:
        """Number of tokens of a prompt, with the end-of-sequence token."""
        return len(self.tokenizer(self._cleaned([prompt])[0]).input_ids)

    def _encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """``encode_with_mask`` for one batch."""
        inputs = self.tokenizer(
            self._cleaned(prompts), max_length=self.tokens, padding="max_length", truncation=True,
            return_attention_mask=True, return_tensors="pt",
        ).to(self.network.device)  # fmt: skip
        features = self.network(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).last_hidden_state
        return features.cpu(), inputs.attention_mask.bool().cpu()

    def _cleaned(self, prompts: Sequence[str]) -> list[str]:
        """The prompts, cleaned if ``config.clean`` is set."""
        if not self.config.clean:
            return list(prompts)
        from tokenar.encoders.caption_cleaning import clean

        return [clean(prompt) for prompt in prompts]
