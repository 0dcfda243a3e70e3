"""The viewer: this machine only, read only, and a URL can reach nothing but the files of a listed run."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from report_samples import SECRET

from rote.errors import InputError
from rote.report.findings import Findings, dump
from rote.report.html import write_report
from rote.report.viewer import ViewerServer, list_runs, make_server


@pytest.fixture
def runs(tmp_path: Path, findings: Findings) -> Path:
    root = tmp_path / "runs"
    for name in ("one", "two <b>&", "nested/deep"):
        (root / name).mkdir(parents=True)
        dump(findings, root / name)
    write_report(findings, root / "one")
    (root / "one" / "secret.txt").write_text("no")
    (root / "broken").mkdir()
    (root / "broken" / "findings.json").write_text("{")
    outside = tmp_path / "outside"
    outside.mkdir()
    dump(findings, outside)
    (tmp_path / "private.html").write_text("PRIVATE")
    (root / "link").symlink_to(outside)
    (root / "thief").mkdir()
    (root / "thief" / "report.html").symlink_to(tmp_path / "private.html")
    dump(findings, root / "thief")
    return root


@pytest.fixture
def server(runs: Path) -> Iterator[ViewerServer]:
    with make_server(runs) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join(5)


def ask(
    server: ViewerServer, path: str, *, method: str = "GET", host: str | None = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    connection.putheader("Host", host if host is not None else f"127.0.0.1:{server.server_port}")
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


def key_of(runs: Path, name: str) -> str:
    return next(run.key for run in list_runs(runs).values() if run.name == name)


def test_listing_and_reports(server: ViewerServer, runs: Path) -> None:
    status, headers, body = ask(server, "/")
    assert status == 200
    text = body.decode()
    for name in ("one", "two &lt;b&gt;&amp;", "nested/deep", "broken"):
        assert name in text
    assert "unreadable" in text
    assert "outside" not in text
    assert str(runs.parent) not in text
    assert "sandbox" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    status, _, body = ask(server, f"/run/{key_of(runs, 'one')}/report.html")
    assert (status, body) == (200, (runs / "one" / "report.html").read_bytes())
    status, _, body = ask(server, f"/run/{key_of(runs, 'nested/deep')}/report.html")  # made on the fly, masked
    assert status == 200
    assert b"Membership AUROC" in body
    assert SECRET.encode() not in body
    assert ask(server, f"/run/{key_of(runs, 'one')}/findings.json")[1]["Content-Type"] == "application/json"
    assert ask(server, f"/run/{key_of(runs, 'broken')}/report.html")[0] == 422


def test_no_url_leaves_the_listing(server: ViewerServer, runs: Path) -> None:
    key = key_of(runs, "one")
    for path in (
        "/../private.html",
        "/%2e%2e/private.html",
        "//etc/passwd",
        "/run/../../private.html",
        f"/run/{key}/../secret.txt",
        f"/run/{key}/secret.txt",
        f"/run/{key}/..%2f..%2fprivate.html",
        f"/run/{key}/",
        f"/run/{key}",
        "/run/one/report.html",
        f"/run/{key}/report.html/x",
        f"/run/{key}//report.html",
        "/one/report.html",
        "/run/%00/report.html",
        "/run/x\\..\\y/report.html",
    ):
        status, _, body = ask(server, path)
        assert status == 404, path
        assert b"PRIVATE" not in body


def test_links_out_of_the_directory_are_not_followed(server: ViewerServer, runs: Path) -> None:
    assert "link" not in {run.name for run in list_runs(runs).values()}
    status, _, body = ask(server, f"/run/{key_of(runs, 'thief')}/report.html")
    assert status == 200
    assert b"PRIVATE" not in body  # rendered from the run's own findings instead


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_writing_is_refused(server: ViewerServer, method: str) -> None:
    status, headers, _ = ask(server, "/", method=method)
    assert status == 405
    assert headers["Allow"] == "GET, HEAD"


def test_head_has_no_body(server: ViewerServer) -> None:
    status, headers, body = ask(server, "/", method="HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 1000


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example:{port}", "localhost:1", ""]
)
def test_foreign_hosts_are_refused(server: ViewerServer, host: str) -> None:
    status, _, body = ask(server, "/", host=host.format(port=server.server_port))
    assert status == 403
    assert b"one" not in body.replace(b"only", b"")
    assert ask(server, "/", host=f"localhost:{server.server_port}")[0] == 200


def test_it_listens_on_loopback_only(server: ViewerServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    with socket.socket() as other, pytest.raises(OSError, match="refused"):
        other.connect(("127.0.0.2", server.server_port))


def test_a_missing_directory_and_a_taken_port_are_one_line(tmp_path: Path, server: ViewerServer) -> None:
    with pytest.raises(InputError, match="not a directory"):
        make_server(tmp_path / "none")
    with pytest.raises(InputError, match="--port"):
        make_server(tmp_path, 99_999)
