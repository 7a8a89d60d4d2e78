"""What each setting of the transformer changes, and what it must leave alone."""

import math

import pytest
import torch
from pydantic import ValidationError
from small.run import SMALL, changed, inputs, random_net, tiny_config

from data_schemas.errors import UserError
from tokenar.config import with_changes
from tokenar.model.config import released, tokenar_xl
from tokenar.model.layers import Alignment
from tokenar.model.neighbours import with_border
from tokenar.model.positions import attention_mask, canvas_coordinates, layout_rotary, make_layout, source_ids
from tokenar.model.transformer import TokenAR
from tokenar.train.optimizer import parameter_groups

N = SMALL.image_tokens
ZERO, ONE = torch.tensor([0.0, 0.0]), torch.tensor([0.0, 0.5])  # draws: everything dropped, and the first sample only


def same_weights(config, other):
    """Two models that differ in settings but not in weights."""
    net = random_net(config)
    twin = TokenAR(other).eval()
    twin.load_state_dict(net.state_dict())
    return net, twin


@pytest.mark.parametrize(("setting", "cosine"), [("zero", 0.0), ("identity", 1.0)])
def test_text_rotary(setting, cosine):
    config = changed(text_rotary=setting)
    layout = make_layout(config, 2)
    text = layout_rotary(layout)[layout.source_tokens : layout.prefix]
    assert (text[..., 0] == cosine).all()
    assert (text[..., 1] == 0).all()
    assert torch.equal(layout_rotary(layout)[layout.prefix :], layout_rotary(make_layout(SMALL, 2))[layout.prefix :])


def test_text_rotary_changes_what_is_computed():
    net, twin = same_weights(SMALL, changed(text_rotary="identity"))
    assert not torch.allclose(net(*inputs()), twin(*inputs()), atol=1e-3)


MASK = torch.tensor([[True, True, False], [True, False, False]])


@pytest.mark.parametrize("attention", ["causal", "block"])
@torch.no_grad()
def test_masked_padding_is_never_read(attention):
    net = random_net(changed(text_padding="masked", source_attention=attention))
    sources, text, picture = inputs()
    other = torch.where(MASK[:, :, None], text, 100 * torch.randn_like(text))
    assert torch.equal(net(sources, text, picture, text_mask=MASK), net(sources, other, picture, text_mask=MASK))
    whole = torch.ones_like(MASK)
    assert not torch.equal(net(sources, text, picture, text_mask=whole), net(sources, other, picture, text_mask=whole))


@torch.no_grad()
def test_padding_is_read_where_it_is_attended():
    net, twin = same_weights(SMALL, changed(text_padding="masked"))
    sources, text, picture = inputs()
    read = net(sources, text, picture, text_mask=MASK)
    assert torch.equal(read, net(sources, text, picture))
    masked = twin(sources, text, picture, text_mask=torch.ones_like(MASK))
    torch.testing.assert_close(masked, read)
    with pytest.raises(ValueError, match="text_mask"):
        twin(sources, text, picture)


@torch.no_grad()
def test_a_dropped_text_has_no_padding():
    net = random_net(changed(text_padding="masked")).train()
    whole = torch.ones_like(MASK)
    assert torch.equal(net(*inputs(), ZERO, text_mask=MASK), net(*inputs(), ZERO, text_mask=whole))
    one, none = net(*inputs(), ONE, text_mask=MASK), net(*inputs(), ONE, text_mask=whole)
    assert torch.equal(one[0], none[0])
    assert not torch.equal(one[1], none[1])


