"""A server on a free port that speaks OpenAI's chat protocol, well or badly, as a test tells it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What one request gets: a completion with ``text``, or ``body`` as it is; after ``wait`` seconds.

    ``drop``: the connection is closed without an answer. ``hang``: nothing comes until the server is closed.
    ``drip``: seconds between two letters of the body, or, with ``drip_headers``, of the headers before it; until the
    server is closed or nobody reads. ``endless``: the body is sent over and over.
    """

    text: str | None = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    wait: float = 0.0
    drop: bool = False
    hang: bool = False
    drip: float = 0.0
    drip_headers: bool = False
    endless: bool = False

    def content(self) -> bytes:
        if self.body is None:
            usage = {"prompt_tokens": 900, "completion_tokens": 60, "total_tokens": 960}
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": self.text}}
            return json.dumps({"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()
        if isinstance(self.body, bytes):
            return self.body
        return self.body.encode() if isinstance(self.body, str) else json.dumps(self.body).encode()


class Server(ThreadingHTTPServer):
    """``asked`` keeps the body and headers of every chat request, ``most_at_once`` how many were open together."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, reply: Callable[[dict, int], Reply], models: Reply):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.models = reply, models
        self.asked: list[tuple[dict, dict[str, str]]] = []
        self.lock = threading.Lock()
        self.open = self.most_at_once = self.sent = 0
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.send(self.server.models)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            number = len(server.asked)
            server.asked.append((body, {name.lower(): value for name, value in self.headers.items()}))
            server.open += 1
            server.most_at_once = max(server.most_at_once, server.open)
        reply = server.reply(body, number)
        server.closing.wait(60 if reply.hang else reply.wait)
        with server.lock:
            server.open -= 1
        self.send(reply)

    def send(self, reply: Reply) -> None:
        if reply.drop or reply.hang:
            self.close_connection = True
            return
        content = reply.content()
        if reply.drip_headers:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
            self.pour(b"x", reply.drip)
        self.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            self.send_header(name, value)
        if reply.drip or reply.endless:
            self.send_header("Connection", "close")
            self.end_headers()
            self.pour(content, reply.drip)
            return
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def pour(self, content: bytes, drip: float) -> None:
        """The content over and over until nobody wants it any more."""
        self.close_connection = True
        while not self.server.closing.wait(drip):
            self.wfile.write(content[:1] if drip else content)
            self.server.sent += len(content)


def lists(*names: str) -> Reply:
    """What GET /models answers."""
    return Reply(body={"object": "list", "data": [{"id": name, "object": "model"} for name in names]})


@contextmanager
def serve(reply: Callable[[dict, int], Reply], models: Reply) -> Iterator[Server]:
    server = Server(reply, models)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
