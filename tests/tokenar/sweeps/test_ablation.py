"""The sweep: the paper's four rows and the instruct-token counts from one configuration, resumable."""

import json
from types import SimpleNamespace

import pytest
from PIL import Image
from small.run import command, tiny_config, write_config

from data_schemas.errors import UserError
from tokenar.config import cpu_small, with_changes
from tokenar.sweeps import ablation, runs
from tokenar.sweeps.ablation import runs_of, sweep

FOUR = ["baseline", "without instruct tokens", "without ITD", "full"]


def test_the_papers_rows_and_counts():
    settings = runs_of(cpu_small())
    assert list(settings)[:4] == FOUR
    # 30, 60, 240 and 1024 of the paper's 120, of 8 here
    assert [c["model__instruct_tokens"] for c in list(settings.values())[4:]] == [2, 4, 16, 68]
    made = {name: with_changes(cpu_small(), **changes).model for name, changes in settings.items()}
    parts = {n: (m.index_embedding, m.instruct_tokens, m.identity_disentanglement) for n, m in made.items()}
    assert [parts[n] for n in FOUR] == [(False, 0, False), (True, 0, True), (True, 8, False), (True, 8, True)]


@pytest.mark.slow
def test_a_sweep_writes_one_table_and_goes_on_where_it_was(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "PAPER_COUNTS", (60, 120))
    config = tiny_config(shards, tmp_path / "sweep", steps=2, model__instruct_tokens=4)
    said: list[str] = []
    encoded, load = [], runs.load_inputs
    monkeypatch.setattr(runs, "load_inputs", lambda *given: (encoded.append(given), load(*given))[1])
    table = sweep(config, seeds=2, limit=2, say=said.append)
    names = [row["run"] for row in table]
    assert names[:4] == FOUR
    assert all(len(row["seeds"]) == 2 for row in table)
    full = table[3]
    mean = sum(s["identity"] for s in full["seeds"]) / 2
    assert full["identity"] == pytest.approx(mean)
    page = (tmp_path / "sweep/ablation.md").read_text()
    assert all(f"| {name} |" in page for name in names)
    low, high = full["identity_interval"]
    assert f"{full['identity']:.4f} ± {full['identity_std']:.4f} [{low:.4f}, {high:.4f}]" in page
    assert "against" not in full
    assert all(row["against"] == "full" and 0 < row["p"] <= 1 for row in table if row is not full)
    assert Image.open(tmp_path / "sweep/ablation.png").size[0] > 600

    assert len(encoded) == 2, "samples and their variations are those of the seed, whatever the run"
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "sweep").rglob("model.safetensors")}
    assert len(stamps) == 2 * len(names)
    victim = tmp_path / "sweep/full-seed0/ablation.json"
    victim.unlink()
    assert sweep(config, seeds=2, limit=2, say=said.append) == table
    again = [p.parts[-3] for p, stamp in stamps.items() if p.stat().st_mtime_ns != stamp]
    assert again == ["full-seed0"], "only what was not whole is made again, with the same figures"
    assert json.loads((tmp_path / "sweep/ablation.json").read_text())[0]["run"] == "baseline"


def test_samples_are_encoded_again_where_others_are_asked_for(shards, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(runs, "load_inputs", lambda config, *_: made.append(config) or SimpleNamespace(tokenizer=None))
    load, config = runs.EncodedOnce(), tiny_config(shards, tmp_path, variations=0)
    for name, ids in (("a", "1\n2\n"), ("b", "2\n1\n"), ("c", "1\n")):
        (tmp_path / name).write_text(ids)

    def encoded(**changes):
        before = len(made)
        load(with_changes(config, **changes), None, tmp_path / "tokenizer.safetensors", False)
        return len(made) > before

    same = [{}, {"seed": 5}, {"out": str(tmp_path / "other")}, *ablation.ROWS.values()]
    assert [encoded(**changes) for changes in same] == [True] + [False] * (len(same) - 1)
    assert [encoded(only=str(tmp_path / name)) for name in "abc"] == [True, False, True]
    assert [encoded(variations=1, seed=seed) for seed in (5, 6)] == [True, True]
    assert encoded(model__max_references=1)
    with pytest.raises(UserError, match="missing"):
        encoded(only=str(tmp_path / "missing"))


def test_what_a_sweep_needs_is_said(shards, tmp_path):
    with pytest.raises(UserError, match="held-out subjects; give --val-shards"):
        sweep(tiny_config(shards, tmp_path / "a", val_shards=None))
    with pytest.raises(UserError, match="instruct_tokens above 0"):
        sweep(tiny_config(shards, tmp_path / "a", model__instruct_tokens=0))
    settings = write_config(tiny_config(shards, tmp_path / "a"), tmp_path / "settings.json")
    done = command("train", "--config", str(settings), "--sweep", "everything")
    assert done.returncode == 2
    assert done.stderr.strip() == "error: no sweep 'everything'; there is: ablation, filters"
