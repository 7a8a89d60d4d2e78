"""A Hugging Face hub on a free port: one open model, one gated, everything else unknown."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40
FILES = {"model.safetensors": b"weights" * 1000, "config.json": b"{}", "training.bin": b"not asked for"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        self.server.seen.append(f"{self.command} {self.path}")  # type: ignore[attr-defined]
        path = self.path.split("?")[0].strip("/")
        if "tiny/gated" in path:
            self._send(403, b"{}", X_Error_Code="GatedRepo", X_Error_Message="Access is restricted.")
        elif path.startswith("api/models/tiny/open/tree/"):
            entries = [{"type": "file", "path": n, "size": len(b), "oid": "0" * 40} for n, b in FILES.items()]
            self._send(200, json.dumps(entries).encode(), content_type="application/json")
        elif path.startswith("api/models/tiny/open"):
            facts = {"id": "tiny/open", "sha": COMMIT, "siblings": [{"rfilename": n} for n in FILES]}
            self._send(200, json.dumps(facts).encode(), content_type="application/json")
        elif path.startswith("tiny/open/resolve/"):
            body = FILES[path.rsplit("/", 1)[1]]
            etag = hashlib.sha256(body).hexdigest()
            self._send(200, body, ETag=f'"{etag}"', X_Repo_Commit=COMMIT, Accept_Ranges="bytes")
        else:
            self._send(404, b"{}", X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")

    do_HEAD = do_GET


@contextmanager
def hub():
    """(address, list of the requests seen)."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.seen = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.seen  # type: ignore[attr-defined]
    finally:
        server.shutdown()
