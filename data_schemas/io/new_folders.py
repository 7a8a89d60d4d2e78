"""Folders that are written as a whole: nobody ever finds a half of one under its name."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fsspec.core import split_protocol

from data_schemas.errors import UserError
from data_schemas.io.storage import shown


def new_folder(out: str) -> Path:
    """The absolute path of a folder of this machine that ``--out`` names. UserError if it is there and not empty."""
    target = local_folder(out)
    if os.path.lexists(target) and not (target.is_dir() and not target.is_symlink() and not any(target.iterdir())):
        raise UserError(f"--out {out}: is there already; give another folder")
    return target


def local_folder(out: str) -> Path:
    """The absolute path of a folder that ``--out`` names. UserError if it is not on this machine."""
    if split_protocol(out)[0] not in (None, "file"):
        raise UserError(
            f"--out {shown(out)}: give a folder of this machine, and copy it to the bucket when it is whole"
        )
    return Path(os.path.abspath(out.removeprefix("file://")))


@contextmanager
def filling(target: Path) -> Iterator[Path]:
    """A folder that gets the name ``target`` when the block has ended, and is removed if it fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        os.rename(temporary, target)  # an empty folder is replaced
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def link_or_copy(source: str, path: Path) -> None:
    """A second name of a file that nobody changes in place, or a copy where links are impossible."""
    with suppress(OSError):  # another disk, or one that has no links
        os.link(source, path)
        return
    shutil.copyfile(source, path)