def test_frozen_null_tables_are_stored_but_never_move():
    tables = {"img_uncond_embedding", "cls_embedding.uncond_embedding"}
    torch.manual_seed(0)
    trained = TokenAR(SMALL)
    torch.manual_seed(0)
    frozen = TokenAR(changed(null_embeddings="frozen")).train()
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    assert set(before) == set(trained.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())  # the same draws
    assert {name for name, _ in frozen.named_parameters()} == set(before) - tables
    optimizer = torch.optim.AdamW(parameter_groups(frozen, 0.5, decay_tables=True), lr=0.1)
    for _ in range(2):  # the first step moves the head away from zero, so that the second reaches the rest
        optimizer.zero_grad()
        (frozen(*inputs(), ZERO) - 1).square().mean().backward()
        optimizer.step()
    moved = {name for name, value in frozen.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == set(before) - tables
    assert all(frozen.get_buffer(name).grad is None for name in tables)


def test_the_index_on_targets_changes_only_the_copies():
    net, twin = same_weights(SMALL, changed(index_on_targets=True))
    sources, text, picture = inputs()
    layout, tokens = net.layout(2), net.target_tokens(sources, picture)
    assert torch.equal(net.embed_prefix(sources, text), twin.embed_prefix(sources, text))
    plain, indexed = net.embed_target(tokens, layout), twin.embed_target(tokens, layout)
    rows = twin.ref_index_embeddings.weight
    assert torch.equal(indexed[:, :N], plain[:, :N] + rows[0])
    assert torch.equal(indexed[:, N : 2 * N], plain[:, N : 2 * N] + rows[1])
    assert torch.equal(indexed[:, 2 * N :], plain[:, 2 * N :])
    index, history = twin.target_index(layout), with_border(tokens, SMALL.vocabulary)
    one_by_one = [twin.embed_next(history, torch.tensor([k]), index) for k in range(1, 3 * N + 1)]
    assert torch.equal(torch.cat(one_by_one, dim=1), indexed)
    assert torch.equal(twin.embed_target(tokens, layout, index=False), plain)


def test_the_background_under_the_last_references_index():
    config = changed(background_index="last_reference")
    assert source_ids(make_layout(config, 2)).tolist() == [0] * N + [1] * 2 * N
    assert source_ids(make_layout(config, 1)).tolist() == [0] * N + [1] * N


@torch.no_grad()
def test_as_many_key_heads_as_heads_is_the_plain_layout():
    net, twin = same_weights(SMALL, changed(kv_heads=2))
    assert torch.equal(net(*inputs()), twin(*inputs()))


@torch.no_grad()
def test_grouped_heads_are_plain_heads_with_repeated_keys():
    plain_config = changed(width=32, heads=4)
    grouped = random_net(changed(width=32, heads=4, kv_heads=2))
    weights = grouped.state_dict()
    for name in [name for name in weights if name.endswith("wqkv.weight")]:
        q, k, v = weights[name].split([32, 16, 16])
        k, v = (part.unflatten(0, (2, 8)).repeat_interleave(2, 0).flatten(0, 1) for part in (k, v))
        weights[name] = torch.cat([q, k, v])
    plain = TokenAR(plain_config).eval()
    plain.load_state_dict(weights)
    torch.testing.assert_close(grouped(*inputs()), plain(*inputs()), atol=1e-5, rtol=1e-5)
    assert grouped.kv_bytes(9) * 2 == plain.kv_bytes(9)
    assert grouped.flops(2) < plain.flops(2)


def test_special_instruct_tokens_are_chosen_by_sample():
    net = random_net(changed(instruct_mode="special"))
    sources, text, _ = inputs()
    rows = net.instruct_token_embeddings.weight.view(3, 2, 16)
    assert torch.equal(net.embed_prefix(sources, text, instruct=torch.tensor([2, 0]))[:, -2:], rows[[2, 0]])
    # The set of pictures is the last that the release trains: one less than there are references.
    assert torch.equal(net.embed_prefix(sources, text)[:, -2:], rows[[1, 1]])


def test_without_a_background_the_sources_are_the_references():
    config = changed(background=False, max_references=1, identity_disentanglement=False)
    net = random_net(config)
    assert net.state_dict()["img_uncond_embedding"].shape == (N, 16)
    sources, text, picture = inputs(config, references=0)
    assert net(sources, text, picture).shape == (2, N, 11)
    assert net.layout_of(sources).prefix == N + 5
    both = random_net(changed(background=False))
    sources, text, picture = inputs(references=1)
    assert torch.equal(both.target_tokens(sources, picture)[:, : 2 * N], sources.flatten(1))


def test_a_source_block_sees_itself_and_nothing_else():
    layout = make_layout(changed(source_attention="block", grid=1, text_tokens=1, instruct_tokens=0), 1)
    one_block = [[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert attention_mask(layout, 4, None).int().tolist() == one_block
    wide = make_layout(changed(source_attention="block", text_tokens=1, instruct_tokens=0), 1)
    mask = attention_mask(wide, 9, torch.tensor([[True], [False]]))
    assert mask.shape == (2, 1, 9, 9)
    assert mask[0, 0, :8, :8].int().tolist() == torch.block_diag(*[torch.ones(4, 4)] * 2).int().tolist()
    assert mask[:, 0, 8].int().tolist() == [[1] * 9, [1] * 8 + [0]]


def test_the_canvas_scatters_a_pictures_rows():
    config = changed(rotary_layout="canvas", max_references=3, text_tokens=1, instruct_tokens=0)
    places = canvas_coordinates(make_layout(config, 3)).tolist()
    assert places[:4] == [[0, 0], [0, 1], [0, 2], [0, 3]]  # a picture of two rows lies in one
    assert places[16] == [-1, -1]
    assert places[17] == [4, 4]
    assert places[-4:] == [[7, 4], [7, 5], [7, 6], [7, 7]]
    alone = changed(rotary_layout="canvas", max_references=3, identity_disentanglement=False)
    assert canvas_coordinates(make_layout(alone, 3))[-4:].tolist() == [[4, 4], [4, 5], [5, 4], [5, 5]]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"max_references": 2}, "1 of 3 source blocks"),
        ({"max_references": 1}, "1 of 2 target blocks"),
        ({"max_references": 4}, "4 of 5 source blocks"),
        ({"max_references": 3, "canvas_targets": 2}, "1 of 4 target blocks"),
        ({"max_references": 4, "background": False}, "1 of 4 source blocks"),
    ],
)
def test_what_the_canvas_has_no_place_for_is_built_and_refused_where_it_is_used(changes, complaint, tmp_path):
    """As in the release: the model is there and has its keys, but no sequence of it can be run."""
    config = changed(rotary_layout="canvas", **changes)
    assert "img_uncond_embedding" in TokenAR(config).state_dict()
    with pytest.raises(UserError, match=complaint):
        layout_rotary(make_layout(config, config.max_references))
    tiny = tiny_config(tmp_path, tmp_path)
    told = {f"model__{name}": value for name, value in changes.items() if name != "background"}
    if config.background:
        with pytest.raises(UserError, match=f"model.rotary_layout canvas holds {complaint}"):
            with_changes(tiny, model__rotary_layout="canvas", **told)


