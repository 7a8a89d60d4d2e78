"""Fixtures of the tests here; what they are made of is in small/run.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from small.run import make_sample, tiny_config, write_shard


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """A folder with train-00000.tar, train-00001.tar (5 + 5 samples) and test-00000.tar (3), 64-pixel pictures."""
    folder = tmp_path_factory.mktemp("shards")
    write_shard(folder / "train-00000.tar", [make_sample(i, side=64) for i in range(5)])
    write_shard(folder / "train-00001.tar", [make_sample(i, side=64) for i in range(5, 10)])
    write_shard(folder / "test-00000.tar", [make_sample(i, "test", side=64) for i in range(3)])
    return folder


@pytest.fixture(scope="session")
def trained(shards, tmp_path_factory) -> Path:
    """The folder of a finished six-step run."""
    from tokenar.train.loop import train_model

    out = tmp_path_factory.mktemp("trained") / "run"
    train_model(tiny_config(shards, out))
    return out
