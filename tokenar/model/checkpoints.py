"""A published checkpoint read as a whole model: network, VQ tokenizer and the name of a text encoder."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_schemas.errors import UserError
from data_schemas.io.files import check_file
from tokenar.device import own_random_numbers
from tokenar.encoders.config import T5Config, TextConfig, VqConfig, text_config
from tokenar.encoders.vq import config_of, read_vq
from tokenar.model.config import ModelConfig, released, tokenar_xl
from tokenar.model.published import AGAIN, NEW_KEYS, check_fit, left_by_sampling
from tokenar.model.shapes import NULL_IMAGES, network_config
from tokenar.model.transformer import TokenAR
from tokenar.weight_files import read_content, weights_in

PRESETS = {"released": released, "tokenar_xl": tokenar_xl}
SETTINGS = "tokenar"
"""Where a checkpoint that this program wrote has its settings. Published programs do not look there."""


@dataclass(frozen=True)
class Parts:
    """What a model is made of, as it was read: weights by name, and the settings that they fit.

    ``new`` are names of ``weights`` that the file lacked and that have initial values; ``left_out`` are names of what
    the file holds besides, and that a model does not need.
    """

    model: ModelConfig
    weights: dict[str, Tensor]
    text: TextConfig | T5Config
    vq: VqConfig
    tokenizer: dict[str, Tensor]
    new: list[str]
    left_out: list[str]


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint: a network's file with that of its VQ tokenizer, and how to understand them.

    ``text`` is a folder or the Hugging Face id of the T5 encoder. ``preset`` ("released" or "tokenar_xl") says what
    neither shapes nor the stored command line tell, and ``changes`` are settings of ModelConfig that win over all.
    ``averaged`` takes a moving average if the file has one.
    """

    path: str | Path
    tokenizer: str | Path
    text: str | None = None
    preset: str = "released"
    averaged: bool = True
    changes: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        return str(self.path)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of both files and of the settings."""
        digest = hashlib.sha256(repr((self.text, self.preset, self.averaged, sorted(self.changes.items()))).encode())
        for path in (self.path, self.tokenizer):
            with open(check_file(path, AGAIN), "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def read(self) -> Parts:
        """The model's parts. UserError, naming the file and the first key that does not fit, for any other file."""
        content = read_content(self.path, AGAIN)
        weights = weights_in(content, Path(self.path), AGAIN, self.averaged)
        kept = {name: tensor for name, tensor in weights.items() if not left_by_sampling(name)}
        more = content if isinstance(content, dict) and content is not weights else {}
        beside = [
            str(name) for name, value in more.items() if not isinstance(value, dict | Tensor) or name == "optimizer"
        ]
        left_out = beside + [name for name in weights if left_by_sampling(name)]
        config, text, new = self._settings(more, kept)
        with torch.device("meta"):
            net = TokenAR(config)
        check_fit(net, kept, str(self.path), frozenset(new))
        vq = read_vq(self.tokenizer)
        vq_config = config_of(vq, str(self.tokenizer))
        if vq_config.codebook_size != config.vocabulary:
            raise UserError(
                f"{self.tokenizer}: {vq_config.codebook_size} codes, {self.path} has {config.vocabulary}; "
                "give the tokenizer that the model was trained with"
            )
        return Parts(config, kept | _initial(config, new), text, vq_config, vq, new, left_out)

    def _settings(
        self, content: Mapping[Any, Any], weights: Mapping[str, Tensor]
    ) -> tuple[ModelConfig, TextConfig | T5Config, list[str]]:
        """The network's settings, the text encoder's, and the keys that get initial values."""
        text: TextConfig | T5Config
        own, args, source = content.get(SETTINGS), content.get("args"), str(self.path)
        told: dict[str, Any] = vars(args) if isinstance(args, argparse.Namespace) else {}
        if isinstance(own, dict):
            config = ModelConfig.parse({**_table(own.get("model")), **self.changes}, source)
            text = text_config(own.get("text"), source)
        else:
            config = network_config(weights, PRESETS[self.preset](), told, self.changes, source)
            text = T5Config.parse({"tokens": config.text_tokens}, source)
        if self.text is not None:
            text = T5Config.parse({"model": self.text, "tokens": config.text_tokens}, source)
        lacking = NEW_KEYS - {name for name in NEW_KEYS if name.startswith("alignment.")}
        new = sorted(lacking - weights.keys()) if NULL_IMAGES not in weights else []
        return config, text, new


def _table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _initial(config: ModelConfig, names: list[str]) -> dict[str, Tensor]:
    """Initial values, the same every time, for the keys that a text-to-image checkpoint lacks."""
    if not names:
        return {}
    with own_random_numbers(torch.device("cpu")):
        torch.manual_seed(0)
        net = TokenAR(config.model_copy(update={"layers": 1, "vocabulary": 2}))  # the size of these does not matter
    own = net.state_dict()
    return {name: own[name] for name in names if name in own}
