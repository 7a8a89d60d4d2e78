"""Golden data of the published programs, read where it lies: $GOLDEN, or ../shared/golden beside the project.

pytest is imported where it is needed, because benchmarks read these cases too and run without it.

A test knows this one root. Sizes, settings and the names of folders come out of it and out of the case, so that another
root of the same shape passes or fails for its own numbers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paths import SHARED
from safetensors.torch import load_file

ROOT = Path(os.environ.get("GOLDEN") or SHARED / "golden")


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
    import pytest

    found = paths(folder, kind)
    if found:
        return [pytest.param(path, id=path.stem) for path in found]
    why = f"no golden case of kind {kind!r} under {ROOT / folder}"
    return [pytest.param(None, id=f"no-{kind}", marks=pytest.mark.skip(reason=why))]


def tensors(path: Path) -> dict[str, Any]:
    """The tensors beside a case's JSON file."""
    return load_file(path.with_suffix(".safetensors"))


def near(path: Path, pattern: str, wanted: Callable[[Path], bool] = lambda found: True) -> Path:
    """What a case needs besides itself: a file by name or pattern, beside it, or else wherever it is in the root.

    The closest folder above the case counts first, then everything below its part of the root (``<root>/<folder>``).
    """
    import pytest

    found = _near(path, pattern, wanted)
    if found is None:
        pytest.fail(f"{path}: there is no {pattern} beside it or elsewhere in {ROOT}")
    return found


def _near(path: Path, pattern: str, wanted: Callable[[Path], bool] = lambda found: True) -> Path | None:
    part = ROOT / path.relative_to(ROOT).parts[0]
    above = [folder for folder in path.parents if folder.is_relative_to(part)]
    for found in (*(folder.glob(pattern) for folder in above), part.rglob(pattern)):
        if first := next(filter(wanted, sorted(found)), None):
            return first
    return None


def has(folder: str, pattern: str) -> bool:
    """Does the root hold such a file anywhere in ``folder``?"""
    return _near(ROOT / folder / "any.json", pattern) is not None


def check_present(folder: str, *kinds: str) -> None:
    """Fail where GOLDEN is set and holds no case of these kinds; skip where the default folder is absent."""
    import pytest

    if any(paths(folder, kind) for kind in kinds):
        return
    message = f"no golden case under {ROOT / folder}"
    if "GOLDEN" in os.environ:
        pytest.fail(message)
    pytest.skip(message)
