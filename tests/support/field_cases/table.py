"""The table in the README.md of the field cases, and who answers for which of its files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from paths import SHARED

FOLDER = Path(os.environ.get("FIELD", SHARED / "field"))

Case = Callable[[Path, Path], None]
CASES: dict[str, list[Case]] = {}
"""By file: functions of that file and an empty folder, one for each use."""
SLOW: set[Case] = set()
"""Those that take more than ten seconds."""


def case(*files: str, slow: bool = False) -> Callable[[Case], Case]:
    def register(function: Case) -> Case:
        for file in files:
            CASES.setdefault(file, []).append(function)
        if slow:
            SLOW.add(function)
        return function

    return register


def rows() -> list[tuple[list[str], str, str]]:
    """(files, used as, must give) of every row of the README's table."""
    if not (FOLDER / "README.md").is_file():
        return []
    lines = [line for line in (FOLDER / "README.md").read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip().strip("|").split("|", 2)] for line in lines[2:]]
    return [(re.split(r",\s*", files), used, expected) for files, used, expected in cells]
