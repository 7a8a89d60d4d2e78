"""Files that are no checkpoint: not whole, of another kind, or with code in them."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

from fuzz.makers import Make, fifo, folder, link, written
from fuzz.published.made import IMPORT, OTHER_VQ, SAMPLE, saved, tensor
from fuzz.runner import Case
from fuzz.trained import HEADER, Executed


def _zip(here: Path) -> None:
    with zipfile.ZipFile(here / "bad.pt", "w") as file:
        file.writestr("a.txt", "no weights")


def _zip_of_pickle(here: Path) -> None:
    with zipfile.ZipFile(here / "bad.pt", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Executed()))
        file.writestr("archive/version", "3\n")


def _cut(here: Path) -> None:
    data = (here.parents[1] / "good" / "published" / "net.pt").read_bytes()
    (here / "bad.pt").write_bytes(data[: len(data) // 2])


def _bomb(here: Path) -> None:
    with zipfile.ZipFile(here / "bad.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(300_000_000))


def _old_of_gigabytes(here: Path) -> None:
    """A file of torch before 1.6 whose storage claims more numbers than there are."""
    import torch

    buffer = io.BytesIO()
    torch.save({"model": {"a": torch.zeros(777)}}, buffer, _use_new_zipfile_serialization=False)
    data = buffer.getvalue().replace((777).to_bytes(2, "little"), (65535).to_bytes(2, "little"))
    (here / "bad.pt").write_bytes(data[:-3000])


_FILES: dict[str, tuple[Make, str]] = {
    "missing": (lambda here: None, "bad.pt"),
    "empty": (written("bad.pt", b""), "bad.pt"),
    "text": (written("bad.pt", "hello"), "bad.pt"),
    "cut": (_cut, "its end is missing"),
    "zip of others": (_zip, "bad.pt"),
    "zip of code": (_zip_of_pickle, "more than tensors"),
    "zip bomb": (_bomb, "larger than the file"),
    "zip mark": (written("bad.pt", b"PK\3\4" + bytes(100)), "bad.pt"),
    "pickle of code": (written("bad.pt", pickle.dumps(Executed())), "bad.pt"),
    "code": (saved(lambda content: content | {"args": Executed()}), "which is not run, under args"),
    "a class": (saved(lambda content: content | {"args": Path("x")}), "which is not run, under args"),
    "code in an old file": (
        saved(lambda content: {"model": Executed()}, _use_new_zipfile_serialization=False), "which is not run"),
    "an old file of gigabytes": (_old_of_gigabytes, "bad.pt"),
    "pipe": (fifo("bad.pt"), "bad.pt"),
    "device": (link("bad.pt", "/dev/zero"), "bad.pt"),
    "folder": (folder("bad.pt"), "bad.pt"),
    "link to itself": (link("bad.pt", "bad.pt"), "bad.pt"),
    "a tokenizer": (saved(lambda content: content, of="vq.pt"), "bad.pt"),
    "a tensor": (saved(lambda content: content["model"]["norm.weight"]), "no weights"),
    "a list": (saved(lambda content: [content]), "no weights"),
    "a number": (saved(lambda content: 3), "no weights"),
    "no weights": (saved(lambda content: {"epoch": 3}), "no weights"),
    "weights of lists": (saved(lambda content: {"model": {"a": [1]}}), "no weights"),
}  # fmt: skip
_files = [
    Case(f"checkpoint {name} in {command}", command, arguments, said, make, clean=True)
    for command, arguments in (("import", IMPORT), ("sample", SAMPLE))
    for name, (make, said) in _FILES.items()
    if command == "import" or name not in ("folder", "an old file of gigabytes")
]
_files.append(Case("checkpoint folder in sample", "sample", SAMPLE, "leave it out", folder("bad.pt"), clean=True))


def _with_nan(content: dict[str, Any]) -> dict[str, Any]:
    next(iter(content["model"].values())).fill_(float("nan"))
    return content


_files += [
    Case(f"tokenizer {name} of a checkpoint", "import",
         OTHER_VQ, said, make, clean=True)
    for name, (make, said) in (
        _FILES | {
            "a tokenizer": (saved(lambda content: content), "bad.pt: not the weights of a VQ tokenizer"),
            "not finite": (saved(lambda content: _with_nan(content), of="vq.pt"), "NaN"),
            "named by numbers": (saved(lambda content: {"model": {1: tensor(3)}}), "bad.pt"),
        }
    ).items()
]  # fmt: skip


def _safetensors(name: str, content: bytes) -> Case:
    arguments = ("{here}/bad.safetensors", *IMPORT[1:])
    return Case(f"safetensors {name}", "import", arguments, "bad.safetensors", written("bad.safetensors", content),
                clean=True)  # fmt: skip


def _header(value: object) -> bytes:
    data = json.dumps(value).encode()
    return len(data).to_bytes(8, "little") + data


_safe = [
    _safetensors("empty", b""), _safetensors("header absurd", HEADER + b"{}"),
    _safetensors("header a list", _header([])),
    _safetensors("header cut", (50).to_bytes(8, "little") + b"{"), _safetensors("of nothing", _header({})),
    _safetensors("negative shape", _header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}) + bytes(4)),
    _safetensors("absurd shape", _header({"a": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 4]}}) + bytes(4)),
    _safetensors("absurd offsets", _header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**62]}})),
    _safetensors("unknown kind", _header({"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}) + bytes(4)),
    _safetensors("a pickle", pickle.dumps(Executed())),
]  # fmt: skip

CASES = [*_files, *_safe]
