"""What must hold for the transformer whatever its weights."""

import math

import pytest
import torch
from small.run import SMALL, changed, inputs, random_net
from torch.nn import functional as F

from tokenar.model.config import DropConfig
from tokenar.model.positions import (
    apply_rotary,
    grid_coordinates,
    make_layout,
    null_rows,
    rotary_table,
    source_ids,
)
from tokenar.model.transformer import TokenAR, drop_decisions


def test_a_logit_never_sees_its_own_or_a_later_token():
    net = random_net()
    sources, text, picture = inputs()
    before = net(sources, text, picture)
    first = 2 * SMALL.image_tokens  # the picture comes after two reference copies
    for k in range(SMALL.image_tokens):
        other = picture.clone()
        other[:, k] = (other[:, k] + 1) % SMALL.vocabulary
        after = net(sources, text, other)
        assert torch.equal(before[:, : first + k + 1], after[:, : first + k + 1])
        if k + 1 < SMALL.image_tokens:
            assert not torch.equal(before[:, first + k + 1], after[:, first + k + 1])


@pytest.mark.parametrize("block", [0, 1, 2])
def test_every_source_block_reaches_the_picture(block):
    net = random_net()
    sources, text, picture = inputs()
    other = sources.clone()
    other[:, block, 0] = (other[:, block, 0] + 1) % SMALL.vocabulary
    assert not torch.equal(net(sources, text, picture)[:, -1], net(other, text, picture)[:, -1])


def test_one_reference_makes_a_shorter_sequence_without_padding():
    two, one = make_layout(SMALL, 2), make_layout(SMALL, 1)
    n = SMALL.image_tokens
    assert (two.total, one.total) == (3 * n + 5 + 3 * n, 2 * n + 5 + 2 * n)
    assert one.source_slots == [0, 2]  # the background keeps its slot
    assert random_net()(*inputs(references=1)).shape == (2, 2 * n, SMALL.vocabulary)


def test_more_references_than_slots_are_refused():
    with pytest.raises(ValueError, match="3 references"):
        make_layout(SMALL, 3)


def test_state_dict_has_the_published_names_and_shapes():
    d, n, r, f = 16, 4, 3, 256
    expected = {
        "img_uncond_embedding": (r * n, d),
        "cls_embedding.uncond_embedding": (3, 5),
        "cls_embedding.cap_proj.fc1.weight": (d, 5),
        "cls_embedding.cap_proj.fc2.weight": (d, d),
        "tok_embeddings.weight": (11, d),
        "ref_index_embeddings.weight": (r, d),
        "instruct_token_embeddings.weight": (1, 2 * d),
        "norm.weight": (d,),
        "output.weight": (11, d),
    }
    for i in range(2):
        expected |= {
            f"layers.{i}.attention.wqkv.weight": (3 * d, d),
            f"layers.{i}.attention.wo.weight": (d, d),
            f"layers.{i}.feed_forward.w1.weight": (f, d),
            f"layers.{i}.feed_forward.w3.weight": (f, d),
            f"layers.{i}.feed_forward.w2.weight": (d, f),
            f"layers.{i}.attention_norm.weight": (d,),
            f"layers.{i}.ffn_norm.weight": (d,),
        }
    net = TokenAR(SMALL)
    assert {name: tuple(t.shape) for name, t in net.state_dict().items()} == expected
    assert {name for name, _ in net.named_parameters()} == set(expected)  # the null tables are trained


@pytest.mark.parametrize(
    ("width", "inner"), [(64, 256), (112, 512), (768, 2048), (1024, 2816), (1280, 3584), (2048, 5632), (3200, 8704)]
)
def test_feed_forward_width(width, inner):
    assert changed(width=width).feed_forward_width == inner


def test_each_component_can_be_switched_off():
    n = SMALL.image_tokens
    full = TokenAR(SMALL)
    plain = TokenAR(changed(index_embedding=False))
    assert set(full.state_dict()) - set(plain.state_dict()) == {"ref_index_embeddings.weight"}
    no_instruct = TokenAR(changed(instruct_tokens=0))
    assert set(full.state_dict()) - set(no_instruct.state_dict()) == {"instruct_token_embeddings.weight"}
    assert no_instruct.layout(2).total == full.layout(2).total - 2
    joint = TokenAR(changed(identity_disentanglement=False))
    assert joint.layout(2).total == full.layout(2).total - 2 * n
    assert joint(*inputs()).shape == (2, n, SMALL.vocabulary)


