"""A run's folder in a bucket that answers 503 to some requests, or to all of them for a while."""

from __future__ import annotations

import io
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import s3fs

from chaos.curations import WHOLE, Curation, Undisturbed, undisturbed
from chaos.kills import cluster_for

BUCKET = "chaos"
FAULTS = {"crash": [7], "nan": [31]}
"""No sample hangs: one that waits for the bucket would be taken for it under the short limit that a hang needs here."""
SHARE = 0.05
"""Of all requests that are refused; half of these are carried out all the same, and only the answer is lost."""
OUTAGES = (12.0, 5.0)
"""Seconds between two outages, at most, and seconds that one lasts, at most: shorter than a run is patient."""
GIVES_UP = 240
"""Seconds in which a command must end by itself that finds no bucket any more."""
REFUSAL = b"<Error><Code>%s</Code><Message>Please try again.</Message><RequestId>0</RequestId></Error>"


class Throttled:
    """A WSGI application that passes requests on to ``app`` and refuses some, as S3 does under load.

    ``share`` of the requests are refused, and all of them until ``closed``, a time of the monotonic clock.
    """

    def __init__(self, app: Callable[..., Iterable[bytes]], chance: random.Random):
        self.app, self.chance = app, chance
        self.share, self.closed, self.refused, self.answered = 0.0, 0.0, 0, 0

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        # The whole request is read in any case: the next one follows in the same stream.
        length = None if environ.get("wsgi.input_terminated") else int(environ.get("CONTENT_LENGTH") or 0)
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(length))
        out = time.monotonic() < self.closed
        if not out and self.chance.random() >= self.share:
            self.answered += 1
            return self.app(environ, start_response)
        self.refused += 1
        if not out and self.chance.random() < 0.5:
            b"".join(self.app(environ, lambda status, headers, exc_info=None: lambda data: None))
        body = REFUSAL % self.chance.choice((b"SlowDown", b"ServiceUnavailable"))
        start_response("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]


@contextmanager
def bucket(chance: random.Random) -> Iterator[Throttled]:
    """A real S3 server on this machine with a bucket; the environment leads every S3 client there."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    throttled = Throttled(DomainDispatcherApplication(create_backend_app), chance)
    server = make_server("127.0.0.1", 0, throttled, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    leading = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "chaos", "AWS_SECRET_ACCESS_KEY": "chaos",
    }  # fmt: skip
    try:
        with mock.patch.dict(os.environ, leading):
            s3fs.S3FileSystem.clear_instance_cache()
            s3fs.S3FileSystem().makedirs(BUCKET, exist_ok=True)  # moto forgets none in a process
            yield throttled
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.shutdown()


def refused_rounds(engine: str, rounds: int, chance: random.Random, folder: Path, **changes: Any) -> dict[str, Any]:
    """Curate into the bucket while it refuses; then once more while it is gone for so long that the command gives up.

    Raises AssertionError if a run ends otherwise than the undisturbed one, or if a sample is made again for it.
    """
    with bucket(chance) as throttled, cluster_for(engine) as cluster:
        changes = {"time_limit": 0.0, **changes}
        calm = undisturbed(folder / f"{engine}-calm", "local", FAULTS, **changes)
        if cluster is not None:
            changes = {**changes, "ray_address": cluster.address}
        for number in range(rounds):
            root = f"s3://{BUCKET}/{engine}-{number}"
            curation = Curation(folder / f"{engine}-bucket-{number}", engine, FAULTS, root, **changes)
            _refuse_some(throttled, curation, chance)
            _check(throttled, curation, calm)
        curation = Curation(folder / f"{engine}-bucket-gone", engine, FAULTS, f"s3://{BUCKET}/{engine}-gone", **changes)
        _be_gone(throttled, curation, chance.uniform(0.3, 0.8) * calm.seconds)
        _check(throttled, curation, calm)
        return {"refused": throttled.refused, "answered": throttled.answered, "runs": rounds + 2}


def _refuse_some(throttled: Throttled, curation: Curation, chance: random.Random) -> None:
    """A run must get through a bucket that refuses requests by chance and all of them for some seconds."""
    throttled.share, process = SHARE, curation.start()
    until = time.monotonic() + WHOLE
    while process.poll() is None and time.monotonic() < until:
        time.sleep(chance.uniform(0.0, OUTAGES[0]))
        throttled.closed = time.monotonic() + chance.uniform(0.5, OUTAGES[1])
        time.sleep(max(0.0, throttled.closed - time.monotonic()))
    assert process.wait(1) == 0, f"a bucket that refuses some requests must not end it: {curation.told()}"


def _be_gone(throttled: Throttled, curation: Curation, after: float) -> None:
    """The bucket is gone for good: the command says one line; when it is back, the same command goes on."""
    throttled.share, process = 0.0, curation.start()
    time.sleep(after)
    assert process.poll() is None, f"it has ended too early to be disturbed: {curation.told()}"
    throttled.closed = float("inf")
    assert process.wait(GIVES_UP) == 2, curation.told()
    assert "Traceback" not in curation.told(), curation.told()
    throttled.closed = 0.0
    assert curation.start().wait(WHOLE) == 0, curation.told()


def _check(throttled: Throttled, curation: Curation, calm: Undisturbed) -> None:
    throttled.share, throttled.closed = 0.0, 0.0
    assert (found := curation.contents()) == calm.contents, f"{curation.root} differs: {found} for {calm.contents}"
    again = curation.made() - calm.made
    assert not again, f"made again, though only the storage failed: {again}"
