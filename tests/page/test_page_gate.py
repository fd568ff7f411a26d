"""What the page's server answers: its own requests, and no others."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from introspection_lit.page.gate import HEADERS, MOST_TYPED, MOST_UPLOADED, Gate
from introspection_lit.page.server import LOCAL

SECRET = b"behind the gate"


async def behind(scope: Any, receive: Any, send: Any) -> None:
    """An application that answers everything, with the body that it was sent."""
    body, more = b"", scope["method"] == "POST"
    while more:
        message = await receive()
        body, more = body + message["body"], message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"server", b"s")]})
    await send({"type": "http.response.body", "body": SECRET + body})


def answer(
    path: str,
    method: str = "GET",
    body: bytes = b"",
    host: str = "127.0.0.1:7860",
    hosts: Any = LOCAL,
    length: str | None = "",
    uploads: Path = Path("/nowhere/uploads"),
) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers of a request; its body comes in two parts."""
    given = [(b"host", host.encode())]
    if method == "POST" and length is not None:
        given.append((b"content-length", (length or str(len(body))).encode()))
    parts = [{"type": "http.request", "body": body[:5], "more_body": True}, {"type": "http.request", "body": body[5:]}]
    sent: list[dict[str, Any]] = []

    async def receive() -> Any:
        return parts.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": given}
    asyncio.run(Gate(behind, hosts, uploads)(scope, receive, send))
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], sent[1]["body"], headers


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/theme.css",
        "/assets/index-DphvyggB.js",
        "/static/js/a.min.js",
        "/gradio_api/queue/data",
        "/gradio_api/heartbeat/a1",
    ],
)
def test_what_the_page_asks_for(path: str) -> None:
    """It comes with the policy that keeps the browser here."""
    status, body, headers = answer(path)
    assert (status, body) == (200, SECRET)
    assert headers.items() >= HEADERS.items()
    policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["connect-src"] == "'self'"
    assert not any("http" in value or "*" in value for value in policy.values())


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=introspection_lit/page/gate.py",
        "/gradio_api/file=http://example.com/",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/proxy=http://example.com/",
        "/gradio_api/stream/a/b/c/playlist.m3u8",
        "/gradio_api/runs",
        "/gradio_api/deep_link",
        "/gradio_api/openapi.json",
        "/monitoring",
        "/login",
        "/docs",
        "/assets/../../setup.cfg%00",
        "/?x=/",
    ],
)
def test_what_nobody_needs_is_not_there(path: str) -> None:
    """No files, no other addresses, no other pages of Gradio."""
    assert answer(path)[:2] == (404, b"")
    assert answer(path, "POST")[:2] == (404, b"")


def test_methods() -> None:
    """Reading and writing are apart; other ways of asking are not there."""
    assert answer("/", "POST", b"{}")[0] == 404
    assert answer("/gradio_api/queue/join")[0] == 404
    assert answer("/gradio_api/queue/join", "DELETE")[0] == 404
    assert answer("/", "HEAD")[0] == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:80", 200),
        ("[::1]:7860", 200),
        ("attacker.example:7860", 421),
        ("127.0.0.1.attacker.example", 421),
        ("", 421),
    ],
)
def test_names_of_this_machine(host: str, status: int) -> None:
    """A page elsewhere whose name is made to point here sends its own name. Bound to other addresses, any name will do."""
    assert answer("/", host=host)[0] == status
    assert answer("/", host=host, hosts=None)[0] == 200


def test_sizes() -> None:
    """Of what is typed, and of a file; without a length nothing is read."""
    join, upload = "/gradio_api/queue/join", "/gradio_api/upload"
    assert answer(join, "POST", b'{"data": []}') == answer(join, "POST", b'{"data": []}', length="12")
    assert answer(join, "POST", length=str(MOST_TYPED + 1))[0] == 413
    assert answer(upload, "POST", length=str(MOST_UPLOADED + 1))[0] == 413
    assert answer(upload, "POST", length=str(MOST_TYPED + 1))[0] == 200
    for length in (None, "-1", "x", "1.5"):
        assert answer(join, "POST", b"{}", length=length)[0] == 411


def test_files_that_a_request_names(tmp_path: Path) -> None:
    """Uploads alone: no other place, no way out of their folder, and no address, which Gradio would fetch."""
    (tmp_path / "uploads").mkdir()
    (tmp_path / "secret.npy").touch()
    (tmp_path / "uploads" / "link.npy").symlink_to(tmp_path / "secret.npy")
    uploads = tmp_path / "uploads"

    def joined(path: Any) -> int:
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        body = json.dumps({"data": ["text", None, [{"deep": file}]], "fn_index": 0}).encode()
        status, sent, _ = answer("/gradio_api/queue/join", "POST", body, uploads=uploads)
        assert status == 403 or sent == SECRET + body
        return status

    assert joined(str(uploads / "a" / "mine.npy")) == 200
    assert joined(None) == 200
    outside = [str(tmp_path / "secret.npy"), str(uploads / ".." / "secret.npy"), str(uploads / "link.npy"), "mine.npy", ""]
    for path in (*outside, "http://127.0.0.1:1/", "https://example.com/a.npy", "file:///etc/passwd", "a\0b", "/" * 9000):
        assert joined(path) == 403, path
    for broken in (b"{", b"[" * 100_000, b"\xff"):
        assert answer("/gradio_api/queue/join", "POST", broken)[0] == 403


def test_other_protocols_are_not_there() -> None:
    """Web sockets, which Gradio does not use."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Gate(behind, LOCAL, Path())({"type": "websocket", "path": "/", "headers": []}, None, send))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close"}]
