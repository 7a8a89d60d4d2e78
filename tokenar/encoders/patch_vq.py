"""A VQ tokenizer for small patches that is fitted on a CPU in about a minute.

A patch is described by its first principal components, to which a small network adds what they miss, and quantised to
the nearest of V codes. The description depends on the patch alone, so that equal patches have equal codes and a model
can copy them from a reference. The decoder sees the codes around: it draws each patch from its principal components,
and a small convolutional network (ConvNeXt blocks, Liu et al. 2022, arXiv 2201.03545) mends the edges between patches.
Both networks start at zero, so that the fit starts from principal components and can only get better.

A code says roughly what a patch looks like. Most patches of a picture that is composed of references and a background
are theirs, and the decoder can be given these pictures as well: it then draws a patch as they show it
(docs/differences.md, "Decoding with the sources at hand").

Shape legend: B batch, S side of an image in pixels, N = g x g tokens an image, P = 3 * patch * patch numbers of a
patch, Z numbers of a code, V vocabulary, C channels, M patches, K source images of a sample.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from data_schemas.errors import UserError
from data_schemas.io.documents import parse_json
from data_schemas.io.files import check_file
from data_schemas.io.text import one_line
from tokenar.encoders.config import PatchVqConfig
from tokenar.encoders.patches import patches_of
from tokenar.weight_files import check_finite

METADATA = "patch_vq"
IMAGES_AT_ONCE = 64
PATCHES_AT_ONCE = 8192
"""Patches that are compared with the codes at once: 64 MB of distances for 2048 codes."""


class ConvBlock(nn.Module):
    """ConvNeXt block, [B, C, h, w] -> [B, C, h, w]."""

    def __init__(self, channels: int, multiple: int):
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.norm = nn.GroupNorm(1, channels)
        self.widen = nn.Conv2d(channels, multiple * channels, 1)
        self.narrow = nn.Conv2d(multiple * channels, channels, 1)
        nn.init.normal_(self.narrow.weight, std=0.3 * (multiple * channels) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(F.gelu(self.widen(self.norm(self.mix(x)))))


class PatchNetwork(nn.Module):
    """Encoder, codes and decoder."""

    components: Tensor
    codes: Tensor

    def __init__(self, config: PatchVqConfig):
        super().__init__()
        self.config = config
        numbers, latents, width = 3 * config.patch**2, config.latents, config.width
        self.register_buffer("components", torch.zeros(latents, numbers))
        self.register_buffer("codes", torch.zeros(config.vocabulary, latents))
        self.encode_in, self.encode_mid = nn.Linear(numbers, 2 * width), nn.Linear(2 * width, 2 * width)
        self.encode_out = nn.Linear(2 * width, latents)
        # Half way up at once where the patch's side is even, so that few channels are convolved at full size.
        up = 2 if config.patch % 2 == 0 else 1
        self.decode_in = nn.Conv2d(latents, width, 3, padding=1)
        self.coarse = nn.Sequential(*(ConvBlock(width, 3) for _ in range(3)))
        self.finer = nn.Sequential(nn.Conv2d(width, width // 2 * up * up, 1), nn.PixelShuffle(up))
        self.fine = nn.Sequential(*(ConvBlock(width // 2, 2) for _ in range(2)))
        rest = config.patch // up
        self.decode_out = nn.Conv2d(width // 2, 3 * rest * rest, 3, padding=1)
        self.to_pixels = nn.PixelShuffle(rest)
        for layer in (self.encode_out, self.decode_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def latents(self, patches: Tensor) -> Tensor:
        """Patches [..., P] -> their descriptions [..., Z], not quantised."""
        h = F.gelu(self.encode_in(patches))
        h = h + F.gelu(self.encode_mid(h))
        return self.encode_out(h) + patches @ self.components.T

    def nearest(self, latents: Tensor) -> Tensor:
        """Descriptions [M, Z] -> the nearest codes [M] int64."""
        half = (self.codes**2).sum(1) / 2
        return torch.cat([(half - part @ self.codes.T).argmin(1) for part in latents.split(PATCHES_AT_ONCE)])

    def pixels(self, latents: Tensor, grid: int) -> Tensor:
        """Descriptions [B, N, Z] of grid x grid patches -> images [B, 3, S, S], about in [-1, 1]."""
        side, patch = grid * self.config.patch, self.config.patch
        plain = F.fold((latents @ self.components).transpose(1, 2), (side, side), patch, stride=patch)
        h = self.coarse(self.decode_in(latents.transpose(1, 2).unflatten(2, (grid, grid))))
        return plain + self.to_pixels(self.decode_out(self.fine(self.finer(h))))


class PatchVq:
    """A fitted network as an ImageTokenizer. ``codes`` [V, Z] describe the tokens' content."""

    def __init__(self, config: PatchVqConfig, network: PatchNetwork):
        self.config, self.network = config, network.eval().requires_grad_(False)
        self.image_size, self.vocabulary = config.image_size, config.vocabulary
        self.grid = config.image_size // config.patch

    @property
    def codes(self) -> Tensor:
        """The codes [V, Z] float32."""
        return self.network.codes

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Images [B, 3, S, S] float in [-1, 1] -> codes [B, N] int64."""
        return torch.cat([self._described(part)[1] for part in pictures.split(IMAGES_AT_ONCE)])

    def _described(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, 3, S, S] -> the descriptions of their patches [B, N, Z], not quantised, and their codes [B, N]."""
        latents = self.network.latents(patches_of(pictures, self.config.patch))
        return latents, self.network.nearest(latents.flatten(0, 1)).view(len(pictures), -1)

    @torch.no_grad()
    def decode(self, codes: Tensor, sources: Tensor | None = None) -> Tensor:
        """Codes [B, N] int64 -> images [B, 3, S, S] float in [-1, 1].

        With ``sources`` [B, K, 3, S, S], the sample's references and background, a patch whose code one of them has
        too is drawn from the description there instead of the code's own.
        """
        latents = self.codes[codes]
        if sources is not None:
            latents = torch.stack(
                [self._borrowed(*one) for one in zip(codes, latents, sources.to(codes.device), strict=True)]
            )
        parts = [self.network.pixels(part, self.grid).clamp(-1, 1) for part in latents.split(IMAGES_AT_ONCE)]
        return torch.cat(parts)

    def _borrowed(self, codes: Tensor, latents: Tensor, sources: Tensor) -> Tensor:
        """The descriptions [N, Z] of one image, each borrowed from its sources [K, 3, S, S] if they have its code.

        Of several places with the code, that with the most equal codes around is taken; among equals the same place in
        the last source, the background, then the first.
        """
        described, known = self._described(sources)
        around, wanted = self._windows(known).flatten(0, 1), self._windows(codes[None])[0]
        likeness = torch.stack([(wanted[:, k, None] == around[:, k]).half() for k in range(9)]).sum(0)
        likeness[torch.arange(len(codes)), torch.arange(len(codes)) + known[:-1].numel()] += 0.5
        likeness[codes[:, None] != known.flatten()] = -1
        found, place = likeness.max(1)
        return torch.where(found[:, None] >= 0, described.flatten(0, 1)[place], latents)

    def _windows(self, codes: Tensor) -> Tensor:
        """Codes [K, N] -> the nine codes around each token [K, N, 9], -1 beyond the border."""
        padded = F.pad(codes.view(-1, 1, self.grid, self.grid).float(), (1, 1, 1, 1), value=-1)
        return F.unfold(padded, 3).transpose(1, 2)

    def resized(self, image_size: int) -> PatchVq:
        """The same codes and networks for images of another size."""
        return PatchVq(self.config.model_copy(update={"image_size": image_size}), self.network)

    def save(self, path: Path) -> None:
        """Write weights and configuration to one safetensors file."""
        weights = {name: tensor.contiguous() for name, tensor in self.network.state_dict().items()}
        save_file(weights, path, {METADATA: self.config.model_dump_json()})

    @classmethod
    def load(cls, path: Path) -> PatchVq:
        """Read a file that ``save`` wrote; UserError if it is missing or damaged."""
        check_file(path, advice := "train or copy the model again")
        try:
            with safe_open(path, "pt") as file:
                config = PatchVqConfig.model_validate(parse_json(file.metadata()[METADATA], str(path)))
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            with torch.device("meta"):  # first values would only be overwritten
                network = PatchNetwork(config)
            network.load_state_dict(weights, assign=True)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{path}: not a whole tokenizer file ({one_line(error, 200)}); {advice}") from error
        check_finite(weights, path, advice)
        return cls(config, network)
