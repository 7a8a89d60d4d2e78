"""train-tokenar on small shards: encode, train and measure, in one process and in two."""

import json

import pytest
from prefect.client.orchestration import get_client
from prefect.testing.utilities import prefect_test_harness
from small_run import make_sample, tiny_config, write_shard

import flows.train
from data_schemas.errors import UserError
from flows.train import train_tokenar


@pytest.fixture(scope="module", autouse=True)
def harness():
    with prefect_test_harness():
        yield


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_shard(folder / "train-00000.tar", [make_sample(i, side=64) for i in range(4)])
    write_shard(folder / "test-00000.tar", [make_sample(i, "test", side=64) for i in range(2)])
    return folder


def settings(shards, folder, **changes):
    (folder / "settings.json").write_text(tiny_config(shards, folder / "run", **changes).model_dump_json())
    return str(folder / "settings.json")


def artifacts():
    with get_client(sync_client=True) as client:
        return {artifact.key for artifact in client.read_artifacts()}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_model_its_figures_and_its_pictures(shards, tmp_path, processes):
    summary = train_tokenar(
        str(shards / "train-*.tar"), str(shards / "test-*.tar"), str(tmp_path / "run"),
        settings=settings(shards, tmp_path), steps=2, processes=processes,
    )  # fmt: skip
    assert summary["finished"]
    assert json.loads((tmp_path / "run/summary.json").read_text())["steps"] == 2
    assert summary["evaluation"]["samples"] == 2
    assert summary["evaluation"]["identity"] is not None
    assert {"training", "evaluation", "drawn-pictures"} <= artifacts()


def test_mistakes_are_one_line(shards, tmp_path):
    with pytest.raises(UserError, match="no preset 'huge'; there is: cpu_small"):
        train_tokenar(str(shards / "train-*.tar"), preset="huge")
    with pytest.raises(UserError, match="raw shards; set tokenizer_weights"):
        train_tokenar(str(shards / "train-*.tar"), None, str(tmp_path / "run"), preset="tokenar_xl")


def test_a_training_that_was_stopped_is_not_measured(shards, tmp_path, monkeypatch):
    stopped = {"out": str(tmp_path / "run"), "finished": False, "steps": 1, "signal": 15}
    monkeypatch.setattr(flows.train, "train", lambda *arguments, **options: stopped)
    summary = train_tokenar(
        str(shards / "train-*.tar"), str(shards / "test-*.tar"), str(tmp_path / "run"),
        settings=settings(shards, tmp_path),
    )  # fmt: skip
    assert summary == stopped


def test_what_several_processes_say_is_passed_on_while_they_run(tmp_path, monkeypatch):
    """The stand-in for torchrun goes on once its first line has been printed here, and gives up after 20 seconds."""
    launcher = tmp_path / "python"
    launcher.write_text(
        "#!/bin/sh\n"
        "echo 'train 1/2  0:01 left' >&2\n"
        f"for i in $(seq 200); do test -e {tmp_path}/seen && break; sleep 0.1; done\n"
        f"test -e {tmp_path}/seen || echo 'error: nobody listens' >&2\n"
        "echo 'error: the loss is not finite' >&2\n"
        "echo 'error: the other process left' >&2\n"
        "exit 2\n"
    )
    launcher.chmod(0o755)
    said = []

    def listen(line):
        said.append(line)
        (tmp_path / "seen").touch()

    monkeypatch.setattr(flows.train, "print", listen, raising=False)
    monkeypatch.setattr(flows.train.sys, "executable", str(launcher))
    with pytest.raises(UserError, match=r"^the loss is not finite$"):
        flows.train._torchrun(2, "train", "{}", tmp_path / "settings.json")
    assert said[0] == "train 1/2  0:01 left"
    assert len(said) == 3
