"""The local viewer: reads a directory of runs and shows their reports, on this machine only, changing nothing.

Binds to 127.0.0.1, answers GET and HEAD, and only when the Host header names this machine (so no web page can reach
it by DNS rebinding). A URL never becomes a path: it is looked up in a listing made here. Knows nothing about models.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from rote.errors import InputError
from rote.report.findings import Findings, loads
from rote.report.headline import overall
from rote.report.html import render_page, render_report
from rote.report.text import shown_plain

ADDRESS = "127.0.0.1"
DEPTH = 3  # how far below the directory runs are looked for
MOST_RUNS = 500
MOST_BYTES = 64 * 2**20  # a findings file larger than this is not one of ours
FILES = {
    "report.html": "text/html; charset=utf-8",
    "compare.html": "text/html; charset=utf-8",
    "findings.json": "application/json",
    "run.json": "application/json",
    "study.json": "application/json",
}
# Pages run in a sandbox without an origin: a report someone sent cannot read the other runs.
POLICY = (
    "sandbox allow-scripts allow-popups; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Listed:
    """A run found in the directory. `key` is what URLs say; it is a hash of the relative path, never joined to
    anything.
    """

    key: str
    name: str
    files: dict[str, Path]


def list_runs(directory: str | Path) -> dict[str, Listed]:
    """The runs under a directory, by key. Links that lead out of it are left out."""
    root = Path(directory).resolve()
    found: dict[str, Listed] = {}
    level = [root]
    for _ in range(DEPTH + 1):
        below = []
        for folder in level:
            try:
                entries = sorted(folder.iterdir())
            except OSError:
                continue
            files = {e.name: e for e in entries if e.name in FILES and _inside(e, root) and e.is_file()}
            if files.keys() & {"findings.json", "report.html", "compare.html", "study.json"} and len(found) < MOST_RUNS:
                name = folder.relative_to(root).as_posix() if folder != root else root.name
                key = hashlib.sha256(str(folder.relative_to(root)).encode("utf-8", "surrogateescape")).hexdigest()[:16]
                found[key] = Listed(key, name, files)
            below += [
                e
                for e in entries
                if e.is_dir() and not e.name.startswith(".") and _inside(e, root) and not e.is_symlink()
            ]
        level = below
    return found


def _inside(path: Path, root: Path) -> bool:
    try:
        return path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):
        return False


def index_rows(runs: dict[str, Listed]) -> list[dict[str, Any]]:
    """What the listing shows of each run."""
    rows = []
    for run in runs.values():
        row: dict[str, Any] = {
            "key": run.key,
            "name": run.name,
            "files": sorted(run.files),
            "level": None,
            "title": "",
            "text": "",
        }
        try:
            if "findings.json" in run.files:
                findings = _load(run.files["findings.json"])
                row |= {"level": overall(findings)[0], "title": findings.title, "model": findings.model.name}
                row["text"] = findings.verdicts[0].text if findings.verdicts else "no verdict"
            elif "study.json" in run.files:
                study = json.loads(run.files["study.json"].read_text("utf-8"))
                claims = study.get("claims", [])
                held = sum(bool(c.get("holds")) for c in claims)
                row |= {"title": str(study.get("title", "")), "text": f"study: {held} of {len(claims)} claims held"}
        except InputError as error:
            row["text"] = f"unreadable: {error}"
        except (OSError, ValueError, AttributeError, TypeError):
            row["text"] = "unreadable"
        rows.append(row)
    return rows


def _load(file: Path) -> Findings:
    if file.stat().st_size > MOST_BYTES:
        raise InputError(f"{shown_plain(file.name)}: larger than {MOST_BYTES // 2**20} MiB, so not a findings file")
    return loads(file.read_bytes(), where=file.name)


class _Handler(BaseHTTPRequestHandler):
    server_version = "rote"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    timeout = 20
    root: Path
    server: ViewerServer

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _refuse(self) -> None:
        self.close_connection = True  # a body we will not read may follow
        self._send(405, b"read-only: GET and HEAD\n", extra={"Allow": "GET, HEAD"})

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _refuse

    def _answer(self, *, body: bool) -> None:
        if not self._local():
            self.close_connection = True
            return self._send(403, b"only this machine may ask: open http://127.0.0.1\n", body=body)
        path = self.path.split("?", 1)[0].split("#", 1)[0]
        if path == "/":
            page = render_page("viewer.html.j2", [], root=self.root.name, runs=index_rows(list_runs(self.root)))
            return self._send(200, page.encode("utf-8"), FILES["report.html"], body=body)
        parts = path.split("/")
        run = list_runs(self.root).get(parts[2]) if len(parts) == 4 and parts[1] == "run" else None
        if run is None or parts[3] not in FILES:
            return self._send(404, b"no such run or file\n", body=body)
        self._run_file(run, parts[3], body=body)

    def _run_file(self, run: Listed, name: str, *, body: bool) -> None:
        try:
            if name in run.files:
                data = run.files[name].read_bytes()
            elif name == "report.html" and "findings.json" in run.files:
                data = render_report(_load(run.files["findings.json"])).encode("utf-8")  # masked
            else:
                return self._send(404, b"this run has no such file\n", body=body)
        except InputError as error:
            return self._send(422, f"{error}\n".encode("utf-8", "replace"), body=body)
        except OSError:
            return self._send(404, b"the file is gone or cannot be read\n", body=body)
        self._send(200, data, FILES[name], body=body)

    def _local(self) -> bool:
        """Whether the Host header names this machine and this port: localhost, 127.0.0.1 or [::1]."""
        hosts = self.headers.get_all("Host") or []
        port = self.server.server_port
        names = ("localhost", ADDRESS, "[::1]")
        allowed = {f"{name}:{port}" for name in names} | (set(names) if port == 80 else set())
        return len(hosts) == 1 and hosts[0].strip().lower() in allowed

    def _send(
        self,
        status: int,
        data: bytes,
        kind: str = "text/plain; charset=utf-8",
        *,
        body: bool = True,
        extra: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(data)),
            "Content-Security-Policy": POLICY,
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cache-Control": "no-store",
        } | (extra or {})
        if self.close_connection:
            headers["Connection"] = "close"
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: request lines may hold anything."""


class ViewerServer(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.server_port}/"


def make_server(directory: str | Path, port: int = 0) -> ViewerServer:
    """A server ready to `serve_forever()`; port 0 takes a free one. Errors: InputError for a missing directory or a
    taken port.
    """
    root = Path(directory)
    if not root.is_dir():
        raise InputError(f"{root}: not a directory; give the one that holds your runs")
    handler = type("Handler", (_Handler,), {"root": root.resolve()})
    try:
        return ViewerServer((ADDRESS, port), handler)
    except (OSError, OverflowError):
        raise InputError(f"port {port} cannot be opened on {ADDRESS}; choose another with --port") from None


def serve(directory: str | Path, port: int = 8765, *, ready: Any = None) -> None:
    """Serve until interrupted. `ready(url)` is called once the server listens."""
    with make_server(directory, port) as server:
        if ready is not None:
            ready(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return
