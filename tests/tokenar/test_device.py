"""What a GPU would be asked, as far as a machine without one can tell."""

import itertools
import os

import numpy as np
import pytest
import torch
from PIL import Image
from small.run import changed, inputs, random_net, tiny_config
from tiny.encoders import tiny_vq
from torch._dynamo.testing import CompileCounterWithBackend

from tokenar.config import SampleConfig
from tokenar.device import WORKSPACE, exact_float32, own_random_numbers
from tokenar.encoders.vq import VqTokenizer
from tokenar.evaluate.encoders import EfficientNet
from tokenar.sample.decoder import Decoder, generate
from tokenar.train import step, validate
from tokenar.train.loop import train_model
from tokenar.train.step import recompute_blocks

CPU = torch.device("cpu")


# Compiling


@pytest.fixture
def compiled(monkeypatch):
    """Counts what is compiled; kernels are torch's own."""
    counter, real = CompileCounterWithBackend("eager"), torch.compile
    monkeypatch.setattr(torch, "compile", lambda method, **options: real(method, backend=counter, **options))
    return counter


@pytest.mark.slow
def test_any_number_of_shapes_is_compiled_once_each(compiled):
    net, shapes = random_net(changed(layers=1)), list(itertools.product((1, 2, 3), (1, 2), (1, 2)))[:10]
    for number, (batch, references, seeds) in enumerate(shapes, start=1):
        sources, text, _ = inputs(net.config, batch, references)
        drawn = [
            generate(net, sources, text, range(batch * seeds), SampleConfig(guidance=2.0, compile=wanted))
            for wanted in (True, False)
        ]
        assert torch.equal(*drawn)
        assert compiled.frame_count == number


@pytest.mark.slow
def test_any_number_of_reaches_is_compiled_once(compiled):
    net = random_net(changed(grid=20, layers=1))
    sources, text, _ = inputs(net.config, batch=1)
    decoder = Decoder(net, 1, 2, SampleConfig(copies="drawn", compile=True))
    drawing = decoder.decode(sources, text, [0])
    next(drawing)
    next(drawing)
    with torch.inference_mode():
        for reach in range(256, 1201, 128):
            decoder._replay(reach)
    assert compiled.frame_count == 1


# Recording a step


class Recording:
    """Stands for a CUDA graph: what is recorded is done when it is replayed."""

    made: list["Recording"] = []
    modes: list[str] = []
    memory: list[object] = []
    decoder: Decoder

    def __init__(self):
        self.made.append(self)
        self.replayed = 0

    def pool(self):
        return "one pool"

    def replay(self):
        self.replayed += 1
        self.decoder._advance()


class Capture:
    def __init__(self, graph, pool=None, stream=None, capture_error_mode="global"):
        Recording.modes.append(capture_error_mode)
        Recording.memory.append((pool, stream))

    def __enter__(self):
        decoder = Recording.decoder
        self.advance, decoder._advance = decoder._advance, lambda: None

    def __exit__(self, *_):
        Recording.decoder._advance = self.advance


@pytest.mark.slow
def test_a_step_is_recorded_once_a_reach_and_other_threads_may_pin_memory_meanwhile(monkeypatch):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recording)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    net = random_net(changed(grid=12))
    sources, text, _ = inputs(net.config, batch=1)
    settings = SampleConfig(copies="drawn")
    decoder = Decoder(net, 1, 2, settings)
    decoder.replays, Recording.decoder, decoder.stream = True, decoder, "a stream of the decoder's device"
    for seed in (3, 4):
        drawn = [token.clone() for token, _ in decoder.decode(sources, text, [seed])]
        plain = [token.clone() for token, _ in Decoder(net, 1, 2, settings).decode(sources, text, [seed])]
        assert torch.equal(torch.stack(drawn), torch.stack(plain))
    assert len(Recording.made) == len(decoder.graphs) == 3  # reaches of 256, 384 and 432 tokens
    assert set(Recording.modes) == {"thread_local"}
    # torch's own stream is on the GPU that recorded first in this process, and a pool for each graph takes 20 MB.
    pools, streams = zip(*Recording.memory, strict=True)
    assert pools == (None, "one pool", "one pool")
    assert set(streams) == {"a stream of the decoder's device"}


