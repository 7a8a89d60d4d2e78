"""Where a model looks: the weights are the model's own, the sums are right, the command says so."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from small.run import SMALL, changed, in_process, inputs, make_sample, random_net, write_shard

from data_schemas.errors import UserError
from tokenar.attention.maps import attention_rows, checked_boxes, hooked, identity, measure, target_regions
from tokenar.data.samples import Batch, collate, encode_sample, read_samples
from tokenar.model.config import ModelConfig
from tokenar.model.folder import load_model
from tokenar.model.layers import Attention
from tokenar.model.positions import make_layout
from tokenar.model.transformer import TokenAR

MASK = torch.tensor([[True, True, False], [True, False, False]])
BOXES = [[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 0.5]]  # of 2 x 2 tokens: the left two, and the upper right


def one(config=SMALL, references=2):
    sources, text, picture = inputs(config, 1, references)
    return Batch(sources, text, picture, MASK[:1])


def attention(width=4, **changes):
    return Attention(changed(heads=1, width=width, **changes))


@torch.no_grad()
def test_a_token_that_looks_at_one_place():
    module = attention()
    module.wqkv.weight.copy_(torch.cat([1e4 * torch.eye(4), torch.eye(4), torch.zeros(4, 4)]))
    x = torch.eye(4)[[0, 1, 2, 1, 3]][None]
    unturned = torch.tensor([1.0, 0.0]).expand(5, 2, 2)
    ((rows, weights),) = attention_rows(module, x, unturned, None, torch.tensor([0, 2, 3, 4]))
    assert rows.tolist() == [0, 2, 3, 4]
    assert weights[0, 0].tolist() == [[1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0.5, 0, 0.5, 0], [0, 0, 0, 0, 1]]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"heads": 4, "kv_heads": 2},
        {"source_attention": "block", "text_rotary": "identity"},
        {"text_padding": "masked"},  # moved to the end: a rotary table for each sample, and no mask
        {"text_padding": "masked", "instruct_tokens": 0},
        {"text_padding": "masked", "source_attention": "block", "kv_heads": 1},
        {"rotary_layout": "canvas", "max_references": 3, "identity_disentanglement": False},
    ],
)
@torch.no_grad()
def test_the_weights_make_what_the_module_makes(changes):
    config = changed(**changes)
    net, mixed, made, masks = random_net(config), [], [], []

    def read(module, arguments):
        x, rotary, _, mask, _ = arguments
        rows = torch.arange(x.shape[1])
        weights = torch.cat([part for _, part in attention_rows(module, x, rotary, mask, rows, chunk=7)], dim=2)
        v = module.wqkv(x)[..., -module.kv_heads * module.head_width :].unflatten(-1, (module.kv_heads, -1))
        v = v.transpose(1, 2).repeat_interleave(module.heads // module.kv_heads, dim=1)
        mixed.append(module.wo((weights @ v).transpose(1, 2).flatten(2)))
        masks.append(mask)
        unseen = rows[:, None] < rows if mask is None else ~mask.expand(len(x), 1, -1, -1)
        assert (weights.masked_select(unseen) == 0).all(), "nothing later, no padding, no other block"
        assert (weights.masked_select(~unseen.expand_as(weights)) > 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))

    for layer in net.layers:
        layer.attention.register_forward_hook(lambda module, arguments, output: made.append(output))
    with hooked(net, read):
        net(*inputs(config), text_mask=MASK)
    assert len(mixed) == len(made) == 2
    for ours, theirs in zip(mixed, made, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    net(*inputs(config), text_mask=MASK)
    assert len(mixed) == 2, "the hooks are gone"


@pytest.mark.parametrize(
    "changes", [{}, {"text_padding": "masked"}, {"source_attention": "block", "index_on_targets": True}]
)
@torch.no_grad()
def test_what_is_measured_is_the_model_as_it_is_trained(changes):
    config, states = changed(**changes), []
    net, batch = random_net(config), one(config)
    hook = net.norm.register_forward_hook(lambda module, arguments, output: states.append(output))
    measure(net, batch)
    hook.remove()
    logits = net.logits(states[0][:, net.layout(2).prefix - 1 :])
    expected = net(batch.sources, batch.text, batch.picture, text_mask=batch.text_mask)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_shares_maps_and_looks_agree():
    net, batch, n = random_net(), one(), SMALL.image_tokens
    found = measure(net, batch, BOXES)
    assert found.regions == ["copy of reference 0", "copy of reference 1", "picture", "subject 0", "subject 1", "rest"]
    assert found.segments == [
        "reference 0", "reference 1", "background", "text", "instruct tokens", "copy of reference 0",
        "copy of reference 1", "picture so far",
    ]  # fmt: skip
    assert (found.mass.shape, found.maps.shape, found.looks.shape) == ((2, 6, 8), (2, 6, 3, 2, 2), (2, 3, 8, 2, 2))
    torch.testing.assert_close(found.mass.sum(-1), torch.ones(2, 6))
    torch.testing.assert_close(found.maps.sum((-1, -2)), found.mass[..., :3])
    torch.testing.assert_close(found.looks.mean((-1, -2)), found.mass[:, :3])
    torch.testing.assert_close(found.looks[:, -1, :, :, 0].mean(-1), found.mass[:, 3])
    torch.testing.assert_close(found.looks[:, -1, :, 0, 1], found.mass[:, 4])
    assert (found.mass[:, 0, -2:] == 0).all(), "the first copy sees neither the second nor the picture"
    assert (found.mass[:, 1, -1] == 0).all()
    for chunk in (1, 5, 3 * n):
        again = measure(net, batch, BOXES, chunk=chunk)
        for name in ("mass", "maps", "looks"):
            torch.testing.assert_close(getattr(again, name), getattr(found, name), atol=1e-6, rtol=0)
    every = measure(net, batch, BOXES, heads=True)
    assert every.mass.shape == (2, SMALL.heads, 6, 8)
    assert not torch.allclose(every.mass[:, 0], every.mass[:, 1], atol=1e-3)
    torch.testing.assert_close(every.averaged().maps, found.maps)
    torch.testing.assert_close(every.averaged().looks, found.looks)


def test_masked_padding_is_not_looked_at():
    config = changed(text_padding="masked", text_rotary="identity")
    net, batch = random_net(config), one(config)
    text = [name == "text" for name in measure(net, batch).segments]
    assert (measure(net, batch).mass[..., text] > 0).all()
    nothing = Batch(batch.sources, batch.text, batch.picture, torch.zeros_like(batch.text_mask))
    assert (measure(net, nothing).mass[..., text] == 0).all()


@torch.no_grad()
def test_the_index_embedding_can_be_left_out():
    config = changed(index_on_targets=True)
    net, batch = random_net(config), one(config)
    with_index, without = measure(net, batch), measure(net, batch, index=False)
    assert not torch.allclose(without.mass, with_index.mass, atol=1e-4)
    net.ref_index_embeddings.weight.zero_()
    assert torch.equal(without.looks, measure(net, batch).looks)


# A model that looks at tokens equal to the one before: pairs that turn slowly hold one-hot codes.
PLANTED = ModelConfig(
    layers=1, heads=1, width=16, vocabulary=4, grid=4, text_tokens=3, text_width=5, instruct_tokens=2,
    index_embedding=False, identity_disentanglement=False, rotary_base=1e30, dropout=0, text_dropout=0,
)  # fmt: skip


@torch.no_grad()
def test_a_model_that_looks_for_its_own_code():
    net = TokenAR(PLANTED).eval()
    net.tok_embeddings.weight.zero_()
    for code, dimension in enumerate((2, 4, 6, 10)):
        net.tok_embeddings.weight[code, dimension] = 1
    eye = torch.eye(16)
    net.layers[0].attention.wqkv.weight.copy_(torch.cat([100 * eye, eye, eye]))
    halves = torch.tensor([1, 2]).repeat_interleave(8)[None]  # what is in the upper half of the picture, in the lower
    sources = torch.tensor([[[1] * 16, [2] * 16, [3] * 16]])
    batch = Batch(sources, torch.zeros(1, 3, 5), halves, MASK[:1])
    found = measure(net, batch, [[0, 0, 1, 0.5], [0, 0.5, 1, 1]])
    assert found.regions == ["picture", "subject 0", "subject 1"]  # nothing is left for "rest"
    mass = found.mass[0, 1:]
    own = sum(16 / (16 + j) for j in range(1, 8))  # after j tokens of the half, one by one
    first = 1 / (3 * 16 + 5)  # the first token is predicted by an instruct token, which looks at everything alike
    expected = torch.zeros(2, 6)
    expected[0, :3] = 16 * first
    expected[0, 3:5] = torch.tensor([3 * first, 2 * first])
    expected[0, 0] += own
    expected[0, 5] = 7 - own
    expected[1, 0] = 16 / 24  # the lower half's first token, predicted by the upper half's last
    expected[1, 1] = own
    expected[1, 5] = 7 - own + 8 / 24
    torch.testing.assert_close(mass, expected / 8)
    torch.testing.assert_close(found.maps[0, 2, 1], (expected[1, 1] / 8 / 16).expand(4, 4))
    right = [expected[i, i] / expected[i, :2].sum() for i in range(2)]
    torch.testing.assert_close(identity(found), torch.stack(right).mean()[None])
    assert identity(found, "copy of reference") is None
    assert identity(measure(net, batch)) is None


def cells(regions, name):
    return regions[name].view(-1, 4, 4)[-1].int().tolist()


def test_regions_of_boxes():
    layout = make_layout(changed(grid=4), 2)
    regions = target_regions(layout, [[0.0, 0.1, 0.6, 0.9], [0.45, 0.8, 0.5, 0.82]])
    assert cells(regions, "subject 0") == [[1, 1, 0, 0]] * 4  # a token is inside with its centre
    assert cells(regions, "subject 1") == [[0] * 4] * 3 + [[0, 1, 0, 0]]  # too small for one: the nearest
    assert cells(regions, "rest") == [[0, 0, 1, 1]] * 4
    assert regions["subject 0"].sum() == 8, "of the picture, not of the copies"
    assert list(target_regions(layout, None)) == ["copy of reference 0", "copy of reference 1", "picture"]
    assert list(target_regions(make_layout(changed(identity_disentanglement=False), 1), None)) == ["picture"]


@pytest.mark.parametrize(
    "boxes", ["none", [[0, 0, 1, 1]], [[0, 0, 1, 1], [0, 0, 1]], [[0, 0, 1, 1], [10, 10, 50, 60]], [[0, 0, 1, 1], None]]
)
def test_boxes_that_are_none(boxes):
    with pytest.raises(UserError, match="sample a7: boxes"):
        checked_boxes({"boxes": boxes}, 2, "a7")
    assert checked_boxes({}, 2, "a7") is None


def run(trained, out, shards, *options):
    return in_process("attention", "--model", trained / "model", "--shards", shards, "--out", out, *options)


@pytest.mark.slow
def test_the_command_writes_its_files(trained, tmp_path):
    samples = [make_sample(0, "test", 64), make_sample(1, "test", 64, references=1), make_sample(2, "test", 64)]
    del samples[2].info["boxes"]
    shard = write_shard(tmp_path / "s.tar", samples)
    result = run(trained, tmp_path, shard, "--heads", "--layers", "0")
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "attention.json").read_text())
    assert f"3 samples, identity {found['identity']:.3f} (chance 0.500)" in result.stdout
    picture = found["mass"]["picture"]
    assert (picture["samples"], found["mass"]["subject 1"]["samples"], found["layers"]) == (3, 1, 1)
    for shares in found["mass"].values():
        assert sum(values[0] for name, values in shares.items() if name != "samples") == pytest.approx(1)
    arrays = {}
    for sample in samples:
        with safe_open(tmp_path / "samples" / f"{sample.sample_id}.safetensors", "pt") as file:
            arrays[sample.sample_id] = file.get_tensor("mass")
            about = json.loads(file.metadata()["attention"])
            assert about["axes"]["maps"] == ["layer", "head", "region", "source", "row", "column"]
            assert about["prompt"] == sample.prompt
        for kind in ("sources", "picture", "mass"):
            with Image.open(tmp_path / "samples" / f"{sample.sample_id}.{kind}.png") as figure:
                assert np.asarray(figure).std() > 10, "something is drawn"
    assert [a.shape for a in arrays.values()] == [(1, 2, 6, 8), (1, 2, 4, 6), (1, 2, 3, 8)]
    mean = [arrays["test-0000"].mean(1)[0, 2], arrays["test-0001"].mean(1)[0, 1], arrays["test-0002"].mean(1)[0, 2]]
    assert picture["background"][0] == pytest.approx((mean[0][2] + mean[1][1] + mean[2][2]).item() / 3)
    assert picture["reference 1"][0] == pytest.approx((mean[0][1] + mean[2][1]).item() / 3)
    assert [row["identity"] is None for row in found["per_sample"]] == [False, True, True]


@pytest.mark.slow
def test_predictions_take_the_place_of_the_true_pictures(trained, shards, tmp_path):
    test = str(shards / "test-*.tar")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "test-0000.png")
    result = run(trained, tmp_path, test, "--limit", 1, "--predictions", tmp_path)
    assert result.returncode == 0, result.stderr
    drawn = load_file(tmp_path / "samples" / "test-0000.safetensors")
    model, (sample,) = load_model(trained / "model"), read_samples(test, 1)
    sample.target = Image.new("RGB", (40, 40), "red")
    red = collate([encode_sample(sample, model.tokenizer, model.text, 2)])
    torch.testing.assert_close(drawn["looks"], measure(model.net, red, sample.info["boxes"]).looks)
    (sample,) = read_samples(test, 1)
    true = collate([encode_sample(sample, model.tokenizer, model.text, 2)])
    assert not torch.allclose(drawn["looks"], measure(model.net, true, sample.info["boxes"]).looks, atol=1e-4)


def refused(result, *parts):
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert str(part) in line


def test_attention_refuses(trained, shards, tmp_path):
    test, out = shards / "test-*.tar", tmp_path / "out"
    refused(run(tmp_path, out, test), "no config.json")
    refused(run(trained, out, tmp_path / "none-*.tar"), "none-*.tar", "no shard")
    refused(run(trained, out, test, "--layers", "0,1"), "layer 1", "layers 0 to 0")
    refused(run(trained, out, test, "--layers", "0,x"), "--layers 0,x", "0,5,11")
    refused(run(trained, out, test, "--predictions", tmp_path / "no"), "no such folder")
    refused(run(trained, out, test, "--predictions", tmp_path), "test-0000.png", "no prediction")
    (tmp_path / "file").write_text("")
    refused(run(trained, tmp_path / "file", test), "cannot be made")


@pytest.mark.slow
def test_nothing_of_an_earlier_call_stands_beside_this_one(trained, shards, tmp_path):
    out = tmp_path / "out"
    elsewhere = make_sample(0, "test", 64)
    elsewhere.sample_id = "in/folder 1"
    assert run(trained, out, write_shard(tmp_path / "s.tar", [elsewhere])).returncode == 0
    assert run(trained, out, shards / "test-*.tar", "--limit", 2).returncode == 0
    (out / "samples" / "notes.txt").write_text("mine")
    assert run(trained, out, shards / "test-*.tar", "--limit", 1).returncode == 0
    assert sorted(path.name for path in (out / "samples").iterdir()) == [
        "notes.txt", "test-0000.mass.png", "test-0000.picture.png", "test-0000.safetensors", "test-0000.sources.png"
    ]  # fmt: skip
