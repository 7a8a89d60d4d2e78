"""Every published layout goes in, is drawn from, measured and looked at, and comes out with the same bytes."""

import json

import pytest
import torch
from commands import run_here
from PIL import Image
from safetensors.torch import load_file
from small.published import circle_vq, command_line
from small.run import changed, make_sample, photo, random_net, write_shard
from tiny.encoders import save_tiny_t5

from tokenar import SampleConfig, Sampler, cli, load_model
from tokenar.model.config import SIZES
from tokenar.model.published import NEW_KEYS

pytest.importorskip("transformers")
SHAPE = {
    "layers": 2, "heads": 2, "width": 16, "grid": 4, "vocabulary": 64, "text_tokens": 6, "text_width": 16,
    "null_embeddings": "frozen", "rotary_layout": "canvas", "background_index": "last_reference",
    "index_at_inference": False,
}  # fmt: skip
RELEASED = {**SHAPE, "max_references": 3, "instruct_tokens": 5, "distill": "dinov2"}
EDITAR = {
    **SHAPE, "max_references": 1, "background": False, "instruct_tokens": 0, "index_embedding": False,
    "identity_disentanglement": False, "distill": "dinov2",
}  # fmt: skip
ARGS = command_line(image_size=8, downsample_size=2, instruct_token_num=5)


def weights_of(settings, seed=0):
    return random_net(changed(**settings), seed).state_dict()


