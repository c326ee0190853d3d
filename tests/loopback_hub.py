"""A stand-in for the Hugging Face Hub on this machine: the part of its HTTP contract that pulling and pushing take.

Clients under test are the real ones, in processes of their own. It keeps everything in memory, stores large files by
LFS (or trusts that xet has them, where `xet` names a store), and fails on demand.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

WRITES, READS = "hf_" + "w" * 34, "hf_" + "r" * 34
"""Tokens of the user alice."""
CUT = 0
"""The status of a fault that closes the connection without an answer."""


@dataclass
class Repository:
    """A line of commits, each a tree of files; `branches` are where they end."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    parents: dict[str, str | None] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        parent = self.branches.get(branch)
        oid = hashlib.sha1(f"{parent}{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[oid], self.parents[oid], self.branches[branch] = files, parent, oid
        return oid

    def at(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)


class LoopbackHub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[list[Any]] = []
        self.asked: list[tuple[str, str]] = []
        self.slow_uploads = 0.0  # seconds
        self.lose_answers = 0  # to commits that are made all the same
        self.xet: str | None = None  # address of a store of xet
        self.lock = threading.RLock()
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, repo_id: str, folder: Path, branch: str = "main", kind: str = "models") -> str:
        repository = self.repositories.setdefault((kind, repo_id), Repository())
        return repository.commit({path.name: path.read_bytes() for path in folder.iterdir()}, branch)

    def files(self, repo_id: str, kind: str = "models", branch: str = "main") -> dict[str, bytes]:
        repository = self.repositories[kind, repo_id]
        return repository.commits[repository.branches[branch]]

    def fail(self, pattern: str, status: int, times: int) -> None:
        """The next `times` requests whose "METHOD path" has the pattern are answered with the status."""
        self.faults.append([pattern, status, times])

    def everything(self) -> bytes:
        """All bytes that were ever stored."""
        trees = [tree for one in self.repositories.values() for tree in one.commits.values()]
        return b"\0".join(
            [*self.blobs.values(), *(name.encode() + data for tree in trees for name, data in tree.items())]
        )

    @contextmanager
    def serving(self) -> Iterator[LoopbackHub]:
        thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()
            thread.join()


def is_lfs(path: str) -> bool:
    return path.endswith(".safetensors")