@pytest.mark.parametrize("how", ["selective", "block"])
def test_drawing_between_steps_does_not_recompute(how, monkeypatch):
    """Recomputing notes the generators' state, which cannot be read while a GPU records a step."""
    net = random_net()
    expected = generate(net, *inputs()[:2], [0, 1], SampleConfig())
    recompute_blocks(net, how)
    monkeypatch.setattr(step, "checkpoint", lambda *_, **__: pytest.fail("recomputed without gradients"))
    assert torch.equal(generate(net, *inputs()[:2], [0, 1], SampleConfig()), expected)


def test_pictures_while_training_with_recomputing_need_no_generator(shards, tmp_path, monkeypatch):
    real, drawing = validate.generate, []

    def generated(*arguments, **options):
        drawing.append(True)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "get_rng_state", lambda: pytest.fail("the generator's state was read"))
            return real(*arguments, **options)

    monkeypatch.setattr(validate, "generate", generated)
    changes = {"activation_checkpointing": "block", "pictures_every": 1, "pictures": 1, "steps": 1}
    train_model(tiny_config(shards, tmp_path / "run", **changes))
    assert drawing


# Numbers


@pytest.fixture
def rounded(monkeypatch):
    """Products and convolutions of float32 are rounded, as torch and callers may set it."""
    exact_float32()
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    yield
    exact_float32()


def is_exact():
    backends = torch.backends
    return not (backends.cudnn.allow_tf32 or backends.cuda.matmul.allow_tf32) and (
        backends.cudnn.conv.fp32_precision == backends.cuda.matmul.fp32_precision == "ieee"
    )


def test_float32_is_exact_where_pictures_become_codes_and_features(rounded, monkeypatch):
    assert not is_exact()
    seen, tokenizer = [], VqTokenizer(tiny_vq(), 16)
    monkeypatch.setattr(
        tokenizer.network, "encode", lambda pixels: (seen.append(is_exact()), torch.zeros(len(pixels), 4).long())[1]
    )
    tokenizer.encode(torch.zeros(1, 3, 16, 16))
    torch.backends.cudnn.allow_tf32 = True
    encoder = EfficientNet(CPU)
    monkeypatch.setattr(encoder, "forward", lambda pixels: (seen.append(is_exact()), torch.ones(len(pixels), 2))[1])
    encoder.encode([Image.fromarray(np.zeros((8, 8, 3), np.uint8))])
    assert seen == [True, True]


def test_float32_is_exact_in_training(rounded, shards, tmp_path, monkeypatch):
    seen, real = [], step.losses
    monkeypatch.setattr(step, "losses", lambda *a, **k: (seen.append(is_exact()), real(*a, **k))[1])
    train_model(tiny_config(shards, tmp_path / "run", steps=1))
    assert seen[0]


@pytest.mark.parametrize(("deterministic", "expected"), [(True, ":4096:8"), (False, None)])
def test_cublas_is_told_to_be_deterministic_before_anything_asks_for_a_gpu(
    deterministic, expected, shards, tmp_path, monkeypatch
):
    asked = []
    monkeypatch.delenv(WORKSPACE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: (asked.append(os.environ.get(WORKSPACE)), False)[1])
    train_model(tiny_config(shards, tmp_path / "run", steps=1, deterministic=deterministic))
    assert asked
    assert set(asked) == {expected}
    monkeypatch.delenv(WORKSPACE, raising=False)


def test_only_the_own_gpus_generator_is_asked(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: asked.append(devices) or torch.inference_mode())
    for device in (torch.device("cuda", 3), CPU):
        with own_random_numbers(device):
            pass
    assert asked == [[torch.device("cuda", 3)], []]
