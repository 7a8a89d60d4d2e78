"""What `instructar diff` tells of two datasets."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import run_here
from small.datasets import RULES, STAGES, row, table, write_dataset, write_shards
from troubled.runs import config

from pipeline import cli
from pipeline.curate import curate
from pipeline.dataset.opened import open_dataset
from pipeline.upkeep.diff import diff


def ask(*arguments):
    return run_here(cli.main, "instructar", "diff", *arguments)


def compared(tmp_path, old, new, old_facts=None, new_facts=None):
    sides = [write_dataset(tmp_path / "old", old, **(old_facts or {})),
             write_dataset(tmp_path / "new", new, **(new_facts or {}))]  # fmt: skip
    return diff(*map(open_dataset, sides))


def rejected(number, *reasons, **changes):
    return row(number, shard=None, reasons=list(reasons), **changes)


def test_two_that_are_the_same_have_no_difference(tmp_path):
    found = compared(tmp_path, [row(0), row(1)], [row(0), row(1)])
    assert found["step"] == "same"
    for name in ("added", "dropped", "split", "shard", "content", "decided"):
        assert found[name]["count"] == 0, name
    assert not any(found[name] for name in ("scores", "thresholds", "stages", "settings"))
    done = ask(tmp_path / "old", tmp_path / "new")
    assert done.returncode == 0
    assert done.stdout.splitlines()[1:] == [
        f"new  {tmp_path}/new  version 1.0.0, kept 2 of 2, 2 in shards", "step: same",
    ]  # fmt: skip


@pytest.mark.parametrize("link", ["dataset", "newest"])
def test_a_dataset_that_was_opened_stays_the_one_it_was(tmp_path, link):
    """A curation that ends meanwhile switches the link to another one."""
    run = tmp_path / "run"
    old = write_shards(run / "datasets" / "old", [row(0), row(1)])
    new = write_shards(run / "datasets" / "new", [rejected(0, "jpeg_blocks"), row(1)])
    (run / "dataset").symlink_to("datasets/old")
    (run / "newest").symlink_to("dataset")
    opened = open_dataset(f"{run}/newest" if link == "newest" else str(run))
    (run / "dataset").unlink()
    (run / "dataset").symlink_to("datasets/new")
    assert diff(opened, open_dataset(old))["step"] == "same"
    assert diff(opened, open_dataset(new))["decided"]["count"] == 1
    (shard,) = opened.shards
    assert opened.bring(shard, tmp_path / shard) == opened.shards[shard]


def test_samples_that_came_and_went_are_counted_and_ten_are_named(tmp_path):
    old = [row(n) for n in range(3)]
    new = [row(n) for n in (2, *range(10, 30))] + [rejected(40, "jpeg_blocks")]
    found = compared(tmp_path, old, new)
    assert found["dropped"] == {"count": 2, "kept": 2, "examples": ["s00", "s01"]}
    assert found["added"] == {"count": 21, "kept": 20, "examples": [f"s{n}" for n in range(10, 20)]}
    assert found["step"] == "major"
    assert "added: 21 (20 kept)\n  s10 s11" in ask(tmp_path / "old", tmp_path / "new").stdout


def test_a_decision_is_explained_by_the_score_or_the_threshold(tmp_path):
    old = [
        row(0, similarity_min=0.55),  # falls to the threshold
        row(1, similarity_min=0.9),  # falls to another score
        rejected(2, "identity_low", similarity_min=0.45),  # another score saves it
        rejected(3, "jpeg_blocks", blockiness=0.5),
        rejected(4, "review"),
        row(5),
    ]
    new = [
        rejected(0, "identity_low", similarity_min=0.55),
        rejected(1, "identity_low", similarity_min=0.2),
        row(2, similarity_min=0.7),
        rejected(3, "jpeg_blocks", "identity_low", blockiness=0.5, similarity_min=0.58),
        row(4),
        row(5, similarity_min=0.81),
    ]
    stricter = [RULES[0] | {"threshold": 0.6}, RULES[1]]
    found = compared(tmp_path, old, new[::-1], new_facts={"rules": stricter})
    decided = found["decided"]
    assert decided["count"] == 5
    assert decided["changes"] == {"kept -> rejected": 2, "rejected -> kept": 2, "rejected for other reasons": 1}
    assert decided["reasons"] == {
        "identity_low": {"appeared": 3, "went": 1, "by_score": 2, "by_threshold": 1},
        "review": {"appeared": 0, "went": 1},
    }
    assert decided["examples"][1] == {
        "sample_id": "s01", "was": "kept", "is": "rejected", "appeared": ["identity_low"], "went": [],
        "scores": {"similarity_min": [0.9, 0.2]},
    }  # fmt: skip
    assert found["scores"] == {"similarity_min": 4}
    assert found["thresholds"] == [
        {"stage": "identity", "reason": "identity_low", "column": "similarity_min",
         "old": ["min", 0.5], "new": ["min", 0.6]},
    ]  # fmt: skip
    told = ask(tmp_path / "old", tmp_path / "new").stdout
    assert "  identity_low: appeared 3, went 1 (explained by the score alone 2, by the threshold alone 1)\n" in told
    assert "  s01: kept -> rejected, +identity_low, similarity_min 0.9 -> 0.2\n" in told
    assert "rule identity_low: similarity_min >= 0.6 (was >= 0.5)\n" in told


def test_what_moved_or_was_made_anew_is_told(tmp_path):
    old = [row(0), row(1), row(2), row(3)]
    new = [row(0, shard=1), row(1, split="test"), row(2, content="other"), row(3)]
    found = compared(tmp_path, old, new)
    assert found["split"] == {"count": 1, "examples": ["s01"]}
    assert found["shard"] == {"count": 2, "examples": ["s00", "s01"]}
    assert found["content"] == {"count": 1, "examples": ["s02"]}
    assert found["step"] == "major"


def test_stages_and_settings_that_differ_are_named(tmp_path):
    newer = {"identity": {"version": 3, "model": "net@2", "settings": {}}, "sharp": {"version": 1, "model": "s"}}
    facts = {"stages": newer, "config": {"name": "other", "seed": 7, "workers": 3}}
    found = compared(tmp_path, [row(0)], [row(0)], {"stages": STAGES}, facts)
    assert found["stages"] == [
        "decide: left out (was version 2)", "identity: version 3, net@2 (was version 2, net@1)",
        "sharp: version 1, s (was left out)",
    ]  # fmt: skip
    assert found["settings"] == ["seed 7 (was 0)"]


def test_a_dataset_of_an_older_program_is_compared_as_far_as_it_tells(tmp_path):
    bare = {key: value for key, value in row(0).items() if key != "content"}
    write_dataset(tmp_path / "new", [row(0)], fingerprints={"identity": "bb"})
    write_dataset(tmp_path / "old", [row(0)])
    pq.write_table(table([bare]).drop_columns("content"), tmp_path / "old" / "manifest.parquet")
    (tmp_path / "old" / "run.json").write_text(json.dumps({"fingerprints": {"identity": "aa"}}))
    done = ask(tmp_path / "old", tmp_path / "new")
    assert done.returncode == 0, done.stderr
    assert "version none" in done.stdout
    assert "stage identity: bb (was aa)" in done.stdout
    assert "changed in the shards: unknown" in done.stdout


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("nowhere", "no dataset is there; give a run, or a dataset's folder"),
        ("manifest", "manifest.parquet: cannot be read"),
        ("gone", "manifest.parquet: cannot be read"),
        ("facts", "run.json: not JSON"),
        ("list", "run.json holds no facts"),
        ("column", "column 'decision' is missing"),
        ("type", "column 'shard' is int64"),
    ],
)
def test_what_cannot_be_compared_gets_one_line(tmp_path, harm, said):
    write_dataset(tmp_path / "good", [row(0)])
    folder = tmp_path / "bad"
    write_dataset(folder, [row(0)])
    if harm == "nowhere":
        (folder / "run.json").unlink()
    elif harm == "manifest":
        (folder / "manifest.parquet").write_bytes(b"PAR1 not at all")
    elif harm == "gone":
        (folder / "manifest.parquet").unlink()
    elif harm in ("facts", "list"):
        (folder / "run.json").write_text("{" if harm == "facts" else "[1]")
    else:
        own = table([row(0)])
        other = own.drop_columns("decision") if harm == "column" else own.set_column(
            own.column_names.index("shard"), "shard", pa.array([1]))  # fmt: skip
        pq.write_table(other, folder / "manifest.parquet")
    done = ask(tmp_path / "good", folder)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert str(folder) in line
    assert said in line


def test_a_run_is_compared_with_its_own_earlier_dataset(tmp_path):
    curate(config(tmp_path, trouble={}))
    before = (tmp_path / "stubs" / "dataset").resolve()
    curate(config(tmp_path, trouble={}, decide={"thresholds": {"troubled": 6.0}}))
    found = json.loads(ask(before, tmp_path / "stubs", "--json").stdout)
    assert (found["old"]["version"], found["new"]["version"], found["step"]) == ("1.0.0", "2.0.0", "major")
    assert (found["old"]["kept"], found["new"]["kept"]) == (12, 6)
    assert found["decided"]["changes"] == {"kept -> rejected": 6}
    assert found["decided"]["reasons"]["troubled"] == {"appeared": 6, "went": 0, "by_score": 0, "by_threshold": 6}
    assert found["content"]["count"] == found["split"]["count"] == 0
    assert found["settings"] == ["decide.thresholds.troubled 6.0 (was its default)"]
    assert found["stages"] == []
