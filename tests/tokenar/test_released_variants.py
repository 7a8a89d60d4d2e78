"""What the release can train besides its script: teachers, special instruct tokens, no background, mixed sets."""

import json
from collections import Counter
from dataclasses import replace
from hashlib import sha256

import pytest
import torch
from golden import cases, read, tensors
from golden.released import config_of
from hypothesis import given
from hypothesis import strategies as st
from small.run import SMALL, in_process, make_sample, random_net, tiny_config, write_config, write_shard
from tiny.encoders import save_tiny_clip, save_tiny_dinov2
from torch.nn import functional as F
from transformers import CLIPModel

from data_schemas.errors import UserError
from tokenar.config import TrainConfig, train_single_subject, with_changes
from tokenar.data.mixing import Mix
from tokenar.data.samples import Encoded, Order, collate
from tokenar.data.targets import with_target
from tokenar.encoders.config import TeacherConfig
from tokenar.encoders.teacher import MEAN_STD, Teacher, teacher_pixels
from tokenar.model.config import ModelConfig
from tokenar.train.loop import train_model
from tokenar.train.step import teacher_losses


def encoded(references=2):
    codes = torch.arange((references + 2) * 4).view(-1, 4) % 11
    return Encoded("a", "", codes[:-1], torch.zeros(3, 5), codes[-1], torch.ones(3, dtype=torch.bool))


# Teachers


def test_two_teachers_are_two_layers_with_the_released_names():
    both = random_net(SMALL.model_copy(update={"distill": "both", "grid": 4}))
    names = {name for name in both.state_dict() if name.startswith("alignment")}
    assert names == {"alignment.0.weight", "alignment.0.bias", "alignment.1.weight", "alignment.1.bias"}
    hidden = torch.randn(2, 16, 16)
    features = both.alignment(hidden)
    assert features.shape == (2, 4 + 196, 768)
    for kind, own, number in (("dinov2", features[:, :4], 0), ("clip", features[:, 4:], 1)):
        single = random_net(SMALL.model_copy(update={"distill": kind, "grid": 4}))
        prefix = f"alignment.{number}."
        weights = {n.removeprefix(prefix): v for n, v in both.state_dict().items() if n.startswith(prefix)}
        single.alignment.load_state_dict(weights)
        assert torch.equal(single.alignment(hidden), own), kind


@pytest.mark.parametrize("case", [c for c in cases("tokenar", "gpt_train_forward") if "clip" in str(c.values[0])])
def test_the_loss_of_a_clip_teacher_is_the_released_one(case):
    """The golden numbers of one teacher hold for the sum that two are in."""
    told, data = read(case), tensors(case)
    config = config_of(told["config"], told["itd"])
    features, wanted = data["expected_features"].float(), data["teacher_features"].float()
    (loss,) = teacher_losses(features, wanted, list(config.teachers.values())) / len(features)
    assert loss.item() == pytest.approx(told["expected"]["distill_loss"], rel=1e-4)
    twice = teacher_losses(torch.cat([features, 0 * features], 1), torch.cat([wanted, wanted], 1), [196, 196])
    assert twice[0] / len(features) == pytest.approx(loss)
    assert twice[1] / len(features) == pytest.approx(F.mse_loss(0 * wanted, wanted).item(), rel=1e-5)


def test_clip_sees_the_whole_of_a_square_picture():
    picture = torch.rand(1, 3, 224, 224) * 2 - 1
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in MEAN_STD["clip"])
    seen = teacher_pixels(picture, kind="clip") * std + mean
    assert seen.shape == (1, 3, 224, 224)
    assert ((picture + 1) / 2 - seen).abs().max() <= 1.01 / 255, "truncated to 8 bits, nothing cut off"


