"""train-tokenar on small shards: encode, train and measure, in one process and in two."""

import json

import pytest
from prefect.client.orchestration import get_client
from prefect.testing.utilities import prefect_test_harness
from small.run import make_sample, tiny_config, write_shard

import flows.train
from data_schemas.errors import UserError
from flows.evaluate import evaluate_tokenar
from flows.train import train_tokenar
from pipeline.report.results import read_training
from tokenar.config import with_changes
from tokenar.train.loop import OtherRun, train_model

pytestmark = pytest.mark.slow  # the server alone takes seconds to start


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
        found = sorted(client.read_artifacts(), key=lambda artifact: artifact.created)
        return {artifact.key: artifact.data for artifact in found}


@pytest.mark.parametrize("processes", [1, 2])
def test_a_model_its_figures_and_its_pictures(shards, tmp_path, processes):
    summary = train_tokenar(
        str(shards / "train-*.tar"), str(shards / "test-*.tar"), str(tmp_path / "run"),
        settings=settings(shards, tmp_path), steps=2, processes=processes,
    )  # fmt: skip
    assert summary["finished"]
    assert json.loads((tmp_path / "run/summary.json").read_text())["steps"] == 2
    assert summary["evaluation"]["samples"] == 2
    assert summary["evaluation"]["methods"]["run"]["figures"]["identity"] is not None
    left = read_training(str(tmp_path / "run"))
    assert [sample_id for sample_id, _ in left.samples] == ["test-0000", "test-0001"]
    assert left.evaluation["whole_psnr"] == summary["evaluation"]["methods"]["run"]["figures"]["whole_psnr"]
    assert not [name for name in left.evaluation if name.startswith(("round_trip", "subject_", "similarity"))]
    assert {"training", "evaluation", "evaluation-table", "evaluation-grid", "drawn-pictures"} <= artifacts().keys()


def test_several_checkpoints_and_another_method_in_one_table(shards, tmp_path):
    glob, models = str(shards / "test-*.tar"), []
    for name in ("early", "late"):
        train_model(tiny_config(shards, tmp_path / name, steps=2 if name == "early" else 4))
        models.append(str(tmp_path / name / "model"))
    for number in range(2):
        make_sample(number, "test", side=64).target.save(tmp_path / f"test-{number:04d}.png")
    result = evaluate_tokenar(models, {"EditAR": str(tmp_path)}, glob, str(tmp_path / "out"))
    assert list(result["methods"]) == ["early", "late", "EditAR"]
    found = artifacts()
    assert [row["method"] for row in json.loads(found["evaluation"])] == ["early", "late", "EditAR"]
    assert "| EditAR | CVPR 2025 | **100.00** |" in found["evaluation-table"]
    assert found["evaluation-grid"].startswith("![grid](data:image/jpeg;base64,")
    assert found["drawn-pictures"].count("data:image/jpeg") == 2
    with pytest.raises(UserError, match="no model there"):
        evaluate_tokenar([str(tmp_path)], {}, glob, str(tmp_path / "out"))


def test_what_is_there_is_kept_and_anything_else_is_refused_in_a_flow_s_words(shards, tmp_path):
    """As after the quickstart: the folder holds a training already."""
    out = tmp_path / "run"
    given = (str(shards / "train-*.tar"), str(shards / "test-*.tar"), str(out))
    config = tiny_config(shards, out)
    (tmp_path / "settings.json").write_text(config.model_dump_json())
    first = train_tokenar(*given, settings=str(tmp_path / "settings.json"), steps=2)
    weights = (out / "model/model.safetensors").read_bytes()
    again = train_tokenar(*given, settings=str(tmp_path / "settings.json"), steps=2)
    assert again["finished"]
    assert again["val_loss"] == first["val_loss"]
    assert (out / "model/model.safetensors").read_bytes() == weights

    (tmp_path / "settings.json").write_text(with_changes(config, lr=0.5).model_dump_json())
    state = train_tokenar(*given, settings=str(tmp_path / "settings.json"), steps=2, return_state=True)
    assert state.is_failed()
    assert state.message == (
        f"{out}: the run there has lr = 0.01, not 0.5; resume with the same settings or give another out"
    )
    with pytest.raises(OtherRun):
        state.result()
    assert (out / "model/model.safetensors").read_bytes() == weights
    assert train_tokenar(*given, settings=str(tmp_path / "settings.json"), steps=2, overwrite=True)["finished"]
    assert (out / "model/model.safetensors").read_bytes() != weights


def test_a_start_that_never_came_to_a_checkpoint_is_replaced_and_nothing_else(tmp_path):
    assert flows.train._found(tmp_path / "none") == (False, False)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.jsonl").touch()
    assert flows.train._found(tmp_path) == (False, True)
    (tmp_path / "model").mkdir()
    assert flows.train._found(tmp_path) == (False, False), "a model alone may be all that somebody kept"
    (tmp_path / "checkpoints/step-000002").mkdir()
    assert flows.train._found(tmp_path) == (True, False)


def test_a_mistake_leaves_no_trace_in_the_log(shards, tmp_path, caplog):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="not empty"):
        train_tokenar(str(shards / "train-*.tar"), None, str(tmp_path), settings=settings(shards, tmp_path))
    assert "not empty" in caplog.text
    assert "Traceback" not in caplog.text
    assert "Finished in state Completed" not in caplog.text


def test_mistakes_are_one_line(shards, tmp_path):
    with pytest.raises(UserError, match="no preset 'huge'; there is: cpu_small"):
        train_tokenar(str(shards / "train-*.tar"), preset="huge")
    with pytest.raises(UserError, match="raw shards; set tokenizer_weights"):
        train_tokenar(str(shards / "train-*.tar"), None, str(tmp_path / "run"), preset="tokenar_xl")


def test_a_training_that_was_stopped_is_not_measured(shards, tmp_path, monkeypatch):
    stopped = {"out": str(tmp_path / "run"), "finished": False, "steps": 1, "signal": 15}
    monkeypatch.setattr(flows.train, "train_model", lambda *arguments, **options: stopped)
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
