"""Identity: the numbers by hand, and timm encoders from a weights file on real photographs."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data as photos

from data_schemas.errors import UserError
from data_schemas.io.pictures import square_on_white
from data_schemas.tables import IDENTITY
from pipeline.identity import encoders
from pipeline.identity.compare import Identity, TimmIdentity, TimmIdentityConfig, compare, views_of
from pipeline.jobs import PartJob, read_all
from pipeline.making import stage_inputs

DINO = "vit_small_patch14_dinov2.lvd142m"
SMALL = "test_vit.r160_in1k"  # with a classifier, as most of timm's files


def save_encoder(name, path, side=None):
    torch.manual_seed(0)
    model = timm.create_model(name, **({"img_size": side} if side else {}))
    for key, parameter in model.named_parameters():
        if key.endswith("gamma"):  # at timm's start value of 1e-5 the blocks do nothing
            torch.nn.init.constant_(parameter, 0.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    found = {name: save_encoder(name, root / name / "model.safetensors") for name in (DINO, SMALL)}
    yield found
    for file in found.values():
        os.remove(file)  # 90 MB


@pytest.fixture(scope="module")
def samples(small_run):
    run = small_run[0].run
    inputs = stage_inputs(PartJob(run, "identity", "part-00000", "", small_run[0].pool_digest), Identity.reads)
    return inputs.samples()[0]


@pytest.fixture(scope="module")
def dino(files):
    stage = TimmIdentity(TimmIdentityConfig(encoder=DINO, source=os.path.dirname(files[DINO]), side=112))
    stage.ready()
    return stage


def photographs():
    return [Image.fromarray(getattr(photos, name)()).convert("RGB") for name in ("astronaut", "chelsea", "coffee")]


def unit(*values):
    return np.array(values, dtype=np.float64) / np.linalg.norm(values)


def test_the_matrix_and_what_is_made_of_it_by_hand():
    references = np.stack([unit(1, 0, 0), unit(0, 1, 0)])
    views = np.stack([unit(0, 0, 1), unit(3, 0, 4), unit(0, 12, 5), unit(0, 1, 1), unit(2, 1, 2)])
    assert compare(views, references) == {
        "similarity_0_0": 0.6,  # the mirror image is the better view
        "similarity_0_1": 0.0,
        "similarity_1_0": 0.0,
        "similarity_1_1": round(12 / 13, 6),
        "similarity_min": 0.6,
        "similarity_max": round(12 / 13, 6),
        "swap_margin": round((0.6 + round(12 / 13, 6)) / 2, 6),
        "literal_0": round(2 / 3, 6),
        "literal_1": round(1 / 3, 6),
        "literal_min": round(1 / 3, 6),
    }


def test_swapped_subjects_have_a_negative_margin_and_a_copy_shows():
    references = np.stack([unit(1, 0), unit(0, 1)])
    swapped = compare(np.stack([unit(0, 1)] * 2 + [unit(1, 0)] * 2 + [unit(1, 1)]), references)
    assert (swapped["swap_margin"], swapped["similarity_min"], swapped["similarity_max"]) == (-1.0, 0.0, 0.0)
    assert swapped["literal_min"] == round(0.5**0.5, 6), "the whole foreground does not see the swap"
    copied = compare(np.stack([unit(1, 0)] * 2 + [unit(0, 1)] * 2 + [unit(1, 1)]), references)
    assert copied["similarity_max"] == 1.0
    bounds = {rule.reason: rule for rule in TimmIdentity.rules}
    assert copied["similarity_max"] > bounds["identity_copied"].threshold
    assert swapped["swap_margin"] < bounds["identity_swapped"].threshold


def test_the_embedded_stage_keeps_a_copy_and_scores_every_column(small_run):
    frame = read_all(small_run[0].run, "identity").to_pandas()
    assert frame[[column.name for column in IDENTITY]].notna().all().all()
    assert (frame.similarity_max == frame[["similarity_0_0", "similarity_1_1"]].max(axis=1)).all()
    assert (frame.literal_min == frame[["literal_0", "literal_1"]].min(axis=1)).all()
    (copied,) = (rule for rule in Identity.rules if rule.reason == "identity_copied")
    assert (copied.bound, copied.threshold) == ("max", 1.0)
    assert frame.similarity_max.max() < 1.0


def test_the_literal_rule_sees_the_whole_foreground_and_crops_see_one_subject(samples):
    sample = samples[0]
    views = views_of(sample, 0.12)
    alpha = np.asarray(sample.picture("matting", "alpha")) > 127
    rows, columns = np.nonzero(alpha)
    longest = max(np.ptp(rows), np.ptp(columns)) + 1
    assert views[4].size == (round(longest * 1.24),) * 2
    for i in range(2):
        box = sample.plan[f"box_{i}"]
        assert views[2 * i].width <= round(256 * max(box[2] - box[0], box[3] - box[1]) + 2) * 1.24
        assert np.array_equal(np.asarray(views[2 * i + 1]), np.asarray(views[2 * i])[:, ::-1])


@pytest.mark.parametrize(("name", "side"), [(DINO, 112), (SMALL, None)])
def test_vectors_are_timms_own_with_timms_own_preprocessing(files, name, side):
    encoder = encoders.TimmEncoder(name, Path(files[name]), side, torch.device("cpu"), torch.float32)
    size = {} if side is None else {"img_size": side}
    model = timm.create_model(
        name, num_classes=0, pretrained=True, pretrained_cfg_overlay={"file": files[name]}, **size
    )  # fmt: skip
    data = {**timm.data.resolve_model_data_config(model), "crop_pct": 1.0, "crop_mode": "squash"}
    data["input_size"] = (3, encoder.side, encoder.side)
    transform = timm.data.create_transform(**data, is_training=False)
    pictures = photographs()
    with torch.inference_mode():
        expected = model.eval()(torch.stack([transform(picture) for picture in pictures]))
    expected = torch.nn.functional.normalize(expected, dim=1).numpy()
    found = encoder.encode(pictures)
    assert found.shape == (3, {DINO: 384, SMALL: 64}[name])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert (found @ found.T)[~np.eye(3, dtype=bool)].max() < 0.999, "the pictures are told apart"


def test_a_vector_does_not_depend_on_the_other_pictures(files, dino):
    pictures = photographs()
    together = dino.encoder.encode(pictures)
    alone = np.concatenate([dino.encoder.encode([picture]) for picture in pictures])
    assert np.array_equal(together, alone)
    encoder = encoders.TimmEncoder(SMALL, Path(files[SMALL]), None, torch.device("cpu"), torch.float32)
    alone = np.concatenate([encoder.encode([picture]) for picture in pictures])
    encoder.chunk = 2  # as on a GPU: whole chunks, the last one filled up
    chunked = encoder.encode(pictures)
    np.testing.assert_allclose(chunked, alone, atol=1e-6)
    again = encoder.encode(pictures[::-1])[::-1]
    np.testing.assert_allclose(again, chunked, atol=1e-6)


def test_low_precision_keeps_the_vectors_direction(files):
    pictures = photographs()
    exact, rough = (
        encoders.TimmEncoder(SMALL, Path(files[SMALL]), None, torch.device("cpu"), dtype).encode(pictures)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert rough.dtype == np.float32
    assert (exact * rough).sum(1).min() > 0.995
    np.testing.assert_allclose(np.linalg.norm(rough, axis=1), 1, atol=1e-6)


@pytest.mark.slow
def test_a_batch_gives_each_sample_the_row_it_gets_alone(dino, samples):
    together, _, _ = dino.run(samples[:2], {})
    alone = [dino.run([sample], {})[0][0] for sample in samples[:2]]
    assert [row["status"] for row in together] == ["ok", "ok"]
    assert together == alone
    assert all("@sha256-" in row["model"] for row in together), "the row names the weights' digest"
    sample = samples[0]
    views = dino.encoder.encode(views_of(sample, 0.12))
    references = [square_on_white(sample.reference(i), 0.12) for i in range(2)]
    expected = compare(views, dino.encoder.encode(references))
    assert {key: together[0][key] for key in expected} == expected


def test_a_batch_is_encoded_in_one_call_and_references_once_a_process(files, samples, monkeypatch):
    calls = []
    encode = encoders.TimmEncoder.encode
    monkeypatch.setattr(
        encoders.TimmEncoder, "encode", lambda self, pictures: calls.append(len(pictures)) or encode(self, pictures)
    )
    stage = TimmIdentity(TimmIdentityConfig(encoder=SMALL, source=files[SMALL], batch_size=2))
    stage.run(samples, {})
    subjects = {sample.plan[f"reference_{i}_id"] for sample in samples for i in range(2)}
    assert calls.count(10) == 2, "two batches of two samples, five views each"
    assert sum(calls) == 4 * 5 + len(subjects)
    calls.clear()
    stage.run(samples[::-1], {})
    assert calls == [10, 10], "no reference is encoded again"


def test_one_bad_sample_costs_only_itself(files, samples):
    broken = samples[:3]
    broken[1] = type(broken[1])("broken", broken[1].rows, lambda stage: {}, broken[1].reference_file)
    rows, _, _ = TimmIdentity(TimmIdentityConfig(encoder=SMALL, source=files[SMALL])).run(broken, {})
    assert [row["status"] for row in rows] == ["ok", "error", "ok"]


def test_only_what_changes_scores_changes_the_fingerprint(files):
    def fingerprint(**changes):
        config = TimmIdentityConfig(**{"encoder": SMALL, "source": files[SMALL], **changes})
        return TimmIdentity(config).fingerprint({})

    assert fingerprint(device="cpu", batch_size=3) == fingerprint()
    assert len({fingerprint(), fingerprint(side=64), fingerprint(padding=0.2), fingerprint(precision="bfloat16")}) == 4


def test_the_published_weights_are_asked_for_by_name():
    (weights,) = TimmIdentity().weights()
    assert weights.source == "timm/vit_base_patch14_dinov2.lvd142m"
    assert (weights.files, weights.licence) == (("model.safetensors",), "Apache-2.0")
    (short,) = TimmIdentity(TimmIdentityConfig(encoder="vit_small_patch14_dinov2", revision="v2")).weights()
    assert (short.source, short.revision) == (f"timm/{DINO}", "v2")


@pytest.mark.parametrize(
    ("encoder", "similar"),
    [("vit_bse_patch14_dinov2", "vit_base_patch14_dinov2"), ("vit_base_patch14_dinov2.lvd14m", "lvd142m")],
)
def test_an_encoder_that_timm_has_not_is_answered_with_similar_names(encoder, similar):
    with pytest.raises(UserError, match=rf"identity\.encoder: timm has no encoder '{encoder}'.*{similar}"):
        TimmIdentity(TimmIdentityConfig(encoder=encoder))


def test_a_file_that_does_not_fit_is_refused_by_both_names(files, tmp_path):
    def load(encoder, source, **changes):
        TimmIdentity(TimmIdentityConfig(encoder=encoder, source=str(source), **changes)).ready()

    with pytest.raises(UserError, match=rf"{files[SMALL]} does not hold the weights of {DINO}"):
        load(DINO, files[SMALL])
    lacking = load_file(files[SMALL])
    del lacking["blocks.0.mlp.fc1.bias"]
    save_file(lacking, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=rf"{SMALL} .*blocks\.0\.mlp\.fc1\.bias"):
        load(SMALL, tmp_path)
    (tmp_path / "cut.safetensors").write_bytes(Path(files[SMALL]).read_bytes()[:1000])
    with pytest.raises(UserError, match=r"cut\.safetensors does not hold"):
        load(SMALL, tmp_path / "cut.safetensors")
    torch.save({}, tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"model\.pth is not a \.safetensors file"):
        load(SMALL, tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"identity\.side: 100 is no multiple of 14"):
        load(DINO, files[DINO], side=100)


def test_parts_that_overlap_leave_torch_its_threads():
    """With torch.set_num_threads a thread that came second kept the number 1 and left it to the whole process."""
    before, told = torch.get_num_threads(), []
    torch.set_num_threads(2)
    first_is_in, second_is_in = threading.Event(), threading.Event()

    def first():
        with encoders._one_thread():
            first_is_in.set()
            second_is_in.wait(10)

    def second():
        first_is_in.wait(10)
        with encoders._one_thread():
            told.append(torch.get_num_threads())
            second_is_in.set()
            threads[0].join()

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        later = threading.Thread(target=lambda: told.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert told == [1, 2], "inside one, later all"
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
