"""The pages in a real Chromium with no network: plots drawn, nothing injected, nothing overflowing, fallbacks in
place.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from report_samples import bare_dict, findings_dict, measure

from rote.report import compare, render_comparison
from rote.report.findings import Findings, parse
from rote.report.html import render_report

pytestmark = pytest.mark.browser
Browse = Callable[..., str]

# A page around the page: loads it in a frame of a given width and writes down what it sees.
HARNESS = """<!doctype html><meta charset="utf-8"><title>harness</title>
<iframe id="page" src="{name}" style="width:{width}px;height:900px;border:0"></iframe>
<script>
const frame = document.getElementById("page");
const note = () => {{
  const d = frame.contentDocument, r = d.documentElement;
  if (r.dataset.plots === "waiting") return setTimeout(note, 50);
  {act}
  setTimeout(() => {{
    const places = [...d.querySelectorAll(".canvas")], done = (c) => c.querySelector("svg.main-svg");
    const shown = places.filter((c) => c.offsetParent);
    document.body.dataset.seen = JSON.stringify({{
      scroll: r.scrollWidth, client: r.clientWidth, plots: r.dataset.plots, pwned: r.dataset.pwned || null,
      shown: shown.length, drawnShown: shown.filter(done).length, drawn: places.filter(done).length,
    }});
  }}, 400);
}};
frame.onload = note;
</script>"""


def seen(browse: Browse, tmp_path: Path, page: str, *, width: int = 1200, act: str = "") -> dict:
    import html
    import json

    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    (tmp_path / "harness.html").write_text(HARNESS.format(name="page.html", width=width, act=act), encoding="utf-8")
    dom = browse(tmp_path / "harness.html", flags=("--allow-file-access-from-files",))
    found = re.search(r'data-seen="([^"]*)"', dom)
    assert found is not None, "the page never became ready"
    return json.loads(html.unescape(found.group(1)))


def test_plots_are_drawn_offline_and_tables_fold_away(browse: Browse, tmp_path: Path, findings: Findings) -> None:
    file = tmp_path / "report.html"
    file.write_text(render_report(findings), encoding="utf-8")
    dom = browse(file)
    assert 'data-plots="drawn"' in dom
    assert dom.count('class="main-svg"') >= 4
    assert len(re.findall(r'<path class="js-line"', dom)) > 20  # lines, not only axes
    assert not re.search(r"<details class=\"twin\" open", dom)


@pytest.mark.parametrize("width", [380, 1200])
def test_no_horizontal_scroll(browse: Browse, tmp_path: Path, hostile: Findings, width: int) -> None:
    state = seen(browse, tmp_path, render_report(hostile, reveal=True), width=width)
    assert state["client"] <= width
    assert state["scroll"] <= state["client"]
    assert state["plots"] == "drawn"
    assert state["pwned"] is None


def test_hostile_records_run_nothing(browse: Browse, tmp_path: Path, hostile: Findings) -> None:
    file = tmp_path / "hostile.html"
    file.write_text(render_report(hostile, reveal=True), encoding="utf-8")
    dom = browse(file)
    assert "data-pwned" not in dom
    assert not re.search(r"<img\b[^>]*onerror", dom)
    assert not re.search(r"<a\b[^>]*javascript:", dom)
    assert 'xlink:href="javascript' not in dom


def test_even_an_escaping_mistake_would_not_run(browse: Browse, tmp_path: Path, findings: Findings) -> None:
    page = render_report(findings)
    steal = "document.documentElement.dataset.pwned=1"
    evil = f"<script>{steal}</script><img src=x onerror={steal}>"
    file = tmp_path / "broken.html"
    file.write_text(page.replace("<footer", evil + "<footer", 1), encoding="utf-8")
    dom = browse(file)
    assert "data-pwned" not in dom
    assert 'data-plots="drawn"' in dom


def test_selector_theme_and_legend_redraw(browse: Browse, tmp_path: Path, findings: Findings) -> None:
    page = render_report(findings)
    act = 'd.querySelectorAll("fieldset.switch input")[1].click();'
    act += 'd.getElementById("theme").click(); d.querySelector(".key").click();'
    state = seen(browse, tmp_path, page, act=act)
    assert state["shown"] == state["drawnShown"]
    assert state["drawn"] > state["drawnShown"]  # the first scheme's plots, now hidden, and the second's


def test_dark_follows_the_system_and_themes_the_plots(browse: Browse, tmp_path: Path, findings: Findings) -> None:
    file = tmp_path / "report.html"
    file.write_text(render_report(findings), encoding="utf-8")
    colors = []
    for scheme in (0, 1):  # Blink: 0 dark, 1 light
        dom = browse(file, flags=(f"--blink-settings=preferredColorScheme={scheme}",))
        stroke = re.search(r'class="js-line"[^>]*stroke: (rgb\([^)]*\))', dom)
        assert stroke is not None
        colors.append(stroke.group(1))
    assert colors[0] != colors[1]


def test_without_plotly_the_tables_stay_open(browse: Browse, tmp_path: Path, findings: Findings) -> None:
    page = re.sub(
        r'(<script type="application/octet-stream" id="plotly">).*?<',
        r"\1H4sIAAAA<",
        render_report(findings),
        flags=re.S,
    )
    file = tmp_path / "report.html"
    file.write_text(page, encoding="utf-8")
    dom = browse(file)
    assert 'data-plots="failed"' in dom
    assert len(re.findall(r'<details class="twin" open', dom)) >= 6
    assert "the table below has the same numbers" in dom


def test_comparison_and_other_kinds_are_drawn(browse: Browse, tmp_path: Path) -> None:
    runs = []
    for strength, accuracy in ((1.0, 0.41), (0.5, 0.40)):
        data = findings_dict(n=100, strength=strength)
        values = [{"value": accuracy, "low": accuracy - 0.02, "high": accuracy + 0.02, "n": 900}]
        data["measures"].append(measure("utility.accuracy", "Accuracy", values, direction="higher = better"))
        runs.append(parse(data))
    state = seen(browse, tmp_path, render_comparison(compare(runs, names=["before", "after"])), width=380)
    assert state["plots"] == "drawn"
    assert state["drawnShown"] == 1
    assert state["scroll"] <= state["client"]
    lines = [
        {"name": "a", "x": ["p", "q"], "y": [0.1, 0.2], "low": [0.0, 0.1], "high": [0.2, 0.3], "style": s}
        for s in ("bars", "points", "line")
    ]
    figure = {"name": "f", "title": "F", "n": 5, "x": {"label": "x"}, "y": {"label": "y"}, "lines": lines}
    state = seen(browse, tmp_path, render_report(parse(bare_dict(series={"figures": [figure]}))), width=380)
    assert state["drawnShown"] == 1
