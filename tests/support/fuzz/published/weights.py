"""Checkpoints whose weights or settings fit no network, and odd ones that do."""

from __future__ import annotations

from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from fuzz.makers import Make
from fuzz.published.made import IMPORT, OTHER_VQ, SAMPLE, SHAPED, command_line, saved, tensor, told, weights
from fuzz.runner import Case

NAMES = (
    "tok_embeddings.weight", "cls_embedding.uncond_embedding", "cls_embedding.cap_proj.fc1.weight",
    "img_uncond_embedding", "ref_index_embeddings.weight", "instruct_token_embeddings.weight", "norm.weight",
    "output.weight", "layers.0.attention.wqkv.weight", "layers.0.attention.wo.weight",
    "layers.0.feed_forward.w1.weight", "layers.0.attention_norm.weight", "layers.1.ffn_norm.weight",
    "alignment.weight", "alignment.bias",
)  # fmt: skip
_CHANGES: dict[str, Callable[[dict[str, Any], str], object]] = {
    "missing": lambda held, name: held.pop(name),
    "a number": lambda held, name: held.__setitem__(name, tensor()),
    "of rank 5": lambda held, name: held.__setitem__(name, tensor(1, 2, 1, 2, 1)),
    "of no rows": lambda held, name: held.__setitem__(name, tensor(0, *held[name].shape[1:])),
    "of no columns": lambda held, name: held.__setitem__(name, tensor(*held[name].shape[:-1], 0)),
    "of a row more": lambda held, name: held.__setitem__(name, tensor(held[name].shape[0] + 1, *held[name].shape[1:])),
}


def _of_shape(name: str, change: Callable[[dict[str, Any], str], object]) -> Make:
    return weights(lambda held: change(held, name))


_shapes = [
    Case(f"weight {name} {what}", "import", SHAPED, "bad.pt", _of_shape(name, change), clean=True)
    for name in NAMES
    for what, change in _CHANGES.items()
    if (name, what) not in {
        ("ref_index_embeddings.weight", "missing"), ("instruct_token_embeddings.weight", "missing"),
        ("img_uncond_embedding", "missing"), ("alignment.weight", "missing"),
        ("cls_embedding.uncond_embedding", "of a row more"),
    }  # without these it is another model, of which something else is said
]  # fmt: skip
_VQ_NAMES = (
    "encoder.conv_in.weight", "encoder.conv_out.weight", "quantize.embedding.weight",
    "encoder.conv_blocks.0.res.0.conv1.weight", "decoder.conv_in.weight",
)  # fmt: skip
_shapes += [
    Case(f"tokenizer weight {name} {what}", "import",
         OTHER_VQ, "bad.pt",
         saved(lambda content, name=name, change=change: (change(content["model"], name), content)[1], of="vq.pt"),
         clean=True)
    for name in _VQ_NAMES
    for what, change in _CHANGES.items()
]  # fmt: skip


def _filled(value: float) -> Callable[[dict[str, Any]], object]:
    return lambda held: held["norm.weight"].fill_(value)


def _typed(kind: str) -> Callable[[dict[str, Any]], object]:
    import torch

    return lambda held: held.__setitem__("norm.weight", held["norm.weight"].to(getattr(torch, kind)))


def _sparse(held: dict[str, Any]) -> None:
    held["norm.weight"] = held["norm.weight"].to_sparse()


_WEIGHTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "not a number": (_filled(float("nan")), "norm.weight holds NaN"),
    "infinite": (_filled(float("-inf")), "norm.weight holds NaN or infinity"),
    "whole numbers": (lambda held: _typed("int32")(held), "norm.weight holds int32"),
    "complex": (lambda held: _typed("complex64")(held), "norm.weight holds complex64"),
    "of 8 bits": (lambda held: _typed("float8_e4m3fn")(held), "norm.weight holds float8"),
    "sparse": (_sparse, "sparse"),
    "without numbers": (
        lambda held: held.__setitem__("norm.weight", held["norm.weight"].to("meta")), "without numbers"),
    "expanded": (
        lambda held: held.__setitem__("norm.weight", tensor(1).expand(1 << 40)), "more numbers than the file holds"),
    "a key more": (lambda held: held.__setitem__("\x1b[31mred\n", tensor(1)), "not a key of this model"),
    "a key of nothing": (lambda held: held.__setitem__("", tensor(1)), "bad.pt"),
    "an over-long key": (lambda held: held.__setitem__("x" * 10**6, tensor(1)), "not a key of this model"),
    "a number for a key": (lambda held: held.__setitem__(3, tensor(1)), "bad.pt"),
    "a layer without a number": (lambda held: held.__setitem__("layers.", tensor(1)), "bad.pt"),
    "a thousand layers": (
        lambda held: held.update({f"layers.{k}.x": tensor(1) for k in range(1000)}), "bad.pt"),
    "two of a name": (lambda held: held.__setitem__("module.norm.weight", tensor(16)), "two tensors"),
}  # fmt: skip
_weights = [
    Case(f"weights {name}", "import", SHAPED, said, weights(change), clean=True)
    for name, (change, said) in _WEIGHTS.items()
]


