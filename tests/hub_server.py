"""A server on loopback that speaks the hub's protocol over files in memory, with faults on request and a log of what it sent."""
import hashlib
import json
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGE = 10_000 # bytes from which a file counts as one that the hub keeps outside git, under its SHA-256


def git_sha(data: bytes) -> str: return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Fault:
    "What goes wrong with the next answer for a path."
    status: int = 0 # Answer with this status instead
    headers: dict = field(default_factory=dict) # Its headers, or more headers for a good answer
    after: int | None = None # Break off after so many bytes of the body
    how: str = "close" # "close", "reset", or "stall" (say nothing more until the client leaves)
    body: bytes | None = None # Send these bytes instead, with their true length
    no_range: bool = False # Ignore a Range header
    no_length: bool = False # Don't say how long the body is: it ends where the connection ends
    tag: str | None = None # Another entity tag; "": none


@dataclass
class Sent:
    "One request and what came of it."
    method: str
    path: str
    range: str | None
    status: int
    sent: int # bytes of the body
    headers: dict


class HubServer:
    "Plain files under `files`, repositories under `add_repo`; faults queue up per path and are used once."
    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.repos: dict[str, dict] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.log: list[Sent] = []
        self.done = threading.Event()
        outer = self
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            def do_GET(self): outer.answer(self)
            def do_HEAD(self): outer.answer(self)
            def log_message(self, *args): pass
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs=dict(poll_interval=0.02), daemon=True)
        self.thread.start()

    def __enter__(self): return self
    def __exit__(self, *args):
        self.done.set()
        self.server.shutdown()
        self.server.server_close()

    def add_repo(self, repo: str, folder: Path | dict[str, bytes], kind: str = "models", commit: str | None = None, refs: tuple[str, ...] = ("main",)) -> str:
        "Serve a folder (or files in memory) as a repository at a commit; several commits of one repository may be added."
        files = folder if isinstance(folder, dict) else {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}
        commit = commit or hashlib.sha1(repr(sorted((n, git_sha(b)) for n, b in files.items())).encode()).hexdigest()
        known = self.repos.setdefault(f"{kind}/{repo}", dict(commits={}, refs={}))
        known["commits"][commit] = files
        for r in refs: known["refs"][r] = commit
        return commit

    def fail(self, path: str, *faults: Fault) -> None: self.faults.setdefault(path, []).extend(faults)
    def requests(self, part: str = "", method: str = "GET") -> list[Sent]: return [s for s in self.log if part in s.path and s.method == method]

    def answer(self, h: BaseHTTPRequestHandler) -> None:
        path = urlsplit(h.path).path
        queue = self.faults.get(path) or self.faults.get(unquote(path)) or []
        fault = queue.pop(0) if queue else Fault()
        record = Sent(h.command, unquote(path), h.headers.get("Range"), 0, 0, dict(h.headers))
        self.log.append(record)
        if fault.status: return self.send(h, record, fault.status, fault.headers, fault.body or b"", fault)
        found = self.find(path)
        if found is None: return self.send(h, record, 404, {"X-Error-Code": self.missing(path)}, b"not found", Fault())
        headers, data = found
        headers = {"Accept-Ranges": "bytes", **headers, **fault.headers}
        if fault.body is not None: data = fault.body
        if fault.tag is not None: headers["ETag"] = fault.tag
        if fault.tag == "": del headers["ETag"]
        status, start, ask = 200, 0, h.headers.get("Range")
        if ask and not fault.no_range and h.headers.get("If-Range") in (None, headers.get("ETag")):
            start = int(ask.removeprefix("bytes=").split("-")[0])
            if start >= len(data): return self.send(h, record, 416, {"Content-Range": f"bytes */{len(data)}"}, b"", Fault())
            status, headers["Content-Range"] = 206, f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.send(h, record, status, headers, data[start:], fault)

    def send(self, h: BaseHTTPRequestHandler, record: Sent, status: int, headers: dict, body: bytes, fault: Fault) -> None:
        record.status = status
        h.send_response(status)
        for k, v in headers.items(): h.send_header(k, v)
        if not fault.no_length: h.send_header("Content-Length", str(len(body)))
        # one request a connection: a server that is closed is gone for clients too
        h.send_header("Connection", "close")
        h.close_connection = True
        h.end_headers()
        if h.command == "HEAD": return
        part = body if fault.after is None else body[:fault.after]
        try:
            h.wfile.write(part)
            h.wfile.flush()
            record.sent = len(part)
        except OSError: pass
        if fault.after is None: return
        if fault.how == "stall":
            # until the client hangs up, or the test is over
            h.connection.settimeout(0.05)
            while not self.done.is_set():
                try:
                    if not h.connection.recv(1): break
                except TimeoutError: continue
                except OSError: break
        if fault.how == "reset":
            # what was sent must arrive before the reset, or the client sees less of it
            threading.Event().wait(0.1)
            h.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            h.connection.close()

    def missing(self, path: str) -> str:
        parts = [unquote(p) for p in path.strip("/").split("/")]
        api = parts[0] == "api"
        kind, parts = (parts[1], parts[2:]) if api else ("datasets", parts[1:]) if parts[0] == "datasets" else ("models", parts)
        repo = "/".join(parts[:next((i for i, p in enumerate(parts) if p in ("revision", "resolve")), len(parts))])
        if f"{kind}/{repo}" not in self.repos: return "RepoNotFound"
        return "RevisionNotFound" if api else "EntryNotFound"

    def find(self, path: str) -> tuple[dict, bytes] | None:
        "Headers and bytes for a path, or None."
        if path in self.files: return {"ETag": f'"{hashlib.md5(self.files[path]).hexdigest()}"'}, self.files[path]
        parts = [unquote(p) for p in path.strip("/").split("/")]
        if parts[0] == "api": return self.listing(parts[1], parts[2:])
        kind = parts.pop(0) if parts[0] == "datasets" else "models"
        if "resolve" not in parts: return None
        at = parts.index("resolve")
        known = self.repos.get(f"{kind}/{'/'.join(parts[:at])}")
        if not known: return None
        commit = known["refs"].get(parts[at + 1], parts[at + 1])
        data = known["commits"].get(commit, {}).get("/".join(parts[at + 2:]))
        if data is None: return None
        return {"ETag": f'"{hashlib.sha256(data).hexdigest() if len(data) >= LARGE else git_sha(data)}"', "X-Repo-Commit": commit,
            **({"X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(len(data))} if len(data) >= LARGE else {})}, data

    def listing(self, kind: str, parts: list[str]) -> tuple[dict, bytes] | None:
        revision = "main"
        if "revision" in parts: revision = parts[parts.index("revision") + 1]; parts = parts[:parts.index("revision")]
        known = self.repos.get(f"{kind}/{'/'.join(parts)}")
        if not known: return None
        commit = known["refs"].get(revision, revision)
        if commit not in known["commits"]: return None
        siblings = [dict(rfilename=n, size=len(b), blobId=git_sha(b), **({"lfs": dict(sha256=hashlib.sha256(b).hexdigest(), size=len(b), pointerSize=130)} if len(b) >= LARGE else {})) for n, b in known["commits"][commit].items()]
        info = dict(id="/".join(parts), sha=commit, siblings=siblings, private=False, downloads=0, likes=0, tags=[], lastModified="2026-01-01T00:00:00.000Z", createdAt="2026-01-01T00:00:00.000Z")
        if kind == "models": info["modelId"] = info["id"]
        return {"Content-Type": "application/json", "X-Repo-Commit": commit}, json.dumps(info).encode()
