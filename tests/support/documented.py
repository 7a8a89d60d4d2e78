"""The blocks of README.md and docs/: what a reader may copy."""

from __future__ import annotations

import re
from pathlib import Path

from paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALL = {"samples": 12, "part_size": 4, "planning": {"test_share": 0.25}}


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of every block of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.M | re.S)


def commands(page: Path) -> list[str]:
    """The commands of a page's shell blocks, one string each, without comments."""
    shell = "".join(text for language, text in blocks(page) if language == "sh").replace("\\\n", " ")
    lines = (re.sub(r"(^|\s+)#.*$", "", line).strip() for line in shell.splitlines())
    return [line for line in lines if line]


def small_quickstart(folder: Path) -> None:
    """What `make quickstart` leaves in ``folder``, with few samples and next to no training."""
    import contextlib

    from flows.quickstart import quickstart
    from pipeline.config import CurationConfig

    with contextlib.chdir(folder):
        quickstart.fn(CurationConfig.parse(SMALL, "test"), 2)
