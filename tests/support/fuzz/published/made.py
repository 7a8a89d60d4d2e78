"""A checkpoint as published programs write it, changed in one place, and the arguments of commands that read it."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz.makers import Make

VQ = ("--tokenizer", "{published}/vq.pt")
IMPORT = ("{here}/bad.pt", *VQ, "--out", "{here}/o")
"""With settings that the file states."""
SHAPED = (*IMPORT, "--set", "heads=2", "--set", "grid=4")
"""With settings that come from the weights' shapes."""
SAMPLE = ("--model", "{here}/bad.pt", *VQ, "--out", "{here}/o", "--folder", "{request}")

OTHER_VQ = ("{published}/net.pt", "--tokenizer", "{here}/bad.pt", "--out", "{here}/o")


def good(here: Path, name: str = "net.pt") -> dict[str, Any]:
    import torch

    return torch.load(here.parents[1] / "good" / "published" / name, weights_only=True)


def saved(change: Callable[[dict[str, Any]], Any], name: str = "bad.pt", of: str = "net.pt", **options: Any) -> Make:
    """The good file, of which ``change`` gives what is stored in its place."""

    def make(here: Path) -> None:
        import torch

        torch.save(change(good(here, of)), here / name, **options)

    return make


def weights(change: Callable[[dict[str, Any]], object], of: str = "net.pt") -> Make:
    """The weights alone, changed in place; the settings come from their shapes then."""

    def changed(content: dict[str, Any]) -> dict[str, Any]:
        change(content["model"])
        return {"model": content["model"]}

    return saved(changed, of=of)


def told(**settings: Any) -> Make:
    """Settings that the file states, some of them replaced."""

    def changed(content: dict[str, Any]) -> dict[str, Any]:
        content["tokenar"]["model"] |= settings
        return content

    return saved(changed)


def command_line(**given: Any) -> Make:
    """The weights with a trainer's stored command line."""
    return saved(lambda content: {"model": content["model"], "args": Namespace(**given)})


def tensor(*shape: int) -> Any:
    import torch

    return torch.zeros(shape)
