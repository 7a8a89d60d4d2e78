"""Whether a device computes what a CPU computes. Every check returns figures and raises AssertionError beyond a bound.

The yardstick is float64 on the CPU, so that a dry run on a CPU compares something too.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from checks.scale import Inputs, Scale, Skipped, drawn_net, inputs_for, relative, require
from torch import Tensor
from torch.nn import functional as F

from tokenar.config import SampleConfig
from tokenar.device import repeatable
from tokenar.encoders.vq import VqNetwork, VqTokenizer
from tokenar.model.transformer import TokenAR
from tokenar.sample.decoder import Decoder, generate
from tokenar.sample.sampler import quantise

CPU = torch.device("cpu")
FLOAT32_BOUND = 2e-5
"""Largest relative difference of a float32 result from float64: some thousand sums of rounded products."""
BFLOAT16_BOUND = 3e-2
"""The same of bfloat16, which keeps 8 bits of every number."""


def loss_of(net: TokenAR, given: Inputs) -> tuple[Tensor, Tensor]:
    """(logits of every scored token, their mean cross entropy)."""
    logits = net(given.sources, given.text.to(net.norm.weight.dtype), given.picture, text_mask=given.text_mask)
    assert isinstance(logits, Tensor)
    wanted = net.target_tokens(given.sources, given.picture)
    return logits, F.cross_entropy(logits.flatten(0, 1), wanted.flatten())


def gradients(net: TokenAR) -> Tensor:
    return torch.cat([p.grad.detach().double().cpu().flatten() for p in net.parameters() if p.grad is not None])


def forward_and_backward(scale: Scale) -> dict[str, Any]:
    """Logits, loss and gradients in float32 against float64 on the CPU."""
    config = scale.exact_model()
    exact, tested = drawn_net(config, CPU).double(), drawn_net(config, scale.device)
    results = []
    for net, device in ((exact, CPU), (tested, scale.device)):
        logits, loss = loss_of(net, inputs_for(config, device, batch=2))
        loss.backward()
        results.append((logits, loss, gradients(net)))
    (logits, loss, grads), (other_logits, other_loss, other_grads) = results
    figures = {
        "logits": relative(other_logits, logits), "loss": relative(other_loss, loss),
        "gradients": relative(other_grads, grads),
    }  # fmt: skip
    require(max(figures.values()) < FLOAT32_BOUND, f"float32 differs from float64 by {figures}")
    return figures


def bfloat16_forward(scale: Scale) -> dict[str, Any]:
    """Logits and gradients under autocast to bfloat16, as training runs, against float32."""
    config, results = scale.exact_model(), []
    for enabled in (False, True):
        net = drawn_net(config, scale.device)
        with torch.autocast(scale.device.type, torch.bfloat16, enabled=enabled):
            logits, loss = loss_of(net, inputs_for(config, scale.device, batch=2))
        loss.backward()
        results.append((logits, gradients(net)))
    (logits, grads), (half_logits, half_grads) = results
    figures = {"logits": relative(half_logits, logits), "gradients": relative(half_grads, grads)}
    require(max(figures.values()) < BFLOAT16_BOUND, f"bfloat16 differs from float32 by {figures}")
    return figures


def compiled_forward(scale: Scale) -> dict[str, Any]:
    """Compiled blocks against eager ones, for two numbers of references; how many forms were compiled."""
    from torch._dynamo.utils import counters

    config = scale.exact_model()
    eager = drawn_net(config, scale.device)
    compiled = copy.deepcopy(eager)
    for block in compiled.layers:
        block.compile(backend="inductor" if scale.on_gpu else "aot_eager")
    counters.clear()
    figures = {"logits": 0.0, "gradients": 0.0}
    for batch, references in ((2, 1), (2, 2), (3, 2), (1, 2)):
        results = []
        for net in (eager, compiled):
            net.zero_grad()
            logits, loss = loss_of(net, inputs_for(config, scale.device, batch, references))
            loss.backward()
            results.append((logits, gradients(net)))
        for name, expected, found in zip(figures, *results, strict=True):
            figures[name] = max(figures[name], relative(found, expected))
    graphs = int(counters["stats"]["unique_graphs"])
    require(max(figures.values()) < FLOAT32_BOUND, f"compiled blocks differ: {figures}")
    require(graphs <= 8, f"{graphs} graphs were compiled for four shapes of one block")
    return {**figures, "graphs": graphs}


def greedy(net: TokenAR, given: Inputs, limit: int | None = None, **settings: object) -> tuple[Tensor, Tensor]:
    """(tokens [B, count], logits [B, count, V]) that the decoder draws greedily; of ``limit`` tokens if it is given."""
    config = SampleConfig.model_validate({"temperature": 0.0, **settings})
    decoder = Decoder(net, len(given.sources), given.sources.shape[1] - 1, config)
    tokens, logits = [], []
    for _ in range(2):  # the second picture is drawn by recorded graphs, where there are any
        tokens, logits = [], []
        steps = decoder.decode(given.sources, given.text, [0] * len(given.sources), text_mask=given.text_mask)
        for token, row in islice(steps, limit):
            tokens.append(token.clone())
            logits.append(row.clone())
    return torch.stack(tokens, 1), torch.stack(logits, 1)


@torch.no_grad()
def decode_against_forward(scale: Scale) -> dict[str, Any]:
    """Tokens drawn greedily, with a cache and on a GPU with graphs, against one forward pass over them."""
    config = scale.exact_model()
    net = drawn_net(config, scale.device)
    given = inputs_for(config, scale.device, batch=1)
    figures: dict[str, Any] = {}
    for copies in ("given", "drawn", "verified"):
        tokens, logits = greedy(net, given, copies=copies)
        picture = tokens[:, -config.image_tokens :]
        if copies == "given":
            whole, _ = loss_of(net, Inputs(given.sources, given.text, picture, given.text_mask))
            figures["logits"] = relative(logits, whole[:, -config.image_tokens :])
            expected = whole[:, -config.image_tokens :].argmax(-1)
            figures["given"] = float((picture == expected).float().mean())
        else:
            figures[copies] = float((tokens == figures.setdefault("free", tokens)).float().mean())
    figures.pop("free")
    require(figures["logits"] < FLOAT32_BOUND, f"cached logits differ by {figures['logits']}")
    require(min(figures["given"], figures["verified"]) == 1.0, f"tokens differ: {figures}")
    return figures


def golden_sequences(scale: Scale) -> dict[str, Any]:
    """The published program's greedy sequences, drawn by tiny models on the device; all tokens must be the same."""
    sys.path[:0] = [str(Path(__file__).parents[2] / "tests" / "support")]
    import golden
    from golden.released import generation_case

    cases = golden.paths("tokenar", "gpt_generate")
    if not cases:
        raise Skipped(f"no sequences of the published program in {golden.ROOT / 'tokenar'}")
    cases = cases if scale.full else cases[:2]
    figures = {"cases": len(cases), "tokens": 0, "differing": 0}
    for case in cases:
        _, data, steps = generation_case(case, device=scale.device)
        tokens = torch.stack([token for token, _ in steps], dim=1)
        figures["tokens"] += tokens.numel()
        figures["differing"] += int((tokens != data["expected_tokens"]).sum())
    require(figures["differing"] == 0, f"other tokens than the published program's: {figures}")
    return figures


