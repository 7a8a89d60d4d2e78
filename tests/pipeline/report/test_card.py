"""The dataset card: what the hub reads in it, the counts it tells, and the shards beside it still open."""

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import webdataset as wds
import yaml
from huggingface_hub import DatasetCard

from data_schemas.errors import UserError
from data_schemas.shards import expand_shards
from pipeline.core.rules import resolve_rules
from pipeline.core.stage import Rule
from pipeline.dataset.facts import licences
from pipeline.jobs import pool_rows
from pipeline.references.cutouts import ReferencesConfig, list_pool, make_references
from pipeline.references.packaged import package_file, packaged
from pipeline.report.card import Licence, PoolFacts, dataset_card, pool_facts
from pipeline.report.results import metrics_of

METRICS = {
    "name": "two | <b>subjects</b>",
    "funnel": {
        "planned": 1200, "made": 1190, "kept": 1001, "rejected": 180, "undecided": 9, "errors": 10,
        "rejected_by_reason": {"identity_low": 100, "matte_empty": 120}, "reference_errors": 1,
    },
    "splits": {"train": 1000, "test": 1},
    "planted": {"planted": 20, "caught": 18, "recall": 0.9, "precision": None, "clean": 1170, "clean_kept_share": 0.8},
}  # fmt: skip
POOL = PoolFacts("toys", (Licence("CC0-1.0", "all pictures"),), found=9, used=5, usable=3, failed=(("bad_input", 2),))
VALUES = {
    "metrics": METRICS,
    "config": {"seed": 7, "synthesis": {"backend": "collage"}, "semantics": {"use": "mine:Judge"}},
    "fingerprints": {"references": "aa11", "synthesis": "bb22", "semantics": "cc33"},
    "models": {"synthesis": "collage-1", "semantics": "/home/me/models/judge@sha256-00, google/gemma@abc"},
    "licences": [("synthesis", "collage", "MIT"), ("semantics", "google/gemma", "Gemma Terms of Use")],
    "rules": [("identity", Rule("similarity_min", "min", 0.5, "identity_low", "Does not look alike."))],
    "pools": [POOL],
    "relations": {"hug": 400, "kiss": 601},
    "version": "2.1.0",
}


def front_matter(text: str) -> dict:
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)[1])


