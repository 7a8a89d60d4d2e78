"""Which relation gets which LoRA file: by the words in its path, unless the config says otherwise."""

import shutil

import pytest
from doubles.hub import LORAS, uploading_hub
from huggingface_hub import constants, snapshot_download

from data_schemas.errors import UserError
from pipeline.config import CurationConfig
from pipeline.models import fetch
from pipeline.planning.relations import relation_data
from pipeline.synthesis.dreamrelation.found import WORDS, match, told
from pipeline.synthesis.dreamrelation.stage import DreamRelation, DreamRelationConfig

HUG = "lora-trained-xl-hugging-0.1kp-0.001cal-0.6/pytorch_lora_weights.safetensors"
SHAKE = "lora-trained-xl-shaking_hands-0.1kp/pytorch_lora_weights.safetensors"
PAPER = CurationConfig.load("paper").planning.relations


@pytest.fixture
def folder(tmp_path):
    """The files of the double's repository in a folder."""
    for name, data in LORAS.items():
        (tmp_path / "loras" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "loras" / name).write_bytes(data)
    return tmp_path / "loras"


def test_every_relation_can_be_named():
    assert set(WORDS) == set(relation_data()["relations"])
    for relation, words in WORDS.items():
        for word in words:
            assert match([f"lora-trained-xl-{word.replace(' ', '_')}-0.6/x.safetensors"]).of.keys() == {relation}


def test_what_names_no_relation_or_two_is_left_and_nothing_is_guessed():
    found = match([HUG, "thugs.safetensors", "hugging-and-kissing.safetensors", "README.md", "unet.safetensors"])
    assert found.of == {"hug": HUG}
    assert found.left == ("hugging-and-kissing.safetensors", "thugs.safetensors", "unet.safetensors")


def test_a_training_s_checkpoints_lie_deeper_than_its_result_and_of_equals_none_is_taken():
    found = match(["riding/w.safetensors", "riding/checkpoint-500/w.safetensors", "fight-a.safetensors",
                   "fight-b.safetensors"])  # fmt: skip
    assert found.of == {"ride": "riding/w.safetensors"}
    assert found.several == {"fight": ("fight-a.safetensors", "fight-b.safetensors")}


def test_a_run_uses_what_is_found_and_the_config_overrides_it(folder):
    def files(**settings):
        return DreamRelation(DreamRelationConfig(lora_source=str(folder), **settings)).config.loras

    assert files() == {"hug": HUG, "shake_hands": SHAKE, "ride": "checkpoints/riding.safetensors"}
    assert files(loras={"hug": None, "dance": "lora-trained-xl-juggling"}) == {
        "shake_hands": SHAKE, "ride": "checkpoints/riding.safetensors",
        "dance": "lora-trained-xl-juggling/pytorch_lora_weights.safetensors",
    }  # fmt: skip
    assert files(find_loras=False, loras={"hug": HUG}) == {"hug": HUG}


def test_another_file_for_a_relation_makes_its_pictures_anew(folder):
    def mark():
        weights = {"base", "image_encoder", "adapter"}
        own = {name: str(folder / "README.md") for name in weights}
        return DreamRelation(DreamRelationConfig(lora_source=str(folder), **own)).fingerprint({})

    before = mark()
    assert mark() == before
    (folder / "pictures.png").write_bytes(b"no LoRA")
    assert mark() == before
    shutil.copy(folder / HUG, folder / "kissing.safetensors")
    assert mark() != before


def test_the_check_lists_the_hub_and_a_fetch_brings_what_is_new(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with uploading_hub() as (address, server):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        lines = told("tiny/loras", {"kiss": None, "dance": "mine"}, True, PAPER)
        assert lines[0] == "relation LoRAs of tiny/loras, as the hub lists it:"
        shown = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines[1:]}
        assert list(shown)[:11] == PAPER
        assert shown["hug"] == f"{HUG} (by its name, missing)"
        assert shown["kiss"] == "none (set in synthesis.loras)"
        assert shown["dance"] == "mine/pytorch_lora_weights.safetensors (set in synthesis.loras, missing)"
        assert shown["fence"] == "none"
        assert "  of no relation     lora-trained-xl-juggling/pytorch_lora_weights.safetensors" in lines
        (wanted,) = [w for w in DreamRelation(DreamRelationConfig(lora_source="tiny/loras")).weights()
                     if w.purpose == "relation LoRAs"]  # fmt: skip
        snapshot_download("tiny/loras", allow_patterns=[HUG])
        fetch(wanted)
        assert not any("README" in request or ".png" in request for request in server.seen)
        assert any(line.endswith(f"{HUG} (by its name, here)") for line in told("tiny/loras", {}, True, PAPER))
    found = DreamRelation(DreamRelationConfig(lora_source="tiny/loras")).config.loras
    assert set(found) == {"hug", "shake_hands", "ride"}, "whatever the hub has, not only what was here"


def test_without_the_hub_it_says_what_is_here(folder, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert told(str(folder), {}, True, PAPER)[0] == f"relation LoRAs of {folder}, on this machine:"
    (only,) = told("tiny/nowhere", {}, True, PAPER)
    assert "nothing of it is here" in only


def test_a_relation_that_does_not_exist_is_refused_with_the_one_that_was_meant():
    with pytest.raises(UserError, match=r"loras: .*no relation 'dnace'; did you mean dance\?"):
        CurationConfig.load("paper", given={"synthesis": {"loras": {"dnace": "my-dance"}}})
