"""Numbers and untrusted strings as people should see them. Pure functions.

Knows nothing about findings, HTML templates or terminals, except how to escape for each.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator

from markupsafe import Markup, escape

MINUS = "\u2212"
DASH = "\u2013"
# Invisible characters that reorder or hide text. ZWJ and ZWNJ are left alone: Persian, Hindi and emoji need them.
_HIDDEN = {
    0x00AD: "SHY", 0x061C: "ALM", 0x180E: "MVS", 0x200B: "ZWSP", 0x200E: "LRM", 0x200F: "RLM",
    0x2028: "LS", 0x2029: "PS", 0x202A: "LRE", 0x202B: "RLE", 0x202C: "PDF", 0x202D: "LRO",
    0x202E: "RLO", 0x2060: "WJ", 0x2066: "LRI", 0x2067: "RLI", 0x2068: "FSI", 0x2069: "PDI",
    0xFEFF: "BOM",
}  # fmt: skip


def pieces(text: str, limit: int = 200) -> Iterator[tuple[bool, str]]:
    """Split into (is_symbol, string): ordinary runs, and visible stand-ins for characters that hide, reorder or break.

    NUL and other C0 controls become their Unicode pictures, bidi controls their names, lone surrogates an escape.
    Longer than `limit` characters: cut, and the cut is said.
    """
    run: list[str] = []
    for char in text[:limit]:
        code = ord(char)
        symbol = None
        if code in _HIDDEN:
            symbol = _HIDDEN[code]
        elif code < 0x20:
            symbol = chr(0x2400 + code)
        elif code == 0x7F:
            symbol = "\u2421"
        elif 0x80 <= code < 0xA0:
            symbol = f"x{code:02X}"
        elif 0xD800 <= code < 0xE000 or 0xE0000 <= code < 0xE0080 or unicodedata.category(char) == "Cn":
            symbol = f"U+{code:04X}"
        if symbol is None:
            run.append(char)
            continue
        if run:
            yield False, "".join(run)
            run = []
        yield True, symbol
    if run:
        yield False, "".join(run)
    if len(text) > limit:
        yield True, f"\u2026 {len(text) - limit:,} more"


def shown_html(value: object, limit: int = 200) -> Markup:
    """An untrusted string as an isolated, escaped piece of HTML: `<bdi class="raw">...<span
    class="ctl">RLO</span>...</bdi>`.
    """
    parts = [
        Markup('<span class="ctl">{}</span>').format(part) if symbol else escape(part)
        for symbol, part in pieces(str(value), limit)
    ]
    return Markup('<bdi class="raw">{}</bdi>').format(Markup("").join(parts))


def shown_plain(value: object, limit: int = 120) -> str:
    """The same for plain text (terminal, error messages): stand-ins in square brackets, one line."""
    return "".join(
        (part if len(part) == 1 else f"[{part}]") if symbol else part for symbol, part in pieces(str(value), limit)
    )


def shown_plot(value: object, limit: int = 60) -> str:
    """The same for Plotly labels, which read a subset of HTML: entities instead of tags."""
    return (
        shown_plain(value, limit).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("%{", "% {")
    )


def is_share(unit: str) -> bool:
    """Whether a unit is a proportion, shown as a percentage."""
    return unit.lower().startswith(("share", "fraction", "proportion", "rate"))


def number(value: float | None, unit: str = "") -> str:
    """A number for reading: 21.4%, 0.873, 1,234, 3.2 million, 1.2e-17; an en dash when there is none."""
    if value is None or not math.isfinite(value):
        return DASH
    if is_share(unit):
        return _percent(value)
    if unit.lower().startswith(("probability", "area")) and (abs(value) >= 0.001 or value == 0):
        return _signed(value, f"{abs(value):.3f}")
    return _plain(value)


#: Measures whose value is unbounded, and null in JSON, when the median record cannot be recited at all.
_UNBOUNDED = {"extraction.queries": "∞", "dose.log_pz": MINUS + "∞"}


def measured(name: str, value: float | None, unit: str = "") -> str:
    """`number` of a measure's value; an infinite one (JSON has only null) is shown as such."""
    return _UNBOUNDED.get(name, DASH) if value is None else number(value, unit)


