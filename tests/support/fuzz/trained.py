"""Model folders that are not whole, do not fit or would run code, and the folders that pictures are drawn from."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz.good import make_folder_request
from fuzz.makers import DEEP, DIGITS, Make, written
from fuzz.runner import Case


class Executed:
    """Unpickling it leaves a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


def model(change: Callable[[Path], object]) -> Make:
    """A copy of the good model with something changed."""

    def make(here: Path) -> None:
        shutil.copytree(here.parents[1] / "good" / "run" / "model", here / "model")
        change(here / "model")

    return make


def config(**changes: object) -> Make:
    def change(folder: Path) -> None:
        settings = json.loads((folder / "config.json").read_text())
        for key, value in changes.items():
            part, _, field = key.partition("__")
            if field:
                settings[part][field] = value
            else:
                settings[part] = value
        (folder / "config.json").write_text(json.dumps(settings))

    return model(change)


def replaced(name: str, content: bytes | str) -> Make:
    return model(lambda folder: written(name, content)(folder))


def cut(name: str) -> Make:
    return model(lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-40]))


def gone(name: str) -> Make:
    return model(lambda folder: (folder / name).unlink())


def as_pipe(name: str) -> Make:
    return model(lambda folder: ((folder / name).unlink(), os.mkfifo(folder / name)))


def as_device(name: str) -> Make:
    return model(lambda folder: ((folder / name).unlink(), (folder / name).symlink_to("/dev/zero")))


def as_folder(name: str) -> Make:
    return model(lambda folder: ((folder / name).unlink(), (folder / name).mkdir()))


