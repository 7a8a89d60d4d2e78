"""A small training's state by name, and checkpoints of it."""

import spread
import torch
from spread import ALONE, Training

from tokenar.train.checkpoint import Checkpoints, checkpoints


def everything(training):
    averages = {f"ema {name}": tensor for name, tensor in training.averages().items()}
    return spread.state(training.net, training.optimizer) | averages


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def saved(out, *steps, keep=9, **options):
    """A trained model, and a checkpoint for each step, in which the state is that of the step."""
    training, saver = Training(ALONE), Checkpoints(out, keep, ALONE)
    for step in steps:
        training.step(step)
        training.save(saver, step, **options)
    saver.wait()
    return training


def names(out):
    return [path.name for path in checkpoints(out)]
