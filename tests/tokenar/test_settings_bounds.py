"""Every number has bounds, none may be infinite, and what was published passes."""

import pytest
from small.run import in_process

from data_schemas.errors import UserError
from data_schemas.settings import MAX_SEED
from tokenar.config import PRESETS, SampleConfig, cpu_small, with_changes
from tokenar.encoders.config import EncodeConfig, PatchVqConfig, TokenizerConfig, VqConfig
from tokenar.evaluate.config import EvalConfig
from tokenar.model.config import SIZES, released, tokenar_xl


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes_pass(size):
    assert released(size).parameters < 8e9
    assert tokenar_xl().sequence < 10_000


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_pass(preset):
    assert PRESETS[preset](seed=MAX_SEED).seed == MAX_SEED


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lr": float("inf")}, "lr: "), ({"lr": float("nan")}, "lr: "), ({"seed": 2**63}, "seed: "),
        ({"seed": -1}, "seed: "), ({"betas": (9, 9)}, "betas.0: "), ({"betas": (0.9, 1.0)}, "betas.1: "),
        ({"model__layers": 10**9}, "model.layers: "), ({"model__width": 10**9}, "model.width: "),
        ({"model__grid": 10**9}, "model.grid: "), ({"model__vocabulary": 10**12}, "model.vocabulary: "),
        ({"steps": 10**30}, "steps: "), ({"batch": 10**9}, "batch: "), ({"variations": 10**9}, "variations: "),
        ({"weight_decay": float("inf")}, "weight_decay: "), ({"clip": float("nan")}, "clip: "),
        ({"model__layers": 1000, "model__width": 4096, "model__heads": 32}, "billion parameters"),
        ({"model__grid": 500}, "tokens a sample"), ({"out": "s3://bucket/run"}, "out: "), ({"config": 3}, "config: "),
        ({"model__layer": 3}, "did you mean layers?"), ({"shards": "a\0b"}, "shards: "),
    ],
)  # fmt: skip
def test_training_refuses(changes, told):
    with pytest.raises(UserError) as complaint:
        with_changes(cpu_small(), **changes)
    assert told in str(complaint.value)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (SampleConfig, {"temperature": float("inf")}), (SampleConfig, {"guidance": float("nan")}),
        (SampleConfig, {"image_guidance": float("inf")}), (SampleConfig, {"seed": 2**63}),
        (SampleConfig, {"batch": 10**9}), (SampleConfig, {"top_k": 10**12}),
        (EvalConfig, {"swap_margin": float("nan")}), (EvalConfig, {"edge_tolerance": float("inf")}),
        (EvalConfig, {"kid_subsets": 10**9}), (TokenizerConfig, {"image_size": 10**9, "patch": 1}),
        (PatchVqConfig, {"latents": 10**6}), (PatchVqConfig, {"latents": 8, "width": 33}), (PatchVqConfig, {}),
        (PatchVqConfig, {"latents": 8, "steps": 10**9}),
        (VqConfig, {"ch_mult": (1,) * 99}), (VqConfig, {"ch_mult": (1, 99)}),
        (VqConfig, {"ch_mult": (1,), "codebook_size": 2**20, "codebook_embed_dim": 4096}),
        (EncodeConfig, {"shards": "a", "out": "b", "vq": "c", "batch": 10**9}),
    ],
)  # fmt: skip
def test_the_others_refuse(kind, values):
    with pytest.raises(UserError):
        kind.parse(values, "settings")


def test_options_refuse_before_anything_is_read():
    for option in ("--temperature", "--guidance", "--image-guidance"):
        done = in_process("sample", "--model", "none", "--out", "none", "--folder", "none", option, "inf")
        assert done.returncode == 2
        assert option.lstrip("-").replace("-", "_") in done.stderr
