"""A data set that grows: more samples and more pictures leave what there is as it is, and copies stay on one side."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance, ImageOps
from small.shapes import make_pool
from troubled.stages import STUBS

from data_schemas.errors import UserError
from pipeline.config import CurationConfig
from pipeline.core.stage import Stage
from pipeline.curate import curate
from pipeline.dataset.curated import open_run
from pipeline.references.generated.subjects import Generated, draw

PLANNED = ["sample_id", "split", "subject_0_id", "subject_1_id", "relation", "seed", "prompt", "index", "draw"]


def subject(number: int) -> Image.Image:
    return draw(Generated(7, number), 96)


def kind(number: int) -> str:
    return ("cat", "cup", "house", "bird")[number % 4]


def add(pool: Path, number: int) -> None:
    folder = pool / kind(number)
    folder.mkdir(parents=True, exist_ok=True)
    subject(number).save(folder / f"thing {number:02d}.png")


@pytest.fixture
def pool(tmp_path):
    for number in range(24):
        add(tmp_path / "pool", number)
    return tmp_path / "pool"


def run(tmp_path, pool, samples: int, **changes):
    values = STUBS | {"references": {"pool": str(pool), "size": 64}} | changes
    return curate(CurationConfig.parse({"name": "r", "root": str(tmp_path), "samples": samples, **values}, "test"))


@pytest.fixture
def worked_on(monkeypatch):
    """(stage, sample id) of everything that a stage was given to process."""
    found: Counter = Counter()
    attempt = Stage._attempt
    monkeypatch.setattr(
        Stage,
        "_attempt",
        lambda self, batch: found.update((self.name, s.sample_id) for s in batch) or attempt(self, batch),
    )
    return found


def files(result) -> dict[str, tuple[int, bytes]]:
    """Time of change and content of every part, tar or table, but those of decisions and shards, which cost nothing."""
    root = Path(result.run.config.run_url)
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes())
        for stage in ("references", "plan", "synthesis", "matting")
        for path in root.glob(f"{stage}/*/*")
        if path.suffix in (".parquet", ".tar")
    }


def manifest(result) -> pd.DataFrame:
    return pd.read_parquet(result.manifest_url)


def test_twice_the_samples_and_one_more_picture_remake_nothing(tmp_path, pool, worked_on):
    first = run(tmp_path, pool, 60)
    before, old, work = files(first), manifest(first), Counter(worked_on)
    assert max(work.values()) == 1
    assert len(work) == 120
    add(pool, 24)
    again = run(tmp_path, pool, 60)
    assert (worked_on, manifest(again).sample_id.tolist()) == (work, old.sample_id.tolist())
    assert {p.cached for p in again.summaries["plan"] + again.summaries["synthesis"]} == {True}
    grown = run(tmp_path, pool, 120)
    assert max(worked_on.values()) == 1, "no stage was given a sample twice"
    assert len(worked_on) == 240
    new = manifest(grown)
    assert len(set(new.sample_id)) == 120
    pd.testing.assert_frame_equal(new[:60][PLANNED], old[PLANNED])
    assert new[:60].shard.tolist() == old.shard.tolist()
    after = files(grown)
    filled = {name for name in before if after[name] != before[name]}
    assert {Path(name).name for name in filled if not name.startswith("references")} == {
        "part-00003.parquet", "part-00003.tar",
    }, "the part that was not full is filled up, its 12 old samples stay; no other is touched"  # fmt: skip
    assert len({Path(name).stem for name in filled if name.startswith("references")}) == 1
    assert "thing 24" in {*new[60:].reference_0_name, *new[60:].reference_1_name}


def test_samples_are_what_they_are_whatever_the_number_and_the_neighbours(tmp_path, pool):
    few, many = (manifest(run(tmp_path / str(n), pool, n)) for n in (40, 130))
    pd.testing.assert_frame_equal(many[:40][PLANNED], few[PLANNED])
    stepwise = [run(tmp_path / "steps", pool, n) for n in (13, 14, 70, 130)][-1]
    pd.testing.assert_frame_equal(manifest(stepwise), many)
    one, other = (run(tmp_path / name, pool, 130) for name in ("steps", "130"))
    tars = [{p.name: p.read_bytes() for p in Path(r.dataset_url).glob("*.tar")} for r in (one, other)]
    assert tars[0] == tars[1]


def test_fewer_samples_and_then_more_again(tmp_path, pool, worked_on):
    whole = manifest(run(tmp_path, pool, 60))
    fewer = manifest(run(tmp_path, pool, 50))
    pd.testing.assert_frame_equal(fewer[PLANNED], whole[:50][PLANNED])
    assert max(worked_on.values()) == 1
    pd.testing.assert_frame_equal(manifest(run(tmp_path, pool, 60)), whole)


def test_a_picture_that_is_gone_takes_its_samples_along_and_no_others(tmp_path, pool, worked_on):
    old = manifest(run(tmp_path, pool, 60))
    gone = pool / "cat" / "thing 04.png"
    gone.unlink()
    new = manifest(run(tmp_path, pool, 60))
    shown = (old.reference_0_name == "thing 04") | (old.reference_1_name == "thing 04")
    stayed = old.sample_id.isin(new.sample_id)
    assert shown.any()
    assert not (stayed & shown).any()
    assert (~stayed).sum() <= shown.sum() + 8, "those that would have shown it as a planted fault were drawn anew too"
    assert new[stayed.values].sample_id.tolist() == old[stayed].sample_id.tolist(), "at their places"
    assert max(worked_on.values()) == 1
    assert not new.isin(["thing 04"]).any().any()


def test_a_damaged_part_of_the_plan_is_drawn_as_it_was(tmp_path, pool):
    old = run(tmp_path, pool, 60)
    for victim in ("part-00000", "part-00002"):
        path = next((tmp_path / "r" / "plan").rglob(f"{victim}.parquet"))
        path.write_bytes(path.read_bytes()[:-9])
    before = manifest(old)
    pd.testing.assert_frame_equal(manifest(run(tmp_path, pool, 60)), before)


def test_a_plan_asked_for_again_begins_anew(tmp_path, pool):
    run(tmp_path, pool, 30)
    for number in range(24, 40):
        add(pool, number)
    kept = manifest(run(tmp_path, pool, 60))
    config = CurationConfig.parse(
        {"name": "r", "root": str(tmp_path), "samples": 60, **STUBS, "references": {"pool": str(pool), "size": 64}}, "t"
    )
    fresh = manifest(curate(config, again="plan"))
    pd.testing.assert_frame_equal(fresh, manifest(run(tmp_path / "other", pool, 60)))
    assert fresh.sample_id.tolist() != kept.sample_id.tolist()


def test_a_run_can_be_opened_when_its_pool_is_gone(tmp_path, pool):
    expected = manifest(run(tmp_path, pool, 20))
    for path in pool.rglob("*.png"):
        path.unlink()
    opened = open_run(str(tmp_path / "r"))
    assert opened.manifest.sample_id.tolist() == expected.sample_id.tolist()
    with pytest.raises(UserError, match="holds no picture"):
        run(tmp_path, pool, 20)


COPIES = {
    "smaller": lambda im: im.resize((60, 60), Image.Resampling.LANCZOS),
    "brighter": lambda im: Image.merge("RGBA", (*ImageEnhance.Brightness(im.convert("RGB")).enhance(1.1).split(),
                                                im.getchannel("A"))),
    "mirrored": ImageOps.mirror,
    "cropped": lambda im: im.crop((3, 3, im.width - 3, im.height - 3)),
}  # fmt: skip


def test_near_copies_in_two_folders_are_in_one_split_and_never_paired(tmp_path, pool):
    pairs = []
    for number in range(24):
        how = list(COPIES)[number % 4]
        copy = COPIES[how](subject(number))
        folder = tmp_path / "more" / kind(number + 1)  # under another category, so that they could be paired
        folder.mkdir(parents=True, exist_ok=True)
        copy.save(folder / f"copy {number:02d}.png")
        pairs.append((f"{kind(number)}/thing-{number:02d}", f"{kind(number + 1)}/copy-{number:02d}"))
    both = {"pool": [{"source": str(pool)}, {"source": str(tmp_path / "more")}], "size": 64}
    found = manifest(run(tmp_path, pool, 400, references=both))
    splits = {}
    for i in (0, 1):
        for row in found.itertuples():
            splits.setdefault(getattr(row, f"subject_{i}_id"), set()).add(row.split)
    assert {frozenset(s) for s in splits.values()} == {frozenset({"train"}), frozenset({"test"})}
    assert sum(a in splits and b in splits for a, b in pairs) >= 20
    assert [pair for pair in pairs if len(splits.get(pair[0], set()) | splits.get(pair[1], set())) > 1] == []
    together = {frozenset(p) for p in zip(found.subject_0_id, found.subject_1_id, strict=True)}
    assert not together & {frozenset(p) for p in pairs}


def test_different_subjects_are_no_copies(pool, tmp_path):
    result = run(tmp_path, pool, 20)
    rows = pd.concat([pd.read_parquet(p) for p in Path(tmp_path / "r" / "references").rglob("*.parquet")])
    features = np.stack([np.frombuffer(f, np.float16) for f in rows.features]).astype(np.float32)
    cosine = features @ features.T - 2 * np.eye(len(rows))
    assert cosine.max() < 0.95
    assert result.summaries["references"]


def test_a_pool_made_of_shapes_has_every_kind_of_picture(tmp_path):
    assert make_pool(tmp_path / "shapes", 30) == 20
    assert Counter(p.suffix for p in (tmp_path / "shapes").rglob("*.*")) == {
        ".jpg": 20, ".png": 5, ".webp": 5, ".txt": 6,
    }  # fmt: skip
    found = manifest(run(tmp_path, tmp_path / "shapes", 20))
    assert found.reference_0_category.nunique() > 2
