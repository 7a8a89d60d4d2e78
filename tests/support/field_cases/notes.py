"""Notes beside pictures, and columns of tables."""

from __future__ import annotations

import shutil
from pathlib import Path

from field_cases.table import FOLDER, case
from pipeline.references.pools import PoolConfig, list_pool


def noted(file: Path, folder: Path) -> str:
    shutil.copy(FOLDER / "grey16.png", folder / "001.png")
    shutil.copy(file, folder / "001.txt")
    return list_pool(PoolConfig(source=str(folder)))[0].name


@case("note-bom.txt", "note-utf16.txt")
def a_note_is_decoded(file: Path, folder: Path) -> None:
    assert noted(file, folder) == "tabby cat"


@case("note-translations.txt")
def a_note_is_its_first_line(file: Path, folder: Path) -> None:
    assert noted(file, folder) == "Kiwifruit"


@case("pool-categorical.parquet")
def a_categorical_column_is_found(file: Path, folder: Path) -> None:
    found = list_pool(PoolConfig(source=str(file)))
    assert len({source.category for source in found}) > 1
    assert "subject" not in {source.category for source in found}