@torch.no_grad()
def alone_and_in_a_batch(scale: Scale) -> dict[str, Any]:
    """Share of two samples' tokens that are the same alone and among four. On a CPU all must be."""
    config = scale.exact_model()
    net, given = drawn_net(config, scale.device), inputs_for(config, scale.device, batch=4)
    settings = SampleConfig(guidance=2.0, temperature=1.0)
    together = generate(net, given.sources, given.text, range(4), settings, text_mask=given.text_mask)
    alone = [
        generate(net, given.sources[one], given.text[one], [one.start], settings, text_mask=given.text_mask[one])
        for one in (slice(i, i + 1) for i in range(2))
    ]
    share = float((torch.cat(alone) == together[:2]).float().mean())
    require(share == 1.0 if not scale.on_gpu else share > 0.9, f"only {share:.3f} of the tokens are the same")
    return {"same_tokens": share}


@torch.no_grad()
def eight_bits(scale: Scale) -> dict[str, Any]:
    """Relative difference of the logits with int8 and float8 weights, and with a float8 cache."""
    try:
        import torchao  # noqa: F401
    except ImportError as error:
        raise Skipped("torchao is not installed") from error
    config = scale.exact_model()
    given = inputs_for(config, scale.device, batch=1)
    full = drawn_net(config, scale.device)
    limit = 4  # of which a GPU reads the first from the prefix, runs the second, and replays the others
    _, exact = greedy(full, given, limit)
    figures = {}
    for weights in ("int8", "float8"):
        if weights == "float8" and scale.on_gpu and torch.cuda.get_device_capability(scale.device) < (8, 9):
            continue
        net = drawn_net(config, scale.device)
        quantise(net, weights)
        figures[weights] = relative(greedy(net, given, limit)[1][:, :1], exact[:, :1])
    figures["float8_cache"] = relative(greedy(full, given, limit, cache="float8")[1][:, :1], exact[:, :1])
    require(max(figures.values()) < 0.2, f"8-bit logits differ by {figures}")
    return figures


def vq_codes(scale: Scale) -> dict[str, Any]:
    """Share of VQ codes that are those of the CPU; pictures of noise, where the nearest two codes are close."""
    torch.manual_seed(0)
    network = VqNetwork(scale.vq()).eval()
    side = 8 * scale.vq().reduction if not scale.full else 256
    pictures = torch.rand(2, 3, side, side) * 2 - 1
    expected = VqTokenizer(copy.deepcopy(network), side).encode(pictures)
    found = VqTokenizer(network, side, scale.device).encode(pictures)
    share = float((found == expected).float().mean())
    require(share > 0.999, f"only {share:.4f} of the codes are the CPU's")
    return {"same_codes": share}


def resumed_training(scale: Scale) -> dict[str, Any]:
    """Four steps at once and two and two after a stop, with deterministic kernels: the same bits."""
    from checks.training import Stepper

    with repeatable(True), tempfile.TemporaryDirectory() as folder:
        whole = Stepper(scale, exact=True)
        for number in range(4):
            whole.step(number)
        first, second = Stepper(scale, exact=True), Stepper(scale, exact=True)
        for number in range(2):
            first.step(number)
        first.save(Path(folder))
        second.load(Path(folder))
        for number in (2, 3):
            second.step(number)
        pairs = zip(whole.net.parameters(), second.net.parameters(), strict=True)
        differing = sum(not torch.equal(a, b) for a, b in pairs)
    require(differing == 0, f"{differing} tensors differ after resuming")
    return {"differing_tensors": differing}


CHECKS = {
    "forward_and_backward": forward_and_backward,
    "bfloat16_forward": bfloat16_forward,
    "compiled_forward": compiled_forward,
    "decode_against_forward": decode_against_forward,
    "golden_sequences": golden_sequences,
    "alone_and_in_a_batch": alone_and_in_a_batch,
    "eight_bits": eight_bits,
    "vq_codes": vq_codes,
    "resumed_training": resumed_training,
}
