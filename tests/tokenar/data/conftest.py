"""Three small raw shards, encoders for them, and what one encoding makes of them; read only."""

from pathlib import Path

import pytest
from safetensors.torch import save_file
from small.encoding import settings
from small.run import make_sample, write_shard
from tiny.encoders import save_tiny_dinov2, save_tiny_t5, tiny_vq

from tokenar.data.encode import Encoders, encode_shards, load_encoders


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """Three raw shards: 3 samples of one reference, 2 of two, 2 of three."""
    folder = tmp_path_factory.mktemp("raw")
    for number, (count, references) in enumerate([(3, 1), (2, 2), (2, 3)]):
        samples = [make_sample(10 * number + i, side=32, references=references) for i in range(count)]
        write_shard(folder / f"train-{number:05d}.tar", samples)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder with vq.safetensors, other.safetensors (another VQ), t5 and dinov2."""
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("vq", 0), ("other", 1)):
        save_file({k: v.contiguous() for k, v in tiny_vq(seed).state_dict().items()}, folder / f"{name}.safetensors")
    save_tiny_t5(folder / "t5")
    save_tiny_dinov2(folder / "dinov2")
    return folder


@pytest.fixture(scope="module")
def encoders(raw, models) -> Encoders:
    return load_encoders(settings(raw, models, "unused"), "cpu")


@pytest.fixture(scope="module")
def whole(raw, models, tmp_path_factory) -> Path:
    """The folder that one uninterrupted process makes."""
    out = tmp_path_factory.mktemp("whole") / "encoded"
    done = encode_shards(settings(raw, models, out))
    assert {key: done[key] for key in ("encoded", "there", "samples")} == {"encoded": 3, "there": 0, "samples": 7}
    return out
