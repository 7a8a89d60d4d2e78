"""Validation: which samples, which mean, and the sheet of pictures."""

import pytest
import torch
from small.run import SMALL, random_net
from small.step import batch_of, config_for
from spread import ALONE

from tokenar.data import samples
from tokenar.train import validate
from tokenar.train.step import losses


class Fixed:
    """Validation samples made of a batch."""

    def __init__(self, batch):
        self.batch, self.references = batch, [2] * len(batch.sources)

    def read(self, number, epoch=None):
        b = self.batch
        return samples.Encoded("", "", b.sources[number], b.text[number], b.picture[number], b.text_mask[number])


def test_validation_is_the_mean_over_tokens_of_each_segment():
    net, batch = random_net(), batch_of(SMALL, 5)
    found = validate.validate(net, Fixed(batch), config_for(batch=2), ALONE)
    tokens = losses(net, batch, config_for()).tokens
    n = SMALL.image_tokens
    expected = {"val_loss": tokens, "val_loss_target": tokens[:, -n:], "val_loss_references": tokens[:, :-n]}
    expected["val_loss_subjects"] = tokens[:, -n:][batch.picture != batch.sources[:, 2]]
    assert next(iter(found)) == "val_loss_target", "the loss that matters comes first"
    assert found == pytest.approx({name: part.mean().item() for name, part in expected.items()}, abs=1e-5)
    some = validate.validate(net, Fixed(batch), config_for(batch=2, val_samples=2), ALONE)
    assert some["val_loss"] == pytest.approx(tokens[[0, 2]].mean().item(), abs=1e-5)


def test_a_picture_without_subjects_has_no_loss_on_them():
    batch = batch_of(SMALL, 2)
    batch.picture = batch.sources[:, 2]
    assert "val_loss_subjects" not in validate.validate(random_net(), Fixed(batch), config_for(batch=2), ALONE)


def test_the_subset_is_spread_and_fixed():
    assert validate.fixed_subset(10, 3) == [0, 3, 6]
    assert validate.fixed_subset(3, None) == validate.fixed_subset(3, 7) == [0, 1, 2]


def test_a_sheet_is_flush_right_on_white():
    black = torch.full((1, 3, 2, 2), -1.0)
    picture = validate.sheet([black, black.expand(3, -1, -1, -1)])
    assert picture.size == (6, 4)
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert picture.getpixel((4, 0)) == picture.getpixel((0, 2)) == (0, 0, 0)
