"""Finds the weights of an evaluation's networks: a path on this machine, or a published name to download once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import snapshot_download
from torch import Tensor

from data_schemas.errors import UserError
from data_schemas.io.text import one_line
from data_schemas.networks import HUB_ID
from tokenar.weight_files import check_finite, read_content

Backbone = Literal["alex", "vgg", "squeeze"]


def need(package: str, figures: str) -> None:
    """UserError if a package that ``figures`` need is not installed, saying how to install it."""
    if find_spec(package) is None:
        name = package.replace("_", "-")
        raise UserError(f"{figures}: {name} is not installed; install it with: pip install 'instructar[paper]'")


def folder_of(option: str, source: str, patterns: Sequence[str]) -> Path:
    """The folder or file that ``source`` names. ``source`` is a path or a Hugging Face id; of an id's repository, files
    that match ``patterns`` are downloaded if they are not on this machine. UserError naming the option."""
    path = Path(os.path.expanduser(source))  # Path's own raises for the home of nobody
    if os.path.exists(path):
        return path
    if not HUB_ID.fullmatch(source):
        raise _cannot_be_had(option, source, "no such file or folder")
    try:
        return Path(snapshot_download(source, allow_patterns=list(patterns)))
    except Exception as error:  # no network, an unknown id or an unaccepted licence each raise another class
        raise _cannot_be_had(option, source, error) from error


def read_weights(option: str, source: str, url: str | None) -> dict[str, Tensor]:
    """A state dict from ``url`` if given, or else from the file ``source`` (.safetensors, or .pth without code)."""
    if url is not None:
        try:
            weights = torch.hub.load_state_dict_from_url(url, map_location="cpu", progress=False, weights_only=True)
        except Exception as error:  # there is no network, or the file at the address has changed
            raise _cannot_be_had(option, source, error) from error
    else:
        try:
            weights = read_content(Path(source).expanduser(), "name a file of plain weights")
        except UserError as error:
            raise UserError(f"{option}: {error}") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise _cannot_be_had(option, source, "not a file of plain weights")
    check_finite(weights, f"{option}: {source}", "fetch it again")
    return weights


def lpips_backbone(source: str) -> tuple[Backbone, dict[str, Tensor]]:
    """The backbone's kind and its weights under torchvision's names. ``source`` is a kind to download, or a file."""
    from torchvision import models

    published = {
        "alex": models.AlexNet_Weights.DEFAULT, "vgg": models.VGG16_Weights.DEFAULT,
        "squeeze": models.SqueezeNet1_1_Weights.DEFAULT,
    }  # fmt: skip
    url = published[source].url if source in published else None
    weights = read_weights("lpips", source, url)
    if "features.3.squeeze.weight" in weights:
        return "squeeze", weights
    if "features.28.weight" in weights:
        return "vgg", weights
    if "features.10.weight" in weights:
        return "alex", weights
    raise _cannot_be_had("lpips", source, "not torchvision's AlexNet, VGG16 or SqueezeNet 1.1")


def _cannot_be_had(option: str, source: str, reason: object) -> UserError:
    line = one_line(reason, 100) or type(reason).__name__
    return UserError(f"{option}: {source} cannot be had ({line})")
