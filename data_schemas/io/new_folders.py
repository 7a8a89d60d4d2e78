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
from data_schemas.io.storage import plain, shown


def new_folder(out: str) -> Path:
    """The absolute path of a folder of this machine that ``--out`` names. UserError if it is there and not empty."""
    target = local_folder(out)
    if os.path.lexists(target) and not (target.is_dir() and not target.is_symlink() and not any(target.iterdir())):
        raise UserError(f"--out {out}: is there already; give another folder")
    return target


def local_folder(out: str) -> Path:
    """The absolute path of a folder that ``--out`` names. UserError if it is not on this machine, or cannot be."""
    if split_protocol(out)[0] not in (None, "file"):
        raise UserError(
            f"--out {shown(out)}: give a folder of this machine, and copy it to the bucket when it is whole"
        )
    target = Path(os.path.abspath(plain(out)))
    with _writing(f"--out {out}"), suppress(FileNotFoundError, NotADirectoryError):
        target.lstat()  # a name that is too long is told before the work
    return target


@contextmanager
def _writing(what: object) -> Iterator[None]:
    """Turn the system's refusal to write ``what`` into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what}: cannot be written ({error.strerror}); give another folder") from error


@contextmanager
def filling(target: Path) -> Iterator[Path]:
    """A folder that gets the name ``target`` when the block has ended, and is removed if it fails."""
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    try:
        yield temporary
        with _writing(target):
            os.rename(temporary, target)  # an empty folder is replaced
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Make a folder in or of ``--out``, unless it is there. UserError if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); give another --out") from error


@contextmanager
def opened_folder(folder: Path) -> Iterator[None]:
    """Make the folder that ``--out`` names, unless it is there. If the work fails before anything is in it, the folders
    that were made go again."""
    made = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    make_folder(folder)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # it holds something
            for path in made:
                path.rmdir()
        raise


def link_or_copy(source: str, path: Path) -> None:
    """A second name of a file that nobody changes in place, or a copy where links are impossible."""
    with suppress(OSError):  # another disk, or one that has no links
        os.link(source, path)
        return
    shutil.copyfile(source, path)
