"""Drawing pictures on a device: seconds a picture in every mode, where they go, and whether anything waits."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from checks.scale import REFERENCES, Check, Inputs, Scale, drawn_net, inputs_for, now, peak_gb
from checks.shared_prefix import decode_attention
from checks.training import waiting_is_an_error
from published import Plain
from sample import SAMPLING, bandwidth, step_bytes

from tokenar.config import SampleConfig
from tokenar.encoders.vq import VqNetwork, VqTokenizer
from tokenar.model.transformer import TokenAR
from tokenar.sample.decoder import Decoder

PLAIN_TOKENS = 256
"""Tokens of the plain loop that are timed: all of a picture's would take longer than everything else."""


def drawing(net: TokenAR, given: Inputs, scale: Scale, turns: int = 2, **settings: object) -> dict[str, Any]:
    """Seconds a picture, of which prefill; seconds of the first picture, which compiles; bandwidth share; memory."""
    config = SampleConfig.model_validate(SAMPLING | settings)
    if scale.on_gpu:
        torch.cuda.reset_peak_memory_stats(scale.device)
    decoder = Decoder(net, len(given.sources), REFERENCES, config)
    whole, prefill = [], []
    for _ in range(1 + turns):  # the first compiles and records the graphs
        begun = now(scale.device)
        drawn = decoder.decode(given.sources, given.text, [0] * len(given.sources), text_mask=given.text_mask)
        next(drawn)
        first = now(scale.device)
        for _ in drawn:
            pass
        whole.append(now(scale.device) - begun)
        prefill.append(first - begun)
    taken, read = statistics.median(whole[1:]), statistics.median(prefill[1:])
    moved = step_bytes(decoder) if settings.get("copies") != "verified" else None
    share = None if moved is None else round(moved / (taken - read) / bandwidth(scale.device), 3)
    return {
        "s_per_picture": round(taken / len(given.sources), 4), "prefill_s": round(read, 4),
        "first_picture_s": round(whole[0], 2), "bandwidth_share": share, "memory_gb": peak_gb(scale.device),
    }  # fmt: skip


def sampling(batch: int = 1, **settings: object) -> Check:
    """The check of one way to draw.

    The head is zero, so that the greedy choice is always token 0 and the draft of verified mode, zeros, always right: a
    trained model copies its references well. With a random head every pass would keep a single token.
    """

    def check(scale: Scale) -> dict[str, Any]:
        config = scale.model()
        given = inputs_for(config, scale.device, batch if scale.full else min(batch, 2))
        net = drawn_net(config, scale.device, scale.dtype)
        net.head.data.zero_()
        given.sources.zero_()
        return drawing(net, given, scale, turns=2 if batch == 1 else 1, **settings)

    return check


def sampling_as_published(scale: Scale) -> dict[str, Any]:
    """The published program's eager loop, the picture's copies drawn too."""
    config = scale.published_model()
    given = inputs_for(config, scale.device, 1)
    plain = Plain(drawn_net(config, scale.device, scale.dtype), REFERENCES, SAMPLING)
    text = given.text.to(scale.dtype)
    plain.draw(given.sources, text, limit=8)
    begun, first, end = plain.draw(given.sources, text, limit=PLAIN_TOKENS)
    count = plain.layout.target_tokens
    steps = min(PLAIN_TOKENS, count) - 1
    taken = first - begun + (end - first) * (count - 1) / steps
    return {"s_per_picture": round(taken, 3), "timed_tokens": steps + 1}


def sampling_in_8_bits(scale: Scale) -> dict[str, Any]:
    """Forced, with int8 or float8 weights and with a float8 cache; what cannot run here is named."""
    from tokenar.sample.sampler import quantise

    config, figures = scale.model(), {}
    given = inputs_for(config, scale.device, 1)
    for name, weights, cache in (("int8", "int8", "full"), ("float8", "float8", "full"), ("both", "float8", "float8")):
        net = drawn_net(config, scale.device, scale.dtype)
        try:
            quantise(net, weights)
            figures[name] = drawing(net, given, scale, turns=1, cache=cache)
        except (ImportError, RuntimeError, AssertionError) as error:
            figures[name] = {"not_here": str(error).splitlines()[0][:200]}
    return figures


def vq_speed(scale: Scale) -> dict[str, Any]:
    """Milliseconds a picture to encode and to decode, alone and eight at once."""
    torch.manual_seed(0)
    side = 512 if scale.full else 8 * scale.vq().reduction
    tokenizer = VqTokenizer(VqNetwork(scale.vq()).eval(), side, scale.device)
    figures: dict[str, Any] = {}
    for count in (1, 8):
        pictures = torch.rand(count, 3, side, side, device=scale.device) * 2 - 1
        codes = tokenizer.encode(pictures)
        for name, work in (("encode", lambda p=pictures: tokenizer.encode(p)),
                           ("decode", lambda c=codes: tokenizer.decode(c))):  # fmt: skip
            work()
            begun = now(scale.device)
            work()
            figures[f"{name}_{count}_ms"] = round(1000 * (now(scale.device) - begun) / count, 2)
    return figures


def decoding_without_waiting(scale: Scale) -> dict[str, Any]:
    """All steps of a picture behind its first token, under torch's sync debug mode."""
    config = scale.exact_model()
    net, given = drawn_net(config, scale.device), inputs_for(config, scale.device, 1)
    decoder = Decoder(net, 1, REFERENCES, SampleConfig.model_validate(SAMPLING))
    steps = 0
    for turn in range(4):
        drawn = decoder.decode(given.sources, given.text, [0], text_mask=given.text_mask)
        next(drawn)
        if turn < 3:
            for _ in drawn:
                pass
            continue
        next(drawn)  # the first step also shows what is there, from the host
        with waiting_is_an_error(scale):
            for _ in drawn:
                steps += 1
    return {"watched": scale.on_gpu, "steps": steps, "graphs": sum(g is not None for g in decoder.graphs.values())}


CHECKS = {
    "decoding_without_waiting": decoding_without_waiting,
    "sampling_forced": sampling(),
    "sampling_forced_16": sampling(16),
    "sampling_as_published": sampling_as_published,
    "sampling_free": sampling(copies="drawn"),
    "sampling_verified": sampling(copies="verified", temperature=0.0),
    "sampling_forced_4": sampling(4),
    "sampling_in_8_bits": sampling_in_8_bits,
    "decode_attention": decode_attention,
    "vq_speed": vq_speed,
}
