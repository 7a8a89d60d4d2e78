"""Where the time goes: the costliest operations of one decoding step and one training step, and attention's kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from checks.scale import REFERENCES, Scale, drawn_net, inputs_for
from checks.training import Stepper
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from tokenar.config import SampleConfig
from tokenar.sample.decoder import Decoder

SHOWN = 10


def costliest(work: Callable[[], object], scale: Scale) -> list[dict[str, Any]]:
    """Name, calls and microseconds of the operations that take longest on the device."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if scale.on_gpu else [])]
    with profile(activities=activities) as trace:
        work()
        if scale.on_gpu:
            torch.cuda.synchronize(scale.device)
    time_of = "self_device_time_total" if scale.on_gpu else "self_cpu_time_total"
    # On a GPU the operations that launched a kernel are told with the kernel's time too.
    kind = DeviceType.CUDA if scale.on_gpu else DeviceType.CPU
    found = [event for event in trace.key_averages() if event.device_type == kind]
    events = sorted(found, key=lambda event: -getattr(event, time_of))[:SHOWN]
    return [{"name": e.key[:100], "calls": e.count, "us": round(getattr(e, time_of), 1)} for e in events]


def decoding_profile(scale: Scale) -> dict[str, Any]:
    """One step of a picture, compiled on a GPU, outside of its graph."""
    config = scale.model()
    net, given = drawn_net(config, scale.device, scale.dtype), inputs_for(config, scale.device, 1)
    decoder = Decoder(net, 1, REFERENCES, SampleConfig(guidance=3.0))
    drawn = decoder.decode(given.sources, given.text, [0], text_mask=given.text_mask)
    next(drawn)
    next(drawn)
    with torch.inference_mode():
        decoder._advance()
        return {"costliest": costliest(decoder._advance, scale)}


def training_profile(scale: Scale) -> dict[str, Any]:
    """One whole training step."""
    trained = Stepper(scale, 2, compile=scale.on_gpu)
    for number in range(2):
        trained.step(number)
    return {"costliest": costliest(lambda: trained.step(2), scale)}


def attention_kernels(scale: Scale) -> dict[str, Any]:
    """The kernel that attention takes without a mask, with one, and for a few positions behind many."""
    from tokenar.model.cache import causal_attention

    heads, length, width = (20, 2048, 64) if scale.full else (2, 32, 16)
    q = torch.randn(1, heads, length, width, device=scale.device, dtype=scale.dtype)
    mask = torch.ones(length, length, dtype=torch.bool, device=scale.device).tril()
    kernels = {}
    for name, given, seen in (("causal", q, None), ("masked", q, mask), ("last positions", q[:, :, -8:], None)):
        rows = costliest(lambda g=given, m=seen: causal_attention(g, q, q, m), scale)
        kernels[name] = next((row["name"] for row in rows if "attention" in row["name"] or "fmha" in row["name"]
                              or "flash" in row["name"]), rows[0]["name"])  # fmt: skip
    return kernels


CHECKS = {
    "attention_kernels": attention_kernels,
    "decoding_profile": decoding_profile,
    "training_profile": training_profile,
}