@pytest.mark.slow
def test_both_networks_are_read_and_stand_side_by_side(tmp_path):
    clip, dinov2 = save_tiny_clip(tmp_path / "clip"), save_tiny_dinov2(tmp_path / "dinov2")
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    made = {
        kind: Teacher(TeacherConfig(kind=kind, clip=str(clip), model=str(dinov2)), dtype=torch.float32)
        for kind in ("dinov2", "clip", "both")
    }
    assert [made[kind].tokens for kind in made] == [256, 196, 452]
    each = [made[kind].encode(pictures) for kind in ("dinov2", "clip")]
    assert torch.equal(made["both"].encode(pictures), torch.cat(each, 1))
    assert len({teacher.fingerprint for teacher in made.values()}) == 3
    vision = CLIPModel.from_pretrained(clip).vision_model
    true = vision(teacher_pixels(pictures, kind="clip")).last_hidden_state[:, 1:]
    torch.testing.assert_close(each[1], true, atol=1e-5, rtol=1e-4)
    wide = save_tiny_dinov2(tmp_path / "wide", width=48)
    with pytest.raises(UserError, match="widths 48 and 24"):
        Teacher(TeacherConfig(kind="both", clip=str(clip), model=str(wide)))


def test_both_teachers_train(tmp_path):
    write_shard(tmp_path / "train-0.tar", [make_sample(n, side=32) for n in range(4)])
    changes = {"model__distill": "both", "teacher": {"kind": "both"}, "val_shards": None, "steps": 4}
    config = with_changes(tiny_config(tmp_path, tmp_path / "run"), **changes)

    class Known:
        """Features of the sizes of the published teachers."""

        def encode(self, pictures):
            return torch.ones(len(pictures), 4 + 196, 768)

    import tokenar.train.inputs as inputs

    before, inputs._teacher = inputs._teacher, lambda config, device: Known()
    try:
        train_model(config)
    finally:
        inputs._teacher = before
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {"loss_teacher", "loss_teacher_clip"} <= rows[-1].keys()
    first, last = rows[1], rows[-1]
    assert last["loss_teacher"] < first["loss_teacher"]
    assert last["loss_teacher_clip"] < first["loss_teacher_clip"]


def test_a_teacher_that_the_model_does_not_learn_is_refused(tmp_path):
    for changes in ({"model__distill": "clip"}, {"model__distill": "clip", "teacher": TeacherConfig()},
                    {"teacher": {"kind": "both"}}):  # fmt: skip
        with pytest.raises(UserError, match=r"model.distill and teacher.kind go together"):
            with_changes(tiny_config(tmp_path, tmp_path), **changes)


# Special instruct tokens


SPECIAL = {"instruct_mode": "special", "identity_disentanglement": False}


def test_special_mode_draws_references_and_the_picture_alike():
    sample, config = encoded(), SMALL.model_copy(update=SPECIAL)
    drawn = [with_target(sample, draw, config) for draw in torch.rand(3000, generator=torch.Generator().manual_seed(0))]
    counts = Counter(own.instruct for own in drawn)
    assert counts.keys() == {0, 1, 2}
    assert all(900 < count < 1100 for count in counts.values())
    for own in drawn[:50]:
        wanted = sample.picture if own.instruct == 2 else sample.sources[own.instruct]
        assert torch.equal(own.picture, wanted)


def test_as_released_the_last_reference_is_never_a_target():
    config = SMALL.model_copy(update=SPECIAL | {"picture_instruct": "last_reference"})
    drawn = [with_target(encoded(), draw / 100, config) for draw in range(100)]
    assert {own.instruct for own in drawn} == {0, 1}
    assert all(torch.equal(own.picture, encoded().picture) for own in drawn if own.instruct == 1)


def trained(tmp_path, **changes):
    for name, split in (("train-0.tar", "train"), ("test-0.tar", "test")):
        write_shard(tmp_path / name, [make_sample(n, split, side=32, references=2) for n in range(4)])
    config = with_changes(tiny_config(tmp_path, tmp_path / "run"), steps=3, **changes)
    return config, train_model(config)


def drawn_with(tmp_path):
    out = in_process("sample", "--model", tmp_path / "run/model", "--shards", tmp_path / "test-*.tar",
                     "--out", tmp_path / "drawn")  # fmt: skip
    assert out.returncode == 0, out.stderr
    return sorted(path.name for path in (tmp_path / "drawn").glob("*.png"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"model__instruct_mode": "special", "model__identity_disentanglement": False},
        {"model__background": False},
        {"model__background": False, "model__instruct_tokens": 0, "model__index_embedding": False,
         "model__identity_disentanglement": False},
    ],
    ids=["special", "no background", "editing"],
)  # fmt: skip
def test_variants_train_validate_and_draw(tmp_path, changes):
    _, summary = trained(tmp_path, **changes)
    assert summary["finished"]
    assert summary["val_loss"] > 0
    assert len(drawn_with(tmp_path)) == 4


