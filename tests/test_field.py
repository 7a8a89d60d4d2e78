"""The field cases: small inputs that went wrong somewhere, each with what it must give.

They lie in $FIELD, or in ../shared/field beside the project, with a README.md whose table says of each file how it is
used and what must come of it. Every file in the table needs a case in support/field_cases; a new one without fails.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from field_cases import all_cases
from field_cases.table import FOLDER, SLOW, Case, rows


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "field_case" not in metafunc.fixturenames:
        return
    cases = all_cases()
    found = [
        pytest.param(
            file,
            function,
            f"{used}: {expected}",
            id=f"{file}-{getattr(function, '__name__', 'no-case')}",
            marks=[pytest.mark.slow] if function in SLOW else [],
        )
        for files, used, expected in rows()
        for file in files
        for function in cases.get(file, [None])
    ]
    if not found:
        skip = pytest.mark.skip(reason=f"no field cases under {FOLDER}")
        found = [pytest.param("", None, "", id="no-field", marks=skip)]
    metafunc.parametrize(("file", "field_case", "row"), found)


def test_field(file: str, field_case: Case | None, row: str, tmp_path: Path) -> None:
    assert field_case is not None, (
        f"{FOLDER / file}: its row has no case in tests/support/field_cases; write one ({row})"
    )
    field_case(FOLDER / file, tmp_path)


def test_every_file_there_stands_in_the_table() -> None:
    if not rows():
        pytest.skip(f"no field cases under {FOLDER}")
    told = {file for files, _, _ in rows() for file in files}
    assert {path.name for path in FOLDER.iterdir()} - {"README.md"} == told