def _shared(held: dict[str, Any]) -> None:
    """The output head is the token table, and layers are slices of one tensor."""
    import torch

    held["output.weight"] = held["tok_embeddings.weight"]
    whole = torch.cat([held["layers.0.attention_norm.weight"], held["layers.0.ffn_norm.weight"]])
    held["layers.0.attention_norm.weight"], held["layers.0.ffn_norm.weight"] = whole[:16], whole[8:24]


def _mixed(held: dict[str, Any]) -> None:
    import torch

    for number, name in enumerate(held):
        held[name] = held[name].to((torch.float16, torch.bfloat16, torch.float32, torch.float64)[number % 4])


_STRANGE: dict[str, Any] = {
    "image_size": 10**30, "downsample_size": -1, "concat_target": [None], "distill_mode": {"a": 1}, "max_ref_num": "x",
}  # fmt: skip
_fine = [
    Case("checkpoint good", "import", IMPORT, "2 layers of width 16", saved(lambda content: content), codes=(0,)),
    Case("weights shared", "import", SHAPED, "2 layers of width 16", weights(_shared), codes=(0,)),
    Case("weights of several kinds", "import", SHAPED, "2 layers of width 16", weights(_mixed), codes=(0,)),
    Case("weights ordered", "import", SHAPED, "2 layers of width 16",
         saved(lambda content: {"model": OrderedDict(content["model"])}), codes=(0,)),
    Case("args strange", "import", SHAPED, "2 layers of width 16", command_line(**_STRANGE), codes=(0,)),
    Case("args of tensors", "import", SHAPED, "2 layers of width 16",
         saved(lambda content: {"model": content["model"],
                                "args": Namespace(**{name: tensor(3) for name in _STRANGE})}), codes=(0,)),
    Case("args a text", "import", SHAPED, "2 layers of width 16",
         saved(lambda content: {"model": content["model"], "args": "x"}), codes=(0,)),
    Case("key a number beside", "import", SHAPED, "left out",
         saved(lambda content: {"model": content["model"], 3: "x", ("a", "\x1b[31m"): 1}), codes=(0,)),
]  # fmt: skip

_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "negative layers": ({"layers": -1}, "layers"), "absurd layers": ({"layers": 10**9}, "layers"),
    "absurd width": ({"width": 10**6}, "width"), "a word": ({"grid": "x"}, "grid"),
    "another grid": ({"grid": 5}, "bad.pt"), "no such": ({"colour": 1}, "colour"),
    "an escape": ({"\x1b[31m": 1}, "bad.pt"), "not a number": ({"rotary_base": float("nan")}, "rotary_base"),
    "another vocabulary": ({"vocabulary": 9}, "bad.pt"), "more layers": ({"layers": 3}, "bad.pt"),
}  # fmt: skip
_settings = [
    Case(f"stated {name} in {command}", command, arguments, said, told(**settings), clean=True)
    for command, arguments in (("import", IMPORT), ("sample", SAMPLE))
    for name, (settings, said) in _SETTINGS.items()
]
_settings += [
    Case(f"stated {name}", "import", IMPORT, "bad.pt",
         saved(lambda content, value=value: content | {"tokenar": value}), clean=True)
    for name, value in {
        "nothing": {}, "model a list": {"model": [1]}, "text a list": {"model": {}, "text": [1]},
        "a number for a key": {"model": {3: 4}}, "tensors": {"model": {"layers": 1.5}, "text": 3},
    }.items()
]  # fmt: skip

CASES = [*_shapes, *_weights, *_fine, *_settings]
