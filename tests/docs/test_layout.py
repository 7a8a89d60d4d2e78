"""The layout that docs/architecture.md shows: small files, small folders, no text cited that is not here."""

import importlib.util
import re
from pathlib import Path

from documented import ROOT

CODE = [
    path
    for folder in ("data_schemas", "pipeline", "tokenar", "flows", "tests", "benchmarks", "docs")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def test_no_file_is_longer_than_350_lines():
    assert {str(p): n for p in CODE if (n := len(p.read_text().splitlines())) > 350} == {}


def test_no_folder_holds_more_than_12_modules():
    folders: dict[Path, int] = {}
    for path in CODE:
        folders[path.parent] = folders.get(path.parent, 0) + (path.name not in ("__init__.py", "conftest.py"))
    assert {str(folder): count for folder, count in folders.items() if count > 12} == {}


def test_no_text_is_cited_that_the_repository_does_not_hold():
    pages = [*CODE, ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    cited = {str(p): re.findall(r"\bspec/\w+|\bQUIRK\b", p.read_text()) for p in pages if p != Path(__file__)}
    assert {name: found for name, found in cited.items() if found} == {}
    headings = re.findall(r"^#+ (.*)$", (ROOT / "docs" / "differences.md").read_text(), re.MULTILINE)
    cited_headings = {
        " ".join(name.split())
        for p in pages
        for name in re.findall(r'docs/differences\.md,\s+"([^"]+)"', p.read_text())
    }
    assert cited_headings <= set(headings)


def test_the_picture_of_rooms_and_arrows_is_that_of_the_code():
    spec = importlib.util.spec_from_file_location("architecture", ROOT / "docs" / "architecture.py")
    assert spec is not None
    assert spec.loader is not None
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    assert (ROOT / "docs" / "architecture.svg").read_text() == page.draw(), "run: python docs/architecture.py"
