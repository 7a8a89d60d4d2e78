"""A Hugging Face hub on a free port: some open models, one gated, data sets that are uploaded; all else is unknown.

It takes uploads as the real one does (create, preupload, LFS objects, commit), from whoever has TOKEN.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40
TOKEN = "hf_a_token_of_this_double"
FILES = {"model.safetensors": b"weights" * 1000, "config.json": b"{}", "training.bin": b"not asked for"}
LORAS = {
    "lora-trained-xl-hugging-0.1kp-0.001cal-0.6/pytorch_lora_weights.safetensors": b"hug",
    "lora-trained-xl-shaking_hands-0.1kp/pytorch_lora_weights.safetensors": b"shake",
    "checkpoints/riding.safetensors": b"ride",
    "lora-trained-xl-juggling/pytorch_lora_weights.safetensors": b"nobody's",
    "README.md": b"# relations",
    "samples/hugging.png": b"a picture",
}
MODELS = {"tiny/open": FILES, "tiny/loras": LORAS}


class Uploads:
    """What was uploaded: the files of each data set, whether it is private, and how many bytes were sent."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.commits: list[list[dict]] = []
        self.sent = 0

    def commit(self, repository: str, lines: list[dict]) -> None:
        files = self.files[repository]
        self.commits.append(lines)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]


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

    def _json(self, facts: object, status: int = 200) -> None:
        self._send(status, json.dumps(facts).encode(), content_type="application/json")

    def _path(self) -> str:
        self.server.seen.append(f"{self.command} {self.path}")
        return self.path.split("?")[0].strip("/")

    def do_GET(self) -> None:
        path = self._path()
        kind, _, rest = path.removeprefix("api/").partition("/")
        repository = "/".join(rest.split("/")[:2]) if path.startswith("api/") else "/".join(path.split("/")[:2])
        files = self.server.uploads.files.get(repository) if kind == "datasets" else MODELS.get(repository)
        if "tiny/gated" in path:
            self._send(403, b"{}", X_Error_Code="GatedRepo", X_Error_Message="Access is restricted.")
        elif files is None:
            self._send(404, b"{}", X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        elif path.startswith(f"api/{kind}/{repository}/tree/"):
            self._json([{"type": "file", "path": n, "size": len(b), "oid": "0" * 40} for n, b in files.items()])
        elif path.startswith("api/"):
            self._json({"id": repository, "sha": COMMIT, "siblings": [{"rfilename": n} for n in files]})
        else:
            body = files[path.split("/", 4)[4]]
            etag = hashlib.sha256(body).hexdigest()
            self._send(200, body, ETag=f'"{etag}"', X_Repo_Commit=COMMIT, Accept_Ranges="bytes")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path, uploads = self._path(), self.server.uploads
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            self._send(401, b"{}", X_Error_Message="Invalid credentials")
        elif path == "api/repos/create":
            asked = json.loads(body)
            repository = f"{asked['organization']}/{asked['name']}"
            if repository not in uploads.files:
                uploads.private[repository] = asked.get("private") or asked.get("visibility") == "private"
            status = 409 if repository in uploads.files else 200
            uploads.files.setdefault(repository, {".gitattributes": b""})
            self._json({"url": f"http://{self.headers['host']}/datasets/{repository}"}, status)
        elif path == "api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = ["lfs" if p.endswith((".tar", ".parquet")) else "regular" for p in paths]
            self._json({"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False}
                                  for p, mode in zip(paths, modes, strict=True)]})  # fmt: skip
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [{"oid": o["oid"], "size": o["size"]} for o in json.loads(body)["objects"]]
            for found in objects:
                if found["oid"] not in uploads.objects:
                    href = f"http://{self.headers['host']}/objects/{found['oid']}"
                    found["actions"] = {"upload": {"href": href}}
            self._json({"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            repository = "/".join(path.split("/")[2:4])
            uploads.commit(repository, [json.loads(line) for line in body.splitlines()])
            url = f"http://{self.headers['host']}/datasets/{repository}/commit/{COMMIT}"
            self._json({"success": True, "commitUrl": url, "commitOid": COMMIT})
        else:
            self._send(404, b"{}")

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.uploads.objects[self._path().rsplit("/", 1)[1]] = body
        self.server.uploads.sent += len(body)
        self._send(200, b"")


class _Hub(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: list[str] = []
        self.uploads = Uploads()


@contextmanager
def hub():
    """(address, list of the requests seen)."""
    with uploading_hub() as (address, server):
        yield address, server.seen


@contextmanager
def uploading_hub():
    """(address, the server, whose ``uploads`` tell what was uploaded)."""
    server = _Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server
    finally:
        server.shutdown()
