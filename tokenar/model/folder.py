"""The model folder that a training run writes and that the sampler and the evaluator read.

    model/    model.safetensors, config.json, tokenizer.safetensors

The tokenizer file holds a fitted tokenizer or a VQ network; the VQ network's settings are in config.json. A T5 text
encoder is too large to be copied into the folder, so config.json has its name only.

Every file is written under a temporary name and then renamed, so that a file that exists is complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
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
from tokenar.encoders.fitted import FittedTokenizer, load_fitted
from tokenar.encoders.text import HashedWords, T5Encoder
from tokenar.encoders.vq import VqTokenizer, load_network, network_of
from tokenar.model.checkpoints import Checkpoint, Parts
from tokenar.model.config import ModelConfig
from tokenar.model.published import check_fit, read_weights
from tokenar.model.transformer import TokenAR

MODEL_FORMAT = 1
FILES = ("config.json", "model.safetensors", "tokenizer.safetensors")
"""The files of a model folder. The tokenizer may be missing if the model was trained on encoded shards."""


START = Path(__file__).parents[1] / "start"
"""The model folder that is installed with the package (README.md there says how it was made)."""


@dataclass
class Model:
    """A trained network with its image tokenizer and text encoder, and the folder or file that it was read from."""

    net: TokenAR
    tokenizer: FittedTokenizer | VqTokenizer
    text: HashedWords | T5Encoder
    source: Path | Checkpoint

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the model's files."""
        return model_fingerprint(self.source)


def start_folder(start_from: str | None) -> Path | None:
    """The model folder that training starts from; None if it starts from nothing or from a published checkpoint."""
    folder = START if start_from == "packaged" else Path(start_from or "")
    if start_from == "packaged" and not (folder / FILES[1]).is_file():
        raise UserError(f"{folder}: the packaged model is not there; install the package again, or run make pretrain")
    return folder if start_from and (folder / FILES[1]).is_file() else None


def model_files(folder: Path) -> list[Path]:
    """The files of a model folder; UserError if ``folder`` is not a model folder."""
    for name in FILES[:-1]:
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no model there (no {name}); give the 'model' folder of a finished run")
    return [folder / name for name in FILES if (folder / name).is_file()]


def model_fingerprint(folder: Path | Checkpoint) -> str:
    """SHA-256 of the files of a model folder or checkpoint; UserError if ``folder`` is not a model folder."""
    if isinstance(folder, Checkpoint):
        return folder.fingerprint
    digest = hashlib.sha256()
    for path in model_files(folder):
        with open(path, "rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()} ".encode())
    return digest.hexdigest()


def save_model(
    folder: Path,
    net: TokenAR,
    tokenizer: FittedTokenizer | VqTokenizer | None,
    text: TextConfig | T5Config,
    *,
    ema: Mapping[str, Tensor] | None = None,
    first: bool = True,
) -> None:
    """Write the model folder. config.json is written last: a folder that has one is complete.

    ``ema`` (averaged weights by parameter name) is saved in place of the network's own weights. ``tokenizer`` may be
    None for a model that was trained on encoded shards. If the network is sharded over processes, all of them must
    call this function, and ``first`` is True in one of them: every parameter is gathered in turn, and only that
    process keeps and writes it.
    """
    weights = {}
    for name, tensor in (net.state_dict() | dict(ema or {})).items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if first:
            weights[name] = whole.detach().cpu().contiguous()
    if not first:
        return
    config: dict[str, Any] = {"model": net.config.model_dump(), "text": text.model_dump()}
    save_tokenizer = None
    if isinstance(tokenizer, FittedTokenizer):
        save_tokenizer = tokenizer.save
    elif isinstance(tokenizer, VqTokenizer):
        network = {name: tensor.cpu().contiguous() for name, tensor in tokenizer.network.state_dict().items()}
        save_tokenizer = partial(save_file, network)
        config["vq"] = {"image_size": tokenizer.image_size, **tokenizer.network.config.model_dump()}
    _write(folder, weights, save_tokenizer, config)


def import_checkpoint(checkpoint: Checkpoint, folder: Path) -> Parts:
    """Write a model folder from a published checkpoint, with the tensors' own bytes; returns what was read.

    Of the text encoder the folder has the name, as any model folder has. UserError as ``Checkpoint.read``.
    """
    parts = checkpoint.read()
    network_of(parts.tokenizer, parts.vq, str(checkpoint.tokenizer))  # UserError if the tokenizer is not whole
    config = {
        "model": parts.model.model_dump(), "text": parts.text.model_dump(),
        "vq": {"image_size": parts.model.grid * parts.vq.reduction, **parts.vq.model_dump()},
    } | ({"new": parts.new} if parts.new else {})  # fmt: skip
    _write(folder, _apart(parts.weights), partial(save_file, _apart(parts.tokenizer)), config)
    return parts


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as a safetensors file holds them: each whole, and none in the memory of another one."""
    found: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone(memory_format=torch.contiguous_format) if place in taken else tensor.contiguous()
        taken.add(place)
    return found


def _write(
    folder: Path, weights: dict[str, Tensor], save_tokenizer: Callable[[Path], object] | None, config: dict[str, Any]
) -> None:
    """Write a model folder's files, config.json last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    write_atomically(folder / "model.safetensors", partial(save_file, weights))
    if save_tokenizer is not None:
        write_atomically(folder / "tokenizer.safetensors", save_tokenizer)
    else:
        (folder / "tokenizer.safetensors").unlink(missing_ok=True)
    content = json.dumps({"format": MODEL_FORMAT} | config, indent=2) + "\n"
    write_atomically(folder / "config.json", lambda path: path.write_text(content))


