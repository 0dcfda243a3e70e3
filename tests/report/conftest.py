"""Shared pieces of the report tests: sample findings, and a headless Chromium that has no network."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from report_samples import findings_dict

from rote.report.findings import Findings, parse

QUIET = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-extensions"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
    # Anything that asks the network gets a refused connection.
    *("--proxy-server=127.0.0.1:9", "--proxy-bypass-list=<-loopback>"),
]


@pytest.fixture(scope="session")
def findings() -> Findings:
    return parse(findings_dict())


@pytest.fixture(scope="session")
def hostile() -> Findings:
    return parse(findings_dict(hostile=True, n=200))


@pytest.fixture(scope="session")
def chromium() -> str:
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if found is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    return found


@pytest.fixture
def browse(chromium: str, tmp_path: Path) -> Callable[..., str]:
    """Open a file in a fresh browser profile and return the DOM after its scripts ran, without Plotly's source in
    it.
    """
    count = 0

    def run(file: Path, *, width: int = 1200, height: int = 900, flags: tuple[str, ...] = ()) -> str:
        nonlocal count
        count += 1
        command = [
            chromium,
            *QUIET,
            f"--user-data-dir={tmp_path / f'profile{count}'}",
            f"--window-size={width},{height}",
            "--virtual-time-budget=15000",
            *flags,
            "--dump-dom",
            file.resolve().as_uri(),
        ]
        done = subprocess.run(command, capture_output=True, timeout=120, check=True)
        dom = done.stdout.decode("utf-8", "replace")
        return re.sub(r'<script type="application/octet-stream".*?</script>', "", dom, flags=re.S)

    return run
