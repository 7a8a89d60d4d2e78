"""The sampler: the cache changes nothing, guidance and filters do what they say, a seed is a picture."""

import json

import pytest
import torch
from PIL import Image
from small_run import SMALL, changed, inputs, random_net

from tokenar.config import SampleConfig
from tokenar.generate import draw, filter_logits, generate, guide
from tokenar.model import KeyValueCache

GREEDY = SampleConfig(temperature=0.0)


def full_greedy(net, sources, text, guidance):
    """The same without a cache: the whole forward pass for every token."""
    n = net.config.image_tokens
    picture = torch.zeros(len(sources), n, dtype=torch.long)
    null = net.cls_embedding.uncond_embedding.expand_as(text)
    for k in range(n):
        logits = net(sources, text, picture)[:, -n + k]
        if guidance != 1:
            logits = guide(logits, net(sources, null, picture)[:, -n + k], guidance)
        picture[:, k] = logits.argmax(-1)
    return picture


@pytest.mark.parametrize("disentangled", [True, False])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@torch.no_grad()
def test_cached_decoding_is_the_full_forward(disentangled, guidance):
    config = changed(identity_disentanglement=disentangled, grid=3)
    net = random_net(config)
    sources, text, _ = inputs(config, batch=3)
    settings = SampleConfig(temperature=0.0, guidance=guidance)
    drawn = generate(net, sources, text, [0, 1, 2], settings)
    assert torch.equal(drawn, full_greedy(net, sources, text, guidance))


@torch.no_grad()
def test_cached_hidden_states_are_those_of_the_full_pass():
    net = random_net()
    x = torch.randn(2, 12, SMALL.width)
    rotary = net.tables(net.layout(2))[0]
    whole = net.hidden(x, rotary[:12])
    cache = KeyValueCache(SMALL, 2, 12, x)
    parts = [net.hidden(x[:, :7], rotary[:7], cache)]
    parts += [net.hidden(x[:, i : i + 1], rotary[i : i + 1], cache) for i in range(7, 12)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_a_picture_depends_on_its_own_seed_only():
    net = random_net()
    sources, text, _ = inputs(batch=3)
    config = SampleConfig(guidance=1.5)
    together = generate(net, sources, text, [5, 6, 7], config)
    alone = generate(net, sources[1:2], text[1:2], [6], config)
    assert torch.equal(together[1:2], alone)
    assert not torch.equal(generate(net, sources, text, [8, 9, 10], config), together)


def test_guidance_by_hand():
    c, u = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])
    assert guide(c, u, 3.0).tolist() == [3.0, -2.0]
    assert torch.equal(guide(c, u, 1.0), c)
    assert torch.equal(guide(c, u, 0.0), u)


def test_filters_by_hand():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = lambda **settings: torch.isfinite(filter_logits(logits, 1.0, **settings))[0].tolist()  # noqa: E731
    assert kept(top_k=0, top_p=1.0) == [True] * 4
    assert kept(top_k=2, top_p=1.0) == [True, True, False, False]
    assert kept(top_k=9, top_p=0.6) == [True, True, False, False]
    assert kept(top_k=0, top_p=0.01) == [True, False, False, False]
    ties = filter_logits(torch.tensor([[1.0, 1.0, 0.0]]), 1.0, 1, 1.0)
    assert torch.isfinite(ties)[0].tolist() == [True, True, False]


def test_draws_follow_the_probabilities():
    share = torch.tensor([0.1, 0.0, 0.6, 0.3])
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    tokens = draw(share.log().expand(20_000, 4), uniform)
    counts = torch.bincount(tokens, minlength=4) / 20_000
    assert counts[1] == 0
    torch.testing.assert_close(counts, share, atol=0.015, rtol=0)
    assert draw(share.log()[None], torch.tensor([0.0])).item() == 0
    assert draw(share.log()[None], torch.tensor([1.0])).item() == 3


def test_sample_writes_pictures_with_their_recipe(trained, shards, tmp_path):
    from tokenar.generate import sample

    listed = sample(trained / "model", str(shards / "test-*.tar"), tmp_path, SampleConfig(seed=4), limit=2, quiet=True)
    assert json.loads((tmp_path / "samples.json").read_text()) == listed
    assert [record["seed"] for record in listed] == [4, 5]
    picture = Image.open(tmp_path / listed[1]["file"])
    assert picture.size == (32, 32)
    assert json.loads(picture.text["tokenar"]) == listed[1]
