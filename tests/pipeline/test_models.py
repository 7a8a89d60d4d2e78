"""Where weights are, and what is said when they are not."""

import json
import os
import subprocess
import sys
import time

import pytest
from doubles.hub import COMMIT, FILES, hub

from data_schemas.errors import UserError
from pipeline.core import stage as core_stage
from pipeline.core import weights as core_weights
from pipeline.core.stage import Sample, Stage, StageConfig
from pipeline.core.weights import Weights
from pipeline.synthesis.dreamrelation.found import files_here

OWN = '''
"""A filter whose model lies on the hub or in a folder."""
from pipeline.core.weights import Weights
from pipeline.core.stage import Stage, StageConfig

class NeedsConfig(StageConfig):
    sources: list[str]

class Needs(Stage):
    name = "needs"
    columns = ()
    Config = NeedsConfig
    def weights(self):
        files = ("*.safetensors", "config.json")
        return tuple(Weights("small model", s, files, licence="MIT", gigabytes=2.5, gated="gated" in s)
                     for s in self.config.sources)
    def process(self, sample):
        return {}
'''


def command(tmp_path, *arguments, sources, **env):
    (tmp_path / "needs.py").write_text(OWN)
    (tmp_path / "my.yaml").write_text(f"filters: [{{use: 'needs:Needs', config: {{sources: {sources}}}}}]")
    settings = {"HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(tmp_path), "HF_HUB_DISABLE_XET": "1", **env}
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments, "--profile", "embedded", "--config", "my.yaml"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={**{k: v for k, v in os.environ.items() if not k.startswith("HF_")}, **settings,
             "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.getcwd()}"},
    )  # fmt: skip


def one_line(run):
    assert run.returncode == 2, run.stderr
    assert "Traceback" not in run.stderr
    print(run.stderr)
    *progress, line = run.stderr.strip().splitlines()
    assert all("it/s" in text or "%" in text or "Warning" in text for text in progress), progress
    return line