def prefixed(weights, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def trainers(settings=RELEASED, args=ARGS, **more):
    """A checkpoint as the published trainers write it."""
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    return {"model": weights_of(settings), "optimizer": optimizer, "steps": 3, "args": args} | more


def text_to_image():
    return {"model": {k: v for k, v in weights_of(RELEASED).items() if k not in NEW_KEYS}}


def averages():
    """A moving average of what is trained; the null tables stand beside it."""
    return {name: tensor for name, tensor in weights_of(RELEASED, 1).items() if "uncond_embedding" not in name}


LAYOUTS = {
    "trainer": lambda: (trainers(), None),
    "ddp": lambda: (trainers(model=prefixed(weights_of(RELEASED), "module.")), weights_of(RELEASED)),
    "compiled": lambda: (trainers(model=prefixed(weights_of(RELEASED), "module._orig_mod.")), weights_of(RELEASED)),
    "deepspeed": lambda: ({"module": weights_of(RELEASED)}, weights_of(RELEASED)),
    "alone": lambda: (weights_of(RELEASED), weights_of(RELEASED)),
    "ema only": lambda: ({"ema": weights_of(RELEASED)}, weights_of(RELEASED)),
    "ema beside": lambda: (trainers(ema=averages()), weights_of(RELEASED) | averages()),
    "half": lambda: ({"model": {k: v.half() for k, v in weights_of(RELEASED).items()}}, None),
    "bfloat16": lambda: ({"model": {k: v.bfloat16() for k, v in weights_of(RELEASED).items()}}, None),
    "editar": lambda: (trainers(EDITAR, command_line(image_size=8, downsample_size=2, max_ref_num=1)), None),
    "llamagen": lambda: (text_to_image(), None),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a VQ tokenizer and a T5."""
    folder = tmp_path_factory.mktemp("published")
    torch.save({"model": circle_vq(64).state_dict()}, folder / "vq.pt")
    save_tiny_t5(folder / "t5")
    return folder


def ran(main, *arguments):
    done = run_here(main, "tokenar", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def imported(place, checkpoint, out, *more):
    return ran(
        cli.import_main, checkpoint, "--tokenizer", place / "vq.pt", "--t5", place / "t5", "--out", out,
        "--set", "heads=2", "--set", "grid=4", "--set", "instruct_tokens=5", *more,
    )  # fmt: skip


def exported(model, folder):
    out = ran(cli.export_main, "--model", model, "--out", folder / "net.pt", "--tokenizer", folder / "vq.pt")
    return out, torch.load(folder / "net.pt", weights_only=True), torch.load(folder / "vq.pt", weights_only=True)


def same_bytes(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_comes_back_with_the_same_bytes(layout, place, tmp_path):
    content, weights = LAYOUTS[layout]()
    torch.save(content, tmp_path / "in.pt")
    none = ["--set", "instruct_tokens=0"] if layout == "editar" else []
    told = imported(place, tmp_path / "in.pt", tmp_path / "model", *none)
    said, net, vq = exported(tmp_path / "model", tmp_path)
    same_bytes(net["model"], weights or content["model"])
    same_bytes(vq["model"], circle_vq(64).state_dict())
    assert ("optimizer" in told) == ("optimizer" in content)
    assert ("not in the file: img_uncond_embedding" in told) == (layout == "llamagen")
    assert "otherwise" not in said
    config = load_model(tmp_path / "model").net.config
    assert config.background == (layout != "editar")
    assert config.max_references == (1 if layout == "editar" else 3)
    # And back: the exported file alone tells all settings.
    again = tmp_path / "again"
    ran(cli.import_main, tmp_path / "net.pt", "--tokenizer", tmp_path / "vq.pt", "--out", again)
    for path in (tmp_path / "model").iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
    before = (tmp_path / "net.pt").read_bytes()
    exported(again, tmp_path)
    assert (tmp_path / "net.pt").read_bytes() == before


def test_a_file_of_torch_before_1_6(place, tmp_path):
    content = trainers()
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    imported(place, tmp_path / "old.pt", tmp_path / "model")
    same_bytes(load_file(tmp_path / "model/model.safetensors"), content["model"])


def test_what_is_there_is_not_replaced_unless_asked(place, tmp_path):
    torch.save(trainers(), tmp_path / "in.pt")
    imported(place, tmp_path / "in.pt", tmp_path / "model")
    before = (tmp_path / "model/config.json").read_bytes()
    again = [tmp_path / "in.pt", "--tokenizer", place / "vq.pt", "--out", tmp_path / "model", "--set", "heads=4"]
    done = run_here(cli.import_main, "tokenar-import", *again)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "there is a model already" in done.stderr
    assert (tmp_path / "model/config.json").read_bytes() == before
    ran(cli.import_main, *again, "--overwrite")
    assert json.loads((tmp_path / "model/config.json").read_text())["model"]["heads"] == 4


def test_the_average_is_taken_unless_the_weights_are_asked_for(place, tmp_path):
    content = trainers(ema=averages())
    torch.save(content, tmp_path / "in.pt")
    imported(place, tmp_path / "in.pt", tmp_path / "model", "--no-ema")
    same_bytes(load_file(tmp_path / "model/model.safetensors"), content["model"])


def test_key_value_caches_of_sampling_are_left_out_and_said(place, tmp_path):
    content = trainers()
    content["model"]["layers.1.attention.kv_cache.k_cache"] = torch.zeros(2, 2)
    torch.save(content, tmp_path / "in.pt")
    assert "kv_cache" in imported(place, tmp_path / "in.pt", tmp_path / "model")
    assert "layers.1.attention.kv_cache.k_cache" not in load_file(tmp_path / "model/model.safetensors")


def test_two_teachers_are_kept_and_unused(place, tmp_path):
    content = trainers()
    for name in ("weight", "bias"):
        content["model"][f"alignment.0.{name}"] = content["model"].pop(f"alignment.{name}")
    torch.save(content, tmp_path / "in.pt")
    imported(place, tmp_path / "in.pt", tmp_path / "model")
    same_bytes(exported(tmp_path / "model", tmp_path)[1]["model"], content["model"])
    assert load_model(tmp_path / "model").net.alignment is None


@pytest.mark.slow
@pytest.mark.parametrize("source", ["folder", "file", "sized"])
def test_commands_take_the_folder_and_the_file(source, place, shards, tmp_path, monkeypatch):
    """``file`` was exported and tells its settings; ``sized`` is a trainer's and of a published size."""
    monkeypatch.setitem(SIZES, "tiny", (2, 2, 16))
    torch.save(trainers(), tmp_path / "in.pt")
    imported(place, tmp_path / "in.pt", tmp_path / "model")
    exported(tmp_path / "model", tmp_path)
    files = {"folder": tmp_path / "model", "file": tmp_path / "net.pt", "sized": tmp_path / "in.pt"}
    beside = [] if source == "folder" else ["--tokenizer", place / "vq.pt", "--t5", place / "t5"]
    model, test = ["--model", files[source], *beside], ["--shards", shards / "test-*.tar", "--limit", 2]
    ran(cli.sample_main, *model, *test, "--out", tmp_path / "drawn", "--precision", "float32")
    listed = json.loads((tmp_path / "drawn/samples.json").read_text())
    assert Image.open(tmp_path / "drawn" / listed[0]["file"]).size == (8, 8)
    assert listed[0]["settings"]["precision"] == "float32"
    table = ran(cli.eval_main, *model, *test, "--out", tmp_path / "eval", "--set", "sampling.precision=float32")
    figures = json.loads((tmp_path / "eval/metrics.json").read_text())
    (method,) = figures["methods"].values()
    assert method["model_config"]["max_references"] == 3
    assert "|" in table
    ran(cli.attention_main, *model, *test, "--out", tmp_path / "attention")
    assert json.loads((tmp_path / "attention/attention.json").read_text())["samples"] == 2
    evaluated = tmp_path / "eval" / next(iter(figures["methods"])) / "samples" / listed[0]["file"]
    assert Image.open(evaluated).tobytes() == Image.open(tmp_path / "drawn" / listed[0]["file"]).tobytes()


@pytest.mark.slow
def test_a_model_that_edits_is_measured_and_looked_at(place, tmp_path):
    """EditAR's has one picture in its input and no background."""
    torch.save(trainers(EDITAR, command_line(image_size=8, downsample_size=2, max_ref_num=1)), tmp_path / "in.pt")
    imported(place, tmp_path / "in.pt", tmp_path / "model", "--set", "instruct_tokens=0")
    write_shard(tmp_path / "test-0.tar", [make_sample(i, "test", side=64, references=1) for i in range(2)])
    given = ["--model", tmp_path / "model", "--shards", tmp_path / "test-0.tar"]
    ran(cli.eval_main, *given, "--out", tmp_path / "eval")
    ran(cli.attention_main, *given, "--out", tmp_path / "attention")
    told = json.loads((tmp_path / "attention/attention.json").read_text())
    assert "background" not in told["mass"]["picture"]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_precision_is_that_of_the_model_and_its_text_encoder(precision, place, tmp_path):
    torch.save(trainers(), tmp_path / "in.pt")
    imported(place, tmp_path / "in.pt", tmp_path / "model")
    sampler = Sampler(tmp_path / "model", SampleConfig(precision=precision))
    kind = getattr(torch, precision)
    assert {parameter.dtype for parameter in sampler.net.parameters()} == {kind}
    assert sampler.model.text.network.dtype == kind
    drawn = sampler.draw([photo("coffee")] * 3, photo("rocket"), "a cup")
    assert drawn.size == (8, 8)
    loaded = load_model(tmp_path / "model")
    Sampler(loaded, SampleConfig(precision=precision))
    assert loaded.net.norm.weight.dtype == torch.float32, "the caller's model stays as it was"
