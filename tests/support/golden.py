"""Golden data of the published programs, read where it lies: $GOLDEN, or ../shared/golden beside the project."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

OPEN = Path(__file__).parents[3] / "shared/golden"
ROOT = Path(os.environ.get("GOLDEN", OPEN))


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def paths(folder: str, kind: str) -> list[Path]:
    """Every JSON file under ``<root>/<folder>`` whose "kind" is this one."""
    return [p for p in sorted((ROOT / folder).rglob("*.json")) if _kind(p) == kind]


def _kind(path: Path) -> Any:
    values = read(path)
    return values.get("kind") if isinstance(values, dict) else None


def cases(folder: str, kind: str) -> list[Any]:
    """Parameters for ``pytest.mark.parametrize("case", ...)``: a skipped one with the reason where there is none."""
    found = paths(folder, kind)
    if found:
        return [pytest.param(path, id=path.stem) for path in found]
    why = f"no golden case of kind {kind!r} under {ROOT / folder}"
    return [pytest.param(None, id=f"no-{kind}", marks=pytest.mark.skip(reason=why))]


def tensors(path: Path) -> dict[str, Any]:
    """The tensors beside a case's JSON file."""
    return load_file(path.with_suffix(".safetensors"))


def beside(path: Path, name: str) -> Path:
    """A model file or folder that a case names: beside the case, or in the open golden data."""
    own = path.parent / name
    return own if own.exists() else OPEN / path.parent.relative_to(ROOT) / name


def check_present(folder: str, *kinds: str) -> None:
    """Fail where GOLDEN is set and holds no case of these kinds; skip where the default folder is absent."""
    if any(paths(folder, kind) for kind in kinds):
        return
    message = f"no golden case under {ROOT / folder}"
    if "GOLDEN" in os.environ:
        pytest.fail(message)
    pytest.skip(message)
