"""What helps a small model to look its tokens up in the sources: copy head, neighbours, background in place, start."""

import math

import pytest
import torch
from pydantic import ValidationError
from small.run import LOOK_UP, SMALL, changed, inputs, random_net
from torch.nn import functional as F

from tokenar.config import SampleConfig
from tokenar.model.layers import FIRST_SCORE
from tokenar.model.neighbours import AFTER, BEFORE, neighbour_numbers
from tokenar.model.transformer import TokenAR
from tokenar.sample.decoder import Decoder
from tokenar.train import step
from tokenar.train.step import token_losses

N = SMALL.image_tokens


def test_switched_off_it_leaves_parameters_and_draws_alone():
    torch.manual_seed(0)
    plain = TokenAR(SMALL).state_dict()
    torch.manual_seed(0)
    full = TokenAR(changed(**LOOK_UP | {"mimetic_start": False})).state_dict()
    new = {"neighbours.before.weight", "neighbours.after.weight", "neighbours.border", "background_in_place.weight"}
    new |= {f"copy_head.{name}" for name in ("query.weight", "key.weight", "sharpness", "gate", "gate_bias")}
    new |= {f"layers.{i}.attention.query_gain" for i in range(2)}
    assert set(full) - set(plain) == new
    first_draws = ("img_uncond_embedding", "cls_embedding.uncond_embedding")
    assert all(torch.equal(full[name], plain[name]) for name in first_draws)
    with pytest.raises(ValidationError, match="background_in_place needs background"):
        changed(background=False, background_in_place=True)


@pytest.mark.parametrize("changes", [{}, {"identity_disentanglement": False}])
def test_a_logit_never_sees_its_own_or_a_later_token(changes):
    net = random_net(changed(grid=3, **LOOK_UP | changes))
    sources, text, picture = inputs(net.config)
    before, first = net(sources, text, picture), net.layout(2).reference_copies * 9
    for k in range(9):
        other = picture.clone()
        other[:, k] = (other[:, k] + 1) % 11
        after = net(sources, text, other)
        assert torch.equal(before[:, : first + k + 1], after[:, : first + k + 1])
        if k + 1 < 8:
            assert not torch.equal(before[:, first + k + 1 :], after[:, first + k + 1 :])


@pytest.mark.parametrize("copies", ["given", "drawn", "verified"])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
@torch.no_grad()
def test_drawn_step_by_step_it_is_the_full_forward(copies, guidance):
    config = changed(grid=3, index_on_targets=True, **LOOK_UP)
    net = random_net(config)
    sources, text, _ = inputs(config, batch=2)
    settings = SampleConfig(temperature=0.0, guidance=guidance, copies=copies)
    steps = Decoder(net, 2, 2, settings).decode(sources, text, [0, 1])
    drawn, logits = (torch.stack(part, 1) for part in zip(*((t.clone(), x.clone()) for t, x in steps), strict=True))
    assert torch.equal(drawn, logits.argmax(-1))
    tokens = drawn if copies != "given" else net.target_tokens(sources, drawn)

    def whole(text):
        layout = net.layout(2)
        hidden = net.whole(net.embed(net.embed_prefix(sources, text), tokens[:, :-1], layout), layout, None, None)
        return net.logits(hidden[:, layout.prefix - 1 :], net.copy_sources(hidden, sources))[:, -drawn.shape[1] :]

    full, none = whole(text), whole(net.cls_embedding.uncond_embedding.expand_as(text))
    torch.testing.assert_close(logits, none + guidance * (full - none), atol=1e-5, rtol=1e-5)


# The copy head


def test_its_logits_are_logarithms_of_probabilities_and_the_loss_is_theirs(monkeypatch):
    net = random_net(changed(**LOOK_UP))
    given, found = inputs(), {}
    logits = net(*given)
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(2, 3 * N))
    expected = -logits.gather(2, net.target_tokens(given[0], given[2])[..., None])[..., 0]
    for chunk in (1 << 25, 5 * 2 * (11 + 3 * N)):
        monkeypatch.setattr(step, "CHUNK_LOGITS", chunk)
        net.zero_grad()
        total, each = net(*given, score=token_losses)
        total.backward()
        assert not each.requires_grad
        torch.testing.assert_close(each, expected)
        torch.testing.assert_close(total, expected.sum())
        found[chunk] = {name: parameter.grad for name, parameter in net.named_parameters()}
    one, other = found.values()
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name], atol=1e-5, rtol=1e-4)
    assert all(one[f"copy_head.{name}"].abs().max() > 0 for name in ("query.weight", "key.weight", "sharpness", "gate"))


@torch.no_grad()
def test_an_open_gate_copies_what_the_sources_have_and_nothing_of_dropped_images():
    net = random_net(changed(copy_head=True))
    net.copy_head.gate.zero_()
    net.copy_head.gate_bias.fill_(50.0)
    sources, text, picture = inputs()
    sources = torch.full_like(sources, 3)
    assert (net(sources, text, picture).argmax(-1) == 3).all()
    assert net(sources, text, picture)[..., 3].exp() == pytest.approx(torch.ones(2, 3 * N), abs=1e-6)
    net.train()
    dropped = net(sources, text, picture, torch.tensor([0.0, 0.5]))
    assert (dropped[1].argmax(-1) == 3).all()
    net.copy_head.gate_bias.fill_(-50.0)
    torch.testing.assert_close(dropped[0], net(sources, text, picture, torch.tensor([0.0, 0.5]))[0])


def test_a_dropped_image_has_gradients():
    net = random_net(changed(**LOOK_UP)).train()
    total, _ = net(*inputs(), torch.zeros(2), score=token_losses)
    total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


# Neighbours and where a position stands


