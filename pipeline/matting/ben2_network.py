"""BEN2's network, and the loading of its published weights (PramaLLC/BEN2, MIT licence).

A picture is processed as five: its four quadrants, and the whole at half the size. A Swin-B computes feature maps of
all five, and the decoder combines the detail of the quadrants with the context of the whole. Samples are batched
throughout.

Shapes: B samples, 5 pictures a sample (quadrants row by row, then the whole), N = 5 B, C = 128 channels, S the side of
the input, h and w a map's height and width. Parameters have the names of the published checkpoint.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from timm.models.swin_transformer import window_partition, window_reverse
from torch import Tensor, nn

from data_schemas.errors import UserError

WIDTH = 128
STEP = 128
"""The input's side must be a multiple of this many pixels, so that all halvings give whole numbers."""

UNUSED = re.compile(r"sideout\d\.0\.\w+|.*\.relative_position_index")
"""Entries of the checkpoint that do not affect the output: side heads for training, and buffers computed here."""


class Ben2Network(nn.Module):
    """The foreground matte of normalised pictures: [B, 3, S, S] -> [B, 1, S, S] in 0..1, with S a multiple of 128."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        for level, channels in enumerate((128, 128, 256, 512, 1024), start=1):
            self.add_module(f"output{level}", nn.Sequential(*conv(channels, WIDTH)))
        self.multifieldcrossatt = GlobalContext()
        for level in range(1, 5):
            self.add_module(f"dec_blk{level}", DetailRefinement())
            self.add_module(f"conv{level}", nn.Sequential(*conv(WIDTH, WIDTH)))
        head = 3 * WIDTH
        self.insmask_head = nn.Sequential(*conv(WIDTH, head), *conv(head, head), nn.Conv2d(head, WIDTH, 3, padding=1))
        self.shallow = nn.Sequential(nn.Conv2d(3, WIDTH, 3, padding=1))
        self.upsample1 = nn.Sequential(*conv(WIDTH, WIDTH))
        self.upsample2 = nn.Sequential(*conv(WIDTH, WIDTH))
        self.output = nn.Sequential(nn.Conv2d(WIDTH, 1, 3, padding=1))

    def forward(self, pictures: Tensor) -> Tensor:
        side = pictures.shape[-1]
        if side % STEP or pictures.shape[-2] != side:
            raise ValueError(f"BEN2 takes squares with a side that is a multiple of {STEP}, not {pictures.shape}")
        whole = resize(pictures, side // 2)
        views = torch.cat([split(pictures), whole[:, None]], 1)  # [B, 5, 3, S/2, S/2]
        maps = [
            self.get_submodule(f"output{level}")(features).unflatten(0, views.shape[:2])
            for level, features in enumerate(self.backbone(views.flatten(0, 1)), start=1)
        ]
        decoded = self.multifieldcrossatt(maps[4])
        for level in (4, 3, 2, 1):
            finer = maps[level - 1]
            coarser = resize(decoded.flatten(0, 1), finer.shape[-1]).unflatten(0, views.shape[:2])
            refined = self.get_submodule(f"dec_blk{level}")(finer + coarser)
            decoded = self.get_submodule(f"conv{level}")(refined.flatten(0, 1)).unflatten(0, views.shape[:2])
        detail = stitch(decoded[:, :4])  # [B, C, S/4, S/4]
        x = self.insmask_head(detail + resize(decoded[:, 4], side // 4))
        shallow = self.shallow(pictures)
        x = self.upsample1(F.interpolate(x + resize(shallow, side // 4), scale_factor=2.0))
        x = self.upsample2(F.interpolate(x + resize(shallow, side // 2), scale_factor=2.0))
        return self.output(x).sigmoid()


class Backbone(nn.Module):
    """Swin-B made of timm's parts, returning the patch embedding and the outputs of all four stages.

    It maps [N, 3, H, W] to [N, c, H/4, W/4] ... [N, 8c, H/32, W/32]. Parts are grouped as in the checkpoint: a stage's
    patch merging is at its end, and each stage has its own output norm.
    """

    def __init__(self) -> None:
        super().__init__()
        swin: Any = timm.create_model(
            "swin_base_patch4_window12_384",
            num_classes=0,
            drop_path_rate=0.0,
            always_partition=True,  # keep the window at 12 even on smaller maps, as the bias tables require
            strict_img_size=False,
            weight_init="skip",  # the checkpoint's weights are loaded
        )
        stages = list(swin.layers)
        self.patch_embed = swin.patch_embed
        self.layers = nn.ModuleList()
        for i, stage in enumerate(stages):
            merging = {"downsample": stages[i + 1].downsample} if i < 3 else {}
            self.layers.append(nn.ModuleDict({"blocks": stage.blocks, **merging}))
            self.add_module(f"norm{i}", nn.LayerNorm(WIDTH * 2**i))

    def forward(self, pictures: Tensor) -> list[Tensor]:
        x = self.patch_embed(pictures)  # [N, h, w, c]
        maps = [x]
        for i, stage in enumerate(self.layers):
            assert isinstance(stage, nn.ModuleDict)
            for block in stage["blocks"].children():
                x = swin_block(block, x)
            maps.append(self.get_submodule(f"norm{i}")(x))
            if "downsample" in stage:
                x = stage["downsample"](x)
        return [features.permute(0, 3, 1, 2) for features in maps]


def swin_block(block: Any, x: Tensor) -> Tensor:
    """One timm SwinTransformerBlock on [N, h, w, c], in the order of the original Swin: pad first, then shift.

    timm shifts first, which gives other values wherever a map's side is no multiple of the window (docs/differences.md,
    "Order of padding in Swin").
    """
    _, height, width, _ = x.shape
    window, shift = block.window_size, block.shift_size
    y = F.pad(block.norm1(x), (0, 0, 0, -width % window[1], 0, -height % window[0]))
    y = torch.roll(y, (-shift[0], -shift[1]), (1, 2))
    windows = window_partition(y, window).flatten(1, 2)
    attended = block.attn(windows, mask=block.get_attn_mask(y))
    y = window_reverse(attended.unflatten(1, window), window, y.shape[1], y.shape[2])
    x = x + torch.roll(y, shift, (1, 2))[:, :height, :width]
    return x + block.mlp(block.norm2(x))


class GlobalContext(nn.Module):
    """Maps [B, 5, C, h, w] to the same shape: the whole attends to the quadrants, then each quadrant to its part of it.

    It is called MCLM in the published code.
    """

    def __init__(self) -> None:
        super().__init__()
        self.attention = attentions(5)
        self.linear1, self.linear2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.linear3, self.linear4 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, maps: Tensor) -> Tensor:
        height, width = maps.shape[-2:]
        quadrants, whole = maps[:, :4], tokens(maps[:, 4])
        sizes = [(round(height / ratio), round(width / ratio)) for ratio in (1, 4, 8)]
        keys = pools(stitch(quadrants), sizes)
        codes = torch.cat([position_code(*size, maps.device) for size in sizes])
        queries = whole + position_code(height, width, maps.device)
        whole = whole + attend(self.attention[0], queries, keys + codes, keys)
        whole = feed_forward(self.norm1, self.linear1, self.linear2, self.norm2, whole)
        whole = untokens(whole, height, width)
        detail = tokens(quadrants)  # [B, 4, hw, C]
        quarters = tokens(split(whole))  # [B, 4, hw/4, C]
        detail = detail + attend_each(self.attention[1:], detail, quarters)
        detail = feed_forward(self.norm1, self.linear3, self.linear4, self.norm2, detail)
        return torch.cat([untokens(detail, height, width), whole[:, None]], 1)


class DetailRefinement(nn.Module):
    """Maps [B, 5, C, h, w] to the same shape: quadrants, gated by the whole, attend to it and are then added to it.

    It is called MCRM in the published code.
    """

    def __init__(self) -> None:
        super().__init__()
        self.attention = attentions(4)
        self.linear3, self.linear4 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.sal_conv = nn.Conv2d(WIDTH, 1, 1)

    def forward(self, maps: Tensor) -> Tensor:
        height, width = maps.shape[-2:]
        quadrants, whole = maps[:, :4], maps[:, 4]
        gate = F.interpolate(self.sal_conv(whole).sigmoid(), (2 * height, 2 * width))
        detail = tokens(quadrants * split(gate))  # [B, 4, hw, C]
        sizes = [(round(height / ratio), round(width / ratio)) for ratio in (2, 4, 8)]
        keys = pools(split(whole).flatten(0, 1), sizes).unflatten(0, (-1, 4))
        detail = detail + attend_each(self.attention, detail, keys)
        detail = feed_forward(self.norm1, self.linear3, self.linear4, self.norm2, detail)
        quadrants = untokens(detail, height, width)
        whole = whole + F.interpolate(stitch(quadrants), (height, width))
        return torch.cat([quadrants, whole[:, None]], 1)


def conv(channels: int, width: int) -> list[nn.Module]:
    """A 3 x 3 convolution, instance normalisation and GELU."""
    return [nn.Conv2d(channels, width, 3, padding=1), nn.InstanceNorm2d(width), nn.GELU()]


def attentions(count: int) -> nn.ModuleList:
    return nn.ModuleList(nn.MultiheadAttention(WIDTH, 1, batch_first=True) for _ in range(count))


def attend(attention: nn.Module, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of [B, T, C] to [B, K, C].

    It is fused, because the T x K weights of a quadrant would fill the memory.
    """
    return attention(queries, keys, values, need_weights=False)[0]


