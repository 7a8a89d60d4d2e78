"""The evaluation end to end: known answers, several methods in one table, going on after a stop."""

import dataclasses
import json
import shutil
import sys
from subprocess import run

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from small.run import make_sample, write_shard
from tiny.evaluation import save_backbone, save_inception, save_tiny_clip, save_tiny_vit

from data_schemas.errors import UserError
from data_schemas.io.pictures import square_on_white
from data_schemas.shards import file_name, read_shard
from tokenar.config import SampleConfig
from tokenar.evaluate.config import EvalConfig
from tokenar.evaluate.encoders import Encoder, Inception
from tokenar.evaluate.pictures import Truth
from tokenar.evaluate.rows import Scorer
from tokenar.evaluate.run import evaluate_models
from tokenar.sample.sampler import Drawing, sample_pictures

SAMPLING = SampleConfig(seed=3, batch=2)


@pytest.fixture(scope="module")
def glob(shards):
    return str(shards / "test-*.tar")


@pytest.fixture(scope="module")
def samples(shards):
    return list(read_shard(str(shards / "test-00000.tar")))


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Every encoder, tiny and random; DINOv2 is left out, so that identity is EfficientNet's."""
    folder = tmp_path_factory.mktemp("encoders")
    return EvalConfig(
        lpips=str(save_backbone(folder / "alex.pth")), inception=str(save_inception(folder / "inception.pth")),
        clip=str(save_tiny_clip(folder / "clip")), dino=str(save_tiny_vit(folder / "vit")), kid_subsets=3,
    )  # fmt: skip


@pytest.fixture
def small_inception(monkeypatch):
    """64 features after the first layers, not 2,048 after all: the distance of those takes ten seconds."""
    monkeypatch.setattr(Inception, "layer", "64")


def write(folder, pictures, samples):
    folder.mkdir(exist_ok=True)
    for picture, sample in zip(pictures, samples, strict=True):
        picture.save(folder / f"{file_name(sample.sample_id)}.png")
    return folder


def foreground(sample):
    return np.asarray(sample.alpha) >= 128


def with_shifted_background(sample):
    pixels = np.array(sample.target)
    shifted = np.roll(pixels, 7, axis=1)
    return Image.fromarray(np.where(foreground(sample)[..., None], pixels, shifted))


def with_swapped_subjects(sample):
    """Each box shows what the other box should."""
    found, (a, b) = sample.target.copy(), [Truth(sample, 64, 0)._edges(box) for box in sample.info["boxes"]]
    for place, other in ((a, b), (b, a)):
        size = place[2] - place[0], place[3] - place[1]
        found.paste(sample.target.crop(other).resize(size), place[:2], sample.alpha.crop(other).resize(size))
    return found


def figures(result, name):
    return result["methods"][name]["figures"]


@pytest.mark.slow
def test_known_answers(glob, samples, encoders, small_inception, tmp_path):
    truth = write(tmp_path / "truth", [s.target for s in samples], samples)
    shifted = write(tmp_path / "shifted", map(with_shifted_background, samples), samples)
    swapped = write(tmp_path / "swapped", map(with_swapped_subjects, samples), samples)
    result = evaluate_models(glob, tmp_path / "out", predictions=[truth, shifted, swapped], config=encoders, quiet=True)

    perfect, moved = figures(result, "truth"), figures(result, "shifted")
    for part in ("whole", "background", "subjects"):
        assert perfect[f"{part}_mse"] == perfect[f"{part}_lpips"] == 0
        assert perfect[f"{part}_psnr"] == 100
        assert perfect[f"{part}_ssim"] == pytest.approx(1, abs=1e-9)
        assert perfect[f"{part}_edge_f1"] == 1
        assert perfect[f"{part}_fid"] == pytest.approx(0, abs=1e-4)
    assert [perfect[name] for name in ("whole_clip_i", "background_dino")] == pytest.approx([1, 1])
    assert perfect["identity"] == perfect["identity_target"] > perfect["identity_wrong"]
    assert perfect["swap_rate"] == 0

    changed = {name for name, value in moved.items() if value != perfect[name]}
    assert {name for name in changed if name.startswith(("subject", "identity", "similarity", "swap"))} == set()
    for figure in ("mse", "psnr", "ssim", "lpips", "edge_f1", "clip_i", "dino", "fid", "kid"):
        assert {f"whole_{figure}", f"background_{figure}"} <= changed
        assert f"subjects_{figure}" in moved, "there, and the same"
    assert moved["background_fid"] > 1e-5 > perfect["background_fid"]

    assert figures(result, "swapped")["swap_rate"] == 1
    assert figures(result, "swapped")["swap_margin"] < -0.1


