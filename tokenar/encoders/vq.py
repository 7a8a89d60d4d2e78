"""LlamaGen's VQ tokenizers VQ-16 and VQ-8 (arXiv 2406.06525). Attribute names are those of the published state dict.

Shape legend: B batch, N = h x w tokens an image, C channels, V codebook rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_schemas.errors import UserError
from data_schemas.io.text import one_line
from tokenar.device import exact_float32
from tokenar.encoders.config import VQ_GROUPS, VqConfig
from tokenar.encoders.config import vq8 as vq8
from tokenar.encoders.config import vq16 as vq16
from tokenar.encoders.frozen import fingerprint
from tokenar.weight_files import read_content, weights_in

ENCODER_RES_BLOCKS = 2
DECODER_RES_BLOCKS = 3
USAGE_COUNTS = 65536
"""Length of ``quantize.codebook_used``, statistics of the VQ's own training. It is in the file but not used."""
SEARCH_ROWS = 2048
"""Latent vectors that are compared with the codebook at once: 128 MB of similarities for 16384 codes."""


# The network


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(VQ_GROUPS, channels, eps=1e-6)


def _conv3(channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1)


class ResBlock(nn.Module):
    """Residual block of two convolutions, [B, C, h, w] -> [B, out, h, w]."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.norm1, self.conv1 = _norm(channels), _conv3(channels, out)
        self.norm2, self.conv2 = _norm(out), _conv3(out, out)
        self.nin_shortcut = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class AttnBlock(nn.Module):
    """Residual self-attention of one head over all pixels, [B, C, h, w] -> [B, C, h, w]."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))  # [B, 1, N, C]
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(mixed[:, 0].transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Halve height and width with a convolution of stride 2, padded at the right and the bottom only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double height and width by repeating pixels, then convolve."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = _conv3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The layers of one resolution: residual blocks, each followed by attention if ``attention``, then a change of size
    if there is one."""

    def __init__(
        self, channels: int, out: int, blocks: int, attention: bool, downsample: bool = False, upsample: bool = False
    ):
        super().__init__()
        self.res = nn.ModuleList(ResBlock(channels if i == 0 else out, out) for i in range(blocks))
        self.attn = nn.ModuleList(AttnBlock(out) for _ in range(blocks if attention else 0))
        self.downsample = Downsample(out) if downsample else nn.Identity()
        self.upsample = Upsample(out) if upsample else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.res):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        return self.upsample(self.downsample(x))


def _middle(channels: int) -> nn.ModuleList:
    return nn.ModuleList([ResBlock(channels, channels), AttnBlock(channels), ResBlock(channels, channels)])


class Encoder(nn.Module):
    """[B, 3, H, W] -> [B, z_channels, H / reduction, W / reduction]."""

    def __init__(self, config: VqConfig):
        super().__init__()
        widths = [config.base_channels, *config.widths]
        last = len(config.widths) - 1
        self.conv_in = _conv3(3, widths[0])
        self.conv_blocks = nn.ModuleList(
            Level(widths[i], widths[i + 1], ENCODER_RES_BLOCKS, attention=i == last, downsample=i < last)
            for i in range(last + 1)
        )
        self.mid = _middle(widths[-1])
        self.norm_out, self.conv_out = _norm(widths[-1]), _conv3(widths[-1], config.z_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for part in (*self.conv_blocks, *self.mid):
            x = part(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """[B, z_channels, h, w] -> [B, 3, h * reduction, w * reduction], not clamped."""

    def __init__(self, config: VqConfig):
        super().__init__()
        widths = [config.widths[-1], *reversed(config.widths)]
        last = len(config.widths) - 1
        self.conv_in = _conv3(config.z_channels, widths[0])
        self.mid = _middle(widths[0])
        self.conv_blocks = nn.ModuleList(
            Level(widths[i], widths[i + 1], DECODER_RES_BLOCKS, attention=i == 0, upsample=i < last)
            for i in range(last + 1)
        )
        self.norm_out, self.conv_out = _norm(widths[-1]), _conv3(widths[-1], 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for part in (*self.mid, *self.conv_blocks):
            x = part(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Quantiser(nn.Module):
    """Latent vectors to the nearest of V codes and back. Vectors and codes are normalised to length 1 first."""

    codebook_used: Tensor

    def __init__(self, config: VqConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.codebook_size, config.codebook_embed_dim)
        self.register_buffer("codebook_used", torch.zeros(USAGE_COUNTS))

    def unit_codes(self) -> Tensor:
        """The codebook with rows of length 1, [V, C] float32."""
        return F.normalize(self.embedding.weight.float(), dim=-1)

    def nearest(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] -> the nearest codes [B, N] int64 in raster order."""
        rows = F.normalize(latents.float().flatten(2).transpose(1, 2), dim=-1)  # [B, N, C]
        codes = self.unit_codes().T
        # For vectors of length 1 the nearest is the one with the largest cosine.
        nearest = [(part @ codes).argmax(-1) for part in rows.flatten(0, 1).split(SEARCH_ROWS)]
        return torch.cat(nearest).view(rows.shape[:2])

    def lookup(self, codes: Tensor, height: int, width: int) -> Tensor:
        """Codes [B, N] of a height x width grid -> codebook rows of length 1, [B, C, h, w] float32."""
        return F.embedding(codes, self.unit_codes()).transpose(1, 2).unflatten(2, (height, width))


class VqNetwork(nn.Module):
    """Encoder, quantiser and decoder, for images whose sides are multiples of ``config.reduction``."""

    def __init__(self, config: VqConfig):
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantize = Quantiser(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.codebook_embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.codebook_embed_dim, config.z_channels, 1)

    def latents(self, pictures: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> latents [B, codebook_embed_dim, h, w], before normalisation."""
        return self.quant_conv(self.encoder(pictures))

    def encode(self, pictures: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> codes [B, N] int64."""
        return self.quantize.nearest(self.latents(pictures))

    def decode(self, codes: Tensor, height: int, width: int) -> Tensor:
        """Codes [B, N] of a height x width grid -> images [B, 3, H, W], about in [-1, 1]."""
        quantised = self.quantize.lookup(codes, height, width)
        return self.decoder(self.post_quant_conv(quantised.to(self.post_quant_conv.weight.dtype)))


# Files


ADVICE = "fetch the VQ checkpoint again, or name one such as vq_ds16_t2i.pt"


def load_network(path: str | Path, config: VqConfig) -> VqNetwork:
    """A network with the weights of a file, in evaluation mode, in float32 and on the CPU.

    ``path`` is a ``.pt`` file of LlamaGen (tensors under "model") or a ``.safetensors`` file with the same tensors.
    UserError if its tensors are not those of such a network.
    """
    return network_of(read_vq(path), config, str(path))


def read_vq(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a VQ checkpoint by name, as they are stored. No code in the file is run."""
    return weights_in(read_content(path, ADVICE), Path(path), ADVICE)


def network_of(stored: Mapping[str, Tensor], config: VqConfig, source: str) -> VqNetwork:
    """``load_network`` from tensors that were read from ``source``."""
    with torch.device("meta"):  # initial values would only be overwritten
        network = VqNetwork(config)
    expected = network.state_dict()
    problems: dict[str, Sequence[str]] = {
        "missing": sorted(expected.keys() - stored.keys()),
        "unknown": sorted(stored.keys() - expected.keys()),
        "of another shape": sorted(k for k in expected.keys() & stored.keys() if expected[k].shape != stored[k].shape),
    }
    if any(problems.values()):
        listed = ", ".join(f"{len(names)} {problem} ({names[0]})" for problem, names in problems.items() if names)
        raise UserError(
            f"{source}: not the weights of a VQ tokenizer with ch_mult {list(config.ch_mult)}: tensors {listed}; name "
            "the file that belongs to it, such as vq_ds16_t2i.pt for VQ-16"
        )
    network.load_state_dict({name: tensor.float() for name, tensor in stored.items()}, assign=True)
    return network.eval().requires_grad_(False)


def config_of(stored: Mapping[str, Tensor], source: str) -> VqConfig:
    """The settings of the VQ network that tensors belong to, from their shapes. UserError if they are of none."""
    levels = {name.split(".")[2] for name in stored if name.startswith("encoder.conv_blocks.")}
    try:
        sizes = {name: stored[name].shape for name in ("encoder.conv_in.weight", "encoder.conv_out.weight")}
        base, codes = sizes["encoder.conv_in.weight"][0], stored["quantize.embedding.weight"].shape
        widths = [stored[f"encoder.conv_blocks.{i}.res.0.conv1.weight"].shape[0] for i in range(len(levels))]
        values = {
            "ch_mult": [width / base for width in widths], "base_channels": base, "codebook_size": codes[0],
            "z_channels": sizes["encoder.conv_out.weight"][0], "codebook_embed_dim": codes[1],
        }  # fmt: skip
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise UserError(f"{source}: not the weights of a VQ tokenizer (no {one_line(error, 100)}); {ADVICE}") from error
    return VqConfig.parse(values, source)


# The tokenizer


class VqTokenizer:
    """A VQ network as an ImageTokenizer for images of S x S pixels. Results are on the device of the input.

    Encoding is always in float32, because lower precision gives other codes. Decoding with
    ``decode_dtype=torch.bfloat16`` takes half the memory, with an error of about one level in 255. ``batch`` images
    are processed at once; VQ-16 needs about 1 GB for each image of 512 pixels.
    """

    def __init__(
        self,
        network: VqNetwork,
        image_size: int,
        device: torch.device | str = "cpu",
        decode_dtype: torch.dtype = torch.float32,
        batch: int = 8,
    ):
        reduction = network.config.reduction
        if image_size < reduction or image_size % reduction:
            raise UserError(f"image_size {image_size} must be a multiple of {reduction}, the pixels a token")
        exact_float32()
        self.network = network.to(device)
        self.image_size, self.grid = image_size, image_size // reduction
        self.vocabulary = network.config.codebook_size
        self.device, self.decode_dtype, self.batch = torch.device(device), decode_dtype, batch

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights; the same for a ``.pt`` and a ``.safetensors`` file with the same tensors."""
        return fingerprint(self.network)

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Images [B, 3, S, S] float in [-1, 1] -> codes [B, N] int64."""
        codes = [self.network.encode(part.to(self.device, torch.float32)) for part in pictures.split(self.batch)]
        return torch.cat(codes).to(pictures.device)

    @torch.no_grad()
    def decode(self, codes: Tensor, sources: Tensor | None = None) -> Tensor:
        """Codes [B, N] int64 -> images [B, 3, S, S] float32, about in [-1, 1]: the decoder does not clamp. No use is
        made of ``sources``."""
        half = self.decode_dtype != torch.float32
        pictures = []
        with torch.autocast(self.device.type, self.decode_dtype, enabled=half):
            for part in codes.split(self.batch):
                pictures.append(self.network.decode(part.to(self.device), self.grid, self.grid).float())
        return torch.cat(pictures).to(codes.device)
