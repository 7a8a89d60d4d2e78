"""The embedded backends tell right from wrong, on real photographs."""

import numpy as np
import pytest
from PIL import Image
from small.plans import make_plan

from data_schemas.io import pictures
from pipeline.core.stage import Sample, SampleError
from pipeline.identity import encoders
from pipeline.identity.compare import Identity
from pipeline.matting.grabcut import GrabCut
from pipeline.planning import planning
from pipeline.references import cutouts
from pipeline.semantics.imagenet import ImageNetJudge, agreement, colour_extremity, shown_pixels
from pipeline.synthesis.collage import Collage, CollageConfig
from pipeline.synthesis.faults import KINDS, choose_fault, extreme_colours


@pytest.fixture(scope="module")
def pool():
    config = cutouts.ReferencesConfig()
    rows, members, _ = cutouts.make_references(cutouts.list_pool(config), config)
    return rows, members


@pytest.fixture(scope="module")
def plan(pool):
    return make_plan(pool[0], planning.PlanningConfig(), 30, seed=3)


def run_stage(stage, plan_row, pool, before=None):
    """(row, saved pictures of all stages) of one sample after ``stage``."""
    saved = {} if before is None else dict(before)
    sample = Sample(
        plan_row["sample_id"], {"plan": plan_row}, saved.__getitem__, lambda i: pool[1][i]["cutout.png"]
    )  # fmt: skip
    rows, files, _ = stage.run([sample], {})
    assert rows[0]["status"] == "ok", rows[0]["error_message"]
    if stage.saves_pictures:
        saved[stage.name] = files[plan_row["sample_id"]]
    return rows[0], saved


def chain(plan_row, pool, share):
    row, saved = run_stage(Collage(CollageConfig(fault_share=share)), plan_row, pool)
    matting, saved = run_stage(GrabCut(), plan_row, pool, saved)
    return row, matting, saved


def test_exactly_the_asked_share_of_a_plan_gets_a_fault():
    rng = np.random.default_rng(0)
    for share in (0.0, 0.2, 0.5, 1.0):
        faults = [choose_fault(k, rng, share)[0] for k in range(100)]
        assert sum(f != "none" for f in faults) == round(100 * share)


def test_a_scene_is_the_same_with_and_without_its_fault(plan, pool):
    """Only the fault differs: away from the spoiled subject and its shadow, the picture is the same."""
    for kind in ("missing", "replaced", "hue", "inverted"):
        spoiled = CollageConfig(fault_share=1.0, faults=[kind])
        for row in plan[:3]:
            clean, faulty = (run_stage(Collage(c), row, pool) for c in (CollageConfig(fault_share=0.0), spoiled))
            assert clean[0]["planted_fault"] == "none"
            a, b = (pictures.decode(x[1]["synthesis"]["target.png"], "target") for x in (clean, faulty))
            changed = np.abs(np.asarray(a, int) - np.asarray(b, int)).max(2) > 0
            left, top, right, bottom = (round(v * 256) for v in row[f"box_{faulty[0]['planted_subject']}"])
            outside = changed.copy()
            outside[max(0, top - 24) : bottom + 24, max(0, left - 24) : right + 24] = False
            assert changed.any()
            assert not outside.any(), f"{kind} changes nothing away from its box and shadow"


def test_every_kind_of_fault_can_be_planted_and_is_what_the_table_says(plan, pool):
    for kind, row in zip(KINDS, (row for row in plan if row["other_reference_id"]), strict=False):
        sample = Sample(row["sample_id"], {"plan": row}, {}.__getitem__, lambda i: pool[1][i]["cutout.png"])
        rows, files, _ = Collage(CollageConfig(fault_share=1.0, faults=[kind])).run([sample], {})
        planted = rows[0]["planted_fault"]
        assert planted == kind or (kind, planted) == ("hue", "inverted"), "two grey subjects have no hue to turn"
        clean, _, _ = Collage(CollageConfig(fault_share=0.0)).run([sample], {})
        assert clean[0]["planted_subject"] is None
        assert set(files[row["sample_id"]]) == {"target.png", "alpha_true.png"}


@pytest.mark.slow
def test_mattes_overlap_the_truth_and_scores_tell_right_from_wrong(plan, pool):
    overlaps, right, wrong, present, absent = [], [], [], [], []
    judge, identity = ImageNetJudge(), Identity()
    for row in plan[:16]:
        _, matting, saved = chain(row, pool, share=0.0)
        overlaps.append(matting["true_iou"])
        scores, _ = run_stage(identity, row, pool, saved)
        right += [scores["similarity_0_0"], scores["similarity_1_1"]]
        wrong += [scores["similarity_0_1"], scores["similarity_1_0"]]
        verdict, _ = run_stage(judge, row, pool, saved)
        present += [verdict["subject_0_present"], verdict["subject_1_present"]]
        swapped = {**row, "box_0": row["box_1"], "box_1": row["box_0"]}  # look for each subject in the other's place
        absent.append(run_stage(judge, swapped, pool, saved)[0]["present_min"])
    assert np.mean(overlaps) > 0.75
    assert np.mean(right) - np.mean(wrong) > 0.3
    assert np.mean(present) - np.mean(absent) > 0.3


