"""Two curations on one folder never do the same work, and one that is gone keeps nobody waiting."""

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import fsspec
import pytest
import yaml
from commands import run_here
from paths import ROOT, SUPPORT
from troubled.runs import config, contents

from data_schemas.errors import UserError
from pipeline import cli
from pipeline.curate import curate
from pipeline.upkeep import lock
from pipeline.upkeep.lock import BEAT, STALE, Lock, Owner, held


@pytest.fixture(params=["disk", "memory", "s3"])
def run_url(request, tmp_path):
    if request.param == "disk":
        return f"{tmp_path}/run"
    if request.param == "memory":
        return f"memory://{tmp_path.name}/run"
    return f"{request.getfixturevalue('bucket')}/run"


def elsewhere(age: float = 0.0, **changes) -> Owner:
    now = time.time()
    facts = {"host": "node-7", "process": 4711, "place": "another", "since": now - 3600, "beat": now - age,
             "token": "theirs"}  # fmt: skip
    return Owner(**facts | changes)


def left(run_url: str, number: int, owner: Owner | None) -> None:
    """Put the lock of an owner where it belongs; without one a file that was not written to its end."""
    with fsspec.open(f"{run_url}/.lock/{number:08d}.json", "w", auto_mkdir=True) as file:
        file.write('{"host": "nod' if owner is None else json.dumps(asdict(owner)))


def refused(run_url: str) -> str:
    with pytest.raises(UserError) as told, held(run_url):
        raise AssertionError("there were two owners")
    return str(told.value)


def test_a_second_is_refused_while_the_first_is_at_work_and_not_afterwards(run_url, capsys):
    with held(run_url):
        told = refused(run_url)
        assert f"process {os.getpid()} on {platform.node()} since " in told
        assert "last heartbeat" in told
        assert "\n" not in told
    with held(run_url) as again:
        assert again.owner() is not None
    assert again.owner() is None
    assert "taking over" not in capsys.readouterr().err


def test_the_owner_on_another_machine_is_waited_for_until_its_heartbeat_is_old(run_url, capsys):
    left(run_url, 3, elsewhere(STALE - 20))
    assert "process 4711 on node-7" in refused(run_url)
    left(run_url, 3, elsewhere(STALE + 1))
    with held(run_url):
        refused(run_url)
    assert "taking over from process 4711 on node-7" in capsys.readouterr().err


def test_a_lock_that_was_not_written_to_its_end_is_nobodys(run_url):
    left(run_url, 3, None)
    with held(run_url):
        refused(run_url)


@pytest.mark.parametrize("before", [None, elsewhere(STALE + 1)])
def test_of_many_at_once_one_becomes_the_owner(run_url, before):
    if before is not None:
        left(run_url, 9, before)
    ready, done = threading.Barrier(8), threading.Event()

    def attempt(_):
        ready.wait()
        try:
            with held(run_url):
                done.wait(20)
                return "owner"
        except UserError:
            return "refused"

    with ThreadPoolExecutor(8) as pool:
        attempts = [pool.submit(attempt, number) for number in range(8)]
        while sum(a.done() for a in attempts) < 7:
            assert all(a.result() == "refused" for a in attempts if a.done())
            time.sleep(0.05)
        done.set()
        assert sorted(a.result() for a in attempts) == ["owner"] + ["refused"] * 7