def test_neighbours_by_hand():
    """Two images of 3 x 3 tokens: 0 1 2 / 3 4 5 / 6 7 8, then 9 10 11 / ..."""
    numbers = torch.tensor([4, 0, 5, 9, 15])
    before = [[3, 0, 1, 2], [99] * 4, [4, 1, 2, 99], [99] * 4, [99, 99, 12, 13]]
    assert neighbour_numbers(numbers, 3, BEFORE, 99).tolist() == before
    after = [[5, 6, 7, 8], [1, 99, 3, 4], [99, 7, 8, 99], [10, 99, 12, 13], [16, 99, 99, 99]]
    assert neighbour_numbers(numbers, 3, AFTER, 99).tolist() == after


@torch.no_grad()
def test_a_position_stands_where_its_prediction_is():
    plain, moved = TokenAR(SMALL), TokenAR(changed(neighbours=True))
    rotary, shifted = (net.tables(net.layout(2))[0] for net in (plain, moved))
    first = plain.layout(2).prefix - 1
    assert torch.equal(rotary[:first], shifted[:first])
    assert torch.equal(rotary[first + 1 :], shifted[first:])


@torch.no_grad()
def test_what_stands_at_a_position_is_what_stands_around_the_same_token_of_a_source():
    """But for the token itself and those after it."""
    net = random_net(changed(grid=3, neighbours=True, index_embedding=False))
    net.neighbours.after.weight.zero_()
    sources, text, _ = inputs(net.config, references=1)
    target = net.embed_target(sources[:, 0], net.layout(1))
    own = net.tok_embeddings(sources[:, 0])
    torch.testing.assert_close(target[:, :8], (net.embed_prefix(sources, text)[:, :9] - own)[:, 1:])


@torch.no_grad()
def test_the_background_is_added_where_the_picture_is_predicted():
    net, plain = random_net(changed(background_in_place=True)), random_net()
    sources, text, picture = inputs()
    plain.load_state_dict(net.state_dict(), strict=False)
    layout, tokens = net.layout(2), net.target_tokens(sources, picture)[:, :-1]
    prefix = net.embed_prefix(sources, text)
    added = net.embed(prefix, tokens, layout) - plain.embed(prefix, tokens, layout)
    assert (added[:, :-N] == 0).all()
    expected = F.linear(prefix[:, 2 * N : 3 * N], net.background_in_place.weight)
    torch.testing.assert_close(added[:, -N:], expected, atol=1e-5, rtol=1e-5)


# How attention begins


@torch.no_grad()
def test_a_mimetic_start_looks_for_equal_tokens_and_copies_them():
    torch.manual_seed(0)
    config = changed(width=64, heads=4, qk_norm=True, mimetic_start=True, text_rotary="identity")
    net = TokenAR(config)
    rotary = net.tables(net.layout(2))[0]
    text = slice(net.layout(2).source_tokens, net.layout(2).prefix)  # not rotated
    x = F.rms_norm(torch.randn(1, 5, 64), (64,))
    q, k, v = net.layers[0].attention.project(x, rotary[text])
    scores = (q @ k.mT)[0] / math.sqrt(16)
    assert scores.abs().max() < FIRST_SCORE + 1e-3
    own = scores.diagonal(dim1=1, dim2=2).mean()
    assert own > 0.5 * FIRST_SCORE
    assert own > 4 * scores.mean().abs()
    copied = net.layers[0].attention.wo(v.transpose(1, 2).flatten(2))
    assert F.cosine_similarity(copied, x, dim=-1).min() > 0.4


def lessons(generator, batch, grid=6, vocabulary=256, window=4):
    """Sources of random codes, and pictures that are the background with a window out of a reference at another place.

    Also [batch, N] bool: the tokens in the window that the token left of them and the one above foretell.
    """
    sources = torch.randint(vocabulary, (batch, 3, grid, grid), generator=generator)
    picture, known = sources[:, 2].clone(), torch.zeros(batch, grid, grid, dtype=torch.bool)
    for i in range(batch):
        which, *places = torch.randint(grid - window + 1, (5,), generator=generator).tolist()
        (top, left), (down, right) = (
            tuple(slice(start, start + window) for start in pair) for pair in (places[:2], places[2:])
        )
        picture[i, down, right] = sources[i, which % 2, top, left]
        known[i, down.start + 1 : down.stop, right.start + 1 : right.stop] = True
    return sources.flatten(2), picture.flatten(1), known.flatten(1)


def learned(steps, **changes):
    """Share of the known tokens that are right after so many steps, on codes and places not seen before."""
    torch.manual_seed(0)
    config = changed(
        width=64, heads=4, grid=6, vocabulary=256, feed_forward_multiple=64, identity_disentanglement=False,
        source_attention="block", text_rotary="identity", rotary_base=100.0, tied_output=True, **changes,
    )  # fmt: skip
    net, generator = TokenAR(config), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    text = torch.zeros(16, config.text_tokens, config.text_width)
    for number in range(steps):
        sources, picture, _ = lessons(generator, 16)
        total, _ = net(sources, text, picture, score=token_losses)
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (number + 1) / 20)
        optimizer.zero_grad()
        (total / picture.numel()).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        sources, picture, known = lessons(torch.Generator().manual_seed(1), 64)
        drawn = net(sources, text[:1].expand(64, -1, -1), picture).argmax(-1)
    return (drawn == picture)[known].float().mean().item()


@pytest.mark.long
def test_tokens_that_stand_once_in_a_reference_are_found_after_little_training():
    assert learned(STEPS, **LOOK_UP) > 0.8
    assert learned(STEPS, **LOOK_UP | {"copy_head": False}) < 0.2


STEPS = 100