def test_the_matrix_is_the_identity_stages(glob, samples, tmp_path):
    """The same crops, but that a matte's soft edge belongs to one part only."""
    from pipeline.identity import encoders as stage

    truth = write(tmp_path / "truth", [s.target for s in samples], samples)
    evaluate_models(glob, tmp_path / "out", predictions=[truth], quiet=True)
    table = pq.read_table(tmp_path / "out/per_sample.parquet").to_pylist()
    network = stage.EfficientNet()
    for sample, row in zip(samples, table, strict=True):
        hard = Image.fromarray(foreground(sample).astype(np.uint8) * 255)
        crops = [stage.region(sample.target, hard, box, 0.12) for box in sample.info["boxes"]]
        views = [network.encode([c, c.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]) for c in crops]
        references = network.encode([square_on_white(r, 0.12) for r in sample.references_rgba])
        expected = [[max(view @ reference) for reference in references] for view in views]
        found = [[row[f"similarity_{i}_{j}"] for j in range(2)] for i in range(2)]
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert row["swap_margin"] == pytest.approx((found[0][0] + found[1][1] - found[0][1] - found[1][0]) / 2)
        assert row["swapped"] == float(row["swap_margin"] < 0)


def test_models_and_other_methods_in_one_table(trained, glob, samples, tmp_path):
    grey = write(tmp_path / "grey", [Image.new("RGBA", (48, 48), (0, 0, 0, 0))] * 3, samples)
    result = evaluate_models(
        glob, tmp_path / "out", models={"ours": trained / "model"}, predictions={"DreamO": grey}, sampling=SAMPLING,
        quiet=True,
    )  # fmt: skip
    out = tmp_path / "out"
    assert json.loads((out / "metrics.json").read_text()) == result
    assert list(result["methods"]) == ["ours", "DreamO"]
    assert (result["samples"], result["side"], result["seed"]) == (3, 32, 3), "compared at the smallest side"
    assert {"torch", "torchmetrics", "python"} <= result["versions"].keys()
    assert result["encoders"]["identity"]["name"].startswith("tf_efficientnet_lite0")
    ours = figures(result, "ours")
    assert ours["loss_target"] > 0
    assert ours["round_trip_whole_mse"] > 0
    assert ours["round_trip_identity"] < ours["identity_target"]
    assert 0 <= ours["subjects_exact"] <= 1
    assert "loss" not in figures(result, "DreamO")
    assert result["methods"]["ours"]["multi_subject"] == ours
    assert "single_subject" not in result["methods"]["ours"]

    table = pq.read_table(out / "per_sample.parquet").to_pandas()
    assert list(table.sample_id) == ["test-0000", "test-0001", "test-0002"] * 2
    means = table[table.method == "ours"].background_mse.mean(), table[table.method == "DreamO"].loss.isna().all()
    assert means == (pytest.approx(ours["background_mse"]), True)
    white = 1 - np.asarray(samples[0].target.resize((32, 32), Image.Resampling.BICUBIC)) / 255
    assert table[table.method == "DreamO"].whole_mse.iloc[0] == pytest.approx((white**2).mean()), "on white"

    page = (out / "table.md").read_text()
    assert f"| ours | – | {ours['background_psnr']:.2f} | – | – | – |" in page.replace("*", "")
    assert "| DreamO | SIG-A 2025 |" in page
    assert "not measured: LPIPS (lpips), FID and KID (inception)" in page
    assert Image.open(out / "grid.png").size == (6 * 132 - 4, 20 + 3 * 132)
    assert len(list((out / "pictures").glob("*.png"))) == 3


def test_single_and_several_subjects_apart(tmp_path):
    """Samples of one, two and three references; one shard says nothing of boxes."""
    samples = [make_sample(i, side=64, references=1 + i % 3) for i in range(6)]
    del samples[0].info["boxes"]
    del samples[4].info["boxes"]
    write_shard(tmp_path / "test-0.tar", samples)
    truth = write(tmp_path / "truth", [s.target for s in samples], samples)
    result = evaluate_models(str(tmp_path / "test-0.tar"), tmp_path / "out", predictions=[truth], quiet=True)
    method = result["methods"]["truth"]
    assert (method["single_subject"]["samples"], method["multi_subject"]["samples"]) == (2, 4)
    assert "swap_rate" in method["multi_subject"]
    rows = pq.read_table(tmp_path / "out/per_sample.parquet").to_pylist()
    assert [row["identity"] is None for row in rows] == [False, False, False, False, True, False]
    assert [row["swapped"] for row in rows] == [None, 0, None, None, None, None]
    assert (rows[2]["subject_1_mse"], rows[2]["subject_2_mse"]) == (0, None), "the third lies outside the picture"
    assert rows[0]["identity"] > rows[0]["identity_wrong"], "of the next sample's reference"


