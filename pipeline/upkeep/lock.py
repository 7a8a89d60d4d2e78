"""The lock of a run: it has an owner and a heartbeat, so that two curations never make the same parts.

    <run>/.lock/00000007.json     host, process, since when, the last heartbeat, and a token of this owner alone

The file with the highest number counts. A lock is taken by creating the next number, never by writing over a file, so
that of several who see the same owner gone only one follows it. Its owner writes the time into its own file every BEAT
seconds, and in the end that it is released. Lower numbers are then removed; the highest stays.

What it guarantees: one owner at a time on disks, on S3 (``If-None-Match``) and on all storages that create a file only
where there is none. On others the file is written and read again SETTLE seconds later, and the token in it tells who
owns; two that begin within that time of each other are told apart, but a request that takes longer can be missed.

An owner is gone if its process on this machine is, or if its heartbeat is older than STALE; the clocks of machines must
agree that far. One that was only suspended sees at its next heartbeat that another owns, and then begins no part.
Should two work at once all the same, they waste work and harm nothing: a part is whole or absent, and has the same
bytes.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime

import psutil
from fsspec.implementations.local import LocalFileSystem

from data_schemas.errors import UserError
from data_schemas.io.documents import parse_json
from data_schemas.io.storage import patiently, reaching, shown, url_to_fs, write_file

FOLDER = ".lock"
BEAT = 15.0
"""Seconds between two heartbeats."""
STALE = 120.0
"""Seconds after its last heartbeat at which an owner counts as gone, wherever it was."""
SETTLE = 0.5
"""Seconds after which a lock that was written to a bucket is read again, and an unreadable one too."""
TRIES = 5
MARGIN = 2.0
"""Seconds by which the start of a process is known."""

_own: set[str] = set()
"""The tokens of the locks that this process holds."""


@dataclass(frozen=True)
class Owner:
    """Who holds a lock. ``since`` and ``beat`` are in seconds since 1970. ``place`` is where process numbers are the
    same: a host since it was started, or a container on it."""

    host: str
    process: int
    place: str
    since: float
    beat: float
    token: str
    released: bool = False

    def alive(self) -> bool:
        """Whether the owner is at work, as far as can be told from here."""
        age = time.time() - self.beat
        if self.released or age > STALE:
            return False
        if self.place != _place():
            return True
        if self.process == os.getpid():
            return self.token in _own
        try:
            process = psutil.Process(self.process)
            if process.status() == psutil.STATUS_ZOMBIE:  # killed, but nobody has asked how it ended
                return False
            # Its number may have been given to a later process. A clock that was set can look like that.
            return process.create_time() <= self.since + MARGIN or age < 3 * BEAT
        except psutil.NoSuchProcess:
            return False

    def told(self) -> str:
        """The owner in words."""
        age = max(0, round(time.time() - self.beat))
        return (
            f"process {self.process} on {self.host} since {_moment(self.since)} "
            f"(last heartbeat {_moment(self.beat)}, {age} s ago)"
        )


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _place() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return platform.node()


class Lock:
    """The lock of the run in a folder or bucket. ``held`` takes and releases it."""

    def __init__(self, run_url: str):
        self.url = run_url
        self.fs, root = url_to_fs(run_url)
        self.folder = f"{root.rstrip('/')}/{FOLDER}"
        self._number = 0
        self._ours: Owner | None = None
        self._lost: Owner | None = None
        self._ended = threading.Event()
        self._beating: threading.Thread | None = None

    def owner(self) -> Owner | None:
        """Who is at work on the run, or None."""
        found = self._newest()[1]
        return found if found is not None and found.alive() else None

    def take(self) -> None:
        """Become the owner. Raises UserError that names the owner if there is one."""
        problem: OSError | None = None
        for _ in range(TRIES):
            number, found = self._newest()
            if found is not None and found.alive():
                raise UserError(
                    f"{shown(self.url)} is being worked on by {found.told()}; wait for it or end it (an owner whose "
                    f"heartbeat is older than {STALE:g} s is taken to be gone)"
                )
            try:
                if not self._create(number + 1):
                    continue
            except OSError as error:  # AWS says for some lost races only that a condition was not met
                problem = error
                continue
            if found is not None and not found.released:
                print(f"{shown(self.url)}: taking over from {found.told()}, which is gone", file=sys.stderr, flush=True)
            self._beating = threading.Thread(target=self._beat, daemon=True)
            self._beating.start()
            return
        raise problem or UserError(f"{shown(self.url)}: others take its lock again and again; try it later")

    def check(self) -> None:
        """Raise UserError if another has taken over."""
        if self._lost is not None:
            raise UserError(
                f"{shown(self.url)}: this process gave no heartbeat for {STALE:g} s, so {self._lost.told()} took over; "
                "what is done is kept"
            )

    def release(self) -> None:
        """Let others take the lock at once. A storage that fails now is not waited for."""
        self._ended.set()
        if self._ours is None or self._beating is None:
            return
        self._beating.join(10 * SETTLE)
        if self._lost is None and not self._beating.is_alive():  # or its last heartbeat might come after this
            with suppress(Exception):  # every storage library has errors of its own
                self._write(replace(self._ours, beat=time.time(), released=True))
        _own.discard(self._ours.token)

    def _newest(self) -> tuple[int, Owner | None]:
        """The highest number, 0 if there is none, and its owner, None if the file stays unreadable."""
        owner = None
        for again in (True, False):
            number = max(self._numbers(), default=0)
            if not number:
                break
            with suppress(FileNotFoundError, UserError):  # just removed, or not written to its end
                path = self._path(number)
                data = patiently(lambda path=path: self.fs.cat_file(path), shown(path))  # type: ignore[misc]
                owner = _owner(data, path)
                break
            if again:
                time.sleep(SETTLE)
        return number, owner

    def _numbers(self) -> list[int]:
        self.fs.invalidate_cache(self.folder)
        try:
            names = patiently(lambda: self.fs.ls(self.folder, detail=False), shown(self.folder))
        except FileNotFoundError:
            return []
        found = (re.fullmatch(r"(\d{8})\.json", str(name).rpartition("/")[2]) for name in names)
        return [int(match[1]) for match in found if match]

    def _path(self, number: int) -> str:
        return f"{self.folder}/{number:08d}.json"

    def _create(self, number: int) -> bool:
        """Create the file with this number and remove lower ones. False if somebody else was faster."""
        now = time.time()
        ours = Owner(platform.node(), os.getpid(), _place(), now, now, uuid.uuid4().hex)
        _own.add(ours.token)  # before others of this process can see it
        try:
            if not self._written_first(number, ours):
                return False
            self._number, self._ours = number, ours
        finally:
            if self._ours is not ours:
                _own.discard(ours.token)
        for lower in self._numbers():
            if lower < number:
                with suppress(FileNotFoundError):
                    self.fs.rm_file(self._path(lower))
        return True

    def _written_first(self, number: int, ours: Owner) -> bool:
        path, data = self._path(number), _bytes(ours)
        try:
            if isinstance(self.fs, LocalFileSystem):
                _create_on_disk(path, data)
            else:
                self._create_in_bucket(path, data)
        except FileExistsError:
            return False
        newest, owner = self._newest()
        return newest == number and owner is not None and owner.token == ours.token

    def _create_in_bucket(self, path: str, data: bytes) -> None:
        try:
            self.fs.pipe_file(path, data, mode="create")
        except (NotImplementedError, TypeError):  # its library knows no conditions
            write_file(self.fs, path, data)
        except OSError as error:
            if error.errno != errno.ENOSYS:  # the server knows none
                raise
            write_file(self.fs, path, data)
        time.sleep(SETTLE)

    def _beat(self) -> None:
        """Tell every BEAT seconds that the owner lives, until the lock is released or lost."""
        while not self._ended.wait(BEAT):
            with suppress(Exception):  # a storage that fails is tried again with the next heartbeat
                assert self._ours is not None
                number, owner = self._newest()
                if owner is not None and owner.token != self._ours.token:
                    self._lost = owner
                    return
                if number <= self._number:
                    self._write(replace(self._ours, beat=time.time()))

    def _write(self, owner: Owner) -> None:
        write_file(self.fs, self._path(self._number), _bytes(owner))


def _create_on_disk(path: str, data: bytes) -> None:
    """Create a file that is whole as soon as it is seen. FileExistsError if there is one."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{os.path.dirname(path)}/.{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        with open(path, "xb") as file:  # a disk without hard links: who sees it half written reads it again
            file.write(data)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def _bytes(owner: Owner) -> bytes:
    return json.dumps(asdict(owner), sort_keys=True).encode()


def _owner(data: bytes, path: str) -> Owner:
    """The owner that a file names. Raises UserError if it is not whole."""
    facts = parse_json(data.decode(errors="replace"), path)
    names = {field.name for field in fields(Owner)}
    kinds = {"process": int, "since": (int, float), "beat": (int, float), "released": bool}
    if (
        not isinstance(facts, dict)
        or facts.keys() != names
        or not all(isinstance(value, kinds.get(name, str)) for name, value in facts.items())  # type: ignore[arg-type]
    ):
        raise UserError(f"{path}: names no owner")
    return Owner(**facts)


@contextmanager
def held(run_url: str) -> Iterator[Lock]:
    """Hold the lock of a run. Raises UserError that names the owner, if there is one, before the block is begun."""
    lock = Lock(run_url)
    try:
        with reaching(run_url):
            lock.take()
        yield lock
    finally:
        lock.release()
