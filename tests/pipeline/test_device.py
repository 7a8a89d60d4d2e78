"""What float32 means on a GPU. The settings are there without one, so every network can be asked what it runs under."""

import threading
from types import SimpleNamespace

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny.sdxl import make_sample
from torch.backends import cuda, cudnn

from pipeline.device import exact_float32
from pipeline.identity.encoders import TimmEncoder
from pipeline.matting.ben2_inference import matte, one_at_a_time
from pipeline.semantics.transformers_vlm import TransformersJudge
from pipeline.synthesis.dreamrelation.stage import DreamRelation, DreamRelationConfig

EXACT = {"conv": "ieee", "rnn": "ieee", "matmul": "ieee", "old": (False, False, "highest")}


def precisions():
    old = (cudnn.allow_tf32, cuda.matmul.allow_tf32, torch.get_float32_matmul_precision())
    conv, rnn, matmul = (part.fp32_precision for part in (cudnn.conv, cudnn.rnn, cuda.matmul))
    return {"conv": conv, "rnn": rnn, "matmul": matmul, "old": old}


@pytest.fixture(params=["as it is", "fast"])
def callers(request):
    """The caller's settings, which must be the same afterwards."""
    before, conv, rnn = torch.get_float32_matmul_precision(), cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision
    cudnn.allow_tf32 = True  # what PyTorch does by itself, whatever other tests of this process have set
    cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "tf32"
    if request.param == "fast":
        torch.set_float32_matmul_precision("high")
    mine = precisions()
    yield mine
    assert precisions() == mine
    torch.set_float32_matmul_precision(before)
    cudnn.allow_tf32 = conv == "tf32"
    cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = conv, rnn


def spy(seen, result=None):
    def forward(*args, **kwargs):
        seen.append(precisions())
        if result is None:
            raise ArithmeticError("seen enough")
        return result(*args)

    return forward


def test_ben2(callers):
    seen = []
    network = one_at_a_time(spy(seen, lambda pictures: pictures[:, :1]))
    matte(network, [Image.new("RGB", (9, 9))], 128, torch.device("cpu"), torch.float32)
    assert seen == [EXACT]


def test_an_encoder_of_timm(callers, tmp_path):
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "model.safetensors")
    encoder = TimmEncoder("test_vit", tmp_path / "model.safetensors", None, torch.device("cpu"), torch.float32)
    seen = []
    encoder.model.register_forward_hook(lambda *_: seen.append(precisions()))
    encoder.encode([Image.new("RGB", (9, 9))])
    assert seen == [EXACT]


def test_the_judge_in_this_process(callers, monkeypatch):
    judge, seen = TransformersJudge(), []
    monkeypatch.setattr(judge, "inputs", spy(seen))
    (answer,) = judge.ask(["a question"])
    assert isinstance(answer, ArithmeticError)
    assert all(each == EXACT for each in seen)
    assert seen


def test_dreamrelation(callers):
    stage, seen = DreamRelation(DreamRelationConfig(device="cpu")), []
    stage.generator = SimpleNamespace(fits=lambda text: True, encode_reference=spy(seen))
    with pytest.raises(ArithmeticError):
        stage.process_batch([make_sample("a")])
    assert seen == [EXACT]


def test_the_last_of_several_threads_puts_the_settings_back(callers):
    inside, go = threading.Barrier(3), threading.Event()
    seen = []

    def part():
        with exact_float32():
            inside.wait(10)
            go.wait(10)
            seen.append(precisions())

    threads = [threading.Thread(target=part) for _ in range(2)]
    for thread in threads:
        thread.start()
    with exact_float32():
        inside.wait(10)
    assert precisions() == EXACT, "the others are still at work"
    go.set()
    for thread in threads:
        thread.join(10)
    assert seen == [EXACT] * 2