def _percent(value: float) -> str:
    percent = value * 100
    size = abs(percent)
    if size == 0:
        return "0%"
    if size < 0.001:
        return f"{_scientific(percent)}%"
    if 99.9 < size < 100:  # never round up to certainty
        body = f"{math.floor(size * 100) / 100:.2f}"
    elif size >= 1:
        body = f"{size:.1f}"
    else:
        body = f"{float(f'{size:.2g}'):.5f}".rstrip("0")
    return _signed(percent, body.removesuffix(".0") if float(body) in (0.0, 100.0) else body) + "%"


def _plain(value: float) -> str:
    size = abs(value)
    if size == 0:
        return "0"
    if float(value).is_integer() and size < 1e6:
        return _signed(value, f"{int(size):,}")
    if size >= 1e6:
        for scale, word in ((1e9, "billion"), (1e6, "million")):
            if scale <= size < scale * 1e3:
                return f"{_signed(value, f'{size / scale:.3g}')} {word}"
        return _scientific(value)
    if size >= 1000:
        return _signed(value, f"{size:,.0f}")
    if size >= 0.001:
        return _signed(value, f"{size:.3f}" if size < 10 else f"{size:.1f}")
    return _scientific(value)


def _scientific(value: float) -> str:
    mantissa, exponent = f"{abs(value):.1e}".split("e")
    digits = str(int(exponent)).replace("-", MINUS)
    power = digits.translate(str.maketrans("0123456789" + MINUS, "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))
    return _signed(value, f"{mantissa}×10{power}")


def _signed(value: float, body: str) -> str:
    return (MINUS if value < 0 else "") + body


def interval(low: float | None, high: float | None, unit: str = "") -> str:
    """`14.1% to 30.2%`; empty when there is no interval; one-sided ends say so."""
    if low is None and high is None:
        return ""
    if low is None or high is None:
        return f"at least {number(low, unit)}" if high is None else f"at most {number(high, unit)}"
    return f"{number(low, unit)} to {number(high, unit)}"


def with_interval(value: float | None, low: float | None, high: float | None, unit: str = "") -> str:
    """`21.4% (14.1% to 30.2%)`."""
    ends = interval(low, high, unit)
    return number(value, unit) + (f" ({ends})" if ends and value is not None else "")


def points(value: float | None, unit: str) -> str:
    """A difference: percentage points for shares, the plain number otherwise; always signed."""
    if value is None:
        return DASH
    if is_share(unit):
        size = abs(value * 100)
        body = f"{size:.1f}" if size >= 1 or size == 0 else f"{float(f'{size:.2g}'):g}"
        body += " points"
    else:
        body = _plain(abs(value))
    return ("+" if value > 0 else MINUS if value < 0 else "±") + body


def plural(count: int | None, noun: str) -> str:
    """`1 record`, `1,200 records`."""
    count = count or 0
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


_DIMENSION = {
    "queries": lambda v: plural(int(v), "query").replace("querys", "queries") if v == int(v) else f"{v:g} queries",
    "p": lambda v: f"p = {v:g}",
    "duplicates": lambda v: f"{v:g} training cop{'y' if v == 1 else 'ies'}",
    "fpr": lambda v: f"FPR {100 * v:g}%",
    "population": lambda v: {"target": "targets", "control": "unseen controls"}.get(v, str(v)),
}


def dimension(key: str, value: object) -> str:
    """One dimension in words: `100 queries`, `p = 0.5`, `16 training copies`, `attack min_k`."""
    if key in _DIMENSION and (key == "population" or (isinstance(value, (int, float)) and not isinstance(value, bool))):
        return _DIMENSION[key](value)
    if key in ("scheme", "attack"):
        return str(value)
    return f"{key.replace('_', ' ')} {value:g}" if isinstance(value, float) else f"{key.replace('_', ' ')} {value}"
