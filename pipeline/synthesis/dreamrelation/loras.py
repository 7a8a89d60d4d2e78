"""Relation LoRAs: small weight files for a UNet, which are checked before they are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from data_schemas.errors import UserError
from pipeline.synthesis.dreamrelation.files import read_tensors

DOWN = (".lora.down.weight", ".lora_A.weight")
UP = (".lora.up.weight", ".lora_B.weight")
"""Endings of parameter names as written by older and by newer tools."""


def read_lora(path: Path, unet: Any) -> dict[str, Tensor]:
    """The tensors of a LoRA for this UNet. Raises UserError if the file is not a LoRA, or one for another model."""
    tensors = read_tensors(path, "LoRA")
    layers = {name: module for name, module in unet.named_modules() if isinstance(module, nn.Linear)}
    if not tensors:
        raise UserError(f"LoRA {path}: holds nothing; give a file that diffusers saved")
    for name, tensor in tensors.items():
        ending = next((e for e in DOWN + UP if name.endswith(e)), None)
        layer = layers.get(name.removeprefix("unet.").removesuffix(ending)) if ending else None
        if layer is None or not name.startswith("unet."):
            raise UserError(f"LoRA {path}: this base has no place for {name}; give a LoRA of an SDXL UNet")
        found, width = (tensor.shape[-1], layer.in_features) if ending in DOWN else (len(tensor), layer.out_features)
        if tensor.ndim != 2 or found != width:
            raise UserError(
                f"LoRA {path}: {name} is {' x '.join(map(str, tensor.shape))}, but this base has {width} there; "
                "give a LoRA that was trained on it"
            )
    return tensors
