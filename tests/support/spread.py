"""Several processes on this machine's CPU, and what they do in the tests of spreading and checkpoints.

A job is called as ``job(group, folder, *arguments)`` in every process; what it finds out it leaves in the folder.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from data_schemas.errors import UserError
from tokenar.encoders.config import TextConfig, TokenizerConfig
from tokenar.encoders.patches import PatchCodebook
from tokenar.model.config import ModelConfig
from tokenar.model.folder import save_model
from tokenar.model.transformer import TokenAR
from tokenar.processes import Workers, workers
from tokenar.train.checkpoint import Checkpoints
from tokenar.train.optimizer import parameter_groups, step_if
from tokenar.train.parallel import clip, parallelise

ALONE = Workers(0, 1, torch.device("cpu"))
BATCH, LIMIT = 4, 0.3
CONFIG = ModelConfig(
    layers=2, heads=2, width=16, vocabulary=11, grid=2, max_references=2, text_tokens=3, text_width=5,
    instruct_tokens=2, dropout=0.0, text_dropout=0.0,
)  # fmt: skip
"""Eleven and three rows do not split evenly over two processes, and one row leaves the second with nothing."""


def spread(world, job, folder, *arguments, per_node=None, join=True):
    """Run ``job`` in ``world`` processes, ``per_node`` of them to a node; without ``join`` only start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    values = (world, per_node or world, port, job, folder, arguments)
    with pytest.MonkeyPatch.context() as patch:
        # One server imports torch and us and forks every process from there, before any thread is started.
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        torch.multiprocessing.set_forkserver_preload(["spread"])
        return torch.multiprocessing.start_processes(_enter, values, world, join, start_method="forkserver")


def _enter(rank, world, per_node, port, job, folder, arguments):
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(per_node), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    torch.set_num_threads(1)
    with workers() as group:
        job(group, folder, *arguments)