def oid_of(path: str, data: bytes) -> str:
    if is_lfs(path):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Request(BaseHTTPRequestHandler):
    server: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionResetError, BrokenPipeError):  # the client was killed
            self.close_connection = True

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        body = self._body()
        told = f"{self.command} {path}"
        with self.server.lock:
            self.server.asked.append((self.command, path))
            fault = next((one for one in self.server.faults if one[2] and re.search(one[0], told)), None)
            if fault:
                fault[2] -= 1
        if fault and fault[1] == CUT:
            self.close_connection = True
            return
        if fault:
            return self.answer(fault[1], {"error": "on demand"})
        for pattern, name in _ROUTES:
            if found := re.fullmatch(pattern, told):
                return getattr(self, name)(body, **found.groupdict())
        self.answer(404, {"error": "not here"}, code="EntryNotFound")

    do_HEAD = do_POST = do_PUT = do_GET

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(
        self, status: int, values: Any = None, data: bytes = b"", code: str = "", headers: dict[str, str] | None = None
    ) -> None:
        data = data if values is None else json.dumps(values).encode()
        self.send_response(status)
        told = {"Content-Length": str(len(data)), "Content-Type": "application/json", "X-Error-Code": code}
        for name, value in (told | (headers or {})).items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # ---- who asks for what

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def may_write(self) -> bool:
        if self.token == WRITES:
            return True
        self.answer(403 if self.token == READS else 401, {"error": "no"})
        return False

    def found(self, kind: str | None, id: str, revision: str = "main") -> tuple[Repository, str] | None:
        if self.token and self.token not in (WRITES, READS):
            self.answer(401, {"error": "Invalid username or password."})
            return None
        one = self.server.repositories.get((kind or "models", id))
        if one is None or (one.private and self.token not in (WRITES, READS)):
            self.answer(404 if self.token else 401, {"error": "Repository not found"}, code="RepoNotFound")
            return None
        commit = one.at(revision)
        if commit is None:
            self.answer(404, {"error": "Invalid rev id"}, code="RevisionNotFound")
            return None
        return one, commit

    # ---- pushing

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        if not self.may_write():
            return
        owner = asked.get("organization") or "alice"
        if owner != "alice":
            return self.answer(403, {"error": "You don't have the rights to create a model under this namespace"})
        id, kind = f"{owner}/{asked['name']}", f"{asked.get('type') or 'model'}s"
        url = f"{self.server.address}/{'' if kind == 'models' else kind + '/'}{id}"
        with self.server.lock:
            if (kind, id) in self.server.repositories:
                return self.answer(409, {"error": "You already created this repo", "url": url})
            one = Repository(bool(asked.get("private")) or asked.get("visibility") == "private")
            one.commit({".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
            self.server.repositories[kind, id] = one
        self.answer(200, {"url": url, "name": id, "id": id})

    def validate(self, body: bytes) -> None:
        """The Hub refuses a base_model that is a path."""
        named = re.search(r"^base_model:\s*[\"']?([^\s\"']+)", json.loads(body)["content"], re.MULTILINE)
        if named and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", named[1]):
            return self.answer(400, {"errors": [{"message": '"base_model" is not valid'}], "warnings": []})
        self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, body: bytes, kind: str, id: str, revision: str) -> None:
        if not self.may_write() or not (found := self.found(kind, id, revision)):
            return
        tree = found[0].commits[found[1]]
        files = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if is_lfs(one["path"]) else "regular",
                "shouldIgnore": False,
                "oid": oid_of(one["path"], tree[one["path"]]) if one["path"] in tree else None,
            }
            for one in json.loads(body)["files"]
        ]
        self.answer(200, {"files": files, "commitOid": found[1]})

    def batch(self, body: bytes, kind: str | None, id: str) -> None:
        if not self.found(kind.strip("/") if kind else None, id):
            return
        objects = []
        for one in json.loads(body)["objects"]:
            actions = {
                "upload": {"href": f"{self.server.address}/_lfs/{one['oid']}", "header": {}},
                "verify": {"href": f"{self.server.address}/_verify/{one['oid']}", "header": {}},
            }
            is_there = one["oid"] in self.server.blobs
            objects.append({"oid": one["oid"], "size": one["size"], **({} if is_there else {"actions": actions})})
        self.answer(200, {"transfer": "basic", "objects": objects, "hash_algo": "sha256"})

    def store(self, body: bytes, oid: str) -> None:
        time.sleep(self.server.slow_uploads)
        if hashlib.sha256(body).hexdigest() != oid:
            return self.answer(422, {"error": "sha mismatch"})
        self.server.blobs[oid] = body
        self.answer(200)

    def verify(self, body: bytes, oid: str) -> None:
        self.answer(200 if oid in self.server.blobs else 404, {})

    def branch(self, body: bytes, kind: str, id: str, revision: str) -> None:
        if self.may_write() and (found := self.found(kind, id)):
            found[0].branches.setdefault(revision, found[1])
            self.answer(200, {})

    def commit(self, body: bytes, kind: str, id: str, revision: str) -> None:
        with self.server.lock:
            if not self.may_write() or not (found := self.found(kind, id, revision)):
                return
            files = dict(found[0].commits[found[1]])
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "header" and value.get("parentCommit") not in (None, found[1]):
                    return self.answer(412, {"error": "A commit has happened since. Please refresh and try again."})
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    blob = self.server.blobs.get(value["oid"], b"in xet" if self.server.xet else None)
                    if blob is None:
                        return self.answer(400, {"error": "LFS object missing"})
                    files[value["path"]] = blob
                elif line["key"] == "deletedFile":
                    files.pop(value["path"], None)
            oid = found[0].commit(files, revision)
        if self.server.lose_answers:
            self.server.lose_answers -= 1
            self.close_connection = True
            return
        self.answer(200, {"success": True, "commitOid": oid, "commitUrl": f"{self.server.address}/{id}/commit/{oid}"})

    def xet_token(self, body: bytes, kind: str, id: str, revision: str) -> None:
        if self.server.xet is None:
            return self.answer(404, {"error": "no xet here"})
        ends = int(time.time()) + 3600
        token = {
            "X-Xet-Cas-Url": self.server.xet, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": str(ends)
        }  # fmt: skip
        self.answer(200, {"casUrl": self.server.xet, "accessToken": "xet", "exp": ends}, headers=token)

    # ---- pulling

    def info(self, body: bytes, kind: str, id: str, revision: str | None = None) -> None:
        if found := self.found(kind, id, revision or "main"):
            files = found[0].commits[found[1]]
            about = {
                "id": id,
                "sha": found[1],
                "private": found[0].private,
                "gated": False,
                "disabled": False,
                "tags": [],
            }
            card = re.match(rb"---\n(.*?)\n---", files.get("README.md", b""), re.DOTALL)
            if card:
                import yaml

                about["cardData"] = yaml.safe_load(card[1])
            self.answer(200, {**about, "siblings": [{"rfilename": name} for name in sorted(files)]})

    def tree(self, body: bytes, kind: str, id: str, revision: str) -> None:
        if found := self.found(kind, id, revision):
            entries = []
            for name, data in sorted(found[0].commits[found[1]].items()):
                entry = {"type": "file", "path": name, "size": len(data), "oid": oid_of(name, data)}
                if is_lfs(name):
                    entry["lfs"] = {"oid": entry["oid"], "size": len(data), "pointerSize": 130}
                entries.append(entry)
            self.answer(200, entries)

    def resolve(self, body: bytes, kind: str | None, id: str, revision: str, name: str) -> None:
        if found := self.found(kind.strip("/") if kind else None, id, revision):
            data = found[0].commits[found[1]].get(name)
            commit = {"X-Repo-Commit": found[1]}
            if data is None:
                return self.answer(404, {"error": "Entry not found"}, code="EntryNotFound", headers=commit)
            self.answer(200, data=data, headers={"ETag": f'"{oid_of(name, data)}"', **commit})


_API = r"/api/(?P<kind>models|datasets|spaces)/(?P<id>[^/]+/[^/]+)"
_PLAIN = r"/(?P<kind>datasets/|spaces/)?(?P<id>[^/]+/[^/]+)"
_ROUTES = [
    (r"POST /api/repos/create", "create"),
    (r"POST /api/validate-yaml", "validate"),
    (rf"POST {_API}/preupload/(?P<revision>.+)", "preupload"),
    (rf"POST {_PLAIN}\.git/info/lfs/objects/batch", "batch"),
    (r"PUT /_lfs/(?P<oid>\w+)", "store"),
    (r"POST /_verify/(?P<oid>\w+)", "verify"),
    (rf"POST {_API}/branch/(?P<revision>.+)", "branch"),
    (rf"POST {_API}/commit/(?P<revision>.+)", "commit"),
    (rf"GET {_API}/xet-(?:read|write)-token/(?P<revision>.+)", "xet_token"),
    (rf"GET {_API}(?:/revision/(?P<revision>.+))?", "info"),
    (rf"GET {_API}/tree/(?P<revision>[^/]+)", "tree"),
    (rf"(?:GET|HEAD) {_PLAIN}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", "resolve"),
]
