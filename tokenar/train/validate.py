"""Validation losses on samples that stay the same, and pictures drawn for some of them. R references, S x S pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from tokenar.config import SampleConfig, TrainConfig
from tokenar.data.samples import Samples, collate, epoch_batches, rank_parts
from tokenar.encoders.patches import ImageTokenizer, tensor_picture
from tokenar.model.transformer import TokenAR
from tokenar.processes import Workers
from tokenar.sample.decoder import generate
from tokenar.train.step import losses


def fixed_subset(count: int, wanted: int | None) -> list[int]:
    """``wanted`` of the numbers below ``count``, evenly spread and always the same; all of them if None."""
    if wanted is None or wanted >= count:
        return list(range(count))
    return [number * count // wanted for number in range(wanted)]


@torch.no_grad()
def validate(net: TokenAR, samples: Samples, config: TrainConfig, group: Workers) -> dict[str, float]:
    """Mean cross entropy in nats: all scored tokens, the picture's, the references'. All processes share the work."""
    net.eval()
    numbers = fixed_subset(len(samples.references), config.val_samples)
    sums = torch.zeros(3, 2, dtype=torch.float64)  # of all, the picture's and the references' tokens: losses, how many
    together = -(-config.batch // config.accumulation)
    for chosen in epoch_batches([samples.references[i] for i in numbers], together, 0, 0):
        for share in rank_parts(len(chosen), together, group.rank, group.world, 1):
            batch = collate([samples.read(numbers[chosen[i]]) for i in share or [0]]).to(group.device)
            tokens = losses(net, batch, config).tokens
            if share:
                n = net.config.image_tokens
                parts = (tokens, tokens[:, -n:], tokens[:, :-n])
                sums += torch.tensor([[part.sum().item(), part.numel()] for part in parts], dtype=torch.float64)
    sums = group.total(sums.to(group.device)).cpu()
    names = ("val_loss", "val_loss_target", "val_loss_references")
    return {name: (total / count).item() for name, (total, count) in zip(names, sums, strict=True) if count}


@torch.no_grad()
def draw_samples(net: TokenAR, tokenizer: ImageTokenizer, samples: Samples, config: TrainConfig) -> Image.Image:
    """A sheet with a row a sample: references, background, target, and last what the model draws with a fixed seed."""
    net.eval()
    device, rows = net.norm.weight.device, []
    for number in fixed_subset(len(samples.references), config.pictures):
        batch = collate([samples.read(number)]).to(device)
        with torch.compiler.set_stance("force_eager"):  # every length of a growing sequence would be compiled anew
            drawn = generate(net, batch.sources, batch.text, [number], SampleConfig(), text_mask=batch.text_mask)
        rows.append(tokenizer.decode(torch.cat([batch.sources[0], batch.picture, drawn]).cpu()))
    return sheet(rows)


def sheet(rows: Sequence[Tensor]) -> Image.Image:
    """Rows of pictures [pictures, 3, S, S] float in [-1, 1], flush right on white."""
    side, widest = rows[0].shape[-1], max(len(row) for row in rows)
    canvas = torch.ones(3, len(rows) * side, widest * side)
    for top, row in enumerate(rows):
        for place, pixels in enumerate(row, start=widest - len(row)):
            canvas[:, top * side : (top + 1) * side, place * side : (place + 1) * side] = pixels
    return tensor_picture(canvas)