def folder(tmp_path, **files):
    for name, data in {"model.safetensors": b"abc", "config.json": b"{}", **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return tmp_path


NEED = ("*.safetensors", "config.json")


@pytest.mark.slow
def test_check_fetch_check(tmp_path):
    with hub() as (address, seen):
        sources = ["tiny/open"]
        before = command(tmp_path, "models", "check", sources=sources, HF_ENDPOINT=address)
        assert before.returncode == 1
        assert "small model: tiny/open" in before.stdout
        assert "missing" in before.stdout
        assert "~2.5 GB" in before.stdout
        assert "MIT" in before.stdout
        assert not seen  # looking asks nobody

        fetched = command(tmp_path, "models", "fetch", sources=sources, HF_ENDPOINT=address)
        assert fetched.returncode == 0, fetched.stderr
        assert not any("training.bin" in request for request in seen)
        seen.clear()
        after = command(tmp_path, "models", "check", sources=sources, HF_ENDPOINT=address)
        assert after.returncode == 0
        assert "here" in after.stdout
        assert not seen
    snapshot = tmp_path / f"hf/hub/models--tiny--open/snapshots/{COMMIT}"
    assert (snapshot / "model.safetensors").read_bytes() == FILES["model.safetensors"]


@pytest.mark.slow
def test_what_the_hub_refuses_is_one_line_and_the_rest_is_fetched(tmp_path):
    sources = ["tiny/gated", "tiny/nowhere", "tiny/open"]
    with hub() as (address, _):
        line = one_line(command(tmp_path, "models", "fetch", sources=sources, HF_ENDPOINT=address))
    assert "tiny/gated is gated: accept its licence" in line
    assert "HF_TOKEN" in line
    assert "tiny/nowhere does not exist on the hub" in line
    assert (tmp_path / f"hf/hub/models--tiny--open/snapshots/{COMMIT}/model.safetensors").exists()


def test_offline_mode_is_honoured(tmp_path):
    with hub() as (address, seen):
        line = one_line(
            command(tmp_path, "models", "fetch", sources=["tiny/open"], HF_ENDPOINT=address, HF_HUB_OFFLINE="1")
        )
        assert not seen
    assert "HF_HUB_OFFLINE is set" in line


@pytest.mark.slow
def test_a_curation_without_its_models_stops_at_once_and_names_them_all(tmp_path):
    began = time.monotonic()
    line = one_line(command(tmp_path, "curate", sources=["tiny/open", "tiny/other", "./here"]))
    assert "3 of 3 models are missing" in line
    for name in ("tiny/open", "tiny/other", "./here"):
        assert name in line
    assert "instructar models fetch" in line
    assert not (tmp_path / "runs").exists()  # before any work
    assert time.monotonic() - began < 60


def test_a_local_folder_is_known_by_its_bytes(tmp_path):
    one, same, other = (
        Weights("m", str(folder(tmp_path / name, **{"model.safetensors": data})), NEED)
        for name, data in {"one": b"abc", "same": b"abc", "other": b"abd"}.items()
    )
    assert core_weights.identity(one) == core_weights.identity(same) != core_weights.identity(other)
    assert core_weights.locate(one) == tmp_path / "one"


def test_a_file_changed_in_place_is_another_model(tmp_path):
    weights = Weights("m", str(folder(tmp_path)), NEED)
    before = core_weights.identity(weights)
    (tmp_path / "model.safetensors").write_bytes(b"abd")
    os.utime(tmp_path / "model.safetensors", (1, 1))
    assert core_weights.identity(weights) != before


def test_a_pinned_commit_is_known_without_the_files():
    assert core_weights.identity(Weights("m", "tiny/pinned", NEED, revision=COMMIT)) == COMMIT


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        core_weights.locate(Weights("m", str(tmp_path / "none"), NEED))
    (tmp_path / "config.json").write_bytes(b"{}")
    with pytest.raises(UserError, match=r"\*\.safetensors is missing"):
        core_weights.locate(Weights("m", str(tmp_path), NEED))
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    folder(tmp_path, **{"model-1.safetensors": b"", "m.index.json": json.dumps(index).encode()})
    with pytest.raises(UserError, match=r"model-2\.safetensors is missing"):
        core_weights.locate(Weights("m", str(tmp_path), (*NEED, "*.index.json")))


@pytest.mark.parametrize("source", ["~nobody-of-this-name/x.pth", f"{'a' * 5000}/b/c"])
def test_a_place_that_cannot_be_is_not_there(source):
    weights = Weights("m", source, NEED)
    assert weights.is_local
    with pytest.raises(UserError, match="no such file or folder"):
        core_weights.locate(weights)
    assert files_here(source) is None


@pytest.mark.parametrize(
    "text", ['{"weight_map": {"a"', "{}", "[]", '{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}']
)
def test_an_index_that_was_half_downloaded_is_named(tmp_path, text):
    folder(tmp_path, **{"m.index.json": text.encode()})
    with pytest.raises(UserError, match=r"m\.index\.json in .* is damaged; download it again"):
        core_weights.locate(Weights("m", str(tmp_path), ("*.index.json",)))


class Two(Stage):
    name = "two"
    columns = ()
    Config = StageConfig

    def __init__(self, source):
        super().__init__()
        self.source = source

    def weights(self):
        return (Weights("m", self.source, NEED),)

    def process(self, sample):
        return {}


def test_the_model_files_are_looked_at_once_however_many_rows_name_them(tmp_path, monkeypatch):
    looks = []
    real = core_weights.identity
    monkeypatch.setattr(core_stage, "identity", lambda weights: looks.append(weights) or real(weights))
    stage = Two(str(folder(tmp_path)))
    stage.fingerprint({})
    rows, *_ = stage.run([Sample(str(k), {}, {}.__getitem__, {}.__getitem__) for k in range(3)], {})
    assert [row["model"] for row in rows] == [stage.model_name()] * 3
    assert len(looks) == 2, "once for the stage, once for model_name here"


def test_weights_enter_the_fingerprint(tmp_path):
    one = Two(str(folder(tmp_path / "one")))
    other = Two(str(folder(tmp_path / "other", **{"model.safetensors": b"xyz"})))
    assert one.fingerprint({}) != other.fingerprint({})


def test_a_row_names_local_weights_by_their_own_name_wherever_they_lie(tmp_path, monkeypatch):
    here, there = (Two(str(folder(tmp_path / place / "one"))) for place in ("here", "there"))
    assert here.model_name() == there.model_name()
    assert here.model_name().startswith("one@sha256-")
    monkeypatch.chdir(tmp_path / "here" / "one")
    assert Two(".").model_name() == Two("../one/").model_name() == here.model_name()
    assert Weights("m", "./model.safetensors", NEED).name == "model.safetensors"
    assert Weights("m", "org/model", NEED).name == "org/model"
