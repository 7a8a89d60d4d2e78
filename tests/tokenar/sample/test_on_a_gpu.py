"""What the sampler would do on a GPU, as far as a machine without one can tell."""

import gc
import weakref

import pytest
import torch
from small.run import changed, inputs, random_net
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.device import device_of
from tokenar.config import SampleConfig
from tokenar.device import own_device
from tokenar.model import linear
from tokenar.model.cache import KeyValueCache, Segment
from tokenar.model.folder import Model
from tokenar.model.positions import attention_mask
from tokenar.sample.compiled import recording_stream
from tokenar.sample.decoder import Decoder, generate
from tokenar.sample.sampler import Sampler, quantise


class Operations(TorchDispatchMode):
    """Notes the names of the operations inside it."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        self.names.append(str(operation))
        return operation(*arguments, **(options or {}))


def test_single_rows_are_doubled_on_a_cpu_alone():
    noted = {}
    for device in ("cpu", "meta"):
        with Operations() as operations:
            assert linear.few_rows(torch.ones(3, 1, 4, device=device), torch.ones(3, 5, 4, device=device)).shape == (
                3,
                1,
                5,
            )
        noted[device] = [name for name in operations.names if "clone" in name]
    assert noted["cpu"]
    assert noted["meta"] == []


def test_the_gpu_has_its_number_for_threads_started_later(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert own_device() == device_of("auto") == device_of("cuda") == torch.device("cuda", 1)
    assert device_of("cpu") == torch.device("cpu")


def test_prefixes_are_read_without_cudnns_attention(monkeypatch):
    """It plans anew for every length, and each pass over a prefix or a draft has a length of its own."""
    net = random_net(changed(text_padding="masked"))
    sources, text, _ = inputs(net.config)
    enabled, hidden = [], net.hidden

    def watched(*arguments, **named):
        enabled.append(torch.backends.cuda.cudnn_sdp_enabled())
        return hidden(*arguments, **named)

    monkeypatch.setattr(net, "hidden", watched)
    mask = torch.ones(text.shape[:2], dtype=torch.bool)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    generate(net, sources, text, [0, 1], SampleConfig(copies="verified"), text_mask=mask)
    assert enabled[:3] == [False, False, False]
    assert enabled[-1] == torch.backends.cuda.cudnn_sdp_enabled() == before


@pytest.mark.parametrize("kind", ["causal", "block"])
def test_a_masks_last_rows_alone_are_those_of_the_whole(kind):
    layout = random_net(changed(source_attention=kind)).layout(2)
    text_mask = torch.tensor([[True, False, True], [False, True, True]])
    for first in (0, 3, 5, layout.source_tokens, layout.source_tokens + 2):
        whole = attention_mask(layout, layout.total, text_mask)
        assert torch.equal(attention_mask(layout, layout.total, text_mask, first), whole[:, :, first:])


@pytest.mark.parametrize("single", [False, True])
def test_a_float8_cache_holds_numbers_beyond_its_range(single):
    """In torch 500 becomes NaN in float8_e4m3fn, and after such a key all tokens would be noise."""
    config = changed(layers=1, heads=1, kv_heads=1)
    segment = Segment(config, 1, 4, torch.zeros(1), torch.float8_e4m3fn)
    cache = KeyValueCache([segment])
    large = torch.full((1, 1, 1, config.head_width), 500.0)
    if single:
        cache.offset, cache.read_length = torch.zeros(1, dtype=torch.int64), segment.capacity
        cache.bias = torch.zeros(1, 1, 1, segment.capacity)
        cache.bias[..., 1:] = -torch.inf
    assert cache.layer(0).attend(large, large, -large, None).unique().tolist() == [-448.0]


def test_all_decoders_of_a_gpu_record_on_one_stream(monkeypatch):
    """cuBLAS keeps 32 MB for every stream that it was used on."""
    made = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.append(device) or object())
    recording_stream.cache_clear()
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    assert recording_stream(first) is recording_stream(first)
    assert recording_stream(second) is not recording_stream(first)
    assert made == [first, second]
    recording_stream.cache_clear()


@pytest.fixture
def traced(monkeypatch):
    """What is compiled runs with torch's own kernels."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda method, **options: real(method, backend="aot_eager", **options))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("weights", ["int8", "float8"])
def test_8_bit_weights_are_read_once_in_a_compiled_step(weights, traced, monkeypatch):
    """torchao's own product writes the whole weight in 16 bits first: more traffic than full weights."""
    pytest.importorskip("torchao")
    net = random_net(changed(tied_output=False))
    full = net.weight_bytes()
    quantise(net, weights)
    assert net.weight_bytes() < 0.5 * full  # from four bytes to one, and the scales; the norms stay
    weight, x = net.layers[0].attention.wqkv.weight, torch.randn(2, 1, net.config.width)
    torch.testing.assert_close(linear.few_rows_of_8_bits(x, weight), F.linear(x, weight), atol=1e-5, rtol=1e-4)
    sources, text, _ = inputs(net.config, batch=1)
    settings = SampleConfig(guidance=3.0, temperature=0.0)
    expected = generate(net, sources, text, [0], settings)
    read, own = [], linear.few_rows_of_8_bits
    monkeypatch.setattr(linear, "fuses", lambda x: torch.compiler.is_compiling())
    monkeypatch.setattr(linear, "few_rows_of_8_bits", lambda x, w: (read.append(w), own(x, w))[1])
    assert torch.equal(generate(net, sources, text, [0], settings.model_copy(update={"compile": True})), expected)
    assert len(read) == (net.config.image_tokens - 1) * 5 * net.config.layers


@pytest.mark.slow
def test_a_decoder_of_another_shape_leaves_its_memory(traced):
    """A decoder in a cycle with what it has compiled would stay until the collector finds it."""
    sampler = Sampler(Model(random_net(), None, None, None), SampleConfig(compile=True))
    gc.disable()
    try:
        first = sampler._decoder_for(1, 2, 1)
        stored = weakref.ref(first.segments[0].keys[0])
        del first
        assert sampler._decoder_for(2, 2, 1).shape == (2, 2, 1)
        assert stored() is None
    finally:
        gc.enable()


def test_a_step_that_varies_never_reads_its_whole_segment():
    """torch.compile makes special code for a single chunk and for a whole segment."""
    net = random_net(changed(grid=12))
    for copies in ("drawn", "verified"):
        decoder = Decoder(net, 1, 2, SampleConfig(copies=copies))
        lengths = {decoder.read_length(number) for number in range(1, decoder.count)}
        assert lengths == {256, 384, 512}
        assert max(lengths) < decoder.drawn_segment.capacity


@pytest.mark.slow
@pytest.mark.parametrize(("copies", "grid"), [("given", 6), ("drawn", 12)])
def test_a_block_is_compiled_once_for_all_layers_and_lengths(copies, grid, traced):
    """Compiled as a whole, a step of GPT-XL's 36 layers took more than three minutes on an H200."""
    from torch._dynamo.utils import counters

    net = random_net(changed(grid=grid, layers=4))
    sources, text, _ = inputs(net.config, batch=1)
    settings = SampleConfig(copies=copies, temperature=0.0, guidance=3.0)
    expected = generate(net, sources, text, [0], settings)
    counters.clear()
    assert torch.equal(generate(net, sources, text, [0], settings.model_copy(update={"compile": True})), expected)
    assert counters["stats"]["unique_graphs"] == 1
