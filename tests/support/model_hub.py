"""A Hugging Face hub on this machine: as much of it as pushing and loading a model uses.

It keeps commits and branches, takes large files by Git LFS, and notes every request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_this_test"


class ModelHub:
    """Repositories with commits; writing needs the token."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        """by its SHA-1, all files of a commit"""
        self.branches: dict[str, dict[str, str]] = {}
        """by repository, the commit of each branch"""
        self.stored: dict[str, bytes] = {}
        """large files by their SHA-256"""
        self.requests: list[str] = []
        """method and path of every request"""
        self.private: set[str] = set()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def commit(self, repository: str, branch: str, files: dict[str, bytes]) -> str:
        """Make these files the newest commit of a branch."""
        sha = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.branches.setdefault(repository, {})[branch] = sha
        return sha

    def files(self, repository: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a branch or a commit."""
        branches = self.branches[repository]
        return self.commits[branches.get(revision, revision)]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: ModelHub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(b"")

    def do_GET(self) -> None:
        self.answer(b"")

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def do_PUT(self) -> None:
        self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def answer(self, body: bytes) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if path == "/api/validate-yaml":
            self.json({"errors": [], "warnings": []})
        elif path.startswith("/lfs/"):
            self.hub.stored[parts[1]] = body
            self.reply(200)
        elif self.command == "POST" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.reply(401)
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif parts[:2] == ["api", "models"]:
            self.model("/".join(parts[2:4]), parts[4:], body)
        elif path.endswith(".git/info/lfs/objects/batch"):
            self.batch(json.loads(body))
        elif parts[2:3] == ["resolve"]:
            self.file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self.reply(404)

    def create(self, wanted: dict[str, Any]) -> None:
        repository = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        new = repository not in self.hub.branches
        if new:
            self.hub.commit(repository, "main", {".gitattributes": b"*.zip filter=lfs\n"})
        self.json({"url": f"{self.hub.url}/{repository}"}, 200 if new else 409)

    def model(self, repository: str, what: list[str], body: bytes) -> None:
        if repository not in self.hub.branches:
            self.reply(404, headers={"X-Error-Code": "RepoNotFound"})
            return
        branches = self.hub.branches[repository]
        action = what[0] if what else "revision"
        revision = what[1] if len(what) > 1 else "main"
        if action == "branch":
            new = revision not in branches
            branches.setdefault(revision, branches["main"])
            self.json({}, 200 if new else 409)
        elif branches.get(revision, revision) not in self.hub.commits:
            self.reply(404, headers={"X-Error-Code": "RevisionNotFound"})
        elif action == "preupload":
            large = (".zip", ".mp4")
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(large) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self.json({"files": modes})
        elif action == "commit":
            self.take(repository, revision, body)
        elif action == "tree":
            self.json([entry(*file) for file in self.hub.files(repository, revision).items()])
        else:
            self.describe(repository, revision)

    def describe(self, repository: str, revision: str) -> None:
        files = self.hub.files(repository, revision)
        siblings = [{"rfilename": name, "size": len(files[name])} for name in files]
        sha = self.hub.branches[repository].get(revision, revision)
        self.json({"id": repository, "sha": sha, "siblings": siblings})

    def batch(self, wanted: dict[str, Any]) -> None:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}}
            for one in wanted["objects"]
        ]
        self.json({"transfer": "basic", "objects": objects})

    def take(self, repository: str, branch: str, body: bytes) -> None:
        files = dict(self.hub.files(repository, branch))
        for line in body.splitlines():
            kind, value = (json.loads(line)[name] for name in ("key", "value"))
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            elif kind == "deletedFile":
                del files[value["path"]]
        sha = self.hub.commit(repository, branch, files)
        url = f"{self.hub.url}/{repository}/commit/{sha}"
        self.json({"commitUrl": url, "commitOid": sha})

    def file(self, repository: str, revision: str, name: str) -> None:
        if repository not in self.hub.branches:
            self.reply(404, headers={"X-Error-Code": "RepoNotFound"})
            return
        sha = self.hub.branches[repository].get(revision, revision)
        content = self.hub.commits.get(sha, {}).get(name)
        if content is None:
            self.reply(404, headers={"X-Error-Code": "EntryNotFound"})
            return
        etag = hashlib.sha256(content).hexdigest()
        self.reply(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": sha})

    def json(self, content: Any, status: int = 200) -> None:
        self.reply(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def reply(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def entry(name: str, content: bytes) -> dict[str, Any]:
    """What the hub's listing says about a file."""
    oid = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    return {"type": "file", "path": name, "size": len(content), "oid": oid}