def test_the_canvas_of_one_reference_and_a_background_runs_without_disentanglement():
    config = changed(rotary_layout="canvas", max_references=1, identity_disentanglement=False)
    net = random_net(config)
    sources, text, picture = inputs(config, references=1)
    assert net(sources, text, picture).isfinite().all()


def test_settings_that_do_not_go_together():
    with pytest.raises(ValidationError, match="multiple of kv_heads 3"):
        changed(heads=2, kv_heads=3)


def test_the_feed_forward_multiplier_comes_before_rounding():
    assert changed(width=64, feed_forward_multiplier=1.51).feed_forward_width == 256  # int(1.51 * 170) = 256
    assert changed(width=64, feed_forward_multiplier=1.52).feed_forward_width == 512


@torch.no_grad()
def test_alignment_features_are_those_of_the_picture():
    config = changed(distill="dinov2", grid=4)
    net = random_net(config)
    sources, text, picture = inputs(config)
    logits, features = net(sources, text, picture, with_features=True)
    assert torch.equal(logits, net(sources, text, picture))
    assert features.shape == (2, 4, 768)
    other = picture.clone()
    other[:, 14] = (other[:, 14] + 1) % 11  # only the last of 16 tokens is predicted with this one known
    _, after = net(sources, text, other, with_features=True)
    assert torch.equal(after[:, :3], features[:, :3])
    assert not torch.equal(after[:, 3], features[:, 3])
    with pytest.raises(ValueError, match="distill"):
        TokenAR(SMALL)(*inputs(), with_features=True)


@torch.no_grad()
def test_clip_features_are_shrunk_without_aliasing():
    """16 cells become 14: of a column of ones, each cell gets the share that its widened triangle covers."""
    align = Alignment(changed(distill="clip", grid=32))
    align.weight.zero_()
    align.weight[:, 0] = 0.25
    align.bias.zero_()
    hidden = torch.zeros(1, 32, 32, 16)
    hidden[:, :, 16:18] = 1.0  # cell 8 of 16
    features = align(hidden.flatten(1, 2)).unflatten(1, (14, 14))[0, 0, :, 0]
    places = (torch.arange(14) + 0.5) * 16 / 14 - 0.5
    weights = (1 - (torch.arange(16) - places[:, None]).abs() * 14 / 16).clamp_min(0)
    torch.testing.assert_close(features, (weights / weights.sum(1, keepdim=True))[:, 8], atol=1e-6, rtol=1e-5)


def test_new_weights_do_not_move_the_others_draws():
    torch.manual_seed(0)
    plain = TokenAR(SMALL).state_dict()
    torch.manual_seed(0)
    distilled = TokenAR(changed(distill="dinov2")).state_dict()
    assert set(distilled) - set(plain) == {"alignment.weight", "alignment.bias"}
    assert torch.equal(distilled["img_uncond_embedding"], plain["img_uncond_embedding"])
    assert distilled["alignment.weight"].abs().max() <= 1 / math.sqrt(16 * 4)  # a convolution's own first values


def test_the_decay_groups():
    net = TokenAR(changed(distill="dinov2"))
    name_of = {parameter: name for name, parameter in net.named_parameters()}
    tables = {
        "tok_embeddings.weight", "ref_index_embeddings.weight", "instruct_token_embeddings.weight",
        "img_uncond_embedding", "cls_embedding.uncond_embedding",
    }  # fmt: skip
    for decay_tables in (True, False):
        decayed, kept = parameter_groups(net, 0.05, decay_tables=decay_tables)
        assert (decayed["weight_decay"], kept["weight_decay"]) == (0.05, 0.0)
        names = {name_of[parameter] for parameter in kept["params"]}
        flat = {name for name, parameter in net.named_parameters() if parameter.dim() < 2}
        assert names == flat | (set() if decay_tables else tables)
        assert "alignment.bias" in names
        assert len(decayed["params"]) + len(kept["params"]) == len(name_of)


def test_the_presets_differ_where_they_say():
    theirs, ours = released().model_dump(), tokenar_xl().model_dump()
    assert {name for name in ours if ours[name] != theirs[name]} == {
        "rotary_layout", "background_index", "index_at_inference", "index_on_targets", "null_embeddings",
        "text_padding",
    }  # fmt: skip
    with torch.device("meta"):
        shapes = [{k: v.shape for k, v in TokenAR(c()).state_dict().items()} for c in (released, tokenar_xl)]
    assert shapes[0] == shapes[1]
