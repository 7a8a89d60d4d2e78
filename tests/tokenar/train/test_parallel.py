"""A network spread over processes computes what one process computes.

Gradients are sums in another order: float32 numbers agree to 2e-6 of what they measure.
"""

import functools
import json

import pytest
import spread
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from small.run import SMALL, random_net
from small.step import batch_of, config_for, work_of
from spread import ALONE, LIMIT, Training
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from data_schemas.errors import UserError
from tokenar.model.layers import Block
from tokenar.processes import Workers, this_process
from tokenar.train import parallel
from tokenar.train.parallel import clip, parallelise
from tokenar.train.step import Step

MODES = ("ddp", "fsdp", "hybrid")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The three steps of one process."""
    folder = tmp_path_factory.mktemp("alone")
    spread.measure(ALONE, folder, ["ddp"])
    return json.loads((folder / "ddp-0.json").read_text()), load_file(folder / "ddp.safetensors")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of the same with two processes, and of steps in bfloat16."""
    folder = tmp_path_factory.mktemp("two")
    spread.spread(2, spread.measure_all, folder, MODES)
    return folder


def _same_numbers(folder, mode, alone):
    reported, tensors = alone
    for path in sorted(folder.glob(f"{mode}-*.json")):
        for found, expected in zip(json.loads(path.read_text())["steps"], reported["steps"], strict=True):
            assert found == pytest.approx(expected, rel=2e-6)
    found = load_file(folder / f"{mode}.safetensors")
    assert found.keys() == tensors.keys()
    for name, expected in tensors.items():
        # Adam makes a step of the learning rate, 0.01, of a gradient that is nearly zero, whose last digits differ.
        tolerance = 2e-6 if name.startswith(("gradient", "exp_avg", "step")) else 1e-4
        torch.testing.assert_close(found[name], expected, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: n + m)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_two_processes_compute_what_one_does(mode, alone, two):
    _same_numbers(two, mode, alone)


@pytest.mark.slow
def test_a_copy_on_every_node_and_shards_within(alone, tmp_path):
    spread.spread(4, spread.measure, tmp_path, ["hybrid"], per_node=2)
    _same_numbers(tmp_path, "hybrid", alone)
    reports = [json.loads((tmp_path / f"hybrid-{rank}.json").read_text()) for rank in range(4)]
    assert reports[0]["held"] + reports[1]["held"] == reports[0]["total"]
    assert [report["held"] for report in reports[2:]] == [report["held"] for report in reports[:2]]


@pytest.mark.slow
def test_sharded_processes_hold_their_share(two):
    held = {
        mode: [json.loads((two / f"{mode}-{rank}.json").read_text())["held"] for rank in range(2)] for mode in MODES
    }
    total = json.loads((two / "ddp-0.json").read_text())["total"]
    assert held["ddp"] == [total, total]
    for mode in ("fsdp", "hybrid"):
        assert sum(held[mode]) == total
        assert max(held[mode]) < 0.6 * total


@pytest.mark.slow
def test_bfloat16_on_float32_parameters(two):
    expected = Training(ALONE, dtype=torch.bfloat16).steps(0, 3)
    for rank in range(2):
        found = json.loads((two / f"bfloat16-{rank}.json").read_text())
        assert found["dtypes"] == ["torch.float32"]
        assert found["inputs"] == {"draws": "torch.float32", "rotary": "torch.float32"}
        assert [loss for loss, _ in found["steps"]] == pytest.approx([loss for loss, _ in expected], abs=0.02)
        assert [norm for _, norm in found["steps"]] == pytest.approx([norm for _, norm in expected], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rank", [0, 1])
def test_the_optimiser_skips_a_step_without_finite_gradients_in_all_processes(mode, rank, two):
    differing = json.loads((two / f"skipped-{mode}-{rank}.json").read_text())
    assert (differing["spoiled"], differing["undisturbed"]) == (0, 0)
    assert differing["next"] == differing["all"]


@pytest.mark.slow
def test_a_compiled_block_is_one_graph_under_ddp(monkeypatch):
    """torch would cut it into one for every bucket of gradients; here a bucket is smaller than a block."""
    counter, dynamo = CompileCounterWithBackend("eager"), torch._dynamo.config
    torch._dynamo.reset()
    monkeypatch.setattr(Block, "compile", lambda self: nn.Module.compile(self, backend=counter))
    monkeypatch.setattr(dist, "_DEFAULT_FIRST_BUCKET_BYTES", 1000)
    small = functools.partial(nn.parallel.DistributedDataParallel, bucket_cap_mb=0.002)
    monkeypatch.setattr(parallel, "DistributedDataParallel", small)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with dynamo.patch(optimize_ddp=dynamo.optimize_ddp):
            trained = Step(random_net(), config_for(compile=True), ALONE)
            trained.update(work_of(trained.net, 0, batch_of(SMALL, 2)))
    finally:
        dist.destroy_process_group()
    assert counter.frame_count == 1


def test_one_process_needs_nothing_around_the_network():
    net = Training(ALONE).net
    for mode in MODES:
        assert parallelise(net, mode, ALONE, torch.bfloat16) is net


def test_the_norm_of_all_gradients_and_what_is_left():
    layers = nn.Linear(2, 1), nn.Linear(1, 1, bias=False)
    parameters = [p for layer in layers for p in layer.parameters()]
    for parameter, values in zip(parameters, ([[3.0, 0.0]], [4.0], [[12.0]]), strict=True):
        parameter.grad = torch.tensor(values)
    assert clip(parameters, 20.0) == 13.0
    assert parameters[2].grad == 12.0
    assert clip(parameters, 6.5) == 13.0
    assert parameters[2].grad.item() == pytest.approx(6.0)
    assert clip(parameters, 6.5).item() == pytest.approx(6.5)


def test_the_norm_is_clipped_to_the_limit(alone):
    reported, tensors = alone
    assert reported["steps"][0][1] > LIMIT
    left = torch.cat([tensor.flatten() for name, tensor in tensors.items() if name.startswith("gradient")])
    assert left.norm().item() == pytest.approx(LIMIT, rel=1e-5)


def test_nodes_of_unequal_size_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="3 processes are not the same number on every node"):
        parallelise(Training(ALONE).net, "hybrid", Workers(0, 3, torch.device("cpu")), torch.float32)


def test_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    for number in ("1", "2"):
        monkeypatch.setenv("LOCAL_RANK", number)
        if number == "1":
            assert this_process().device == torch.device("cuda", 1)
        else:
            with pytest.raises(UserError, match="process 2 of this machine has no GPU of its own, there are 2; start"):
                this_process()


@pytest.mark.slow
def test_processes_wait_for_a_slow_one_longer_than_a_device_does(tmp_path):
    """Sampling and evaluating leave one process far behind; NCCL would end all of them after ten minutes."""
    spread.spread(2, spread.wait_for_a_slow_one, tmp_path)
    for rank in range(2):
        assert json.loads((tmp_path / f"late-{rank}.json").read_text()) == [None, [0, 1], True, True]
