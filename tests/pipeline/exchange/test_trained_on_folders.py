"""A foreign set of twenty folders is trained on and lands in the layout of Table 2, beside a second set in Table 3."""

import json

import pytest
from commands import run_here
from exchanged import write_example
from small.run import in_process, make_sample, tiny_config, write_config, write_shard

from pipeline import cli


@pytest.mark.slow
def test_twenty_foreign_folders_train_and_fill_table_2(tmp_path):
    for n in range(16):
        write_example(tmp_path / f"data/train/example{n}", n, references=1)
    for n in range(4):
        write_example(tmp_path / f"data/test/example{n + 16}", n, split="test", references=1)
    done = run_here(cli.main, "instructar", "import", tmp_path / "data", "--out", tmp_path / "shards")
    assert "16 samples in train, 4 samples in test, 2 shards" in done.stdout
    refused = in_process("train", "--shards", tmp_path / "data", "--out", tmp_path / "run")
    assert refused.returncode == 2
    assert "instructar import" in refused.stderr
    path = write_config(tiny_config(tmp_path / "shards", tmp_path / "run"), tmp_path / "config.json")
    trained = in_process("train", "--config", path)
    assert trained.returncode == 0, trained.stderr

    single = tiny_config(tmp_path / "shards", tmp_path / "single", model__max_references=1)
    trained = in_process("train", "--config", write_config(single, tmp_path / "single.json"))
    assert trained.returncode == 0, trained.stderr

    several = write_shard(tmp_path / "several/test-0.tar", [make_sample(n, "test", side=64) for n in range(2)])
    model = tmp_path / "run/model"
    out = in_process(
        "eval", "--model", model, "--model", tmp_path / "single/model", "--shards", tmp_path / "shards/test-*.tar",
        "--shards", several, "--out", tmp_path / "evaluation",
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    table = (tmp_path / "evaluation/table.md").read_text()
    first, second = table.split("**All figures**")[0].split("**Several subjects")
    assert "**One subject (layout of Table 2)**, 4 samples" in first
    assert "| single |" in first
    assert "(layout of Table 3)**, 2 samples" in second
    assert "| single |" not in second
    assert "single: its model takes 1 reference; its figures are over the 4 samples with one" in table
    metrics = json.loads((tmp_path / "evaluation/metrics.json").read_text())["methods"]
    assert (metrics["run"]["figures"]["samples"], metrics["single"]["figures"]["samples"]) == (6, 4)
    for figures in metrics.values():
        assert figures["single_subject"]["samples"] == 4
        assert figures["single_subject"]["background_psnr"] > 0
    assert metrics["run"]["multi_subject"]["samples"] == 2
    assert "multi_subject" not in metrics["single"]
    alone = in_process(
        "eval", "--model", tmp_path / "single/model", "--shards", tmp_path / "shards/test-*.tar", "--out",
        tmp_path / "alone",
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    both = [tmp_path / folder / "single/samples" for folder in ("evaluation", "alone")]
    assert {p.name: p.read_bytes() for p in both[0].glob("*.png")} == {
        p.name: p.read_bytes() for p in both[1].glob("*.png")
    }
    refused = in_process("eval", "--model", tmp_path / "single/model", "--shards", several, "--out", tmp_path / "none")
    assert refused.returncode == 2
    assert (
        refused.stderr == "error: single: its model takes 1 reference, and all samples have more; add shards with one\n"
    )

    looked = in_process(
        "attention", "--model", model, "--shards", tmp_path / "shards/test-*.tar", "--out", tmp_path / "attention"
    )  # fmt: skip
    assert looked.returncode == 0, looked.stderr
