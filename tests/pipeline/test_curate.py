"""The whole curation on real photographs: caching, what re-runs after a change, damage, kill -9, determinism."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from paths import SUPPORT
from small.curation import SMALL, made, small_config
from troubled.runs import PLANNED, config
from troubled.stages import SCORES

from data_schemas.errors import UserError
from data_schemas.shards import expand_shards, read_shard
from pipeline.core.parts import PartPictures
from pipeline.core.stage import Stage
from pipeline.curate import check_inputs, curate
from pipeline.engines.workers import make_parts
from pipeline.jobs import pool_rows
from pipeline.references import cutouts, pools
from pipeline.report.results import report_run, write_results

SCORED = ["synthesis", "matting", "semantics", "identity", "quality"]
EVERY = ["references", "plan", *SCORED, "decide", "shards"]


def contents(root) -> dict[str, str]:
    """Digest of every file of a run that must be the same in every run: all but timings, reports and run.json."""
    found = {}
    for path in sorted(Path(root).rglob("*")):
        if path.is_file() and path.suffix in (".parquet", ".tar"):
            found[str(path.relative_to(root))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.fixture
def no_model(monkeypatch):
    """Fails the test if any stage loads its model."""

    def refuse(self):
        raise AssertionError(f"stage {self.name} loaded its model")

    monkeypatch.setattr(Stage, "ready", refuse)


def test_the_manifest_has_a_row_for_every_planned_sample(small_run):
    _result, places = small_run
    manifest = pd.read_parquet(places["manifest"])
    assert len(manifest) == SMALL["samples"]
    assert set(manifest.split) == {"train", "test"}
    kept = manifest[manifest.decision == "kept"]
    assert (kept.shard.notna() == (kept.planted_fault == "none")).all(), "no planted fault gets into a shard"
    assert manifest[manifest.decision != "kept"].shard.isna().all()
    assert (manifest[manifest.decision == "rejected"].reasons.str.len() > 0).all()
    for column in ("area_share", "present_min", "colour_extremity", "similarity_min", "swap_margin"):
        assert manifest[column].notna().all(), column
    subjects = {s: set(g.subject_0_id) | set(g.subject_1_id) for s, g in manifest.groupby("split")}
    assert not subjects["train"] & subjects["test"]


def test_the_shards_hold_exactly_the_kept_samples_without_a_planted_fault(small_run):
    result, places = small_run
    manifest = pd.read_parquet(places["manifest"]).set_index("sample_id")
    seen = {}
    for url in expand_shards(f"{result.dataset_url}/*.tar"):
        for sample in read_shard(url):
            seen[sample.sample_id] = os.path.basename(url)
            row = manifest.loc[sample.sample_id]
            assert sample.prompt == row.prompt
            assert sample.info["split"] == row.split
            assert len(sample.references) == 2
            assert sample.target.size == sample.background.size == sample.alpha.size == (256, 256)
    assert seen == manifest[(manifest.decision == "kept") & (manifest.planted_fault == "none")].shard.to_dict()


def test_training_shards_hold_everything_where_that_is_asked_for(copied):
    result = curate(small_config(copied, shards={"samples_per_shard": 4, "unfiltered": True}))
    manifest = pd.read_parquet(result.manifest_url)
    train, test = (manifest[manifest.split == split] for split in ("train", "test"))
    assert set(train.decision) == {"kept", "rejected"}
    assert train.shard.notna().all()
    assert (test.shard.notna() == ((test.decision == "kept") & (test.planted_fault == "none"))).all()
    seen = [s.sample_id for url in expand_shards(f"{result.dataset_url}/train-*.tar") for s in read_shard(url)]
    assert seen == train.sample_id.tolist()


def test_the_shards_open_with_webdataset_and_datasets(small_run):
    import datasets
    import webdataset as wds

    result, places = small_run
    kept = set(pd.read_parquet(places["manifest"]).query("decision == 'kept'").sample_id)
    urls = expand_shards(f"{result.dataset_url}/*.tar")
    with_webdataset = list(wds.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert {s["__key__"] for s in with_webdataset} == kept
    assert with_webdataset[0]["target.png"].size == (256, 256)
    loaded = datasets.load_dataset("webdataset", data_files={"all": urls}, split="all", streaming=True)
    rows = list(loaded)
    assert {r["__key__"] for r in rows} == kept
    assert rows[0]["target.png"].size == (256, 256)
    assert rows[0]["json"]["prompt"]


def test_a_second_run_makes_nothing_and_loads_no_model(copied, no_model):
    assert made(curate(small_config(copied))) == set()


def test_what_a_stage_asks_elsewhere_is_probed_before_its_first_part_alone(copied, monkeypatch):
    from pipeline.semantics.imagenet import ImageNetJudge

    def refuse(self):
        raise UserError("the server does not answer")

    monkeypatch.setattr(ImageNetJudge, "probe", refuse)
    curate(small_config(copied))
    next((copied / "small" / "semantics").rglob("part-00000.parquet")).unlink()
    with pytest.raises(UserError, match="does not answer"):
        curate(small_config(copied))


def test_a_threshold_re_runs_decide_and_what_follows(copied, no_model):
    changed = curate(small_config(copied, decide={"thresholds": {"identity_low": 1.0}}))
    assert made(changed) == {"decide"}  # nothing is kept, so there is no shard to make
    assert set(pd.read_parquet(changed.manifest_url).decision) == {"rejected"}
    assert made(curate(small_config(copied))) == set(), "the first thresholds' results are still there"


def test_a_judges_config_re_runs_semantics_and_what_follows(copied, monkeypatch):
    from pipeline.semantics.imagenet import ImageNetJudge

    monkeypatch.setattr(ImageNetJudge, "version", 99)
    assert made(curate(small_config(copied))) == {"semantics", "decide", "shards"}


@pytest.mark.slow
def test_a_stage_asked_for_again_is_made_again_with_what_follows(copied):
    before = contents(copied)
    assert made(curate(small_config(copied), again="identity")) == {"identity", "quality", "decide", "shards"}
    assert contents(copied) == before


@pytest.mark.parametrize("suffix", ["parquet", "tar"])
def test_a_damaged_part_is_made_again(copied, suffix):
    before = contents(copied)
    victim = next((copied / "small" / "matting").rglob(f"*00001.{suffix}"))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 0xFF
    victim.write_bytes(data)
    assert made(curate(small_config(copied))) == {"matting"}, "the same bytes come back, so nothing after it runs"
    assert contents(copied) == before


@pytest.mark.slow
def test_worker_count_changes_no_byte(small_run, tmp_path):
    curate(small_config(tmp_path, workers=4))
    assert contents(tmp_path) == contents(small_run[0].run.config.root)


@pytest.mark.slow
def test_kill_9_in_the_middle_of_a_part_then_a_re_run_ends_byte_identical(small_run, tmp_path):
    script = (
        "import sys\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from small.curation import small_config\n"
        "from pipeline.curate import curate\n"
        "from pipeline.core.stage import Stage\n"
        "real = Stage._attempt\n"
        "def attempt(self, batch):\n"
        "    if self.name == 'matting':\n"
        "        print(*[s.sample_id for s in batch], sep='\\n', flush=True)\n"
        "    return real(self, batch)\n"
        "Stage._attempt = attempt\n"
        "curate(small_config(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(SUPPORT)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    for _ in range(6):  # in the middle of the second part
        assert process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    result = curate(small_config(tmp_path))
    assert "matting" in made(result)
    assert contents(tmp_path) == contents(small_run[0].run.config.root)


@pytest.mark.slow
def test_one_bad_picture_is_an_error_row_and_the_run_goes_on(tmp_path):
    from PIL import Image
    from skimage import data as photos

    pool = tmp_path / "pool"
    for category, name in (("cats", "chelsea"), ("drinks", "coffee"), ("people", "astronaut"), ("rockets", "rocket")):
        (pool / category).mkdir(parents=True)
        Image.fromarray(getattr(photos, name)()).save(pool / category / f"{name}.png")
    whole = (pool / "cats" / "chelsea.png").read_bytes()
    (pool / "cats" / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (pool / "drinks" / "fake.jpg").write_text("not a picture")
    result = curate(small_config(tmp_path, samples=4, references={"pool": str(pool)}))
    assert len(pd.read_parquet(result.manifest_url)) == 4
    rows = [r for r in pool_rows(result.run) if r["status"] == "error"]
    assert sorted(r["source"] for r in rows) == ["cats/truncated.png", "drinks/fake.jpg"]
    assert all(r["error_code"] and r["error_message"] for r in rows)


@pytest.mark.slow
def test_a_failed_sample_is_an_error_row_and_is_retried_when_asked(tmp_path, monkeypatch):
    from pipeline.matting.grabcut import GrabCut

    real, config = GrabCut.process_batch, small_config(tmp_path)

    def fail_once(self, samples):
        if any(sample.plan["index"] == 5 for sample in samples):
            raise RuntimeError("the disk\nsaid no")
        return real(self, samples)

    monkeypatch.setattr(GrabCut, "process_batch", fail_once)
    broken = pd.read_parquet(curate(config).manifest_url).set_index("index")
    assert broken.decision.loc[5] == "error"
    assert list(broken.reasons.loc[5]) == ["matting_error"]
    assert broken.error_message.loc[5] == "the disk said no"
    assert (broken.decision != "error").sum() == 11

    monkeypatch.setattr(GrabCut, "process_batch", real)
    assert made(curate(config)) == set(), "an error is remembered until a retry is asked for"
    calls = []
    monkeypatch.setattr(GrabCut, "process_batch", lambda self, some: (calls.extend(some), real(self, some))[1])
    mended = pd.read_parquet(curate(config, retry_errors=True).manifest_url).set_index("index")
    assert len(calls) == 1, "only what failed is done again"
    assert mended.decision.loc[5] != "error"


@pytest.mark.slow
def test_a_truncated_picture_between_stages_is_an_error_row(copied, monkeypatch):
    real, config = PartPictures.read, small_config(copied)

    def cut_short(self, sample_id, name):
        data = real(self, sample_id, name)
        synthesis = self._store.schema.name == "synthesis"
        victim = synthesis and self._part == "part-00001" and sample_id == min(self.entries)
        return data[: len(data) // 2] if victim else data

    monkeypatch.setattr(PartPictures, "read", cut_short)
    manifest = pd.read_parquet(curate(config, again="matting").manifest_url)
    assert (manifest.decision == "error").sum() == 1
    (row,) = manifest[manifest.decision == "error"].to_dict("records")
    assert (row["error_stage"], row["error_code"]) == ("matting", "bad_input")
    assert "not a readable picture" in row["error_message"]


def test_metrics_are_computed_from_the_manifest(small_run):
    _result, places = small_run
    metrics = json.loads(Path(places["metrics"]).read_text())
    manifest = pd.read_parquet(places["manifest"])
    assert metrics["funnel"]["kept"] == (manifest.decision == "kept").sum()
    faulty = manifest[manifest.planted_fault != "none"]
    if len(faulty):
        assert metrics["planted"]["recall"] == round(float((faulty.decision != "kept").mean()), 4)
    assert Path(places["report"]).read_text().startswith("<!")


def test_the_report_of_a_finished_run_is_the_one_that_the_run_wrote(small_run):
    result, places = small_run
    before = Path(places["report"]).read_bytes()
    report_run(result.run.config)
    assert Path(places["report"]).read_bytes() == before


def test_whether_a_pool_is_there_is_told_without_reading_its_pictures(tmp_path, monkeypatch):
    def refuse(path):
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(pools, "_digest", refuse)
    for pool in ("packaged", str(tmp_path)):
        check_inputs(small_config(tmp_path, references={"pool": pool}))
    with pytest.raises(UserError, match="no such folder"):
        check_inputs(small_config(tmp_path, references={"pool": str(tmp_path / "nowhere")}))


def test_the_pool_is_listed_the_same_way_twice():
    config = cutouts.ReferencesConfig()
    assert cutouts.list_pool(config) == cutouts.list_pool(config)


def test_runs_are_timed_apart_from_what_is_cached(small_run):
    result, _ = small_run
    timing = result.run.store("identity").notes("part-00000")
    assert len(timing["samples"]) == 4
    assert all(0 < s < 60 for s in timing["samples"].values())


@pytest.mark.parametrize("engine", ["threads", pytest.param("local", marks=pytest.mark.slow)])
def test_a_run_decides_by_the_thresholds_it_began_with(tmp_path, engine):
    """Somebody, or ``instructar calibrate``, writes the file while a run is at work."""
    file = tmp_path / "thresholds.yaml"
    few = {"pool": [{"source": "generated", "count": 8}], "size": 64}
    settings = config(
        tmp_path / "runs", engine, references=few, filters=[{"use": "troubled.stages:Scored"}],
        decide={"thresholds_file": str(file)},
    )  # fmt: skip

    def write(threshold):
        file.write_text(yaml.safe_dump({"thresholds": {f"{SCORES[0]}_low": threshold}}))

    def edited(jobs, progress, workers):
        if "scored" in {job.stage for job in jobs}:
            write(0.0)
        return make_parts(jobs, progress, workers)

    def below(result):
        """How many samples the edited threshold rejected, and what run.json and the card say that it was."""
        reasons = pd.read_parquet(result.manifest_url).reasons.explode()
        write_results(result)
        told = json.loads(Path(result.dataset_url, "run.json").read_text())["rules"]
        (card,) = re.findall(rf"`{SCORES[0]}` >= ([0-9.]+)", Path(result.dataset_url, "README.md").read_text())
        (threshold,) = (rule["threshold"] for rule in told if rule["column"] == SCORES[0])
        return int((reasons == f"{SCORES[0]}_low").sum()), threshold, float(card)

    write(1.0)
    assert below(curate(settings, edited)) == (PLANNED, 1.0, 1.0)
    assert below(curate(settings)) == (0, 0.0, 0.0), "the next run decides by what the file says now"
    write(1.0)
    assert below(curate(settings)) == (PLANNED, 1.0, 1.0), "and finds the first one's decisions as they were"
