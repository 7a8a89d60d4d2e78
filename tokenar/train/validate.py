"""What the model's loss is measured with: a fixed set of validation samples, and the losses of a unigram model.

Also draws pictures for some of the validation samples. Shape legend: R references, S pixels of a picture's side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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

BASELINE_SAMPLES = 1000
"""The unigram losses are taken over at most this many training samples, and as many validation samples."""


def fixed_subset(count: int, wanted: int | None) -> list[int]:
    """``wanted`` of the numbers below ``count``, evenly spread and always the same; all of them if None."""
    if wanted is None or wanted >= count:
        return list(range(count))
    return [number * count // wanted for number in range(wanted)]


def unigram(train_tokens: Tensor, other: Tensor | None, vocabulary: int) -> tuple[float, float | None]:
    """(entropy of the training tokens, cross entropy of ``other`` under their frequencies), both in nats a token.

    This is the loss of a model that knows only how often each token occurs. The cross entropy adds one to every
    token's count, so that a token which never occurs in the training data has a finite loss.
    """
    counts = torch.bincount(train_tokens.flatten(), minlength=vocabulary).double()
    share = counts / counts.sum()
    entropy = -(share * share.clamp_min(1e-300).log()).sum().item()
    if other is None:
        return entropy, None
    smooth = ((counts + 1) / (counts.sum() + vocabulary)).log()
    return entropy, -smooth[other.flatten()].mean().item()


def unigram_losses(net: TokenAR, train: Samples, val: Samples | None) -> dict[str, Any]:
    """The unigram losses for the log: over all scored tokens, and with the suffix ``_target`` over the pictures'."""

    def scored(samples: Samples | None, picture_only: bool) -> Tensor | None:
        if samples is None:
            return None
        some = [samples.read(number) for number in fixed_subset(len(samples.references), BASELINE_SAMPLES)]
        if picture_only:
            return torch.cat([s.picture for s in some])
        batches = (collate([sample], net.config.background) for sample in some)
        return torch.cat([net.target_tokens(batch.sources, batch.picture)[0] for batch in batches])

    values: dict[str, Any] = {}
    for suffix, picture_only in (("", False), ("_target", True)):
        tokens = scored(train, picture_only)
        assert tokens is not None
        entropy, cross = unigram(tokens, scored(val, picture_only), net.config.vocabulary)
        values |= {f"unigram_entropy{suffix}": entropy, f"val_unigram_cross_entropy{suffix}": cross}
    return values


@torch.no_grad()
def validate(net: TokenAR, samples: Samples, config: TrainConfig, group: Workers) -> dict[str, float]:
    """Mean cross entropy in nats a token: of the pictures' tokens, of those of them that differ from the background's
    token at the same place, of the reference copies', and of all scored tokens.

    The second, ``val_loss_subjects``, shows whether subjects are looked up in the references. The pictures' mean falls
    as soon as the background is copied, which is most of a picture.

    Every rank takes a share of the samples, so all ranks must call it together.
    """
    net.eval()
    numbers = fixed_subset(len(samples.references), config.val_samples)
    names = ("val_loss_target", "val_loss_subjects", "val_loss_references", "val_loss")
    sums = torch.zeros(len(names), 2, dtype=torch.float64)  # columns: sum of the losses, number of tokens
    batch_size = -(-config.batch // config.accumulation)
    for chosen in epoch_batches([samples.references[i] for i in numbers], batch_size, 0, 0):
        for places in rank_parts(len(chosen), batch_size, group.rank, group.world, 1):
            own = [samples.read(numbers[chosen[i]]) for i in places or [0]]
            batch = collate(own, net.config.background).to(group.device)
            tokens = losses(net, batch, config).tokens
            if places:  # without samples the pass only keeps this rank in step with the others
                n = net.config.image_tokens
                backgrounds = torch.stack([sample.sources[-1] for sample in own]).to(group.device)
                pictures, subjects = tokens[:, -n:], batch.picture != backgrounds
                groups = (pictures, pictures[subjects], tokens[:, :-n], tokens)
                sums += torch.tensor([[some.sum().item(), some.numel()] for some in groups], dtype=torch.float64)
    sums = group.total(sums.to(group.device)).cpu()
    return {name: (total / count).item() for name, (total, count) in zip(names, sums, strict=True) if count}


def validation_line(losses: Mapping[str, Any]) -> str:
    """The losses that matter, in words: those of the pictures, beside that of guessing."""
    subjects = f", on subjects {losses['val_loss_subjects']:.3f}" if "val_loss_subjects" in losses else ""
    guessing = f"guessing by token frequency {losses['val_unigram_cross_entropy_target']:.3f}"
    return f"validation loss of the pictures {losses['val_loss_target']:.3f}{subjects}, {guessing}"


@torch.no_grad()
def draw_samples(net: TokenAR, tokenizer: ImageTokenizer, samples: Samples, config: TrainConfig) -> Image.Image:
    """One picture with a row for each of ``config.pictures`` samples: references, background, target, drawn picture.

    The seed of each drawn picture is fixed, so that the rows of different steps can be compared.
    """
    net.eval()
    device, rows = net.norm.weight.device, []
    for number in fixed_subset(len(samples.references), config.pictures):
        sample = samples.read(number)
        batch = collate([sample], net.config.background).to(device)
        # A drawn sequence grows token by token, and torch.compile would compile the blocks again for every length.
        with torch.compiler.set_stance("force_eager"):
            drawn = generate(net, batch.sources, batch.text, [number], SampleConfig(), text_mask=batch.text_mask)
        rows.append(tokenizer.decode(torch.cat([sample.sources, sample.picture[None], drawn.cpu()])))
    return sheet(rows)


def sheet(rows: Sequence[Tensor]) -> Image.Image:
    """Put rows of pictures [pictures, 3, S, S] float in [-1, 1] below each other, aligned right on white."""
    side, widest = rows[0].shape[-1], max(len(row) for row in rows)
    canvas = torch.ones(3, len(rows) * side, widest * side)
    for top, row in enumerate(rows):
        for place, pixels in enumerate(row, start=widest - len(row)):
            canvas[:, top * side : (top + 1) * side, place * side : (place + 1) * side] = pixels
    return tensor_picture(canvas)
