"""The model folder that a finished run leaves and that sampler and evaluator read.

    model/    model.safetensors, config.json, tokenizer.safetensors

The tokenizer is a fitted patch codebook or a VQ network, whose settings are then in config.json too. A T5 is too large
to be put there; config.json names it.

Every file is written under a temporary name and renamed, so that a file that exists is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from data_schemas.errors import UserError
from tokenar.config import ModelConfig, first_problem
from tokenar.device import own_device
from tokenar.encoder_config import T5Config, TextConfig, VqConfig
from tokenar.model import TokenAR
from tokenar.text import HashedWords, T5Encoder
from tokenar.tokenizers import PatchCodebook
from tokenar.vq import VqTokenizer, load_network

MODEL_FORMAT = 1
FILES = ("config.json", "model.safetensors", "tokenizer.safetensors")
"""Of a model folder; a model trained on codes alone may have no tokenizer."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass
class Model:
    """A trained model with what it needs to read prompts and pictures, and the folder that it was read from."""

    net: TokenAR
    tokenizer: PatchCodebook | VqTokenizer
    text: HashedWords | T5Encoder
    folder: Path

    @cached_property
    def fingerprint(self) -> str:
        return model_fingerprint(self.folder)


def model_files(folder: Path) -> list[Path]:
    """The files of a model folder; UserError if it is none."""
    for name in FILES[:-1]:
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no model there (no {name}); give the 'model' folder of a finished run")
    return [folder / name for name in FILES if (folder / name).is_file()]


def model_fingerprint(folder: Path) -> str:
    """SHA-256 of the files of a model folder; UserError if it is none."""
    digest = hashlib.sha256()
    for path in model_files(folder):
        with open(path, "rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()} ".encode())
    return digest.hexdigest()


def save_model(
    folder: Path,
    net: TokenAR,
    tokenizer: PatchCodebook | VqTokenizer | None,
    text: TextConfig | T5Config,
    *,
    ema: Mapping[str, Tensor] | None = None,
    first: bool = True,
) -> None:
    """Write the model folder; config.json comes last and marks it whole.

    ``ema``, by parameter name, is written in place of the network's own weights. A model trained on codes alone may
    have no tokenizer. A network that is spread over processes is saved by all of them together, each with its
    ``first``: parameter after parameter is brought together, and only the first process keeps and writes it.
    """
    weights = {}
    for name, tensor in (net.state_dict() | dict(ema or {})).items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if first:
            weights[name] = whole.detach().cpu().contiguous()
    if not first:
        return
    config: dict[str, Any] = {"format": MODEL_FORMAT, "model": net.config.model_dump(), "text": text.model_dump()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    write_atomically(folder / "model.safetensors", lambda path: save_file(weights, path))
    if isinstance(tokenizer, PatchCodebook):
        write_atomically(folder / "tokenizer.safetensors", tokenizer.save)
    elif isinstance(tokenizer, VqTokenizer):
        network = {name: tensor.cpu().contiguous() for name, tensor in tokenizer.network.state_dict().items()}
        write_atomically(folder / "tokenizer.safetensors", lambda path: save_file(network, path))
        config["vq"] = {"image_size": tokenizer.image_size, **tokenizer.network.config.model_dump()}
    else:
        (folder / "tokenizer.safetensors").unlink(missing_ok=True)
    write_atomically(folder / "config.json", lambda path: path.write_text(json.dumps(config, indent=2) + "\n"))


def load_model(folder: str | Path) -> Model:
    """Read a model folder, in evaluation mode; the encoders go to a GPU if there is one.

    UserError naming the file that is missing or damaged.
    """
    folder = Path(folder)
    path = model_files(folder)[0]
    try:
        settings = json.loads(path.read_text())
        if settings["format"] != MODEL_FORMAT:
            raise UserError(f"{path}: model format {settings['format']}, this program reads {MODEL_FORMAT}")
        config = ModelConfig.model_validate(settings["model"])
        text: TextConfig | T5Config = TypeAdapter(TextConfig | T5Config).validate_python(settings["text"])
        vq = dict(settings.get("vq", {}))
        image_size, vq_config = vq.pop("image_size", 0), VqConfig.model_validate(vq) if vq else None
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(error)}; train or copy the model again") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a model configuration ({error}); train or copy the model again") from error
    device = own_device()
    net = _network(folder / "model.safetensors", config)
    tokenizer = _tokenizer(folder / "tokenizer.safetensors", vq_config, image_size, device)
    reader = T5Encoder(text, device) if isinstance(text, T5Config) else HashedWords(text)
    return Model(net, tokenizer, reader, folder)


def _network(path: Path, config: ModelConfig) -> TokenAR:
    net = TokenAR(config)
    try:
        net.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{path}: not the whole weights of this model ({reason}); train or copy the model again"
        ) from error
    return net.eval()


def _tokenizer(
    path: Path, config: VqConfig | None, image_size: int, device: torch.device
) -> PatchCodebook | VqTokenizer:
    if config is not None:
        return VqTokenizer(load_network(path, config), image_size, device)
    if not path.is_file():
        raise UserError(f"{path}: not there; copy the model again, or train it with tokenizer_weights set")
    return PatchCodebook.load(path)
