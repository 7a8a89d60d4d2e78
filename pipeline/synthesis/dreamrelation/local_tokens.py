"""Sixteen additional tokens for each reference, from a CLIP that was tuned to see parts of a picture.

They are optional, and the published recipe runs without them. Each reference gets its own tokens here
(docs/differences.md, "Local tokens").
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from data_schemas.errors import UserError
from pipeline.synthesis.dreamrelation.files import read_tensors

CELLS = 4
"""Cells along each side of the picture. One token is the mean of a cell."""

NAMES = (
    (r"class_embedding$", "embeddings.class_embedding"),
    (r"positional_embedding$", "embeddings.position_embedding.weight"),
    (r"conv1\.weight$", "embeddings.patch_embedding.weight"),
    (r"ln_pre\.", "pre_layrnorm."),
    (r"ln_post\.", "post_layernorm."),
    (r"transformer\.resblocks\.(\d+)\.ln_([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"transformer\.resblocks\.(\d+)\.attn\.out_proj\.", r"encoder.layers.\1.self_attn.out_proj."),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.", r"encoder.layers.\1.mlp.fc1."),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.", r"encoder.layers.\1.mlp.fc2."),
)
"""Parameter names of the vision tower in open_clip, as patterns, and in transformers."""

QKV = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)$")


class LocalEncoder(nn.Module):
    """CLIP's vision tower on pictures with four times the usual side, without attention in its last layer."""

    def __init__(self, tower: Any):
        super().__init__()
        self.tower = tower  # a CLIPVisionModel
        self.side: int = CELLS * tower.config.image_size

    def forward(self, pixels: Tensor) -> Tensor:
        """Tokens [R, 16, D] of normalised pixels [R, 3, side, side], cells column by column."""
        tower: Any = self.tower
        states = tower(pixels, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states[-2]
        last = tower.encoder.layers[-1]
        states = states + last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(states)))
        states = states + last.mlp(last.layer_norm2(states))
        dense = nn.functional.normalize(tower.post_layernorm(states[:, 1:]), dim=-1)  # [R, grid * grid, D]
        return cell_means(dense, self.side // tower.config.patch_size)


def cell_means(dense: Tensor, grid: int) -> Tensor:
    """Means [R, 16, D] over 4 x 4 cells of tokens [R, grid * grid, D], cells column by column."""
    rows = dense.transpose(1, 2).unflatten(2, (grid, grid))  # [R, D, y, x]
    cells = nn.functional.avg_pool2d(rows, grid // CELLS)
    return cells.transpose(2, 3).flatten(2).transpose(1, 2)


def load_local_encoder(path: Path, config: CLIPVisionConfig) -> LocalEncoder:
    """The encoder from a checkpoint with open_clip's names: a whole CLIP, possibly under "state_dict" and "module.".

    ``config`` is the image encoder's, as both have the same architecture. Raises UserError if the file does not fit it.
    """
    stored = read_tensors(path, "local encoder")
    stored = stored.get("state_dict", stored) if isinstance(stored, dict) else {}
    visual = {
        name.removeprefix("module.").removeprefix("visual."): value
        for name, value in stored.items()
        if name.removeprefix("module.").startswith("visual.")
    }
    visual.pop("proj", None)
    with torch.device("meta"):
        tower: Any = CLIPVisionModel(config)
    try:
        tower.load_state_dict(translate(visual), assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"local encoder {path}: is not the image encoder's network in open_clip's naming ({reason}); "
            "give the CLIPSelf checkpoint of ViT-bigG-14"
        ) from error
    # no checkpoint holds this buffer, so it is still on the meta device
    positions = tower.embeddings.position_embedding.num_embeddings
    tower.embeddings.position_ids = torch.arange(positions)[None]
    return LocalEncoder(tower).requires_grad_(False).eval()


def translate(visual: dict[str, Tensor]) -> dict[str, Tensor]:
    """The vision tower's parameters renamed from open_clip to transformers. Unknown names are kept."""
    renamed = {}
    for name, value in visual.items():
        if found := QKV.match(name):
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                renamed[f"encoder.layers.{found[1]}.self_attn.{part}_proj.{found[2]}"] = piece
            continue
        for pattern, replacement in NAMES:
            name = re.sub("^" + pattern, replacement, name)
        renamed[name] = value
    return renamed
