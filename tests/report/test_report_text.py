"""Numbers read well and untrusted strings cannot do anything."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rote.report.text import dimension, interval, measured, number, points, shown_html, shown_plain, shown_plot


@pytest.mark.parametrize(
    ("value", "unit", "want"),
    [
        (0.0, "share of records", "0%"),
        (1.0, "share of records", "100%"),
        (0.99996, "share of records", "99.99%"),
        (0.2141, "share of records", "21.4%"),
        (0.00123, "share of records", "0.12%"),
        (3e-9, "share of records", "3.0×10⁻⁷%"),
        (-0.05, "share of records", "−5.0%"),
        (0.873, "area", "0.873"),
        (1234, "queries", "1,234"),
        (693147.2, "queries", "693,147"),
        (2.3026e20, "queries", "2.3×10²⁰"),
        (3_200_000, "parameters", "3.2 million"),
        (1.2e-17, "", "1.2×10⁻¹⁷"),
        (-85.31, "nats", "−85.3"),
        (None, "", "–"),
        (float("nan"), "share", "–"),
    ],
)
def test_numbers(value: float | None, unit: str, want: str) -> None:
    assert number(value, unit) == want


def test_an_infinite_median_is_not_shown_as_missing() -> None:
    assert measured("extraction.queries", None, "queries") == "∞"
    assert measured("dose.log_pz", None, "nats") == "−∞"
    assert measured("membership.auroc", None, "probability") == "–"
    assert measured("extraction.queries", 12.0, "queries") == number(12.0, "queries")


def test_intervals_and_differences() -> None:
    assert interval(0.141, 0.302, "share of records") == "14.1% to 30.2%"
    assert interval(None, None) == ""
    assert interval(1.2, None) == "at least 1.200"
    assert points(-0.183, "share of records") == "−18.3 points"
    assert points(0.002, "share of records") == "+0.2 points"
    assert points(0.05, "area") == "+0.050"
    assert dimension("queries", 1) == "1 query"
    assert dimension("queries", 100.0) == "100 queries"
    assert dimension("fpr", 0.001) == "FPR 0.1%"


def test_hidden_characters_become_visible() -> None:
    html = shown_html("a\x00\u202eb\ud800<i>\x1b[31m")
    assert html == (
        '<bdi class="raw">a<span class="ctl">\u2400</span><span class="ctl">RLO</span>b<span class="ctl">U+D800</span>'
        '&lt;i&gt;<span class="ctl">\u241b</span>[31m</bdi>'
    )
    assert shown_plain("x\u2066y\nz") == "x[LRI]y\u240az"
    assert shown_plot("<a href=x>%{y}&") == "&lt;a href=x&gt;% {y}&amp;"
    assert shown_html("क्\u200dष") == '<bdi class="raw">क्\u200dष</bdi>'  # a joiner is part of the word


def test_long_text_is_cut_and_says_so() -> None:
    html = shown_html("x" * 1_000_000, 50)
    assert len(html) < 200
    assert "999,950 more" in html


@given(st.text(max_size=60))
def test_no_string_survives_as_markup_or_control(text: str) -> None:
    html = str(shown_html(text))
    bare = (
        html.replace('<bdi class="raw">', "")
        .replace("</bdi>", "")
        .replace('<span class="ctl">', "")
        .replace("</span>", "")
    )
    assert "<" not in bare
    assert ">" not in bare
    html.encode("utf-8")
    plain = shown_plain(text)
    plain.encode("utf-8")
    assert not any(ord(c) < 32 or 0x202A <= ord(c) <= 0x202E or 0x2066 <= ord(c) <= 0x2069 for c in html + plain)