AGAIN = "train or copy the model again"
"""The advice at the end of error messages about a model folder."""


def load_model(model: str | Path | Checkpoint, text_precision: torch.dtype = torch.bfloat16) -> Model:
    """Read a model folder, or a published checkpoint as it is. The network is in evaluation mode and on the CPU.

    The encoders are on a GPU if there is one, a T5 in ``text_precision``. UserError, naming the file, if one is
    missing, damaged or does not fit the others.
    """
    device = own_device()
    if isinstance(model, Checkpoint):
        parts = model.read()
        net, text, where = _filled(parts.model, parts.weights), parts.text, model.path
        vq = network_of(parts.tokenizer, parts.vq, str(model.tokenizer))
        image_size = parts.model.grid * parts.vq.reduction
        tokenizer: FittedTokenizer | VqTokenizer = VqTokenizer(vq, image_size, device)
        files = dict.fromkeys(FILES, where) | {FILES[2]: model.tokenizer}
    else:
        folder = Path(model)
        written = read_settings(folder)
        net, text = _network(folder / FILES[1], written.model), written.text
        tokenizer = _tokenizer(folder / FILES[2], written.vq, written.image_size, device)
        files = {name: folder / name for name in FILES}
        model = folder
    config = net.config
    text_encoder = T5Encoder(text, device, text_precision) if isinstance(text, T5Config) else HashedWords(text)
    for file, what, actual, expected in (
        ("tokenizer.safetensors", "tokens along a side", tokenizer.grid, config.grid),
        ("tokenizer.safetensors", "vocabulary", tokenizer.vocabulary, config.vocabulary),
        ("config.json", "text of tokens", text_encoder.tokens, config.text_tokens),
        ("config.json", "text of width", text_encoder.width, config.text_width),
    ):
        if actual != expected:
            raise UserError(f"{files[file]}: {what} {actual}, the model has {expected}; {AGAIN}")
    return Model(net, tokenizer, text_encoder, model)


def model_settings(model: Path | Checkpoint) -> ModelConfig:
    """The network's settings of a model folder or checkpoint; UserError as ``load_model``."""
    return model.read().model if isinstance(model, Checkpoint) else read_settings(model).model


@dataclass(frozen=True)
class Written:
    """What a model folder's config.json says: settings of the network, the text encoder and, for pictures of
    ``image_size`` pixels, the VQ tokenizer; ``new`` are keys that the imported checkpoint lacked."""

    model: ModelConfig
    text: TextConfig | T5Config
    vq: VqConfig | None
    image_size: int
    new: list[str]


def read_settings(folder: Path) -> Written:
    """Read config.json of a model folder. UserError for one that cannot be used."""
    path = model_files(folder)[0]
    settings = read_json(path, AGAIN)
    try:
        if settings["format"] != MODEL_FORMAT:
            stored = one_line(settings["format"], 40)
            raise UserError(f"{path}: model format {stored}, this program reads {MODEL_FORMAT}; {AGAIN}")
        config = ModelConfig.model_validate(settings["model"])
        text: TextConfig | T5Config = TypeAdapter(TextConfig | T5Config).validate_python(settings["text"])
        vq = dict(settings.get("vq") or {})
        image_size, vq_config = int(vq.pop("image_size", 0)), VqConfig.model_validate(vq) if vq else None
        new = [str(name) for name in settings.get("new", [])]
        return Written(config, text, vq_config, image_size, new)
    except UserError:
        raise
    except ValidationError as error:
        raise UserError(f"{path}: {first_mistake(error)}; {AGAIN}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a model configuration ({one_line(error, 200)}); {AGAIN}") from error


def _network(path: Path, config: ModelConfig) -> TokenAR:
    """A network with this configuration and the weights of a file; UserError if they do not fit."""
    check_file(path, AGAIN)
    try:
        with safe_open(path, "pt") as file:
            layers = len({name.split(".")[1] for name in file.keys() if name.startswith("layers.")})  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not the whole weights of this model ({one_line(error, 200)}); {AGAIN}") from error
    if layers != config.layers:  # checked before a network with so many layers is built
        raise UserError(f"{path}: {layers} layers, config.json says {config.layers}; {AGAIN}")
    weights = read_weights(path)
    with torch.device("meta"):  # initial values would only be overwritten
        check_fit(TokenAR(config), weights, str(path))
    return _filled(config, weights)


def _filled(config: ModelConfig, weights: Mapping[str, Tensor]) -> TokenAR:
    """A network with weights that fit it."""
    with torch.device("meta"):
        net = TokenAR(config)
    own = net.state_dict().keys()
    net = net.to_empty(device="cpu")
    net.load_state_dict({name: tensor for name, tensor in weights.items() if name in own})
    return net.eval()


def _tokenizer(
    path: Path, config: VqConfig | None, image_size: int, device: torch.device
) -> FittedTokenizer | VqTokenizer:
    if config is not None:
        return VqTokenizer(load_network(path, config), image_size, device)
    if not path.is_file():
        raise UserError(f"{path}: not there; copy the model again, or train it with tokenizer_weights set")
    return load_fitted(path)