@pytest.mark.slow
def test_lpips_needs_some_pixels(glob, samples, encoders, tmp_path):
    tiny = write(tmp_path / "tiny", [Image.new("RGB", (16, 16))] * 3, samples)
    config = EvalConfig(lpips=encoders.lpips)
    with pytest.raises(UserError, match="lpips reads no picture below 32 pixels, these have 16; set side"):
        evaluate_models(glob, tmp_path / "out", predictions=[tiny], config=config, quiet=True)
    wider = config.model_copy(update={"side": 32})
    assert evaluate_models(glob, tmp_path / "out", predictions=[tiny], config=wider, quiet=True)["side"] == 32


@pytest.mark.slow
def test_a_stopped_run_goes_on(trained, glob, encoders, small_inception, tmp_path, monkeypatch):
    config = EvalConfig(inception=encoders.inception, dino=encoders.dino, kid_subsets=3)
    options = {"models": {"m": trained / "model"}, "config": config, "quiet": True}
    whole = evaluate_models(glob, tmp_path / "whole", sampling=SAMPLING, **options)
    scored, encoded, drawn = [], [], []
    row, encode, batch = Scorer.row, Encoder.encode, Drawing.batch
    monkeypatch.setattr(
        Drawing, "batch", lambda self, chosen, *rest: drawn.extend(chosen) or batch(self, chosen, *rest)
    )
    monkeypatch.setattr(Encoder, "encode", lambda s, p: encoded.extend(p) or encode(s, p))
    monkeypatch.setattr("tokenar.evaluate.run.FLUSH_EVERY", 1)

    def score(self, truth, *rest):
        scored.append(truth.item.sample_id)
        if len(scored) == 2:
            raise KeyboardInterrupt
        return row(self, truth, *rest)

    monkeypatch.setattr(Scorer, "row", score)
    with pytest.raises(KeyboardInterrupt):
        evaluate_models(glob, tmp_path / "out", sampling=SAMPLING, **options)
    (tmp_path / "out/cache/rows/damaged.parquet").write_bytes(b"PAR1 and no more")
    again = evaluate_models(glob, tmp_path / "out", sampling=SAMPLING, **options)
    assert scored == ["test-0000", "test-0001", "test-0001", "test-0002"], "what was done is not done again"
    assert len(drawn) == 3
    assert figures(again, "m") == figures(whole, "m")

    before = len(encoded), len(scored)
    assert evaluate_models(glob, tmp_path / "out", sampling=SAMPLING, **options) == again
    assert (len(encoded), len(scored), len(drawn)) == (*before, 3), "a third time there is nothing to do"
    shutil.rmtree(tmp_path / "out/cache/features")
    assert figures(evaluate_models(glob, tmp_path / "out", sampling=SAMPLING, **options), "m") == figures(again, "m")
    assert len(encoded) > before[0], "features that were lost are made again"
    before = len(encoded), len(scored)
    wider = config.model_copy(update={"edge_tolerance": 3.0})
    evaluate_models(glob, tmp_path / "out", sampling=SAMPLING, **{**options, "config": wider})
    assert len(scored) == before[1] + 3, "another definition scores again"
    assert len(encoded) == before[0], "and encodes nothing"
    other = SAMPLING.model_copy(update={"seed": 4})
    assert evaluate_models(glob, tmp_path / "out", sampling=other, **options)["seed"] == 4
    assert len(drawn) == 6, "another recipe draws again"


