"""The sampler: the cache changes nothing, guidance and filters do what they say, a seed is a picture."""

import pytest
import torch
from small.run import LOOK_UP, SMALL, changed, inputs, random_net

from tokenar.config import SampleConfig
from tokenar.model.cache import KeyValueCache, Segment
from tokenar.sample.decoder import Decoder, generate
from tokenar.sample.logits import draw, filter_logits, guide

GREEDY = SampleConfig(temperature=0.0)


def decode(net, sources, text, seeds, config, **given):
    """Decoder.decode with copies of what it yields."""
    decoder = Decoder(net, len(sources), sources.shape[1] - net.config.background, config, len(seeds) // len(sources))
    return ((token.clone(), logits.clone()) for token, logits in decoder.decode(sources, text, seeds, **given))


VARIANTS = {
    "plain": {},
    "joint": {"identity_disentanglement": False},
    "grouped": {"kv_heads": 1},
    "block": {"source_attention": "block"},
    "masked": {"text_padding": "masked"},
    "masked block": {"text_padding": "masked", "source_attention": "block"},
    "index on targets": {"index_on_targets": True},
    "canvas": {"rotary_layout": "canvas", "max_references": 1, "identity_disentanglement": False},
    "special": {"instruct_mode": "special"},
    "copy head": {"copy_head": True},
    "neighbours": {"neighbours": True, "index_on_targets": True},
    "background in place": {"background_in_place": True, "identity_disentanglement": False},
    "qk norm": {"qk_norm": True, "kv_heads": 1},
    "look-up": LOOK_UP,
    "look-up, joint": LOOK_UP | {"identity_disentanglement": False, "instruct_tokens": 0},
    "look-up, masked block": LOOK_UP | {"text_padding": "masked", "source_attention": "block"},
}


def full_logits(net, sources, text, picture, **given):
    """Logits of the picture's tokens without a cache, and the same for the null text."""
    n, null = net.config.image_tokens, net.cls_embedding.uncond_embedding.expand_as(text)
    whole = given | {"text_mask": torch.ones(text.shape[:2], dtype=torch.bool)}
    return net(sources, text, picture, **given)[:, -n:], net(sources, null, picture, **whole)[:, -n:]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@torch.no_grad()
def test_cached_decoding_is_the_full_forward(variant, guidance):
    config = changed(**{"grid": 3} | VARIANTS[variant])
    net = random_net(config)
    sources, text, _ = inputs(config, batch=3, references=config.max_references)
    given = {"instruct": torch.tensor([2, 0, 1])} if variant == "special" else {}
    if config.text_padding == "masked":
        given["text_mask"] = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
    settings = SampleConfig(temperature=0.0, guidance=guidance)
    steps = list(decode(net, sources, text, [0, 1, 2], settings, **given))
    drawn, logits = (torch.stack(part, dim=1) for part in zip(*steps, strict=True))
    assert torch.equal(drawn, generate(net, sources, text, [0, 1, 2], settings, **given))
    assert torch.equal(drawn, logits.argmax(-1))
    conditional, unconditional = full_logits(net, sources, text, drawn, **given)
    torch.testing.assert_close(logits, guide(conditional, unconditional, guidance), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_drawn_copies_come_before_the_picture():
    net = random_net()
    sources, text, _ = inputs()
    n, settings = SMALL.image_tokens, SampleConfig(copies="drawn", seed=1)
    tokens = torch.stack([token for token, _ in decode(net, sources, text, [0, 1], settings)], dim=1)
    assert tokens.shape == (2, 3 * n)
    assert not torch.equal(tokens[:, : 2 * n], net.reference_copies(sources))
    assert torch.equal(generate(net, sources, text, [0, 1], settings), tokens[:, 2 * n :])


VERIFIED = {
    "greedy": {"temperature": 0.0},
    "guided": {"temperature": 0.8, "guidance": 2.0},
    "filtered": {"temperature": 1.2, "guidance": 3.0, "top_k": 3, "guided_tokens": 5, "guided_from": "first"},
}


@pytest.mark.parametrize("settings", VERIFIED)
@pytest.mark.parametrize(
    "changes", [{}, {"index_on_targets": True}, {"text_padding": "masked"}, {"kv_heads": 1}, LOOK_UP]
)
def test_verified_is_free_running_token_for_token(settings, changes):
    """With four codes, a draft is right here and there, so passes end anywhere."""
    config = changed(vocabulary=4, grid=4, **changes)
    net = random_net(config)
    sources, text, _ = inputs(config, batch=2)
    given = {"text_mask": torch.tensor([[True, True, False], [True, False, False]])}
    free, verified = (
        list(decode(net, sources, text, [3, 4], SampleConfig(copies=copies, **VERIFIED[settings]), **given))
        for copies in ("drawn", "verified")
    )
    assert torch.equal(torch.stack([token for token, _ in free]), torch.stack([token for token, _ in verified]))
    for (_, one), (_, many) in zip(free, verified, strict=True):
        torch.testing.assert_close(one, many, atol=1e-4, rtol=1e-4)


def test_a_right_draft_takes_few_passes(monkeypatch):
    config = changed(grid=8)
    net = random_net(config)
    net.output.weight.data.zero_()  # the first code is then the greedy choice everywhere
    passes, hidden = [], net.hidden

    def counted(x, *rest, **named):
        passes.append(x.shape[1])
        return hidden(x, *rest, **named)

    monkeypatch.setattr(net, "hidden", counted)
    sources, text, _ = inputs(config, batch=1)
    generate(net, torch.zeros_like(sources), text, [0], SampleConfig(copies="verified", temperature=0.0))
    n = config.image_tokens
    assert passes[2:] == [32, 64, 2 * n - 97] + [1] * n  # behind pictures and text
    passes.clear()
    generate(net, torch.ones_like(sources), text, [0], SampleConfig(copies="verified", temperature=0.0))
    assert len(passes) == 2 + 2 * n - 1 + n


def guided_positions(config, **settings):
    """For each token drawn: was guidance applied to its logits?"""
    net = random_net(config)
    sources, text, _ = inputs(config)
    both = [SampleConfig(temperature=0.0, guidance=g, **settings) for g in (3.0, 3.0001)]
    # A slightly different scale shows in every guided logit and in no other, as long as the tokens agree.
    strong, stronger = (list(decode(net, sources, text, [0, 1], one)) for one in both)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(strong, stronger, strict=True))
    return [not torch.equal(a[1], b[1]) for a, b in zip(strong, stronger, strict=True)]


@torch.no_grad()
def test_guidance_for_the_first_tokens_only():
    n = SMALL.image_tokens
    assert guided_positions(SMALL) == [True] * n
    assert guided_positions(SMALL, guided_tokens=1) == [True] + [False] * (n - 1)
    drawn = {"copies": "drawn", "guided_tokens": 3}
    assert guided_positions(SMALL, guided_from="first", **drawn) == [True] * 3 + [False] * (3 * n - 3)
    assert guided_positions(SMALL, guided_from="picture", **drawn) == [True] * (2 * n + 3) + [False]


@torch.no_grad()
def test_without_the_index_at_inference_it_is_as_if_the_table_were_zero():
    net, quiet = random_net(), random_net(changed(index_at_inference=False))
    sources, text, picture = inputs()
    assert torch.equal(net(sources, text, picture), quiet(sources, text, picture))
    _, heard = next(decode(net, sources, text, [0, 1], GREEDY))
    _, unheard = next(decode(quiet, sources, text, [0, 1], GREEDY))
    assert not torch.allclose(heard, unheard, atol=1e-3)
    net.ref_index_embeddings.weight.zero_()
    assert torch.equal(next(decode(net, sources, text, [0, 1], GREEDY))[1], unheard)


@pytest.mark.parametrize("changes", [{}, LOOK_UP])
@torch.no_grad()
def test_without_images_the_null_table_stands_in(changes):
    net = random_net(changed(**changes))
    sources, text, _ = inputs()
    without = torch.tensor([True, False])
    other = (sources + 1) % SMALL.vocabulary
    settings = SampleConfig(temperature=0.0, copies="drawn")
    logits, moved = (
        torch.stack([seen for _, seen in decode(net, given, text, [0, 1], settings, without_images=without)], dim=1)
        for given in (sources, other)
    )
    assert torch.equal(logits[0], moved[0])
    assert not torch.equal(logits[1], moved[1])


@torch.no_grad()
def test_cached_hidden_states_are_those_of_the_full_pass():
    net = random_net()
    x = torch.randn(2, 12, SMALL.width)
    rotary = net.tables(net.layout(2))[0]
    whole = net.hidden(x, rotary[:12])
    cache = KeyValueCache([Segment(SMALL, 2, 12, x)])
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


@pytest.mark.parametrize(
    "changes", [{}, {"kv_heads": 1}, {"text_padding": "masked", "source_attention": "block"}, LOOK_UP]
)
@torch.no_grad()
def test_in_whatever_company_the_same_bits(changes):
    config = changed(grid=6, width=64, **changes)
    net = random_net(config)
    sources, text, _ = inputs(config, batch=5)
    mask = torch.ones(text.shape[:2], dtype=torch.bool)
    settings = SampleConfig(guidance=1.5, temperature=1.0)
    together = list(decode(net, sources, text, range(5), settings, text_mask=mask))
    for batch in (slice(3, 4), slice(2, 4)):
        seeds = range(batch.start, batch.stop)
        apart = decode(net, sources[batch], text[batch], seeds, settings, text_mask=mask[batch])
        for (_, logits), (_, alone) in zip(together, apart, strict=True):
            assert torch.equal(logits[batch], alone)


@pytest.mark.parametrize("changes", [{}, LOOK_UP])
@pytest.mark.parametrize("copies", ["given", "drawn", "verified"])
def test_several_seeds_from_one_prefix(copies, changes):
    net = random_net(changed(**changes))
    sources, text, _ = inputs(batch=2)
    settings = SampleConfig(guidance=2.0, temperature=1.0, copies=copies)
    together = generate(net, sources, text, [1, 2, 3, 4, 5, 6], settings)
    apart = [generate(net, sources, text, seeds, settings) for seeds in ([1, 4], [2, 5], [3, 6])]
    assert torch.equal(together.unflatten(0, (2, 3)), torch.stack(apart, dim=1))


@pytest.mark.parametrize("changes", [{}, LOOK_UP])
@torch.no_grad()
def test_image_guidance_leads_away_from_no_pictures(changes):
    net = random_net(changed(grid=3, **changes))
    sources, text, _ = inputs(changed(grid=3), batch=2)
    for guidance, images in ((1.0, 2.0), (3.0, 2.0)):
        settings = SampleConfig(temperature=0.0, guidance=guidance, image_guidance=images)
        steps = list(decode(net, sources, text, [0, 1], settings))
        drawn, logits = (torch.stack(part, dim=1) for part in zip(*steps, strict=True))
        full, no_text = full_logits(net, sources, text, drawn)
        neither, no_image = (
            without_pictures(net, sources, given, drawn)
            for given in (net.cls_embedding.uncond_embedding.expand_as(text), text)
        )
        expected = guide(full, no_image, images)
        if guidance != 1:
            expected = neither + images * (no_text - neither) + guidance * (full - no_text)
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def without_pictures(net, sources, text, picture):
    """Logits of the picture's tokens with the null-image table in place of the sources."""
    layout, dropped = net.layout_of(sources), torch.ones(len(sources), dtype=torch.bool)
    x = net.embed(net.embed_prefix(sources, text, dropped), net.target_tokens(sources, picture)[:, :-1], layout)
    hidden = net.whole(x, layout, None, None)
    return net.logits(hidden[:, -picture.shape[1] :], net.copy_sources(hidden, sources, dropped))


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


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, LOOK_UP])
def test_a_step_compiles_whole_and_draws_the_same(changes):
    """What a GPU replays, but for the kernels: one graph without breaks, also where the cache reads further."""
    config = changed(grid=12, index_on_targets=True, kv_heads=1, **changes)
    net = random_net(config)
    sources, text, _ = inputs(config)
    settings = SampleConfig(guidance=2.0, temperature=1.0, top_k=5, top_p=0.9)
    plain, compiled = Decoder(net, 2, 2, settings), Decoder(net, 2, 2, settings)
    compiled.advance = torch.compile(compiled._advance, backend="aot_eager", fullgraph=True)
    for seeds in ([0, 1], [2, 3]):  # the second time in the same memory
        for (token, _), (same, _) in zip(
            plain.decode(sources, text, seeds), compiled.decode(sources, text, seeds), strict=True
        ):
            assert torch.equal(token, same)
