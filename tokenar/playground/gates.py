"""What of gradio's server the playground answers.

Gradio's server can do more than its page needs: fetch addresses for whoever asks, tell what calls there are, show what
other tabs did. All of that is closed here.
"""

from __future__ import annotations

from urllib.parse import unquote

from data_schemas.serving import App, Receive, Scope, Send

PAGES = {"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json"}
FOLDERS = ("/assets/", "/static/")
CALLS = ("upload", "upload_progress", "queue/", "cancel", "heartbeat/", "startup-events", "reset", "app_id")
FILE = "/gradio_api/file="
POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; media-src 'self' blob:; "
    "worker-src 'self' blob:; manifest-src 'self'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
)
"""Gradio's page has scripts and styles in its text, but nothing from elsewhere is loaded."""


class Gates:
    """An ASGI application of gradio that answers what its page asks for, and 404 to everything else."""

    def __init__(self, app: App):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and is_open(scope["path"])):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
        else:
            await send({"type": "websocket.close", "code": 1008})


def is_open(path: str) -> bool:
    """Whether the page needs this path."""
    if path.startswith(FILE):
        return "://" not in unquote(path) and path.removeprefix(FILE).startswith("/")  # an address would be fetched
    asked = path.removeprefix("/gradio_api/")
    return path in PAGES or path.startswith(FOLDERS) or (asked != path and asked.startswith(CALLS))
