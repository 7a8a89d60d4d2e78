"""One optimiser step of a small network: its settings, a batch, and the batch as the work of one process."""

import torch

from small.run import SMALL, inputs
from tokenar.config import TrainConfig
from tokenar.data import samples
from tokenar.model.config import DropConfig
from tokenar.train.batches import MicroBatch, StepBatches

NO_DROPS = DropConfig(both=0, image=0, text=0)


def config_for(model=SMALL, **changes):
    """Settings that only the step reads; which encoders fit the model is not asked."""
    plain = {"shards": "x", "model": model, "tokenizer": {"image_size": 8, "patch": 4, "vocabulary": 11},
             "text": {"tokens": 3, "width": 5}, "drops": NO_DROPS, "lr": 1e-2, "warmup": 0, "clip": 1e9}  # fmt: skip
    return TrainConfig.model_validate(plain | changes)


def batch_of(model, size, seed=1, teacher=None):
    sources, text, picture = inputs(model, size, 2, seed)
    lengths = 1 + torch.arange(size) % model.text_tokens
    return samples.Batch(sources, text, picture, torch.arange(model.text_tokens) < lengths[:, None], teacher)


def work_of(net, number, batch, parts=1):
    """A whole batch as the work of one process, in equal parts."""
    size = len(batch.sources)
    cut = [rows.tolist() for rows in torch.arange(size).chunk(parts)]
    made = [
        MicroBatch(batch._each(lambda tensor, rows=rows: tensor[rows]), torch.full((len(rows),), 0.5)) for rows in cut
    ]
    scored = size * net.layout(2).target_tokens
    return StepBatches(number, made, size, scored, 2, samples.Position(0, number + 1))


def gradients(net):
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
