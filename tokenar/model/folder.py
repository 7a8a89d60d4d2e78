"""The model folder that a finished run leaves and that sampler and evaluator read.

    model/    model.safetensors, config.json, tokenizer.safetensors

The tokenizer is a fitted patch codebook or a VQ network, whose settings are then in config.json too. A T5 is too large
to be put there; config.json names it.

Every file is written under a temporary name and renamed, so that a file that exists is whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from data_schemas.errors import UserError
from data_schemas.io.documents import read_json
from data_schemas.io.files import check_file, write_atomically
from data_schemas.io.text import one_line
from data_schemas.settings import first_mistake
from tokenar.device import own_device
from tokenar.encoders.config import T5Config, TextConfig, VqConfig
from tokenar.encoders.patches import PatchCodebook
from tokenar.encoders.text import HashedWords, T5Encoder
from tokenar.encoders.vq import VqTokenizer, load_network
from tokenar.model.config import ModelConfig
from tokenar.model.published import check_fit, read_weights
from tokenar.model.transformer import TokenAR

MODEL_FORMAT = 1
FILES = ("config.json", "model.safetensors", "tokenizer.safetensors")
"""Of a model folder; a model trained on codes alone may have no tokenizer."""


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


AGAIN = "train or copy the model again"


def load_model(folder: str | Path) -> Model:
    """Read a model folder, in evaluation mode; the encoders go to a GPU if there is one.

    UserError naming the file that is missing, damaged or of another model than the rest.
    """
    folder = Path(folder)
    path = model_files(folder)[0]
    settings = read_json(path, AGAIN)
    try:
        if settings["format"] != MODEL_FORMAT:
            found = one_line(settings["format"], 40)
            raise UserError(f"{path}: model format {found}, this program reads {MODEL_FORMAT}; {AGAIN}")
        config = ModelConfig.model_validate(settings["model"])
        text: TextConfig | T5Config = TypeAdapter(TextConfig | T5Config).validate_python(settings["text"])
        vq = dict(settings.get("vq") or {})
        image_size, vq_config = int(vq.pop("image_size", 0)), VqConfig.model_validate(vq) if vq else None
    except UserError:
        raise
    except ValidationError as error:
        raise UserError(f"{path}: {first_mistake(error)}; {AGAIN}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a model configuration ({one_line(error, 200)}); {AGAIN}") from error
    device = own_device()
    net = _network(folder / "model.safetensors", config)
    tokenizer = _tokenizer(folder / "tokenizer.safetensors", vq_config, image_size, device)
    reader = T5Encoder(text, device) if isinstance(text, T5Config) else HashedWords(text)
    for file, what, here, wanted in (
        ("tokenizer.safetensors", "tokens along a side", tokenizer.grid, config.grid),
        ("tokenizer.safetensors", "vocabulary", tokenizer.vocabulary, config.vocabulary),
        ("config.json", "text of tokens", reader.tokens, config.text_tokens),
        ("config.json", "text of width", reader.width, config.text_width),
    ):
        if here != wanted:
            raise UserError(f"{folder / file}: {what} {here}, the model has {wanted}; {AGAIN}")
    return Model(net, tokenizer, reader, folder)


def _network(path: Path, config: ModelConfig) -> TokenAR:
    """The network of a configuration with the weights of a file, which must be those of such a network."""
    check_file(path, AGAIN)
    try:
        with safe_open(path, "pt") as file:
            layers = len({name.split(".")[1] for name in file.keys() if name.startswith("layers.")})  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not the whole weights of this model ({one_line(error, 200)}); {AGAIN}") from error
    if layers != config.layers:  # told before a network of so many is made
        raise UserError(f"{path}: {layers} layers, config.json says {config.layers}; {AGAIN}")
    with torch.device("meta"):  # nothing is drawn for weights that the file replaces
        net = TokenAR(config)
    weights = read_weights(path)
    check_fit(net, weights, str(path))
    net = net.to_empty(device="cpu")
    net.load_state_dict(weights)
    return net.eval()


def _tokenizer(
    path: Path, config: VqConfig | None, image_size: int, device: torch.device
) -> PatchCodebook | VqTokenizer:
    if config is not None:
        return VqTokenizer(load_network(path, config), image_size, device)
    if not path.is_file():
        raise UserError(f"{path}: not there; copy the model again, or train it with tokenizer_weights set")
    return PatchCodebook.load(path)
