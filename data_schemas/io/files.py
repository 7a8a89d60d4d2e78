"""Reading and writing local files safely: a user's path may name a pipe, a device, a huge file or nothing."""

from __future__ import annotations

import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from data_schemas.errors import UserError

LEFT_AFTER = 3600
"""Seconds without a change after which a temporary file is taken to be left over from a killed process."""


def check_file(path: str | Path, advice: str, limit: int | None = None) -> Path:
    """Return the path if it names a regular file of at most ``limit`` bytes; otherwise raise UserError with ``advice``.

    Use it before a library opens the file, because opening a pipe or a device could wait for ever.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise _unreadable(path, error, advice) from error
    _check_kind(path, status, advice, limit)
    return Path(path)


def read_file(path: str | Path, advice: str, limit: int) -> bytes:
    """The bytes of a regular file.

    Raises UserError if it is not one, cannot be read or is larger than ``limit`` bytes.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe opens without waiting
    except (OSError, ValueError) as error:
        raise _unreadable(path, error, advice) from error
    try:  # checked before os.fdopen, which fails on a folder
        _check_kind(path, os.fstat(descriptor), advice, limit)
    except UserError:
        os.close(descriptor)
        raise
    with os.fdopen(descriptor, "rb") as file:
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise _unreadable(path, error, advice) from error
    if len(data) > limit:
        raise UserError(f"{path}: more than {limit} bytes; {advice}")
    return data


def _check_kind(path: str | Path, status: os.stat_result, advice: str, limit: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        raise UserError(f"{path}: is {kind}, not a file; {advice}")
    if limit is not None and status.st_size > limit:
        raise UserError(f"{path}: {status.st_size} bytes, more than the limit of {limit}; {advice}")


def _unreadable(path: str | Path, error: OSError | ValueError, advice: str) -> UserError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return UserError(f"{path}: cannot be read ({reason}); {advice}")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; when the block ends, the file there replaces ``path`` in one step.

    The temporary name is unique and hidden, so that no glob takes it for a finished file. If the block raises, the
    temporary file is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a temporary path beside ``path``, then move the written file to ``path`` in one step."""
    with replacing(path) as temporary:
        write(temporary)


def sweep(folder: str | Path) -> None:
    """Remove temporary files, links and folders that killed processes left in a folder after using ``replacing``."""
    try:
        left = [entry for entry in os.scandir(folder) if entry.name.startswith(".") and entry.name.endswith(".tmp")]
    except OSError:
        return
    for entry in left:
        try:
            if time.time() - entry.stat(follow_symlinks=False).st_mtime > LEFT_AFTER:
                shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)
        except OSError:  # already removed, or owned by another user
            continue