def test_nothing_of_an_earlier_evaluation_stands_beside_this_one(glob, samples, tmp_path):
    truth, out = write(tmp_path / "truth", [s.target for s in samples], samples), tmp_path / "out"
    elsewhere = dataclasses.replace(samples[0], sample_id="in/folder 1")
    (tmp_path / "in").mkdir()
    write_shard(tmp_path / "in" / "test-0.tar", [elsewhere])
    of_it = write(tmp_path / "its", [elsewhere.target], [elsewhere])
    evaluate_models(str(tmp_path / "in" / "*.tar"), out, predictions=[of_it], quiet=True)
    (out / "pictures" / "step-000002.png").write_bytes(b"a training's own")
    evaluate_models(glob, out, predictions=[truth], quiet=True)
    (tmp_path / "one").mkdir()
    write_shard(tmp_path / "one" / "test-0.tar", samples[1:2])
    evaluate_models(str(tmp_path / "one" / "*.tar"), out, predictions=[truth], quiet=True)
    assert sorted(path.name for path in (out / "pictures").iterdir()) == ["step-000002.png", "test-0001.png"]
    (out / "metrics.json").write_text("[" * 5000)
    quiet = EvalConfig(shown=0)
    evaluate_models(glob, out, predictions=[truth], config=quiet, quiet=True)
    assert not (out / "grid.png").exists()


def test_predictions_that_an_earlier_call_left_are_not_this_ones(trained, glob, samples, tmp_path):
    drawn = tmp_path / "drawn"
    sample_pictures(trained / "model", glob, drawn, SAMPLING, quiet=True)
    evaluate_models(glob, tmp_path / "out", predictions=[drawn], quiet=True)
    other = SAMPLING.model_copy(update={"seed": 9})
    sample_pictures(trained / "model", glob, drawn, other, limit=1, quiet=True)
    assert len(list(drawn.glob("*.png"))) == 3, "nobody's pictures are thrown away"
    told = r"no prediction for 2 of 3 samples, first test-0001.png \(an earlier call's is there\)"
    with pytest.raises(UserError, match=told):
        evaluate_models(glob, tmp_path / "out", predictions=[drawn], quiet=True)
    sample_pictures(trained / "model", glob, drawn, other, seeds=2, quiet=True)
    with pytest.raises(UserError, match="no prediction for 3 of 3"):
        evaluate_models(glob, tmp_path / "out", predictions=[drawn], quiet=True)


@pytest.mark.slow
def test_a_lost_picture_is_drawn_again_as_it_was(trained, glob, tmp_path):
    options = {"models": {"m": trained / "model"}, "sampling": SAMPLING, "quiet": True}
    evaluate_models(glob, tmp_path, **options)
    folder = tmp_path / "m/samples"
    before = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    stamp = (folder / "test-0000.png").stat().st_mtime_ns
    (folder / "test-0002.png").unlink()
    evaluate_models(glob, tmp_path, **options)
    assert {path.name: path.read_bytes() for path in folder.glob("*.png")} == before
    assert (folder / "test-0000.png").stat().st_mtime_ns == stamp
    assert [entry["seed"] for entry in json.loads((folder / "samples.json").read_text())] == [3, 4, 5]


@pytest.mark.slow
def test_a_sample_that_changed_is_drawn_and_scored_again(trained, samples, tmp_path):
    options = {"models": {"m": trained / "model"}, "sampling": SAMPLING, "quiet": True}
    shard, folder = tmp_path / "test-0.tar", tmp_path / "out/m/samples"
    write_shard(shard, samples)
    before = figures(evaluate_models(str(shard), tmp_path / "out", **options), "m")
    stamps = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")}
    darker = dataclasses.replace(samples[1], background=samples[1].background.point(lambda value: value // 2))
    write_shard(shard, [samples[0], darker, samples[2]])
    after = figures(evaluate_models(str(shard), tmp_path / "out", **options), "m")
    changed = [name for name, stamp in stamps.items() if (folder / name).stat().st_mtime_ns != stamp]
    assert changed == ["test-0001.png"]
    assert after["mask_f1"] != before["mask_f1"]


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_find_what_one_finds(trained, glob, tmp_path):
    model = trained / "model"
    one = evaluate_models(glob, tmp_path / "one", models={"m": model, "n": model}, quiet=True)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tokenar.cli"]
    options = ["eval", "--shards", glob, "--out", tmp_path / "two", "--model", f"m={model}", "--model", f"n={model}"]
    done = run([*launch, *map(str, options)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("All figures") == 1, "the first process speaks"
    two = json.loads((tmp_path / "two/metrics.json").read_text())
    assert figures(two, "m") == figures(two, "n") == figures(one, "m")
    tables = [pq.read_table(tmp_path / name / "per_sample.parquet") for name in ("one", "two")]
    assert tables[0].equals(tables[1])
