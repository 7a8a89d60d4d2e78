"""A small encoding: its settings, and what is in the folders that it reads and makes."""

from pathlib import Path

from tiny.encoders import TINY_VQ

from data_schemas.shards import read_shard
from tokenar.data.encode import EncodeConfig
from tokenar.data.encoded_shards import EncodedShards
from tokenar.encoders.config import T5Config, TeacherConfig

SIZE = 16
"""Pixels a side; with two of them a token, 64 tokens an image."""


def settings(raw, models, out, **changes) -> EncodeConfig:
    values = {
        "shards": str(raw / "train-*.tar"), "out": str(out), "vq": str(models / "vq.safetensors"),
        "vq_config": TINY_VQ, "image_size": SIZE, "text": T5Config(model=str(models / "t5"), tokens=40),
        "teacher": TeacherConfig(model=str(models / "dinov2")), "batch": 2, "threads": 2,
    }  # fmt: skip
    return EncodeConfig.model_validate(values | changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def opened(folder: Path) -> EncodedShards:
    return EncodedShards(str(folder / "train-*.tar"))


def raw_samples(raw: Path) -> list:
    return [sample for path in sorted(raw.glob("*.tar")) for sample in read_shard(str(path))]
