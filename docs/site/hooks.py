"""What mkdocs asks while it makes the site: pages made from the code, and links that lead out of docs/."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
import reference

ROOT = Path(__file__).parents[2]
STYLE = ".md-typeset table code { word-break: keep-all; }\n"


def on_files(files: Files, config: Any) -> Files:
    """Add the front page, which is the README, and the pages that are made from the code."""
    readme = re.sub(r"\]\(docs/", "](", (ROOT / "README.md").read_text())
    made = {"index.md": lambda: readme, "extra.css": lambda: STYLE, **reference.PAGES}
    for name, write in made.items():
        files.append(File.generated(config, name, content=write()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A link to a file of the repository becomes that file's name: the site has no such page."""
    return re.sub(r"\[([^\]]+)\]\(\.\./([^)]+)\)", r"\1 (`\2`)", markdown)
