"""A real S3 server of this machine (moto's), and the environment in which every program finds it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec

KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIATESTTESTTEST",
    "AWS_SECRET_ACCESS_KEY": "a-very-secret-key",
    "AWS_DEFAULT_REGION": "us-east-1",
}
NOTHING_ELSE = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/nowhere",
                "AWS_SHARED_CREDENTIALS_FILE": "/nowhere", "AWS_PROFILE": None, "AWS_SESSION_TOKEN": None}  # fmt: skip


@contextmanager
def serving() -> Iterator[str]:
    """The address of a server, which is stopped at the end."""
    from moto.server import ThreadedMotoServer  # here, as it takes half a second and few tests need it

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def use(monkeypatch, address: str, **keys: str | None) -> None:
    """Has this process and those that it starts find the server at ``address``, with these keys or KEYS."""
    for name, value in {**KEYS, **NOTHING_ELSE, "AWS_ENDPOINT_URL": address, **keys}.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    forget()


def forget() -> None:
    """fsspec keeps its connections, and would go on with those of the test before."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def contents(url: str) -> dict[str, str]:
    """SHA-256 of every Parquet file and tar under a URL, by the path below it."""
    fs, root = fsspec.core.url_to_fs(url)
    found = [path for path in fs.find(root) if path.endswith((".parquet", ".tar"))]
    return {path.removeprefix(f"{root}/"): hashlib.sha256(fs.cat_file(path)).hexdigest() for path in found}
