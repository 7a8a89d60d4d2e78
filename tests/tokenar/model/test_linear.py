"""The matrix products: fast float32 ones in training, eager and compiled, with torch's gradients."""

import pytest
import torch
from torch.nn import functional as F

from tokenar.model.linear import HAS_ONEDNN, Linear, onednn_product, product


def drawn(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.skipif(not HAS_ONEDNN, reason="this build of torch has no oneDNN")
@pytest.mark.parametrize("shape", [(5, 24), (2, 7, 24), (2, 3, 1, 24), (1, 1, 24)])
def test_gradients_are_those_of_the_exact_product(shape):
    x, weight = drawn(shape, (40, 24))
    found, pull = onednn_product(x, weight), torch.randn(*shape[:-1], 40)
    gradients = torch.autograd.grad(found, (x, weight), pull)
    exact = F.linear(x.double(), weight.double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    for gradient, expected in zip(gradients, torch.autograd.grad(exact, (x, weight), pull.double()), strict=True):
        torch.testing.assert_close(gradient, expected.float(), rtol=1e-5, atol=2e-5)


@pytest.mark.skipif(not HAS_ONEDNN, reason="this build of torch has no oneDNN")
def test_training_takes_the_fast_product_and_low_precision_does_not(monkeypatch):
    x, weight = drawn((2, 7, 24), (40, 24))
    assert "onednn" in type(product(x, weight).grad_fn).__name__.lower()
    with torch.autocast("cpu", torch.bfloat16):
        assert product(x, weight).dtype is torch.bfloat16
    assert product(x.bfloat16(), weight.bfloat16()).dtype is torch.bfloat16


@pytest.mark.slow
def test_a_compiled_layer_gives_what_an_eager_one_gives():
    (x,) = drawn((2, 33, 16))
    layers = torch.nn.Sequential(Linear(16, 64, bias=False), torch.nn.SiLU(), Linear(64, 16, bias=False))
    compiled = torch.compile(layers, fullgraph=True)
    torch.testing.assert_close(compiled(x), layers(x))
    parameters = list(layers.parameters())
    eager = torch.autograd.grad(layers(x).square().sum(), parameters)
    for gradient, expected in zip(torch.autograd.grad(compiled(x).square().sum(), parameters), eager, strict=True):
        torch.testing.assert_close(gradient, expected)
