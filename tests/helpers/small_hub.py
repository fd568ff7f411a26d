"""A hub in this process: an HTTP server on 127.0.0.1 that answers the real huggingface_hub client as the hub does.

Repositories are made, files are announced (preupload), large ones stored by git LFS, and a commit in NDJSON puts all in
place at once; files are read by ``resolve``. Xet, the hub's newer way of storing large files, is not spoken: the client
takes LFS with ``HF_HUB_DISABLE_XET=1``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_a_test"
LARGE = (".safetensors", ".gguf")


@dataclass
class Repository:
    """Its files at the last commit, and how many commits there were."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0

    @property
    def sha(self) -> str:
        """Of the last commit."""
        return hashlib.sha1(str(self.commits).encode()).hexdigest()


class SmallHub:
    """The server, as a context.

    Attributes:
        repositories: By id.
        asked: Method and path of every request.
        broken: Requests whose path has one of these patterns get an error 507, which the client does not try again.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.broken: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                """Nothing."""

            def do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = unquote(urlsplit(self.path).path)
                hub.asked.append(f"{self.command} {path}")
                signed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
                if any(re.search(pattern, f"{self.command} {path}") for pattern in hub.broken):
                    status, headers, content = 507, {}, b'{"error": "out of order"}'
                else:
                    status, headers, content = hub.answer(self.command, path, body, signed)
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(content))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_HEAD = do_POST = do_PUT = do

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> SmallHub:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server.server_port}"

    def environment(self, cache: Path, token: str | None = TOKEN) -> dict[str, str]:
        """Of a process that takes this for the hub, logged in or not, with an empty cache."""
        own = {"HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}
        own |= {"NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        rest = {name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "HF_TOKEN_PATH")}
        return rest | own | ({"HF_TOKEN": token} if token else {})

    def add(self, name: str, folder: Path) -> None:
        """A repository with the files of a folder."""
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        self.repositories[name] = Repository(False, files, 1)

    def answer(self, method: str, path: str, body: bytes, signed: bool) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content of an answer."""
        writes = method in ("POST", "PUT")
        if writes and not signed and not path.startswith(("/lfs/", "/api/validate-yaml")):
            return _json({"error": "Invalid username or password."}, 401)
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        if found := re.fullmatch(r"/lfs/(\w+)(/verify)?", path):
            return self._store(found[1], body, verified=found[2] is not None)
        found = re.fullmatch(r"(?:/api/models)?/([^/]+/[^/]+?)(?:\.git)?(?:/(\w+)(?:/(.*))?)?", path)
        repository = self.repositories.get(found[1]) if found else None
        if found is None or repository is None or (repository.private and not signed):
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        name, action, rest = found[1], found[2] or "", found[3] or ""
        if action in ("", "revision"):
            siblings = [{"rfilename": file} for file in repository.files]
            about = {"id": name, "modelId": name, "sha": repository.sha, "private": repository.private, "tags": []}
            return _json(about | {"siblings": siblings, "downloads": 0, "likes": 0})
        if action == "tree":
            return _json([_entry(file, content) for file, content in repository.files.items()])
        if action == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            return _json({"files": [self._mode(repository, file) for file in files]})
        if action == "info":
            return self._batch(json.loads(body))
        if action == "commit":
            return self._commit(name, repository, [json.loads(line) for line in body.splitlines()])
        return self._resolve(repository, rest.partition("/")[2])

    def _create(self, asked: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.repositories:
            return _json({"error": "You already created this model repo", "url": f"{self.endpoint}/{name}"}, 409)
        self.repositories[name] = Repository(asked.get("visibility") == "private")
        return _json({"url": f"{self.endpoint}/{name}", "name": name})

    def _mode(self, repository: Repository, file: str) -> dict[str, Any]:
        large, content = file.endswith(LARGE), repository.files.get(file)
        there = None if content is None else hashlib.sha256(content).hexdigest() if large else _git_hash(content)
        return {"path": file, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": there}

    def _batch(self, asked: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        objects = []
        for one in asked["objects"]:
            place = f"{self.endpoint}/lfs/{one['oid']}"
            actions = {"upload": {"href": place}, "verify": {"href": f"{place}/verify"}}
            objects.append(one | ({} if one["oid"] in self.stored else {"actions": actions}))
        return _json({"transfer": "basic", "objects": objects})

    def _store(self, oid: str, body: bytes, verified: bool) -> tuple[int, dict[str, str], bytes]:
        if verified:
            return _json({}) if len(self.stored.get(oid, b"")) == json.loads(body)["size"] else _json({}, 404)
        if hashlib.sha256(body).hexdigest() != oid:
            return _json({"error": "other content"}, 400)
        self.stored[oid] = body
        return _json({})

    def _commit(self, name: str, repository: Repository, lines: list[Any]) -> tuple[int, dict[str, str], bytes]:
        """All operations, or none."""
        files = dict(repository.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit") not in (None, repository.sha):
                return _json({"error": "A commit has happened since."}, 412)
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        repository.files, repository.commits = files, repository.commits + 1
        return _json({"commitUrl": f"{self.endpoint}/{name}/commit/{repository.sha}", "commitOid": repository.sha})

    def _resolve(self, repository: Repository, file: str) -> tuple[int, dict[str, str], bytes]:
        content = repository.files.get(file)
        if content is None:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repository.sha}, b""
        large = file.endswith(LARGE)
        etag = hashlib.sha256(content).hexdigest() if large else _git_hash(content)
        linked = {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))} if large else {}
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": repository.sha, "Accept-Ranges": "none"} | linked, content


def _entry(file: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": file, "size": len(content), "oid": _git_hash(content)}


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _json(content: Any, status: int = 200) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/json"}, json.dumps(content).encode()
