"""Files on disks and in buckets by URL. Errors of the storage libraries become one-line messages that name the URL."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, TypeVar

import fsspec
from fsspec.core import split_protocol
from fsspec.implementations.local import LocalFileSystem

from data_schemas.errors import UserError
from data_schemas.io.documents import parse_json
from data_schemas.io.files import replacing
from data_schemas.io.text import one_line

MEGABYTE = 1 << 20
R = TypeVar("R")


class Unreadable(OSError):
    """The storage does not answer, or refuses, so that nobody knows whether a file is there. Nothing is made anew."""


PAUSES = (0.5, 2.0, 8.0)
"""Seconds between tries of reading from a storage that does not answer."""


def patiently(read: Callable[[], R], what: str) -> R:
    """The result of ``read``, which is tried again if the storage fails. FileNotFoundError is passed on; what goes on
    failing becomes Unreadable. ``what`` is read, in its message."""
    for pause in (*PAUSES, None):
        try:
            return read()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise
        except OSError as error:
            if pause is None:
                why = one_line(f"{type(error).__name__}: {error}", 200)
                raise Unreadable(
                    f"{what} cannot be read ({why}); mend the storage, then run the same command"
                ) from error
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def url_to_fs(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec file system of a URL or path, and the path inside it. Raises UserError for an unusable protocol."""
    with reaching(url):
        fs, path = fsspec.core.url_to_fs(url)
        return fs, str(path)


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turn errors of a storage (credentials, network, permissions) into a UserError that names ``url``.

    FileNotFoundError passes through, because only the caller knows what a missing file means. Every storage library has
    its own error classes, so any exception counts as a storage error if the URL has a protocol.
    """
    protocol = split_protocol(url)[0]
    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except ImportError as error:
        raise UserError(f"{shown(url)}: {_reason(error)}; install that package for {protocol}:// first") from error
    except Exception as error:
        on_disk = protocol in (None, "file")
        if on_disk and not isinstance(error, (OSError, ValueError)):
            raise  # a bug of ours: local disks raise only OSError and ValueError
        if isinstance(error, ValueError) and "rotocol not known" in str(error):
            raise UserError(
                f"{shown(url)}: there is no protocol {protocol!r}; give a path or s3://, gs://, ..."
            ) from error
        advice = "mend that and run the command again" if on_disk else "check the address, network and credentials"
        raise UserError(f"{shown(url)}: cannot be read ({_reason(error)}); {advice}") from error


def file_sha256(fs: fsspec.AbstractFileSystem, path: str) -> str:
    """SHA-256 of a file's bytes in hexadecimal, read in blocks of one megabyte."""
    digest = hashlib.sha256()
    with fs.open(path, "rb") as file:
        while block := file.read(MEGABYTE):
            digest.update(block)
    return digest.hexdigest()


def write_stream(fs: fsspec.AbstractFileSystem, path: str, write: Callable[[IO[bytes]], Any]) -> Any:
    """Let ``write`` fill a file that gets its name only when complete. Returns the result of ``write``."""
    if isinstance(fs, LocalFileSystem):
        with replacing(path) as temporary, open(temporary, "wb") as file:
            result = write(file)
            file.flush()
            os.fsync(file.fileno())
        return result
    with tempfile.NamedTemporaryFile() as file:  # object stores publish an object only once it is whole
        result = write(file)
        file.flush()
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        fs.put_file(file.name, path)
    return result


def write_file(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    """Write ``data`` so that a killed process never leaves a partial file at ``path``."""
    write_stream(fs, path, lambda file: file.write(data))


def read_facts(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, Any] | None:
    """The JSON object in an informational file of a run, or None if the file is missing or unreadable."""
    try:
        facts = parse_json(fs.cat_file(path).decode(), path)
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None


def shown(url: object) -> str:
    """A URL for messages: on one line and without passwords or signatures."""
    return _without_secrets(one_line(url, 300))


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return _without_secrets(one_line(text, 200)) or type(error).__name__


def _without_secrets(text: str) -> str:
    return re.sub(r"(://[^\s?]+)\?[^\s)]*", r"\1?...", re.sub(r"://[^/@\s]*@", "://***@", text))