def attend_each(layers: nn.ModuleList, queries: Tensor, keys: Tensor) -> Tensor:
    """Quadrant i of [B, 4, T, C] attends to keys i of [B, 4, K, C] through layer i."""
    each = [attend(layer, queries[:, i], keys[:, i], keys[:, i]) for i, layer in enumerate(layers)]
    return torch.stack(each, 1)


def feed_forward(norm1: nn.Module, wider: nn.Module, narrower: nn.Module, norm2: nn.Module, x: Tensor) -> Tensor:
    x = norm1(x)
    return norm2(x + narrower(F.gelu(wider(x))))


def split(picture: Tensor) -> Tensor:
    """[B, C, 2h, 2w] -> its quadrants [B, 4, C, h, w], row by row."""
    rows = picture.unflatten(-1, (2, -1)).unflatten(-3, (2, -1))  # [B, C, 2, h, 2, w]
    return rows.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


def stitch(quadrants: Tensor) -> Tensor:
    """Quadrants [B, 4, C, h, w] -> the picture [B, C, 2h, 2w]; the inverse of ``split``."""
    grid = quadrants.unflatten(1, (2, 2))  # [B, 2, 2, C, h, w]
    return grid.permute(0, 3, 1, 4, 2, 5).flatten(-2).flatten(-3, -2)