def table_row(text: str, first: str) -> list[str]:
    """The cells of the first row, of any table, that begins with this one."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_the_front_matter_is_the_hubs():
    text = dataset_card(**VALUES)
    assert front_matter(text) == {
        "pretty_name": "two | <b>subjects</b>",
        "language": ["en"],
        "license": "cc0-1.0",
        "task_categories": ["text-to-image"],
        "size_categories": ["1K<n<10K"],
        "tags": ["webdataset", "multi-subject", "instructar"],
        "configs": [{"config_name": "default", "data_files": [
            {"split": "train", "path": "train-*.tar"}, {"split": "test", "path": "test-*.tar"},
        ]}],
    }  # fmt: skip
    card = DatasetCard(text)
    assert card.data.license == "cc0-1.0"
    assert card.data.task_categories == ["text-to-image"]
    assert card.text.strip().startswith("# two")
    assert dataset_card(**VALUES) == text


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (["CC-BY-2.0", "cc-by-2.0"], {"license": "cc-by-2.0"}),
        (["unknown"], {"license": "unknown"}),
        (["mit", "unknown"], {"license": "other", "license_name": "mixed"}),
        (["MIT License of somebody"], {"license": "other", "license_name": "mixed"}),
        ([], {"license": "other", "license_name": "mixed"}),
    ],
)
def test_the_licence_is_the_pools_own(licences, expected):
    pools = [replace(POOL, licences=(Licence(licence, "x"),)) for licence in licences]
    found = front_matter(dataset_card(**{**VALUES, "pools": pools}))
    assert {k: v for k, v in found.items() if k.startswith("license")} == expected


@pytest.mark.parametrize(
    ("kept", "size"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (28_027, "10K<n<100K"), (3_000_000, "n>1M")]
)
def test_the_size_is_that_of_what_was_kept(kept, size):
    metrics = {**METRICS, "funnel": {**METRICS["funnel"], "kept": kept}, "splits": {"train": kept} if kept else {}}
    found = front_matter(dataset_card(**{**VALUES, "metrics": metrics}))
    assert found["size_categories"] == [size]
    splits = [f["split"] for config in found.get("configs", []) for f in config["data_files"]]
    assert splits == (["train"] if kept else []), "no shard, no config: the hub refuses one without files"


def test_the_card_tells_what_happened():
    text = dataset_card(**VALUES)
    assert table_row(text, "planned") == ["planned", "1200"]
    assert table_row(text, "kept") == ["kept", "1001"]
    assert table_row(text, "kept for train") == ["kept for train", "1000"]
    assert table_row(text, "`matte_empty`") == ["`matte_empty`", "120"]
    assert text.index("`matte_empty`") < text.index("`identity_low`"), "the commonest reason comes first"
    assert table_row(text, "identity")[1:3] == ["`similarity_min` >= 0.5", "`identity_low`"]
    assert table_row(text, "synthesis") == ["synthesis", "collage", "collage-1", "`bb22`"]
    assert table_row(text, "semantics") == ["semantics", "mine:Judge", "judge@sha256-00, google/gemma@abc", "`cc33`"]
    assert "/home" not in text
    assert "| semantics | google/gemma | Gemma Terms of Use |\n" in text
    assert "## Intended use\n" in text
    assert table_row(text, "toys")[1:] == ["9", "5", "3", "0", "bad_input 2"]
    assert "2 samples with a planted fault passed the filters and were left out of the shards" in text
    assert "filters and are in the shards" in dataset_card(
        **{**VALUES, "config": {**VALUES["config"], "shards": {"unfiltered": True}}}
    )
    assert "precision not defined" in text
    assert "\nVersion 2.1.0. " in text
    assert "2 relations among the kept samples:\nkiss 601,\nhug 400." in text
    assert "collages" in text
    assert "# two \\| &lt;b&gt;subjects&lt;/b&gt;\n" in text


def test_every_packaged_photograph_has_a_licence():
    used = {f"{e['package']}/{e['file']}" for kind in ("subjects", "backgrounds") for e in packaged()[kind]}
    assert set(packaged()["licences"]) == used
    assert all(set(entry) == {"licence", "credit"} for entry in packaged()["licences"].values())


@pytest.mark.slow
def test_facts_of_pools(tmp_path):
    for category, photo in (("cat", ("skimage", "data/chelsea.png")), ("drink", ("skimage", "data/coffee.png"))):
        (tmp_path / "mine" / category).mkdir(parents=True)
        shutil.copy(package_file(*photo), tmp_path / "mine" / category)
    (tmp_path / "mine/cat/fake.png").write_text("no picture")
    (tmp_path / "mine/LICENSE").write_text("\n# Licence of my own\nMore words\n")
    config = ReferencesConfig(pool=[{"source": str(tmp_path / "mine")}, "packaged"], size=64)
    rows, _, _ = make_references(list_pool(config)[:3], config)
    rows += [{"reference_id": s.reference_id, "status": "ok", "category": s.category} for s in list_pool(config)[3:]]
    mine, shipped, backgrounds = pool_facts(config, rows, backgrounds=True)
    assert (mine.name, mine.found, mine.used, mine.usable, mine.categories) == ("mine", 3, 3, 2, 2)
    assert mine.failed == (("bad_input", 1),)
    assert mine.licences == (Licence("Licence of my own", "all pictures"),)
    assert (shipped.name, shipped.found, shipped.used, shipped.usable) == ("packaged photographs", 16, 16, 16)
    assert {licence.licence for licence in shipped.licences} == {"CC-BY-2.0", "CC0-1.0", "public domain", "unknown"}
    assert "astronaut.png: NASA" in next(f.of for f in shipped.licences if f.licence == "public domain")
    assert backgrounds.found is None
    text = dataset_card(**{**VALUES, "pools": [mine, shipped, backgrounds]})
    assert table_row(text, "mine")[1:] == ["3", "3", "2", "2", "bad_input 1"]
    assert "Some pictures come without a stated licence." in text
    assert str(tmp_path) not in text
    with pytest.raises(UserError, match="changed since the run"):
        pool_facts(config, rows[1:], backgrounds=True)
    limited = ReferencesConfig(pool=[{"source": str(tmp_path / "mine"), "limit": 1}, "packaged"], size=64)
    assert [(f.found, f.used) for f in pool_facts(limited, rows, backgrounds=False)] == [(3, 1), (16, 16)]


def test_facts_of_a_preset_and_what_its_own_card_states(tmp_path):
    shutil.copytree(package_file("skimage", "data/coffee.png").parent, tmp_path / "rb", ignore=lambda _, names: [
        n for n in names if n not in ("coffee.png", "chelsea.png")
    ])  # fmt: skip
    (tmp_path / "rb/README.md").write_text("---\r\nlicense: cc-by-4.0\r\n---\r\n# Theirs\r\n")
    config = ReferencesConfig(pool=[{"preset": "relationbench", "source": str(tmp_path / "rb")}])
    rows = [{"reference_id": s.reference_id, "status": "ok", "category": s.category} for s in list_pool(config)]
    (facts,) = pool_facts(config, rows, backgrounds=False)
    assert (facts.found, facts.usable, facts.categories, facts.published) == (2, 2, 2, 303)
    assert facts.licences == (Licence("cc-by-4.0", "all pictures"),)
    text = dataset_card(**{**VALUES, "pools": [facts]})
    assert "| RelationBench of DreamRelation | 2 of 303 published | 2 | 2 | 2 | none |" in text
    assert "Qingyu Shi" in text
    (tmp_path / "rb/README.md").write_text("---\nlicense: [1\n---\n")
    assert pool_facts(config, rows, backgrounds=False)[0].licences[0].licence == "unknown"


def test_the_card_of_a_run_lies_beside_its_shards(small_run, tmp_path):
    import datasets

    result, _ = small_run
    run = result.run
    manifest = pd.read_parquet(result.manifest_url)
    kept = manifest[manifest.decision == "kept"]
    text = dataset_card(
        metrics=metrics_of(result, manifest),
        config=run.config.model_dump(mode="json"),
        fingerprints=dict(run.fingerprints),
        models={stage.name: stage.model_name() for stage in run.stages()},
        licences=licences(run.stages()),
        rules=resolve_rules(run.stages(), {}),
        pools=pool_facts(run.config.references, pool_rows(run), backgrounds=True),
        relations=kept.relation.value_counts().to_dict(),
        version="1.0.0",
    )
    assert table_row(text, "kept") == ["kept", str(len(kept))]
    assert all(f"`{fingerprint}`" in text for _, fingerprint in run.fingerprints)
    folder = tmp_path / "dataset"
    shutil.copytree(Path(result.dataset_url), folder)
    (folder / "README.md").write_text(text)
    with_webdataset = wds.WebDataset(expand_shards(f"{folder}/*.tar"), shardshuffle=False)
    assert {s["__key__"] for s in with_webdataset} == set(kept.sample_id)
    loaded = datasets.load_dataset(str(folder), streaming=True)  # by the card's own data_files
    assert {s: sorted(r["__key__"] for r in rows) for s, rows in loaded.items()} == {
        str(s): sorted(rows.sample_id) for s, rows in kept.groupby("split")
    }
    named = datasets.load_dataset("webdataset", data_files={"all": f"{folder}/*.tar"}, split="all", streaming=True)
    assert {r["__key__"] for r in named} == set(kept.sample_id)


def facts_with(root: Path, files: dict[str, bytes]) -> PoolFacts:
    (root / "cat").mkdir(parents=True, exist_ok=True)
    shutil.copy(package_file("skimage", "data/chelsea.png"), root / "cat")
    for name, content in files.items():
        (root / name).write_bytes(content)
    config = ReferencesConfig(pool=str(root), size=64)
    rows = [{"reference_id": s.reference_id, "status": "ok", "category": s.category} for s in list_pool(config)]
    return pool_facts(config, rows, backgrounds=False)[0]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"README.md": b"---\nlicense: mit\n---\n"}, "mit"),
        ({"README.md": "---\r\nlicense: 'mit'\r\n---\r\n".encode("utf-16")}, "mit"),
        ({"README.md": b"---\nlicense: 2026-13-45\n---\n"}, "unknown"),
        ({"README.md": b"---\nlicense: !!python/object:os.system x\n---\n"}, "unknown"),
        ({"README.md": b"---\na: &a [*a, *a]\nlicense: mit\n---\n"}, "unknown"),
        ({"README.md": b"---\n" + b"[" * 5000 + b"\n---\n"}, "unknown"),
        ({"README.md": b"---\nlicense: [mit]\n: :\n---\n", "LICENSE": b"\n# CC0\n"}, "CC0"),
        ({"LICENSE": bytes(2_000_000)}, "unknown"),
        ({"LICENSE.txt": "Lizenz\u202e f\u00fcr alle".encode("latin-1", "replace")}, "Lizenz? für alle"),
    ],
)  # fmt: skip
def test_whatever_lies_beside_the_pictures_never_costs_the_report(tmp_path, files, expected):
    assert facts_with(tmp_path / "mine", files).licences == (Licence(expected, "all pictures"),)


def test_notes_that_are_no_files_never_cost_the_report(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    os.mkfifo(mine / "README.md")
    (mine / "LICENSE").symlink_to("/dev/zero")
    (mine / "LICENSE.txt").mkdir()
    assert facts_with(mine, {}).licences == (Licence("unknown", "all pictures"),)


def test_the_card_tells_what_was_not_read(tmp_path):
    facts = facts_with(tmp_path / "mine", {"a.heic": b"", "cat/b.heic": b"", "cat/c.psd": b""})
    assert facts.skipped == ".heic 2, .psd 1"
    text = dataset_card(**{**VALUES, "pools": [facts]})
    assert "\nFiles in mine of kinds that are not read: .heic 2, .psd 1\n" in text
    assert "of kinds that are not read" not in dataset_card(**VALUES)
