"""What the optimiser makes of gradients: learning rates, decay, averages, steps that are not taken."""

import pytest
import torch
from small.run import random_net
from small.step import config_for
from torch import nn

from tokenar.config import cpu_small, with_changes
from tokenar.train.optimizer import Average, learning_rate, make_optimizer, parameter_groups, step_if


def test_averages_by_hand():
    net = nn.Linear(2, 1, bias=False)
    average = Average(net, 0.75)
    expected = net.weight.detach().clone()
    for value in (1.0, 2.0):
        nn.init.constant_(net.weight, value)
        average.update()
        expected = 0.75 * expected + 0.25 * value
    torch.testing.assert_close(average.weights["weight"], expected)
    with average.swapped():
        torch.testing.assert_close(net.weight.detach(), expected)
    assert torch.equal(net.weight, torch.full((1, 2), 2.0))


def test_a_step_is_taken_only_where_it_is_good():
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    weight.grad = torch.ones(3)
    step_if(optimizer, torch.tensor(False))
    assert torch.equal(weight, torch.ones(3))
    step_if(optimizer, torch.tensor(True))
    assert (weight < 1).all()
    assert optimizer.state[weight]["step"] == 1


def test_learning_rate_curves():
    config = cpu_small("x", lr=1.0, warmup=4, steps=100)
    assert learning_rate(config, 0) == pytest.approx(0.25)
    assert learning_rate(config, 50) == pytest.approx(0.525)
    assert learning_rate(with_changes(config, schedule="constant"), 99) == 1.0
    linear = with_changes(config, schedule="linear")
    assert [learning_rate(linear, n) for n in (0, 20, 60)] == pytest.approx([0.25, 0.81, 0.43])


def test_norms_do_not_decay_and_tables_only_as_released():
    net = random_net()
    decayed, kept = make_optimizer(net, cpu_small("x")).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.05, 0.0)
    assert {p.dim() for p in kept["params"]} == {1}
    assert any(p is net.img_uncond_embedding for p in decayed["params"])
    _, kept = make_optimizer(net, config_for()).param_groups
    tables = {"tok_embeddings", "ref_index_embeddings", "instruct_token_embeddings"}
    assert all(any(p is getattr(net, name).weight for p in kept["params"]) for name in tables)
    assert any(p is net.img_uncond_embedding for p in kept["params"])
    assert not any(p is net.output.weight for p in kept["params"])
    assert sum(len(group["params"]) for group in parameter_groups(net, 0.1)) == len(list(net.parameters()))
