"""A Prefect server that is killed and started again while a flow run curates."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chaos.curations import FAULTS, WHOLE, Curation, Undisturbed

FLOW = ("-m", "chaos.flow")
OUTAGE = 30.0
"""Seconds that the server is away, at most, besides those that it takes to start."""
LONG_OUTAGE = 100.0
"""Seconds of every fourth outage: Prefect's client asks for about 62."""


class Server:
    """A server on a port of its own; its database is a file in ``home`` and outlives it."""

    def __init__(self, home: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.environment = {
            "PREFECT_HOME": str(home), "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", "NO_COLOR": "1",
        }  # fmt: skip
        self.home, self._process = home, None

    def start(self) -> None:
        """Start it, and return when it answers."""
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        with open(self.home / "log.txt", "ab") as log:
            self._process = subprocess.Popen(
                command, env={**os.environ, **self.environment}, stdout=log, stderr=log, start_new_session=True
            )
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{self.environment['PREFECT_API_URL']}/health", timeout=2).close()
                return
            except OSError:
                time.sleep(0.5)
        raise AssertionError((self.home / "log.txt").read_text()[-2000:])

    def stop(self, how: signal.Signals) -> None:
        """End it with all that it has started."""
        if self._process is not None:
            os.killpg(self._process.pid, how)
            self._process.wait(60)
            self._process = None

    def states(self) -> Counter[str]:
        """How many flow runs the server knows in each state."""
        asked = urllib.request.Request(
            f"{self.environment['PREFECT_API_URL']}/flow_runs/filter", b"{}", {"content-type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return Counter(run["state_type"] for run in json.load(answer))


@contextmanager
def server(home: Path) -> Iterator[Server]:
    home.mkdir()
    own = Server(home)
    own.start()
    try:
        yield own
    finally:
        own.stop(signal.SIGKILL)


def restarted_rounds(restarts: int, chance: random.Random, folder: Path, calm: Undisturbed) -> dict[str, Any]:
    """Curate in flow runs, and restart the server ``restarts`` times at random moments; then go on until it is whole.

    Raises AssertionError if a run ends otherwise than the undisturbed one, or makes a part anew that was whole.
    """
    done, rounds, survived, ended = 0, 0, 0, 0
    with server(folder / "home") as own:
        while done < restarts:
            rounds += 1
            curation, whole, before = Curation(folder / f"flow-{rounds}", "local", FAULTS), False, dict[str, str]()
            while not whole:
                process, disturbed = curation.start(FLOW, own.environment), 0
                while done < restarts and process.poll() is None:
                    try:
                        process.wait(chance.uniform(0.2, 0.8) * calm.seconds)
                    except subprocess.TimeoutExpired:
                        own.stop(chance.choice([signal.SIGTERM, signal.SIGKILL]))
                        time.sleep(LONG_OUTAGE if done % 4 == 0 else chance.uniform(0.0, OUTAGE))
                        own.start()
                        before = curation.parts() | before  # as first seen
                        done, disturbed = done + 1, disturbed + 1
                whole = process.wait(WHOLE) == 0
                survived, ended = survived + (whole and disturbed > 0), ended + (not whole)
                assert whole or disturbed, f"nothing had disturbed it: {curation.told()}"
            assert (found := curation.contents()) == calm.contents, f"{curation.root} differs: {found}"
            again = [path for path, time in curation.parts().items() if before.get(path, time) != time]
            assert not again, f"made again, though they were whole: {again}"
        states = own.states()
        assert states["COMPLETED"] >= rounds, f"the server has lost what it knew: {states}"
    return {"restarts": done, "runs_gone_through": survived, "runs_ended": ended, "rounds": rounds}