def test_a_storage_that_knows_no_conditions_has_one_owner_too(monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    real = MemoryFileSystem.pipe_file

    def pipe_file(self, path, value, mode="overwrite", **options):
        if mode == "create":
            raise NotImplementedError
        return real(self, path, value)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
    with held("memory://no-conditions/run"):
        refused("memory://no-conditions/run")

    late = []

    def overtaken(self, path, value, mode="overwrite", **options):
        real(self, path, value)
        if mode == "create":  # another, who saw no lock either, writes within the time that is waited
            late.append(real(self, path, json.dumps(asdict(elsewhere())).encode()))

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", overtaken)
    assert "node-7" in refused("memory://no-conditions/other")
    assert len(late) == 1


def test_a_process_of_this_machine_that_is_gone_is_followed_at_once(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    here = {"place": lock._place()}
    assert not elsewhere(process=ended.pid, **here).alive()
    assert elsewhere(process=os.getppid(), **here).alive()
    assert not elsewhere(process=os.getpid(), **here).alive(), "its number is ours, but this lock we do not hold"
    later = subprocess.Popen(["sleep", "60"])
    try:
        since = {"process": later.pid, "since": time.time() - 3600}
        assert not elsewhere(3 * BEAT, **since, **here).alive(), "the number was given to a later process"
        assert elsewhere(0, **since, **here).alive(), "a clock that was set looks the same, but the heart beats"
        later.kill()
        time.sleep(0.5)  # dead, and not yet asked how it ended
        assert not elsewhere(process=later.pid, **here).alive()
    finally:
        later.kill()
        later.wait()


def test_an_owner_that_was_suspended_begins_no_further_part(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    settings = config(tmp_path, trouble={"rest": 0.3}, part_size=1, samples=40)
    real = Lock.take

    def take(self):
        real(self)
        left(self.url, self._number + 1, elsewhere())  # as another does that found its heartbeat too old

    monkeypatch.setattr(Lock, "take", take)
    with pytest.raises(UserError, match=r"process 4711 on node-7 since .* took over; what is done is kept"):
        curate(settings)
    assert len(list((tmp_path / "stubs" / "trouble").rglob("*.parquet"))) < 20
    assert "node-7" in Lock(f"{tmp_path}/stubs").owner().told(), "its lock is not taken from it"


def test_the_heart_beats(run_url, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    with held(run_url) as ours:
        first, until = ours.owner().beat, time.monotonic() + 20
        while ours.owner().beat == first:
            assert time.monotonic() < until
        assert ours.owner().since < ours.owner().beat
        ours.check()


def test_a_curation_that_fails_leaves_no_owner(tmp_path):
    with pytest.raises(UserError, match="max_error_share"):
        curate(config(tmp_path, filters=[{"use": "troubled.stages:Fails"}]))
    assert Lock(f"{tmp_path}/stubs").owner() is None


PLANNED = 10


def at_work(root: Path) -> subprocess.Popen:
    """A curation in a process of its own that has begun to make the stage "trouble"."""
    (root / "made").unlink(missing_ok=True)
    settings = config(root, trouble={"rest": 0.5, "folder": str(root)}, part_size=1, samples=PLANNED)
    (root / "settings.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    command = [sys.executable, "-m", "pipeline.cli", "curate", "--config", str(root / "settings.yaml")]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{SUPPORT}"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until = time.monotonic() + 60
    while not (root / "made").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.05)
    return process


@pytest.mark.slow
@pytest.mark.long
def test_what_commands_on_one_folder_say(tmp_path):
    first = at_work(tmp_path)
    again = ["curate", "--config", tmp_path / "settings.yaml"]
    second = run_here(cli.main, "instructar", *again)
    assert second.returncode == 2
    (line,) = second.stderr.splitlines()
    assert f"stubs is being worked on by process {first.pid} on {platform.node()} since " in line
    status = run_here(cli.main, "instructar", "status", tmp_path / "stubs")
    assert status.returncode == 0, "who only reads is never kept waiting"
    assert f"at work: process {first.pid} on {platform.node()}" in status.stdout
    first.kill()
    first.wait()

    third = at_work(tmp_path)
    third.send_signal(signal.SIGINT)
    _, told = third.communicate(timeout=60)
    assert third.returncode == 130, told
    assert f"taking over from process {first.pid} on {platform.node()}" in told
    newest = max((tmp_path / "stubs" / ".lock").glob("*.json"))
    assert json.loads(newest.read_text())["released"] is True

    last = run_here(cli.main, "instructar", *again)
    assert last.returncode == 0, last.stderr
    assert "taking over" not in last.stderr
    (tmp_path / "calm").mkdir()
    curate(config(tmp_path / "calm", trouble={}, part_size=1, samples=PLANNED))
    calm = contents(tmp_path / "calm" / "stubs")
    assert calm
    assert {name: digest for name, digest in contents(tmp_path / "stubs").items() if name in calm} == calm
