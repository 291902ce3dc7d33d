"""A local stand-in of the hub's API: repositories in memory, uploads by commit and LFS, downloads by revision."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """`repos`: name -> revision -> path -> bytes. `seen`: (method, path, authorization) of every request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.gated: set[str] = set()
        self.read_only = False
        self.large: dict[str, bytes] = {}
        self.seen: list[tuple[str, str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, repo: str, folder: Path, revision: str = "main") -> None:
        """Put a folder's files into a repository."""
        files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        self.repos.setdefault(repo, {})[revision] = files


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args) -> None: ...

    def do_GET(self) -> None:
        self._route()

    do_HEAD = do_POST = do_PUT = do_GET

    def _route(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self._chunks()
        self.server.seen.append((self.command, path, self.headers.get("Authorization")))
        for pattern, action in ROUTES:
            if found := re.fullmatch(pattern, path):
                return action(self, *found.groups())
        return self.reply(404, {"error": f"no such address {path}"})

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def reply(self, status: int, content: dict | list | bytes, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # ---- reading ----

    def files(self, repo: str, revision: str) -> dict[str, bytes] | None:
        """The files of a revision; None after an error was sent, in the hub's own words."""
        if repo in self.server.gated:
            self.reply(403, {"error": "gated"}, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        elif repo not in self.server.repos:
            self.reply(404, {"error": "none"}, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        else:
            by_revision = self.server.repos[repo]
            revision = "main" if revision == COMMIT and COMMIT not in by_revision else revision
            found = by_revision.get(revision) or by_revision.get(self._of_commit(repo, revision))
            if found is not None:
                return found
            self.reply(404, {"error": "none"}, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
        return None

    def commit_of(self, repo: str, revision: str) -> str:
        names = {self.sha(repo, name): name for name in self.server.repos[repo]}
        return revision if revision in names else self.sha(repo, revision)

    def _of_commit(self, repo: str, commit: str) -> str:
        return next((name for name in self.server.repos[repo] if self.sha(repo, name) == commit), "")

    @staticmethod
    def sha(repo: str, revision: str) -> str:
        return hashlib.sha1(f"{repo}@{revision}".encode()).hexdigest()

    def info(self, repo: str, revision: str | None = None) -> None:
        revision = revision or "main"
        files = self.files(repo, revision)
        if files is not None:
            siblings = [{"rfilename": name} for name in files]
            sha = self.commit_of(repo, revision)
            self.reply(
                200, {"id": repo, "modelId": repo, "sha": sha, "siblings": siblings, "tags": [], "private": False}
            )

    def tree(self, repo: str, revision: str) -> None:
        files = self.files(repo, revision)
        if files is not None:
            rows = [
                {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                for n, d in files.items()
            ]
            self.reply(200, rows)

    def resolve(self, repo: str, revision: str, name: str) -> None:
        files = self.files(repo, revision)
        if files is None:
            return
        if name not in files:
            self.reply(404, {"error": "none"}, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found")
            return
        etag = f'"{hashlib.sha256(files[name]).hexdigest()}"'
        self.reply(200, files[name], ETag=etag, X_Repo_Commit=self.commit_of(repo, revision), Accept_Ranges="bytes")

    # ---- writing ----

    def allowed(self) -> bool:
        if self.headers.get("Authorization") is None:
            self.reply(401, {"error": "Invalid username or password."})
            return False
        if self.server.read_only:
            self.reply(403, {"error": "You don't have the rights"})
            return False
        return True

    def create(self) -> None:
        if self.allowed():
            asked = json.loads(self.body)
            repo = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.server.repos.setdefault(repo, {"main": {}})
            self.reply(200, {"url": f"{self.server.url}/{repo}", "id": repo, "name": repo})

    def preupload(self, repo: str, revision: str) -> None:
        if self.allowed():
            files = [file["path"] for file in json.loads(self.body)["files"]]
            modes = [{"path": p, "uploadMode": "lfs" if p.endswith(".safetensors") else "regular"} for p in files]
            self.reply(200, {"files": [{**mode, "shouldIgnore": False, "oid": None} for mode in modes]})

    def lfs_batch(self, repo: str) -> None:
        if self.allowed():
            objects = [
                {**item, "actions": {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}", "header": {}}}}
                for item in json.loads(self.body)["objects"]
            ]
            self.reply(200, {"transfer": "basic", "objects": objects})

    def lfs_store(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.large[oid] = self.body
        self.reply(200, {})

    def commit(self, repo: str, revision: str) -> None:
        if not self.allowed():
            return
        for line in self.body.decode().splitlines():
            record = json.loads(line)
            value = record["value"]
            if record["key"] == "file":
                self.server.repos[repo][revision][value["path"]] = base64.b64decode(value["content"])
            elif record["key"] == "lfsFile":
                self.server.repos[repo][revision][value["path"]] = self.server.large[value["oid"]]
        url = f"{self.server.url}/{repo}/commit/{COMMIT}"
        self.reply(200, {"commitOid": COMMIT, "commitUrl": url, "hookOutput": "", "success": True})


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    (r"/api/repos/create", Handler.create),
    (r"/api/validate-yaml", lambda self: self.reply(200, {"errors": [], "warnings": []})),
    (r"/api/whoami-v2", lambda self: self.reply(200, {"name": "me", "type": "user"})),
    (rf"/api/models/{REPO}/preupload/([^/]+)", Handler.preupload),
    (rf"/api/models/{REPO}/commit/([^/]+)", Handler.commit),
    (rf"/api/models/{REPO}/tree/([^/]+)", Handler.tree),
    (rf"/api/models/{REPO}/revision/([^/]+)", Handler.info),
    (rf"/api/models/{REPO}", Handler.info),
    (rf"/{REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    (r"/lfs/(\w+)", Handler.lfs_store),
    (rf"/{REPO}/resolve/([^/]+)/(.+)", Handler.resolve),
]


@contextmanager
def stand_in(monkeypatch, cache: Path):
    """A running hub that the hub library of this process takes for the real one, with a cache of its own."""
    from huggingface_hub import constants

    hub = Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
