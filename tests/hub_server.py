"""As much of the Hub's HTTP protocol as its own client needs to make a repository and fill it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class Hub(ThreadingHTTPServer):
    """Repositories by ID; ``python -m http.server`` with a memory."""

    def __init__(self, token: str = "hf_right", full: bool = False, large: int = 1000) -> None:
        """``full``: it takes no commit. ``large``: bytes above which a file goes to the large file storage."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token, self.full, self.large = token, full, large
        self.repositories: dict[str, dict[str, Any]] = {}
        self.objects: dict[str, bytes] = {}
        self.unknown: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, repository: str) -> dict[str, bytes]:
        return self.repositories[repository]["files"]


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    thread = Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        known = self.headers.get("Authorization") == f"Bearer {self.server.token}"
        if known and parts[:2] == ["api", "models"] and "/".join(parts[2:4]) in self.server.repositories:
            if parts[4:] == ["tree", "main"]:
                return self._answer(self._tree("/".join(parts[2:4])))
            return self._answer(self._info("/".join(parts[2:4])))
        return self._refuse(404, "not found")

    def do_PUT(self) -> None:
        body = self._body()
        oid = self.path.rpartition("/")[2]
        if hashlib.sha256(body).hexdigest() != oid:
            return self._refuse(400, "other bytes than announced")
        self.server.objects[oid] = body
        return self._answer({})

    def do_POST(self) -> None:
        body, path = self._body(), self.path.partition("?")[0]
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self._refuse(401, "Invalid credentials")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        if path == "/verify":
            asked = json.loads(body)
            same = len(self.server.objects.get(asked["oid"], b"")) == asked["size"]
            return self._answer({}) if same else self._refuse(400, "another size")
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"] and parts[4:] == ["preupload", "main"]:
            return self._answer({"files": [self._mode(file) for file in json.loads(body)["files"]]})
        if parts[:2] == ["api", "models"] and parts[4:] == ["commit", "main"]:
            return self._commit("/".join(parts[2:4]), [json.loads(line) for line in body.splitlines()])
        self.server.unknown.append(path)
        return self._refuse(404, f"POST {path}")

    def _create(self, asked: dict[str, Any]) -> None:
        repository = f"{asked['organization']}/{asked['name']}"
        there = repository in self.server.repositories
        private = asked.get("private", asked.get("visibility") == "private")
        self.server.repositories.setdefault(repository, {"private": private, "files": {}})
        answer = {"url": f"{self.server.address}/{repository}", "name": repository}
        return self._answer(
            answer | {"error": "You already created this model repo"} if there else answer, 409 if there else 200
        )

    def _info(self, repository: str) -> dict[str, Any]:
        known = self.server.repositories[repository]
        siblings = [{"rfilename": name} for name in known["files"]]
        return {"id": repository, "modelId": repository, "sha": "0" * 40, "private": known["private"], "tags": [],
                "downloads": 0, "likes": 0, "siblings": siblings}  # fmt: skip

    def _tree(self, repository: str) -> list[dict[str, Any]]:
        files = self.server.repositories[repository]["files"]
        return [{"type": "file", "path": name, "size": len(body), "oid": "0" * 40} for name, body in files.items()]

    def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
        mode = "lfs" if file["size"] > self.server.large else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}

    def _batch(self, asked: dict[str, Any]) -> None:
        assert "basic" in asked["transfers"]
        at = self.server.address
        objects = [
            {
                "oid": one["oid"],
                "size": one["size"],
                "actions": {"upload": {"href": f"{at}/put/{one['oid']}"}, "verify": {"href": f"{at}/verify"}},
            }
            for one in asked["objects"]
        ]
        self._answer({"transfer": "basic", "objects": objects})

    def _commit(self, repository: str, lines: list[dict[str, Any]]) -> None:
        if self.server.full:
            return self._refuse(403, "Private repository storage limit reached")
        files = self.server.files(repository)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        address = f"{self.server.address}/{repository}/commit/{'0' * 40}"
        return self._answer({"commitUrl": address, "commitOid": "0" * 40})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, answer: dict[str, Any] | list[dict[str, Any]], status: int = 200) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, why: str) -> None:
        self._answer({"error": why}, status)
