"""Encoders of an evaluation, tiny and random in the published layouts, against the libraries' own ways."""

import pickle
import shutil

import lpips
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from small.run import make_sample
from tiny.evaluation import save_backbone, save_inception, save_tiny_clip, save_tiny_vit

from data_schemas.errors import UserError
from tokenar.evaluate.config import EvalConfig, encoders_of
from tokenar.evaluate.encoders import Clip, EfficientNet, Encoders, Inception, Lpips, Timm
from tokenar.evaluate.pictures import as_pixels

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pictures():
    samples = [make_sample(i, side=64) for i in range(2)]
    return [picture for sample in samples for picture in (sample.target, sample.references[0])]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return save_tiny_vit(tmp_path_factory.mktemp("vit") / "vit")


@pytest.mark.parametrize(("kind", "name"), [("alexnet", "alex"), ("squeezenet1_1", "squeeze")])
def test_lpips_agrees_with_the_reference_implementation(kind, name, pictures, tmp_path):
    path = save_backbone(tmp_path / "backbone.pth", kind)
    ours = Lpips(str(path), CPU)
    theirs = lpips.LPIPS(net=name, pnet_rand=True, verbose=False).eval()
    saved = torch.load(path, weights_only=True)
    theirs.net.load_state_dict({key: saved[f"features.{key.partition('.')[2]}"] for key in theirs.net.state_dict()})
    a, b = as_pixels(pictures[0]), as_pixels(pictures[2])
    tensors = [torch.from_numpy(p).permute(2, 0, 1)[None].float() * 2 - 1 for p in (a, b)]
    assert ours(a, b) == pytest.approx(theirs(*tensors).item(), abs=1e-4)
    assert ours(a, b) > 1e-3
    assert ours(a, a) == 0
    mask = np.zeros(a.shape[:2], bool)
    mask[10:30, 5:50] = True
    theirs.spatial = True
    assert ours(a, b, mask) == pytest.approx(theirs(*tensors)[0, 0].detach().numpy()[mask].mean(), abs=1e-4)
    assert np.isnan(ours(a, b, mask & False))


def test_clip_agrees_with_the_models_own_logits(clip, pictures):
    from transformers import CLIPModel, CLIPProcessor

    encoder, model = Clip(str(clip), CPU), CLIPModel.from_pretrained(clip)
    processor = CLIPProcessor.from_pretrained(clip)
    for prompt in ("a cat", "it is a very long prompt about one cat and two dogs " * 30):
        inputs = processor(text=[prompt], images=pictures, return_tensors="pt", truncation=True, max_length=16)
        with torch.inference_mode():
            theirs = model(**inputs).logits_per_image[:, 0] / model.logit_scale.exp()
        np.testing.assert_allclose(encoder.encode(pictures) @ encoder.text(prompt), theirs.numpy(), atol=1e-4)
        assert theirs.abs().min() > 1e-2
    assert not encoder.cuts("a cat")
    assert encoder.cuts("a" * 40)


def test_dino_agrees_with_timm(vit, pictures):
    ours = Timm("dino", str(vit), "vit_small_patch16_224.dino", CPU).encode(pictures)
    net = timm.create_model(f"local-dir:{vit}", pretrained=True).eval()
    view = timm.data.create_transform(**timm.data.resolve_model_data_config(net), is_training=False)
    with torch.inference_mode():
        theirs = net(torch.stack([view(p) for p in pictures]))
    theirs = torch.nn.functional.normalize(theirs, dim=1).numpy()
    # the tiny network reads 32 pixels; square pictures lose nothing to timm's crop
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert np.abs(ours[0] - ours[2]).max() > 1e-2


def test_inception_agrees_with_torch_fidelity(pictures, tmp_path):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = save_inception(tmp_path / "inception.pth")
    theirs = FeatureExtractorInceptionV3("theirs", ["2048"], feature_extractor_weights_path=str(path))
    expected = theirs(torch.from_numpy(np.array(pictures[0])).permute(2, 0, 1)[None])[0][0].numpy()
    ours = Inception(str(path), CPU).encode([pictures[0]])[0]
    np.testing.assert_allclose(ours, expected, rtol=1e-4)
    assert ours.std() > 0


def test_a_picture_is_encoded_by_itself(pictures):
    encoder = EfficientNet(CPU)
    together, alone = encoder.encode(pictures), [encoder.encode([picture])[0] for picture in pictures]
    assert (together == np.stack(alone)).all()
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)


def test_a_fingerprint_tells_weights_and_settings_apart(vit, tmp_path):
    def fingerprint(folder):
        return Timm("dino", str(folder), "", CPU).fingerprint

    first, moved, darker = fingerprint(vit), shutil.copytree(vit, tmp_path / "a"), shutil.copytree(vit, tmp_path / "b")
    config = (darker / "config.json").read_text()
    (darker / "config.json").write_text(config.replace("0.485", "0.5"))
    assert fingerprint(moved) == first
    assert len({first, fingerprint(darker), fingerprint(save_tiny_vit(tmp_path / "c", seed=1))}) == 3


class Code:
    """What a file of weights must never run."""

    def __reduce__(self):
        return (exit, (3,))


def test_all_that_is_missing_is_named_at_once(tmp_path, monkeypatch):
    (tmp_path / "code.pth").write_bytes(pickle.dumps(Code()))
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pth")
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.safetensors", "PNG")
    config = EvalConfig(
        lpips=str(tmp_path / "other.pth"), inception=str(tmp_path / "code.pth"), clip=str(tmp_path / "none"),
        dino=str(tmp_path / "picture.safetensors"),
    )  # fmt: skip
    with pytest.raises(UserError) as raised:
        Encoders(config, CPU)
    line = str(raised.value)
    assert line.startswith("4 encoders missing: lpips: ")
    assert "\n" not in line
    for words in ("not torchvision's AlexNet", "code.pth: not a readable file of weights (it is damaged or holds",
                  f"{tmp_path / 'none'} cannot be had (no such file or folder)", "dino: "):  # fmt: skip
        assert words in line
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="clip: nobody/nothing cannot be had"):
        Encoders(EvalConfig(clip="nobody/nothing"), CPU)


def test_the_papers_encoders_are_settings():
    assert set(encoders_of("paper")) == {"lpips", "inception", "clip", "dino", "dinov2"}
    assert EvalConfig.model_validate(encoders_of("paper")).dino == "timm/vit_small_patch16_224.dino"
    with pytest.raises(UserError, match="no encoders 'papr'; did you mean paper"):
        encoders_of("papr")


def test_the_number_of_threads_changes_nothing():
    pictures = [make_sample(0, side=64).target]
    encoder, before = EfficientNet(CPU), torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(encoder.encode(pictures))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert (found[0] == found[1]).all()