def test_a_stage_gives_the_same_bytes_twice_and_whatever_else_is_in_the_part(plan, pool):
    config = CollageConfig(fault_share=0.5)
    alone = [run_stage(Collage(config), row, pool) for row in plan[:4]]
    samples = [
        Sample(row["sample_id"], {"plan": row}, {}.__getitem__, lambda i: pool[1][i]["cutout.png"]) for row in plan[:4]
    ]
    rows, files, _ = Collage(config).run(samples, {})
    assert rows == [row for row, _ in alone]
    assert [files[s.sample_id] for s in samples] == [saved["synthesis"] for _, saved in alone]


def test_one_bad_sample_costs_only_itself(plan, pool):
    class Fussy(Collage):
        batch_size = 3

        def process(self, sample):
            if sample.plan["index"] == 1:
                raise SampleError("too_ugly", "not\nthis one")
            return super().process(sample)

    samples = [
        Sample(row["sample_id"], {"plan": row}, {}.__getitem__, lambda i: pool[1][i]["cutout.png"]) for row in plan[:3]
    ]
    rows, files, _ = Fussy().run(samples, {})
    assert [r["status"] for r in rows] == ["ok", "error", "ok"]
    assert (rows[1]["error_code"], rows[1]["error_message"]) == ("too_ugly", "not this one")
    assert set(files) == {plan[0]["sample_id"], plan[2]["sample_id"]}


def test_the_model_is_loaded_once_and_only_when_there_is_work(plan, pool, monkeypatch):
    loads = []
    monkeypatch.setattr(Collage, "setup", lambda self: loads.append(1))
    stage = Collage()
    stage.run([], {})
    assert loads == []
    for row in plan[:2]:
        run_stage(stage, row, pool)
    assert loads == [1]


def test_a_sample_that_failed_before_is_skipped_with_its_reason(plan, pool):
    sample = Sample("x", {"plan": plan[0]}, {}.__getitem__, lambda i: b"")
    rows, files, _ = Collage().run([sample], {"x": "matting"})
    assert (rows[0]["status"], rows[0]["error_code"]) == ("skipped", "matting_failed")
    assert not files


def test_agreement_of_label_distributions_by_hand():
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.0, 0.5, 0.5])
    assert agreement(p, p) == pytest.approx(1)
    assert agreement(p, q) == pytest.approx(0.5)
    assert agreement(p, np.array([0.0, 0.0, 1.0])) == 0


def test_photographs_have_natural_colours_and_planted_extremes_do_not():
    from skimage import data as photos

    rng = np.random.default_rng(0)
    for name in ("astronaut", "chelsea", "rocket", "grass"):
        photo = Image.fromarray(getattr(photos, name)()).convert("RGB")
        usual = np.asarray(photo).reshape(-1, 3)
        assert colour_extremity(usual, usual) == 0, name
        for _ in range(6):
            extreme = np.asarray(extreme_colours(photo, rng)).reshape(-1, 3)
            assert colour_extremity(extreme, usual) > 0.6, name


def test_neither_a_red_subject_nor_its_background_is_a_fault_of_colour():
    red, grey = (np.tile(np.array([colour], np.uint8), (500, 1)) for colour in ((200, 20, 20), (120, 120, 110)))
    assert colour_extremity(red, red) == 0
    assert colour_extremity(red, grey) > 0.99
    scene = Image.new("RGB", (64, 64), (0, 40, 0))
    scene.paste((120, 120, 110), (20, 20, 40, 40))
    alpha = Image.new("L", (64, 64))
    alpha.paste(255, (20, 20, 40, 40))
    assert (shown_pixels(scene, alpha, [(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)]) == (120, 120, 110)).all()
    assert len(shown_pixels(scene, Image.new("L", (64, 64)), [(0.0, 0.0, 0.5, 0.5)])) == 32 * 32


def test_the_encoder_knows_a_tabby_cat():
    from skimage import data as photos

    _, labels = encoders.encode(Image.fromarray(photos.chelsea()))
    assert encoders.label_names()[int(labels.argmax())] in {"tabby", "tiger cat", "Egyptian cat"}
    assert labels.sum() == pytest.approx(1, abs=1e-4)


def test_threads_that_ask_at_once_share_one_encoder_and_torch_keeps_its_threads():
    from concurrent.futures import ThreadPoolExecutor

    import torch

    encoders._load.cache_clear()
    before = torch.get_num_threads()
    with ThreadPoolExecutor(4) as pool:
        assert len({id(model) for model in pool.map(lambda _: encoders.efficientnet(), range(4))}) == 1
    encoders.encode(Image.new("RGB", (32, 32)))
    assert torch.get_num_threads() == before