def test_the_index_embedding_acts_on_sources_only_and_tells_background_from_reference():
    layout = make_layout(SMALL, 2)
    assert source_ids(layout).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert null_rows(make_layout(SMALL, 1)).tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    net = random_net()
    sources, text, _ = inputs()
    prefix = net.embed_prefix(sources, text)
    index = net.ref_index_embeddings.weight
    tokens = net.tok_embeddings(sources)
    torch.testing.assert_close(prefix[:, 4:8], tokens[:, 1] + index[1])
    torch.testing.assert_close(prefix[:, 8:12], tokens[:, 2] + index[2])


def test_a_new_model_is_as_surprised_as_a_fair_die():
    sources, text, picture = inputs()
    net = TokenAR(SMALL)
    logits = net(sources, text, picture)
    loss = F.cross_entropy(logits.flatten(0, 1), net.target_tokens(sources, picture).flatten())
    assert loss.item() == pytest.approx(math.log(SMALL.vocabulary), abs=1e-6)


def test_tied_output_has_no_head_of_its_own():
    assert "output.weight" not in TokenAR(changed(tied_output=True)).state_dict()


def test_drop_table_borders():
    draws = torch.tensor([0.0, 0.0499, 0.05, 0.0999, 0.1, 0.5, 0.95, 0.9501])
    image, text = drop_decisions(draws, DropConfig())
    assert image.tolist() == [True, True, True, True, False, False, False, False]
    assert text.tolist() == [True, True, False, False, False, False, False, True]


def test_drop_table_probabilities():
    draws = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    image, text = drop_decisions(draws, DropConfig())
    shares = [(image & text), (image & ~text), (~image & ~text), (~image & text)]
    for share, expected in zip(shares, (0.05, 0.05, 0.85, 0.05), strict=True):
        assert share.float().mean().item() == pytest.approx(expected, abs=0.003)


def test_what_a_drop_replaces():
    net = random_net()
    sources, text, _ = inputs()
    image, words = torch.tensor([True, False]), torch.tensor([False, True])
    prefix, plain = net.embed_prefix(sources, text, image, words), net.embed_prefix(sources, text)
    n = 3 * SMALL.image_tokens
    assert torch.equal(prefix[0, :n], net.img_uncond_embedding)  # no index embedding on top
    assert torch.equal(prefix[1, :n], plain[1, :n])
    assert torch.equal(prefix[0, n : n + 3], plain[0, n : n + 3])
    torch.testing.assert_close(prefix[1, n : n + 3], net.cls_embedding.cap_proj(net.cls_embedding.uncond_embedding))


def test_drops_happen_in_training_only():
    net = random_net()
    sources, text, picture = inputs()
    always = torch.zeros(2)
    plain = net(sources, text, picture)
    assert torch.equal(net(sources, text, picture, always), plain)
    net.train()
    assert not torch.equal(net(sources, text, picture, always), plain)
    assert torch.equal(net(sources, text, picture), plain)


def test_rotary_values_by_hand():
    # head width 8: two frequencies per axis, 1 and 100 ** (-2 / 4) = 0.1
    table = rotary_table(torch.tensor([[2, 3], [-1, -1], [0, 0]]), 8, 100.0)
    angles = [2.0, 0.2, 3.0, 0.3]
    torch.testing.assert_close(table[0, :, 0], torch.tensor([math.cos(a) for a in angles]))
    torch.testing.assert_close(table[0, :, 1], torch.tensor([math.sin(a) for a in angles]))
    assert table[1].abs().sum() == 0
    x = torch.tensor([1.0, 2.0] * 4)[None, None, None]
    turned = apply_rotary(x, table[:1])[0, 0, 0]
    assert turned[0].item() == pytest.approx(math.cos(2) - 2 * math.sin(2), abs=1e-6)
    assert turned[1].item() == pytest.approx(2 * math.cos(2) + math.sin(2), abs=1e-6)
    assert apply_rotary(x, table[1:2]).abs().sum() == 0
    assert torch.equal(apply_rotary(x, table[2:]), x)


def test_copies_sit_where_their_originals_sit():
    layout = make_layout(SMALL, 2)
    coordinates = grid_coordinates(layout)
    n = SMALL.image_tokens
    assert torch.equal(coordinates[: 3 * n], coordinates[layout.prefix :])
    assert coordinates[:n].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert coordinates[2 * n].tolist() == [2 * SMALL.grid, 0]
    assert (coordinates[3 * n : layout.prefix] == -1).all()


def test_cost_figures():
    net = TokenAR(SMALL)
    assert net.kv_bytes(29) == 4 * 2 * 2 * 16 * 29
    assert net.flops(2) > net.flops(1)