def test_special_refuses_what_it_cannot_be_with(tmp_path):
    with pytest.raises(UserError, match="identity_disentanglement false"):
        with_changes(tiny_config(tmp_path, tmp_path), model__instruct_mode="special")
    with pytest.raises(ValueError, match="special needs background"):
        ModelConfig.model_validate(SMALL.model_dump() | {"instruct_mode": "special", "background": False})


# Without a background


def test_a_model_without_a_background_reads_none():
    net = random_net(SMALL.model_copy(update={"background": False}))
    sample = encoded()
    other = replace(sample, sources=torch.cat([sample.sources[:-1], (sample.sources[-1:] + 1) % 11]))
    batches = [collate([own], net.config.background) for own in (sample, other)]
    assert batches[0].sources.shape == (1, 2, 4)
    first, second = (net(batch.sources, batch.text, batch.picture) for batch in batches)
    assert torch.equal(first, second)


# Several data sets


def test_sets_are_mixed_in_proportion_and_none_repeats_early():
    mix = Mix((100, 300), (3.0, 1.0))
    order = Order([2] * 400, 8, 0, mix=mix)
    numbers = [number for _ in range(50) for number in order.next()]
    small = [number for number in numbers if number < 100]
    assert 0.68 < len(small) / 400 < 0.82
    large = [number for number in numbers if number >= 100]
    assert len(set(large)) == len(large), "a set's samples come once before any comes again"
    assert max(Counter(small).values()) - min(Counter(small).values()) <= 1
    assert order.position.epoch == 1
    again = Order([2] * 400, 8, 0, mix=mix)
    assert [number for _ in range(50) for number in again.next()] == numbers


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3), seed=st.integers(0, 99), epochs=st.integers(1, 6))
def test_a_sets_samples_come_once_before_any_comes_again_whatever_the_epoch(sizes, seed, epochs):
    mix = Mix(tuple(sizes), tuple(float(1 + own) for own in range(len(sizes))))
    drawn = [number for epoch in range(epochs) for number in mix.order(seed, epoch)]
    first = 0
    for size in sizes:
        own = [number for number in drawn if first <= number < first + size]
        rounds = [own[start : start + size] for start in range(0, len(own), size)]
        assert all(len(set(one)) == len(one) for one in rounds)
        first += size
    assert len(drawn) == epochs * sum(sizes)


@pytest.mark.slow
def test_two_sets_train_for_epochs(tmp_path):
    """Both have shards of the same name."""
    write_shard(tmp_path / "a/train-0.tar", [make_sample(n, side=32) for n in range(6)])
    write_shard(tmp_path / "b/train-0.tar", [make_sample(n, side=32, references=1) for n in range(6, 8)])
    path = write_config(tiny_config(tmp_path, tmp_path / "run", val_shards=None), tmp_path / "config.json")
    options = ("train", "--config", path, "--shards", f"{tmp_path}/a/*.tar", "--shards", f"{tmp_path}/b/*.tar")
    done = in_process(*options, "--epochs", 2)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["steps"] == 2 * (2 + 1), "six samples with two references and two with one, in batches of four"
    files = [tmp_path / "a/train-0.tar", tmp_path / "b/train-0.tar"]
    assert [shard["sha256"] for shard in summary["shards"]] == [sha256(f.read_bytes()).hexdigest() for f in files]
    weighed = in_process(*options, "--weight", "1", "--weight", "5", "--overwrite")
    assert weighed.returncode == 0, weighed.stderr
    refused = in_process(*options, "--weight", "1", "--overwrite")
    assert "2 globs of shards need as many weights" in refused.stderr
    assert "exclude each other" in in_process(*options, "--epochs", 2, "--steps", 3).stderr


def test_the_single_subject_preset_is_the_papers():
    config = train_single_subject()
    assert isinstance(config, TrainConfig)
    assert (config.steps, config.model.max_references) == (10_000, 1)
