"""The counted memory of a training step against what torch allocates for one."""

import weakref

import pytest
import torch
from small.run import inputs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tokenar.config import TrainConfig
from tokenar.data.samples import Batch
from tokenar.model.config import DropConfig, ModelConfig, tokenar_xl
from tokenar.model.transformer import TokenAR
from tokenar.train.memory import training_memory
from tokenar.train.step import losses, recompute_blocks

MODEL = ModelConfig(
    layers=4, heads=4, kv_heads=2, width=64, vocabulary=50, grid=6, text_tokens=4, text_width=8, instruct_tokens=4,
    dropout=0.0, text_dropout=0.0, text_padding="masked",
)  # fmt: skip


class Allocated(TorchDispatchMode):
    """Bytes of the tensors that operations made and that are still there, and the most at any time."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.seen = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return out

    def add(self, storage):
        if storage not in self.seen:
            self.seen.add(storage)
            size = storage.nbytes()
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.drop, size)

    def drop(self, size):
        self.now -= size


def step(model, batch, precision, how):
    """(bytes after the forward pass, most bytes in the step) besides the weights."""
    torch.manual_seed(0)
    net = TokenAR(model).train()
    recompute_blocks(net, how)
    config = TrainConfig.model_construct(precision=precision, drops=DropConfig())
    sources, text, picture = inputs(model, batch, 2)
    given = Batch(sources, text, picture, torch.ones(batch, model.text_tokens, dtype=torch.bool))
    net.tables(net.layout(2))
    with Allocated() as allocated:
        for tensor in net.state_dict(keep_vars=True).values():
            allocated.seen.add(tensor.untyped_storage())
        found = losses(net, given, config)
        after = allocated.now
        found.total.backward()
    return after, allocated.most


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("how", ["none", "selective", "block"])
def test_counted_is_what_torch_allocates(precision, how):
    measured, counted = {}, {}
    for layers in (2, 4):
        model = ModelConfig.model_validate(MODEL.model_dump() | {"layers": layers})
        measured[layers] = step(model, 3, precision, how)
        counted[layers] = training_memory(model, 3, 2, precision=precision, activation_checkpointing=how)
    more = counted[4].activations - counted[2].activations
    if how == "none":  # nothing is made again, so copies of weights last as long as activations
        more += counted[4].copies - counted[2].copies
    assert measured[4][0] - measured[2][0] == pytest.approx(more, rel=1e-3 if how == "none" else 0)
    for layers in (2, 4):
        within = counted[layers]
        most = within.gradients + within.copies + within.activations + within.working
        assert measured[layers][1] <= most <= 1.6 * measured[layers][1]


def test_gpt_xl_fits_a_card_of_24_gb_with_checkpointing():
    how = ("none", "selective", "block")
    none, selective, block = (training_memory(tokenar_xl(), 1, 2, activation_checkpointing=h).total for h in how)
    assert block < selective < 20e9  # 4 GB are left for the driver and for gaps between tensors
    assert none > 24e9


def test_shards_divide_what_is_kept():
    whole, half = (training_memory(MODEL, 1, 2, ema=True, shards=n) for n in (1, 2))
    assert (half.weights, half.optimizer, half.averages) == (
        whole.weights // 2, whole.optimizer // 2, whole.averages // 2
    )  # fmt: skip
    assert half.activations == whole.activations
