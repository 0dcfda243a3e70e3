"""What can be checked of the looks without eyes: contrast of every colour pair in both themes, and a light import."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from rote.report.html import template_text

PAIRS = dict(re.findall(r"--([a-z0-9-]+): light-dark\((#\w{6}, #\w{6})\)", template_text("style.css")))


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a: str, b: str) -> float:
    """WCAG 2.2 contrast ratio."""
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast(theme: int) -> None:
    color = {name: pair.split(", ")[theme] for name, pair in PAIRS.items()}
    text = [(fg, bg) for fg in ("ink", "muted", "accent", "high", "low") for bg in ("ground", "card")]
    text += [(name, f"{name}-tint") for name in ("high", "medium", "low", "info")]
    text += [("ink", "high-tint"), ("muted", "high-tint"), *(("ink", f"h{i}") for i in range(5))]
    for fg, bg in text:
        assert contrast(color[fg], color[bg]) >= 4.5, (fg, bg)
    on_dark = re.search(r"\.h5, \.h6, \.h7, \.h8 \{ color: light-dark\((#\w+), (#\w+)\)", template_text("style.css"))
    assert on_dark is not None
    for i in range(5, 9):
        assert contrast(on_dark.group(theme + 1), color[f"h{i}"]) >= 4.5
    drawn = [name for name in color if re.fullmatch(r"[pck]\d|greedy|ceiling|faint", name)]
    assert len(drawn) == 21
    for name in drawn:  # lines and marks need 3:1
        assert contrast(color[name], color["card"]) >= 3, name


def test_reporting_needs_no_model_library() -> None:
    code = (
        "import sys, rote.report; from rote.report import render_report, compare, print_findings, parse, evaluate\n"
        "heavy = {'torch', 'transformers', 'plotly', 'pandas', 'faker'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
