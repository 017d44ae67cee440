"""A Hugging Face hub on this machine: as much of its interface as Minari's downloads use."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import sleep
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ORGANISATION = "farm"
LARGE = (".hdf5", ".arrow")


class Hub:
    """Repositories of one organisation, and what is to go wrong with their files."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        """(method, file or api path, Range header) of every request"""
        self.cuts: dict[str, list[int]] = {}
        """after how many bytes the connection breaks, request by request, by file"""
        self.spoils: dict[str, int] = {}
        """how many times a file is delivered with its last byte changed"""
        self.stalls: set[str] = set()
        """files of which half arrives, and then nothing"""
        self.status: int | None = None
        """answer everything with this status"""
        self.released = threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def publish(self, root: Path) -> None:
        """Offer all datasets of a Minari folder, laid out as Minari uploads them."""
        for metadata in sorted(root.rglob("data/metadata.json")):
            folder = metadata.parent.parent
            dataset_id = folder.relative_to(root).as_posix()
            repository, _, path = dataset_id.partition("/")
            files = self.repositories.setdefault(repository, {})
            for file in folder.rglob("*"):
                if file.is_file():
                    name = file.relative_to(folder).as_posix()
                    files[f"{path}/{name}" if path else name] = file.read_bytes()
            if path:
                listed = json.loads(files.get("namespace_metadata.json", b"{}"))
                listed["datasets"] = sorted({*listed.get("datasets", []), dataset_id})
                files["namespace_metadata.json"] = json.dumps(listed).encode()

    def fetched(self, name: str) -> list[str | None]:
        """The Range header of every GET of files whose path ends so."""
        return [r for method, path, r in self.requests if method == "GET" and path.endswith(name)]

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if self.hub.status is not None:
            self.reply(self.hub.status, b"")
        elif path == "/api/datasets":
            wanted = query.get("search", [""])[0]
            found = [name for name in sorted(self.hub.repositories) if wanted in name]
            self.json([{"id": f"{ORGANISATION}/{name}"} for name in found])
        elif path.startswith(f"/api/datasets/{ORGANISATION}/"):
            self.describe(*path.split("/", 5)[4:])
        elif path.startswith(f"/datasets/{ORGANISATION}/"):
            _, _, _, repository, _, _, name = path.split("/", 6)
            self.file(repository, name)
        else:
            self.reply(200, b"")

    def describe(self, repository: str, what: str = "") -> None:
        files = self.hub.repositories[repository]
        if not what.startswith("tree/"):
            self.json({"id": f"{ORGANISATION}/{repository}", "sha": COMMIT})
            return
        under = "/".join(what.split("/")[2:])
        inside = [name for name in files if not under or name.startswith(f"{under}/")]
        self.json([entry(name, files[name]) for name in inside])

    def file(self, repository: str, name: str) -> None:
        content = self.hub.repositories.get(repository, {}).get(name)
        if content is None:
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        digest = digest_of(name, content)
        headers = {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT}
        if name.endswith(LARGE):
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        if self.command == "GET" and self.hub.spoils.get(name, 0) > 0:
            self.hub.spoils[name] -= 1
            content = content[:-1] + bytes([content[-1] ^ 255])
        begin = self.headers.get("Range")
        if begin is None:
            self.reply(200, content, headers, self.broken(name))
            return
        first = int(begin.removeprefix("bytes=").rstrip("-"))
        headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        self.reply(206, content[first:], headers, self.broken(name))

    def broken(self, name: str) -> Callable[[bytes], None]:
        """How the body is sent."""
        if self.command == "GET" and name in self.hub.stalls:
            return self.stall
        cuts = self.hub.cuts.get(name, [])
        if self.command == "GET" and cuts:
            size = cuts.pop(0)
            return lambda body: self.cut(body[:size])
        return lambda body: self.wfile.write(body) and None

    def stall(self, body: bytes) -> None:
        self.cut(body[: len(body) // 2], close=False)
        self.hub.released.wait(60)

    def cut(self, part: bytes, close: bool = True) -> None:
        self.wfile.write(part)
        self.wfile.flush()
        if close:
            sleep(0.05)
            self.close_connection = True
            self.connection.shutdown(2)

    def json(self, content: Any) -> None:
        self.reply(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def reply(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        send: Callable[[bytes], Any] | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            (send or self.wfile.write)(body)


def digest_of(name: str, content: bytes) -> str:
    """SHA-256 of large files, git's SHA-1 of small ones."""
    if name.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def entry(name: str, content: bytes) -> dict[str, Any]:
    """What the hub's listing says about a file."""
    about: dict[str, Any] = {
        "type": "file",
        "path": name,
        "size": len(content),
        "oid": digest_of("", content),
    }
    if name.endswith(LARGE):
        about["lfs"] = {"oid": digest_of(name, content), "size": len(content), "pointerSize": 130}
    return about
