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

from data_schemas.errors import REMOTE, UserError
from data_schemas.io.documents import parse_json
from data_schemas.io.files import check_file, read_file, replacing
from data_schemas.io.text import one_line

MEGABYTE = 1 << 20
R = TypeVar("R")


class Unreadable(UserError, OSError):
    """The storage does not answer, or refuses, so that nobody knows whether a file is there. Nothing is made anew."""


OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"}
"""Protocols of buckets. They need no folders, and asking for one would create a bucket whose name was mistyped."""
PAUSES = (0.5, 2.0, 8.0)
"""Seconds between tries of a storage that does not answer."""


def patiently(work: Callable[[], R], what: str, done: str = "read") -> R:
    """The result of ``work``, which is tried again if the storage fails; not if it refuses the credentials.

    FileNotFoundError is passed on; what goes on failing becomes Unreadable. ``what`` is ``done``, in its message.
    """
    for pause in (*PAUSES, None):
        try:
            return work()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise
        except Exception as error:
            if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in REMOTE:
                raise
            if pause is None or _refused(error):
                advice = _advice(error) if _refused(error) else "mend the storage"
                why = f"{type(error).__name__}: {_reason(error)}"
                raise Unreadable(
                    f"{shown(what)} cannot be {done} ({why}); {advice}, then run the same command"
                ) from error
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def url_of(fs: fsspec.AbstractFileSystem, path: str) -> str:
    """A file as users write it: a plain path on a local disk, a URL such as s3://... in a bucket."""
    return path if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path))


def plain(url: str) -> str:
    """A place on the local disk as a path that the system understands as well, not only fsspec: without ``file://``
    and ``~``. The URL of a bucket stays as it is. Raises UserError for the home of nobody, and for no place at all.
    """
    on_disk = [f"{protocol}{sep}" for protocol in LocalFileSystem.protocol for sep in ("://", ":")]
    path = os.path.expanduser(url.removeprefix(next((prefix for prefix in on_disk if url.startswith(prefix)), "")))
    if path.startswith("~"):
        raise UserError(f"{shown(url)}: there is no user {path.partition('/')[0][1:]!r}; give a folder")
    if not path:
        raise UserError(f"{shown(url)}: names no folder; give one, such as file:///data/runs")
    return path


def in_bucket(fs: fsspec.AbstractFileSystem) -> bool:
    """Whether a file system is an object store."""
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    return bool(protocols & OBJECT_STORES)


def need_bucket(url: str) -> None:
    """Raise UserError if a URL's bucket does not exist. Asked after something in it was not found."""
    fs, path = url_to_fs(url)
    if not in_bucket(fs):
        return
    bucket = path.partition("/")[0]
    try:
        fs.info(bucket)
    except FileNotFoundError as error:
        raise UserError(f"{shown(url)}: there is no bucket {bucket!r}; create it, or correct the address") from error
    except Exception:  # keys that may read in one folder of a bucket may not ask about the bucket itself
        return


def url_to_fs(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec file system of a URL or path, and the path inside it. Raises UserError for an unusable protocol."""
    with reaching(url):
        fs, path = fsspec.core.url_to_fs(url)
        fs.dircache.use_listings_cache = False  # other processes and machines write there too
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
        advice = "mend that and run the command again" if on_disk else _advice(error)
        raise UserError(f"{shown(url)}: cannot be read ({_reason(error)}); {advice}") from error


def _refused(error: Exception) -> bool:
    """Whether a storage wants other credentials, or misses them."""
    return isinstance(error, PermissionError) or "Credential" in type(error).__name__


def _advice(error: Exception) -> str:
    if _refused(error):
        return "check the credentials and what they allow"
    if "Connect" in type(error).__name__:  # EndpointConnectionError, ClientConnectorError, ConnectionRefusedError
        return "check the network and the address of the storage"
    return "check the address, network and credentials"


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
    url = url_of(fs, path)
    with tempfile.NamedTemporaryFile() as file:  # object stores publish an object only once it is whole
        result = write(file)
        file.flush()
        if not in_bucket(fs):
            fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        try:
            patiently(lambda: fs.put_file(file.name, path), url, "written")
        except FileNotFoundError:
            need_bucket(url)
            raise
    return result


def write_file(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    """Write ``data`` so that a killed process never leaves a partial file at ``path``."""
    write_stream(fs, path, lambda file: file.write(data))


def read_all(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
    """The bytes of a file. Raises FileNotFoundError, and UserError for a pipe or device: it may have no end."""
    if isinstance(fs, LocalFileSystem) and os.path.exists(path) and not os.path.isdir(path):
        check_file(path, "remove it")
    return bytes(fs.cat_file(path))


def read_facts(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, Any] | None:
    """The JSON object in an informational file of a run, or None if the file is missing or damaged.

    Raises Unreadable if the storage does not say.
    """
    try:
        return parse_facts(patiently(lambda: read_all(fs, path), url_of(fs, path)), path)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


def parse_facts(data: bytes, path: str) -> dict[str, Any] | None:
    """The JSON object in the bytes of an informational file; None if it is damaged."""
    try:
        facts = parse_json(data.decode(), path)
    except ValueError:
        return None
    return facts if isinstance(facts, dict) else None


def read_bounded(fs: fsspec.AbstractFileSystem, path: str, advice: str, limit: int) -> bytes:
    """The bytes of a file. Raises UserError with ``advice`` if it cannot be read or is larger than ``limit`` bytes."""
    if isinstance(fs, LocalFileSystem):
        return read_file(path, advice, limit)
    try:
        data = patiently(lambda: fs.cat_file(path, start=0, end=limit + 1), path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: cannot be read; {advice}") from error
    if len(data) > limit:
        raise UserError(f"{path}: more than {limit} bytes; {advice}")
    return data


def shown(url: object) -> str:
    """A URL for messages: on one line and without passwords or signatures."""
    return _without_secrets(one_line(url, 300))


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return _without_secrets(one_line(text, 200)) or type(error).__name__


def _without_secrets(text: str) -> str:
    return re.sub(r"(://[^\s?]+)\?[^\s)]*", r"\1?...", re.sub(r"://[^/@\s]*@", "://***@", text))