def tokens(maps: Tensor) -> Tensor:
    """[..., C, h, w] -> [..., hw, C]."""
    return maps.flatten(-2).transpose(-1, -2)


def untokens(x: Tensor, height: int, width: int) -> Tensor:
    """[..., hw, C] -> [..., C, h, w]."""
    return x.transpose(-1, -2).unflatten(-1, (height, width))


def pools(picture: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
    """[B, C, h, w] averaged to each of the sizes -> all their tokens, [B, K, C]."""
    return torch.cat([tokens(F.adaptive_avg_pool2d(picture, size)) for size in sizes], 1)


def resize(picture: Tensor, side: int) -> Tensor:
    """[B, C, h, w] -> [B, C, side, side], bilinear without antialiasing."""
    return F.interpolate(picture, (side, side), mode="bilinear", align_corners=False)


def position_code(height: int, width: int, device: torch.device) -> Tensor:
    """Sine code [hw, C] of the positions in a map: 64 channels for the row, then 64 for the column."""
    channel = torch.arange(WIDTH // 2, device=device)
    period = 10000.0 ** (2 * (channel // 2) / len(channel))

    def axis(length: int) -> Tensor:
        position = (torch.arange(1, length + 1, device=device) - 0.5) / (length + 1e-6) * 2 * math.pi
        angle = position[:, None] / period
        return torch.where(channel % 2 == 0, angle.sin(), angle.cos())

    rows = axis(height)[:, None].expand(-1, width, -1)
    columns = axis(width)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], -1).flatten(0, 1)


def load_network(path: Path, device: torch.device) -> Ben2Network:
    """The network in evaluation mode with the published weights, on ``device``. Raises UserError for another file.

    ``path`` is the official ``.pth`` (tensors under "model_state_dict") or a ``.safetensors`` with the bare tensors.
    """
    stored = {name: tensor for name, tensor in read_checkpoint(path).items() if not UNUSED.fullmatch(name)}
    with torch.random.fork_rng(devices=[]):  # initial weights must not use up the caller's random numbers
        network = Ben2Network().eval()
    wanted = network.state_dict()
    problems = {
        "missing": sorted(wanted.keys() - stored.keys()),
        "unknown": sorted(stored.keys() - wanted.keys()),
        "of another shape": sorted(k for k in wanted.keys() & stored.keys() if wanted[k].shape != stored[k].shape),
    }
    if any(problems.values()):
        text = ", ".join(f"{len(names)} {what} ({names[0]})" for what, names in problems.items() if names)
        raise UserError(f"{path}: not the weights of BEN2: tensors {text}; name model.safetensors or BEN2_Base.pth")
    network.load_state_dict(stored)
    return network.requires_grad_(False).to(device)


def read_checkpoint(path: Path) -> Mapping[str, Tensor]:
    """The tensors in a ``.safetensors`` or ``.pth`` file by name. No code in the file is executed."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: not a readable checkpoint ({reason}); fetch it again") from error
    stored = stored.get("model_state_dict", stored) if isinstance(stored, Mapping) else stored
    if not isinstance(stored, Mapping) or not all(isinstance(v, Tensor) for v in stored.values()):
        raise UserError(
            f"{path}: not the weights of BEN2: no table of tensors; name model.safetensors or BEN2_Base.pth"
        )
    return stored
