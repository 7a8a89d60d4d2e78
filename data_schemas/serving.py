"""Pages of this machine: how the project's web servers begin, what they refuse, and where they listen.

A page shows pictures and texts that others made, and changes files. So a server listens on 127.0.0.1 unless it is told
otherwise, answers only requests that name it as their host (else any web site could reach it by a name of its own that
leads here), takes changes from its own pages alone, and reads no more of a request than ``MAX_BODY`` bytes.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from data_schemas.commands import say
from data_schemas.errors import UserError
from data_schemas.io.text import one_line

MAX_BODY = 32 * 2**20
"""Most bytes of a request: a painted matte of a large picture has a few million."""
LOCAL = {"localhost", "127.0.0.1", "::1"}
SAFE = {"GET", "HEAD", "OPTIONS"}
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What a page of ours may load: its own files, nothing inline and nothing from elsewhere."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

Host = Annotated[str, typer.Option(help="Address to listen on; others than 127.0.0.1 let other machines in")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one")]


class Guarded:
    """An ASGI application behind the checks that this module's text names.

    ``host`` is where the server listens. ``policy`` is the Content-Security-Policy of its answers; None sends none.
    """

    def __init__(self, app: App, host: str, policy: str | None = PAGE_POLICY):
        self.app, self.host, self.policy = app, host, policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        refused = self._refused(scope)
        if scope["type"] == "websocket":
            await (send({"type": "websocket.close", "code": 1008}) if refused else self.app(scope, receive, send))
        elif refused:
            await _answer(send, *refused)
        else:
            await self._guarded(scope, receive, send)

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        """Why a request is not answered: status and text."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if not is_host(host, self.host):
            return 421, f"this server is not {host[:100]!r}; open the address that it printed"
        origin = headers.get("origin")
        changes = scope["type"] == "websocket" or scope["method"] not in SAFE
        if changes and origin is not None and urlsplit(origin).netloc != host:
            return 403, "this request comes from another page; use the server's own"
        if int(headers.get("content-length") or 0) > MAX_BODY:
            return 413, f"a request may have {MAX_BODY} bytes"
        return None

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.exceptions import HTTPException

        read = 0

        async def bounded() -> MutableMapping[str, Any]:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > MAX_BODY:
                raise HTTPException(413, f"a request may have {MAX_BODY} bytes")
            return message

        async def marked(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                added = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
                if self.policy:
                    added["content-security-policy"] = self.policy
                message["headers"] = [*message["headers"], *((n.encode(), v.encode()) for n, v in added.items())]
            await send(message)

        await self.app(scope, bounded, marked)


def is_host(named: str, listening: str) -> bool:
    """Whether a server that listens on ``listening`` answers for the host that a request names (with or without port).

    On this machine's own address: under that address's names. Elsewhere also under any numeric address, which no web
    site can point here, and the machine's name.
    """
    try:
        name = urlsplit(f"//{named}").hostname or ""
    except ValueError:
        return False
    if name in LOCAL or name == listening.lower():
        return True
    return listening not in LOCAL and (_is_address(name) or name == socket.gethostname().lower())


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _answer(send: Send, status: int, text: str) -> None:
    body = json.dumps({"error": text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def page_app(title: str) -> Any:
    """A FastAPI application without pages of its own, whose UserErrors are answers: status 400 and {"error": line}."""
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse

    app = FastAPI(title=title, docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(UserError)
    async def mistake(request: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"error": one_line(error, 1000)}, 400)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"error": f"{'.'.join(str(p) for p in first['loc'])}: {first['msg']}"}, 422)

    return app


def serve(app: App, host: str, port: int, what: str, policy: str | None = PAGE_POLICY) -> None:
    """Answer requests until Ctrl-C, after a line with the address: ``what  http://...``.

    Raises UserError if host and port cannot be listened on.
    """
    import uvicorn

    if not host:
        raise UserError("--host: no address; give 127.0.0.1, or 0.0.0.0 to let other machines in")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)  # whoever opens the address at once waits until the server has begun
    except (OSError, OverflowError) as error:
        listener.close()
        raise UserError(
            f"--host {host} --port {port}: cannot listen there ({one_line(error, 200)}); give another --port, 0 for any"
        ) from error
    named = f"[{host}]" if family == socket.AF_INET6 else host
    print(f"{what:<12} http://{named}:{listener.getsockname()[1]}/  (Ctrl-C ends it)", flush=True)
    if host not in LOCAL:
        say(f"warning: who can reach {host} can use this page: it asks for no password")
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    # its own configuration of logging would close the handlers of whoever called
    config = uvicorn.Config(
        Guarded(app, host, policy), log_config=None, access_log=False, lifespan="auto", timeout_graceful_shutdown=3
    )
    with listener:
        uvicorn.Server(config).run(sockets=[listener])
