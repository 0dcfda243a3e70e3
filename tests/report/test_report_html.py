"""report.html as text: masked, escaped, self-contained, small, in the right order, and sensible when parts are
missing.
"""

from __future__ import annotations

import html
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_samples import HOSTILE, SECRET, bare_dict, findings_dict, measure

from rote.report.extraction_plots import histogram_plot
from rote.report.figure import MOST_POINTS
from rote.report.findings import Findings, parse
from rote.report.html import plotly_script, render_report, script_json, write_report
from rote.report.roc_plot import roc_plot
from rote.report.series import HistogramBin, RocPoint


def without_plotly(page: str) -> str:
    return re.sub(r'<script type="application/octet-stream".*?</script>', "", page, flags=re.S)


def words(page: str) -> str:
    """The page's text: no tags, no scripts, entities resolved."""
    body = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.S)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", body)))


class Elements(HTMLParser):
    """Every element with its attributes, as a browser's tokenizer would split them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def page(findings: Findings) -> str:
    return render_report(findings)


def test_nothing_of_a_record_is_in_a_masked_page(findings: Findings, page: str) -> None:
    assert SECRET not in page
    assert "word7" not in page
    assert "masked" in words(page)
    shown = render_report(findings, reveal=True)
    assert SECRET in shown
    assert "personal data" in words(shown)


def test_reveal_shows_nothing_when_the_findings_hold_nothing(findings: Findings) -> None:
    page = render_report(findings.masked(), reveal=True)
    assert SECRET not in page
    assert "Contents masked" in words(page)


@pytest.mark.parametrize("reveal", [False, True])
def test_hostile_strings_make_no_element_and_no_attribute(hostile: Findings, reveal: bool) -> None:
    page = render_report(hostile, reveal=reveal)
    elements = Elements(without_plotly(page)).seen
    scripts = [attrs for tag, attrs in elements if tag == "script"]
    assert [s.get("type") for s in scripts] == ["application/json", None]
    assert not [tag for tag, _ in elements if tag in ("img", "iframe", "object", "embed", "form", "base")]
    assert not [name for _, attrs in elements for name in attrs if name.startswith("on")]
    assert not [a for _, a in elements if str(a.get("href", "")).lower().startswith(("javascript:", "http", "//"))]
    assert "\u202e" not in page
    assert "\x00" not in page
    assert "7*7" in page  # a template in a record stays text


def test_plot_data_cannot_end_its_script(hostile: Findings) -> None:
    page = render_report(hostile)
    body = re.search(r'<script type="application/json" id="plots">(.*?)</script>', page, re.S)
    assert body is not None
    assert "<" not in body.group(1)
    specs = json.loads(body.group(1))
    names = [trace["name"] for spec in specs for trace in spec["data"] if "name" in trace]
    assert any("&lt;script&gt;" in name for name in names)
    assert not any("<" in name for name in names)
    assert json.loads(script_json("</script><!--&\u2028")) == "</script><!--&\u2028"


def test_page_asks_nothing_of_the_network(page: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert "default-src &#39;none&#39;" in policy.group(1)
    assert "unsafe-eval" not in policy.group(1)
    assert not re.search(r"script-src[^;]*unsafe-inline", policy.group(1))
    for tag, attrs in Elements(without_plotly(page)).seen:
        for name in ("src", "href", "srcset", "action"):
            assert not str(attrs.get(name) or "").startswith(("http", "//")), (tag, attrs)
    assert "@import" not in page
    assert "url(" not in re.sub(r'<script type="application/octet.*?</script>', "", page, flags=re.S)


def test_size_does_not_grow_with_the_records_and_rendering_is_quick() -> None:
    small = parse(findings_dict(n=200))
    large = parse(findings_dict(n=5_000))
    plotly_script()  # packed once a process
    start = time.process_time()
    a, b = render_report(small), render_report(large)
    assert time.process_time() - start < 4.0  # two pages
    assert len(b) < 5_000_000
    assert abs(len(b) - len(a)) < 0.05 * len(a)


def test_very_long_records_are_cut() -> None:
    page = render_report(parse(findings_dict(n=60, tokens=3000)), reveal=True)
    assert len(page) < 5_000_000
    assert "2,600 more tokens" in words(page)


def test_rendering_is_deterministic_and_written_whole(findings: Findings, page: str, tmp_path: Path) -> None:
    assert render_report(findings) == page
    assert write_report(findings, tmp_path).read_text("utf-8") == page
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_verdict_comes_first_and_a_failed_guard_above_its_number(page: str) -> None:
    places = [
        page.index(f'id="{name}"') for name in ("verdict", "extraction", "dose", "membership", "exposed", "method")
    ]
    assert places == sorted(places)
    cards = re.findall(r"<article class=\"card.*?</article>", page, re.S)
    spoiled = [card for card in cards if "Guard failed" in card]
    assert len(spoiled) == 1
    assert "Membership AUROC" in spoiled[0]
    assert spoiled[0].index("Guard failed") < spoiled[0].index('class="figure')


def test_cards_show_interval_n_and_control(page: str, findings: Findings) -> None:
    text = words(re.findall(r"<article class=\"card.*?</article>", page, re.S)[0])
    assert "95% interval" in text
    assert "n = 600 records" in text
    assert "Unseen controls: 0%" in text
    assert findings.verdicts[0].text in text


def test_every_plot_states_n_and_has_a_table(page: str) -> None:
    figures = re.findall(r"<figure.*?</figure>", page, re.S)
    assert len(figures) >= 6
    for figure in figures:
        assert re.search(r"n (=|records)", words(figure))
        assert figure.count("<table>") == 1
        assert re.findall(r"<tr><td>", figure) or "<tr" in figure


def test_every_measure_is_defined_with_its_source(page: str, findings: Findings) -> None:
    part = words(page[page.index('id="definitions"') :])
    for m in findings.measures:
        assert m.name in part
        assert m.source in part


def test_blind_baseline_stands_in_the_attack_table(page: str, findings: Findings) -> None:
    table = page[page.index("Attacks, strongest first") :]
    assert re.search(r'<tr class="marked"><td><bdi class="raw">blind_bag_of_words', table)
    data = findings_dict(n=60)
    for name in ("membership.auroc", "membership.tpr"):
        for m in data["measures"]:
            if m["name"] == name:
                m["values"] = [v for v in m["values"] if not v["attack"].startswith("blind")]
    rendered = render_report(parse(data))
    assert "Blind baseline (never saw the model)" in rendered  # taken from the guard instead


@pytest.mark.parametrize(
    ("drop", "says"),
    [
        (("series.survival", "measures.extraction"), "No extraction figures"),
        (("series.dose",), "No dose-response: the records say nothing"),
        (("series.roc", "measures.membership"), "No membership figures"),
        (("exposed",), "No record stands out"),
        (("guards",), "No validity guard ran"),
        (("verdicts",), "came to no verdict"),
    ],
)
def test_an_absent_part_says_why(drop: tuple[str, ...], says: str) -> None:
    data = findings_dict(n=60)
    for item in drop:
        top, _, name = item.partition(".")
        if top == "series":
            data["series"].pop(name)
        elif top == "measures":
            data["measures"] = [m for m in data["measures"] if not m["name"].startswith(name)]
        else:
            data[top] = []
    assert says in words(render_report(parse(data)))


def test_without_controls_the_reader_is_warned() -> None:
    data = findings_dict(n=60)
    data["records"] |= {"controls": 0, "n": 60}
    for name in ("survival", "dose"):
        data["series"][name] = [r for r in data["series"][name] if r.get("population") != "control"]
    text = words(render_report(parse(data)))
    assert "without unseen controls" in text
    assert "no control records" in text
    assert "templated or predictable text" in text


def test_one_scheme_has_no_selector(findings: Findings, page: str) -> None:
    assert 'data-switch="extraction"' in page
    data = findings_dict(n=60)
    first = data["series"]["survival"][0]["scheme"]
    data["series"]["survival"] = [r for r in data["series"]["survival"] if r["scheme"] == first]
    assert 'data-switch="extraction"' not in render_report(parse(data))


def test_another_kind_of_audit_renders_with_its_own_figures() -> None:
    figure = {
        "name": "sscd", "title": "Copies by similarity", "n": 500, "x": {"label": "SSCD"}, "y": {"label": "share"},
        "lines": [
            {"name": "model", "x": ["a", "b"], "y": [0.1, 0.4], "low": [0.0, 0.3], "high": [0.2, 0.5], "style": "bars"},
            {"name": "control", "x": ["a", "b"], "y": [0.0, None], "control": True},
        ],
    }  # fmt: skip
    data = bare_dict(
        measures=[measure("copies.rate", "Copied images", [{"value": 0.02, "low": 0.01, "high": 0.04, "n": 500}])],
        verdicts=[{"level": "medium", "text": "2% of prompts return a training image.", "measure": "copies.rate"}],
        series={"figures": [figure], "something_else": [{"x": 1}]},
    )
    page = render_report(parse(data))
    text = words(page)
    assert "Copies by similarity" in text
    assert "n = 500 records" in text
    assert "2% of prompts" in text
    assert "Dose-response" not in text
    assert render_report(parse(bare_dict())).count("<figure") == 0


def test_all_hostile_samples_reach_the_page_as_text(hostile: Findings) -> None:
    text = words(render_report(hostile, reveal=True))
    assert HOSTILE[0] in text
    assert "\u2400" in text
    assert "RLO" in text
    assert "U+D800" in text


def test_a_long_roc_keeps_its_low_false_positive_end() -> None:
    n = 20_000
    curve = [RocPoint(attack="a", fpr=i / n, tpr=min(1.0, (i / n) ** 0.3)) for i in range(n + 1)]
    plot = roc_plot(curve, order=["a"], members=n, others=n)
    assert plot is not None
    x, y = plot.data[0]["x"], plot.data[0]["y"]
    assert len(x) <= MOST_POINTS + 1
    assert x == sorted(x)
    assert y == sorted(y)
    assert sum(f <= 0.001 for f in x) == 20  # 1/n, 2/n, ..., 20/n: every corner there is
    assert (x[0], x[-1], y[-1]) == (1 / n, 1.0, 1.0)


def test_breakdowns_by_copies_stay_out_of_the_headline_and_the_attack_list() -> None:
    data = findings_dict(n=60)
    auroc = next(m for m in data["measures"] if m["name"] == "membership.auroc")
    auroc["unit"] = "probability"
    extra = [{"value": 1.0, "low": 0.9, "high": 1.0, "n": 66, "attack": a, "duplicates": 64} for a in ("loss", "zlib")]
    auroc["values"] = extra + auroc["values"]
    data["verdicts"] = [{"level": "high", "text": "t", "measure": "membership.auroc", "dims": {"attack": "loss"}}]
    page = render_report(parse(data))
    card = words(re.findall(r"<article class=\"card.*?</article>", page, re.S)[0])
    assert "64 training copies" not in card
    listing = words(page[page.index("Attacks, strongest first") : page.index("AUROC by copies in training")])
    assert "64" not in re.sub(r"[\d.]+%|0\.\d+", "", listing)
    table = words(page[page.index("AUROC by copies in training") :])
    assert "64 training copies (n = 66)" in table
    assert "1.000 (0.900 to 1.000)" in table
    legend = re.findall(r'<button type="button" class="key".*?</button>', page[page.index('id="plot-roc"') :], re.S)
    names = [words(key) for key in legend]
    assert len(names) == len(set(names))


def test_histogram_gives_the_impossible_their_own_bar() -> None:
    rows = [
        HistogramBin(population="target", scheme="s", left=-8, right=-4, count=1),
        HistogramBin(population="target", scheme="s", left=-1, right=0, count=1),
        HistogramBin(population="target", scheme="s", left=None, right=None, count=2),
    ]
    plot = histogram_plot(rows, scheme="s", index=0)
    assert plot is not None
    assert plot.data[0]["x"] == [-1.0, 0.5, 2.5]
    assert plot.data[0]["y"] == [0.5, 0.25, 0.25]
    assert plot.layout["xaxis"]["ticktext"] == ["never", "-8", "-4", "-1", "0"]
    assert "50.0% never" in plot.caption
    control = HistogramBin(population="control", scheme="s", left=-8, right=-4, count=3)
    both = histogram_plot([*rows, control], scheme="s", index=0)
    assert both is not None
    assert both.data[0]["x"] == [-1.25, 0.25, 2.25]
    assert both.data[1]["x"] == [-0.75, 0.75]
    assert both.data[1]["width"] == [0.5, 0.5]