def whole(tensor):
    """A tensor brought together from all processes; all of them have to ask."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def state(net, optimizer):
    """Weights and optimiser state by name, brought together."""
    found = {name: whole(tensor) for name, tensor in net.state_dict().items()}
    for name, parameter in net.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"{key} of {name}"] = whole(value)
    return found


class Training:
    """A small model and its optimiser, spread over the group as ``mode`` says."""

    def __init__(self, group, mode="ddp", seed=0, dtype=torch.float32, config=CONFIG):
        torch.manual_seed(seed)
        self.group, self.dtype, self.net = group, dtype, TokenAR(config).train()
        with torch.no_grad():
            for parameter in self.net.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.3)
        self.module = parallelise(self.net, mode, group, dtype)
        groups = parameter_groups(self.net, 0.05)
        self.optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), fused=True)
        self.ema = {name: torch.zeros_like(p, requires_grad=False) for name, p in self.net.named_parameters()}

    def step(self, number, spoiled=False):
        """One update on this process's part of batch ``number``: (loss, norm) over all processes.

        A ``spoiled`` batch has one number that is none, in the part of the second process.
        """
        generator, config = torch.Generator().manual_seed(number), self.net.config
        sources = torch.randint(config.vocabulary, (BATCH, 3, config.image_tokens), generator=generator)
        text = torch.randn(BATCH, config.text_tokens, config.text_width, generator=generator)
        if spoiled:
            text[1, 0, 0] = torch.nan
        mine = slice(self.group.rank, None, self.group.world)
        sources, text, picture = sources[mine], text[mine], sources.flip(1)[mine, 0]
        draws = torch.tensor([0.02, 0.08, 0.5, 0.9505])[mine]  # both dropped, the image, nothing, the text
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            logits = self.module(sources, text, picture, draws)
        wanted = self.net.target_tokens(sources, picture).flatten()
        loss = F.cross_entropy(logits.flatten(0, 1), wanted, reduction="sum") / (BATCH * 3 * config.image_tokens)
        self.optimizer.zero_grad()
        (loss * self.group.world).backward()
        norm = clip(self.net.parameters(), LIMIT)
        self.gradients = {name: whole(p.grad) for name, p in self.net.named_parameters()}
        step_if(self.optimizer, norm.isfinite())
        with torch.no_grad():
            for name, parameter in self.net.named_parameters():
                self.ema[name].lerp_(parameter, 0.1)
        return self.group.total(loss.detach().clone()).item(), norm.item()

    def steps(self, first, last):
        return [self.step(number) for number in range(first, last)]

    @torch.no_grad()
    def look(self):
        """A forward pass without a backward pass."""
        sources = torch.zeros(1, 3, self.net.config.image_tokens, dtype=torch.int64)
        self.module.eval()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            self.module(sources, torch.zeros(1, self.net.config.text_tokens, self.net.config.text_width), sources[:, 0])
        self.module.train()

    @torch.no_grad()
    def look_elsewhere(self):
        """The same with other weights for the moment, as averages are validated."""
        own = {name: p.detach().clone() for name, p in self.net.named_parameters()}
        for parameter in self.net.parameters():
            parameter.mul_(2)
        self.look()
        for name, parameter in self.net.named_parameters():
            parameter.copy_(own[name])

    def averages(self):
        return {name: whole(tensor) for name, tensor in self.ema.items()}

    def save(self, saver, step, **options):
        saver.save(step, self.net, self.optimizer, {"place": step * BATCH}, self.ema, **options)

    def load(self, saver, **options):
        return saver.load(self.net, self.optimizer, self.ema, **options)


def measure(group, folder, modes):
    """Three steps in every mode: ``<mode>.json`` with losses and norms, ``<mode>.safetensors`` with tensors."""
    for mode in modes:
        training = Training(group, mode)
        first = training.step(0)
        training.look_elsewhere()
        found = {f"gradient of {name}": tensor for name, tensor in training.gradients.items()}
        steps = [first, *training.steps(1, 3)]
        found |= state(training.net, training.optimizer)
        parameters = list(training.net.parameters())
        held = [p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in parameters]
        (folder / f"{mode}-{group.rank}.json").write_text(json.dumps({
            "steps": steps, "held": sum(held), "total": sum(p.numel() for p in parameters),
        }))  # fmt: skip
        if group.first:
            save_file(found, folder / f"{mode}.safetensors")


def measure_bfloat16(group, folder):
    """Three steps in bfloat16 with sharded float32 parameters; a look at the model between two of them."""
    training, inputs = Training(group, "fsdp", dtype=torch.bfloat16), {}
    training.net.register_forward_pre_hook(lambda _, given: inputs.update(draws=str(given[-1].dtype)))
    training.net.layers[0].register_forward_pre_hook(lambda _, given: inputs.update(rotary=str(given[1].dtype)))
    steps = training.steps(0, 2)
    report = {"inputs": dict(inputs)}
    training.look()
    steps += training.steps(2, 3)
    kinds = {str(p.dtype) for p in training.net.parameters()} | {str(g.dtype) for g in training.gradients.values()}
    report |= {"steps": steps, "dtypes": sorted(kinds)}
    (folder / f"bfloat16-{group.rank}.json").write_text(json.dumps(report))


def skip_a_bad_step(group, folder, modes):
    """In every mode a step, a spoiled one and another with the optimiser.

    ``skipped-<mode>-<rank>.json`` counts what differs: after the spoiled step, after the last one, and from a run
    without the spoiled step.
    """
    for mode in modes:
        states = []
        for spoiled in ([False, True, False], [False, False]):
            training, found = Training(group, mode), []
            for number, bad in enumerate(spoiled):
                training.step(0 if bad else min(number, 1), spoiled=bad)
                found.append(state(training.net, training.optimizer))
            states.append(found)
        (first, after, last), (_, undisturbed) = states
        report = {
            how: sum(not torch.equal(a[name], b[name]) for name in a)
            for how, a, b in (("spoiled", first, after), ("next", after, last), ("undisturbed", last, undisturbed))
        } | {"all": len(first)}  # fmt: skip
        (folder / f"skipped-{mode}-{group.rank}.json").write_text(json.dumps(report))


def measure_all(group, folder, modes):
    """All in one start of the processes, which takes most of the time."""
    measure(group, folder, modes)
    measure_bfloat16(group, folder)
    skip_a_bad_step(group, folder, modes)


def save_and_go_on(group, folder, modes):
    """In every mode: save after three steps, note the state, take two more; then resume afresh and take the two again.

    ``<mode>/run`` is the run, ``<mode>/state.safetensors`` the state at step 3, ``<mode>/steps.json`` the steps after
    it, undisturbed and resumed, ``<mode>/end-<how>.safetensors`` the state after them.
    """
    for mode in modes:
        place = folder / mode
        saver, training = Checkpoints(place / "run", 2, group), Training(group, mode)
        training.steps(0, 3)
        training.look()
        training.save(saver, 3, best=True)
        before = state(training.net, training.optimizer) | {f"ema {n}": t for n, t in training.averages().items()}
        steps = {"undisturbed": training.steps(3, 5)}
        ends = {"undisturbed": state(training.net, training.optimizer)}
        saver.wait()
        again = Training(group, mode, seed=1)
        facts = again.load(Checkpoints(place / "run", 2, group))
        steps["resumed"] = again.steps(3, 5)
        ends["resumed"] = state(again.net, again.optimizer)
        text, tokenizer = TextConfig(tokens=3, width=5), _tokenizer()
        save_model(place / "model", again.net, tokenizer, text, ema=again.ema, first=group.first)
        averages = again.averages()
        if group.first:
            save_file(before, place / "state.safetensors")
            save_file(averages, place / "averages.safetensors")
            for how, end in ends.items():
                save_file(end, place / f"end-{how}.safetensors")
            (place / "steps.json").write_text(json.dumps({"facts": facts, **steps}))


def load_elsewhere(group, folder, run, modes):
    """Load the newest checkpoint of ``run`` in every mode and leave its state in ``loaded-<mode>.safetensors``."""
    for mode in modes:
        training = Training(group, mode, seed=1)
        training.load(Checkpoints(run, 2, group))
        found = state(training.net, training.optimizer) | {f"ema {n}": t for n, t in training.averages().items()}
        if group.first:
            save_file(found, folder / f"loaded-{mode}.safetensors")


def everything(group, folder, modes, run):
    """The jobs of checkpoints in one start of the processes."""
    save_and_go_on(group, folder, modes)
    load_elsewhere(group, folder, run, modes)
    fill_the_disk(group, folder)


def fill_the_disk(group, folder):
    """A save for which the second process has no room, then one with room; ``told-<rank>.json`` has what was said."""
    saver, training, told = Checkpoints(folder / "run", 3, group), Training(group), {}
    training.steps(0, 1)
    training.save(saver, 1)
    saver.wait()
    if not group.first:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    training.save(saver, 2)
    try:
        saver.wait()
    except UserError as error:
        told["error"] = str(error)
    group.wait()
    told["left"] = sorted(path.name for path in saver.folder.iterdir())
    told["newest"] = str(saver.newest())
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    training.save(saver, 2)
    saver.wait()
    told["later"] = str(saver.newest())
    (folder / f"told-{group.rank}.json").write_text(json.dumps(told))


def save_for_ever(group, folder):
    """Save a state of some megabytes again and again; at step s every number in it is s."""
    config = CONFIG.model_copy(update={"width": 256, "vocabulary": 4096})
    saver, training = Checkpoints(folder / "run", 2, group), Training(group, "fsdp", config=config)
    training.step(0)
    for step in range(1, 10_000):
        with torch.no_grad():
            for tensor in [*training.net.parameters(), *training.ema.values()]:
                tensor.fill_(step)
        training.save(saver, step)


def _tokenizer():
    config = TokenizerConfig(image_size=4, patch=2, vocabulary=11)
    return PatchCodebook.fit(config, torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(0)))


def wait_for_a_slow_one(group, folder):
    """The last process is late three times by more than what a device's group waits; ``late-<rank>.json``."""
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=0.5), dist.group.WORLD)
    late, found = group.rank == group.world - 1, []
    for wait in (group.wait, lambda: group.gathered(group.rank), lambda: group.any(late)):
        if late:
            time.sleep(1.2)
        found.append(wait())
    with workers() as inner:
        found.append(inner is group)
    (folder / f"late-{group.rank}.json").write_text(json.dumps(found))
