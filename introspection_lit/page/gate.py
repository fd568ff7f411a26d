"""The gate before the page: what may be asked of the server, how large it may be, and where the browser may go from it.

Gradio serves files of its cache, fetches addresses that a visitor names in the place of a file, and links to its makers'
site. None of it is needed here, so it is not there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from pathlib import Path
from typing import Any, TypeAlias

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# What the page's own scripts ask for; everything else, files and proxies above all, is not there.
READ = re.compile(
    r"/|/(config|theme\.css|manifest\.json|favicon\.ico|pwa_icon)|/(assets|static)(/[\w-][\w.-]*)+"
    r"|/gradio_api/(info|startup-events|upload_progress|queue/data|heartbeat/\w+)"
)
WRITE = re.compile(r"/gradio_api/(upload|queue/join|run/predict|cancel|reset)")
# Bytes of a request: a file, with the form around it; and all that a visitor has typed and chosen.
UPLOAD, MOST_UPLOADED, MOST_TYPED = "/gradio_api/upload", 2**22 + 2**14, 2**18
# The browser loads nothing from another host and sends nothing to one, whatever the page says.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; form-action 'self'; "
    "base-uri 'self'; object-src 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Gate:
    """ASGI middleware that lets the page's own requests through.

    Args:
        app: What is behind it.
        hosts: Names under which the page may be asked for; None: any. A page elsewhere whose name is made to point here
            would send its own.
        uploads: The only folder that a request may name a file of.
    """

    def __init__(self, app: Any, hosts: Collection[str] | None, uploads: Path) -> None:
        self.app, self.hosts, self.uploads = app, hosts, uploads.resolve()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        refused = self._refused(scope)
        if refused is None and scope["method"] == "POST" and scope["path"] != UPLOAD:
            body = await _body(receive)
            refused = None if _names_no_file(body, self.uploads) else 403
            receive = _again(body, receive)
        if refused is not None:
            await send({"type": "http.response.start", "status": refused, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        await self.app(scope, receive, send_with_headers)

    def _refused(self, scope: Scope) -> int | None:
        """The status of a request that is refused by its head alone; None: it is not."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = re.sub(r":\d+$", "", headers.get("host", ""))
        if self.hosts is not None and host not in self.hosts:
            return 421
        method, path = scope["method"], scope["path"]
        if not (READ if method in ("GET", "HEAD") else WRITE).fullmatch(path) or method not in ("GET", "HEAD", "POST"):
            return 404
        if method == "POST":
            length = headers.get("content-length", "")
            if not length.isdecimal():
                return 411
            if int(length) > (MOST_UPLOADED if path == UPLOAD else MOST_TYPED):
                return 413
        return None


async def _body(receive: Receive) -> bytes:
    """The body of a request, whose length has been checked."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that has been read, for the next reader; then what comes after it."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> MutableMapping[str, Any]:
        return waiting.pop() if waiting else await receive()

    return receive_again


def _names_no_file(body: bytes, uploads: Path) -> bool:
    """Whether a request names no file outside of a folder, and no address in the place of one."""
    try:
        waiting = [json.loads(body or b"null")]
    except (ValueError, RecursionError):
        return False
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            named = value.get("path")
            if isinstance(named, str) and not _inside(named, uploads):
                return False
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return True


def _inside(named: str, folder: Path) -> bool:
    try:
        return Path(named).is_absolute() and Path(named).resolve().is_relative_to(folder)
    except (OSError, ValueError):  # a name that no file can have
        return False