def weights(change: Callable[[dict[str, Any]], object], name: str = "model.safetensors") -> Make:
    def changed(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = {key: tensor.clone() for key, tensor in load_file(folder / name).items()}
        change(tensors)
        save_file(tensors, folder / name)

    return model(changed)


def _fill(tensors: dict[str, Any], value: float) -> None:
    for tensor in tensors.values():
        if tensor.is_floating_point():
            tensor.fill_(value)


def _wider(tensors: dict[str, Any]) -> None:
    import torch

    key = max(tensors)
    tensors[key] = torch.zeros(3, 5)


HEADER = (2**62).to_bytes(8, "little")
_MODELS: dict[str, tuple[Make, str]] = {
    "missing": (lambda here: None, "{here}/model"),
    "empty": (lambda here: (here / "model").mkdir(), "{here}/model"),
    "a file": (written("model", b"x"), "{here}/model"),
    "no config": (gone("config.json"), "config.json"),
    "no weights": (gone("model.safetensors"), "model.safetensors"),
    "no tokenizer": (gone("tokenizer.safetensors"), "tokenizer.safetensors"),
    "config empty": (replaced("config.json", ""), "config.json"),
    "config deep": (replaced("config.json", DEEP), "config.json"),
    "config a list": (replaced("config.json", "[]"), "config.json"),
    "config digits": (replaced("config.json", '{"format": ' + DIGITS + "}"), "config.json"),
    "config not UTF-8": (replaced("config.json", b"\xff\xfe"), "config.json"),
    "config NaN": (replaced("config.json", '{"format": NaN}'), "config.json"),
    "config null": (config(model=None), "config.json"),
    "config format": (config(format=99), "config.json"),
    "config layers": (config(model__layers=10**9), "config.json"),
    "config size": (config(model__layers=1000, model__width=60_000), "config.json"),
    "config text": (config(text__tokens=10**9), "config.json"),
    "config text of another": (config(text__tokens=7), "model|config.json"),
    "config vocabulary": (config(model__vocabulary=32), "model"),
    "config grid": (config(model__grid=8), "model"),
    "config more layers": (config(model__layers=2), "model.safetensors"),
    "config NaN rotary": (config(model__rotary_base=float("nan")), "config.json"),
    "config vq": (config(vq={"image_size": 32, "ch_mult": [1]}), "tokenizer.safetensors|config.json"),
    "config pipe": (as_pipe("config.json"), "config.json"),
    "config device": (as_device("config.json"), "config.json"),
    "config folder": (as_folder("config.json"), "config.json"),
    "weights empty": (replaced("model.safetensors", b""), "model.safetensors"),
    "weights text": (replaced("model.safetensors", b"no weights"), "model.safetensors"),
    "weights header": (replaced("model.safetensors", HEADER + b"{}"), "model.safetensors"),
    "weights cut": (cut("model.safetensors"), "model.safetensors"),
    "weights pickled": (replaced("model.safetensors", pickle.dumps(Executed())), "model.safetensors"),
    "weights pipe": (as_pipe("model.safetensors"), "model.safetensors"),
    "weights device": (as_device("model.safetensors"), "model.safetensors"),
    "weights folder": (as_folder("model.safetensors"), "model.safetensors"),
    "weights NaN": (weights(lambda tensors: _fill(tensors, float("nan"))), "model.safetensors"),
    "weights infinite": (weights(lambda tensors: _fill(tensors, float("inf"))), "model.safetensors"),
    "weights of another shape": (weights(_wider), "model.safetensors"),
    "weights lacking one": (weights(lambda tensors: tensors.pop(max(tensors))), "model.safetensors"),
    "tokenizer cut": (cut("tokenizer.safetensors"), "tokenizer.safetensors"),
    "tokenizer pickled": (replaced("tokenizer.safetensors", pickle.dumps(Executed())), "tokenizer.safetensors"),
    "tokenizer NaN": (
        weights(lambda tensors: _fill(tensors, float("nan")), "tokenizer.safetensors"), "tokenizer.safetensors",
    ),
    "tokenizer of another shape": (weights(_wider, "tokenizer.safetensors"), "tokenizer.safetensors"),
    "tokenizer pipe": (as_pipe("tokenizer.safetensors"), "tokenizer.safetensors"),
}  # fmt: skip
_FEW = ("missing", "config deep", "weights NaN", "weights pickled", "config pipe", "tokenizer NaN")
_models = [
    Case(f"model {name} in {command}", command,
         ("--model", "{here}/model", "--shards", "{shards}", "--out", "{here}/o", "--limit", "1"), told, make)
    for command in ("sample", "attention", "eval")
    for name, (make, told) in _MODELS.items()
    if command == "sample" or name in _FEW
]  # fmt: skip


def request(change: Callable[[Path], object]) -> Make:
    return lambda here: (change(make_folder_request(here / "request")), None)[1]


_REQUESTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no background": (lambda r: (r / "background.png").unlink(), "background.png"),
    "background pipe": (
        lambda r: ((r / "background.png").unlink(), os.mkfifo(r / "background.png")), "background.png"),
    "background device": (
        lambda r: ((r / "background.png").unlink(), (r / "background.png").symlink_to("/dev/zero")), "background.png"),
    "description pipe": (
        lambda r: ((r / "description.txt").unlink(), os.mkfifo(r / "description.txt")), "description.txt"),
    "description device": (
        lambda r: ((r / "description.txt").unlink(), (r / "description.txt").symlink_to("/dev/zero")),
        "description.txt"),
    "no description": (lambda r: (r / "description.txt").unlink(), "description.txt"),
    "no references": (lambda r: shutil.rmtree(r / "ref"), "ref"),
    "reference empty": (lambda r: (r / "ref" / "0.png").write_bytes(b""), "0.png"),
    "reference half": (lambda r: (r / "ref" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n"), "0.png"),
    "reference pipe": (lambda r: ((r / "ref" / "0.png").unlink(), os.mkfifo(r / "ref" / "0.png")), "0.png"),
    "reference folder": (lambda r: ((r / "ref" / "0.png").unlink(), (r / "ref" / "0.png").mkdir()), "0.png"),
    "too many references": (
        lambda r: [shutil.copy(r / "ref" / "0.png", r / "ref" / f"{k}.png") for k in range(2, 20)], "references"),
}  # fmt: skip
_requests = [
    Case(f"request {name}", "sample", ("--model", "{model}", "--out", "{here}/o", "--folder", "{here}/request"), told,
         request(change))
    for name, (change, told) in _REQUESTS.items()
]  # fmt: skip

CASES = [*_models, *_requests]
