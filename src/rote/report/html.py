"""report.html: one self-contained page. No network, everything untrusted escaped, contents masked by default.

Knows findings and templates; knows nothing about models. The page's policy (a Content-Security-Policy in its head)
lets exactly two scripts run, named by hash: the page's own and Plotly's. A record that escaped escaping would still
not run.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib.util
import json
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import BaseLoader, Environment, StrictUndefined, TemplateNotFound
from markupsafe import Markup

from rote.atomic import write_atomic
from rote.errors import InputError, MissingDependencyError
from rote.report import exposed as records
from rote.report import headline, sections, small_print, text
from rote.report.figure import Plot
from rote.report.findings import Findings

MOST_SKIPPED = 25  # listed on the page


def template_text(name: str) -> str:
    """A file of the template folder."""
    return resources.files("rote.report").joinpath("templates", name).read_text("utf-8")


class _PackageLoader(BaseLoader):
    """Templates from inside the package, by plain name (works from a zip, too)."""

    def get_source(self, environment: Environment, template: str) -> tuple[str, str, Any]:
        try:
            return template_text(template), template, lambda: True
        except (FileNotFoundError, OSError):
            raise TemplateNotFound(template) from None


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Jinja with escaping always on and undefined names an error."""
    env = Environment(
        loader=_PackageLoader(), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    env.filters |= {
        "shown": text.shown_html,
        "num": text.number,
        "span": text.interval,
        "count": text.plural,
        "range_text": small_print.range_text,
    }
    return env


@lru_cache(maxsize=1)
def plotly_script() -> tuple[str, str]:
    """(gzip + base64 of Plotly's script, its CSP hash). 4.8 MB become 2 MB; the browser inflates them."""
    found = importlib.util.find_spec("plotly")  # found, not imported: importing plotly costs more than the whole report
    if found is None or found.origin is None:
        raise MissingDependencyError("plotly", "report")
    file = Path(found.origin).parent / "package_data" / "plotly.min.js"
    try:
        raw = file.read_bytes()
    except OSError:
        raise InputError(
            "plotly is installed without plotly.min.js; reinstall it: pip install --force-reinstall plotly"
        ) from None
    return base64.b64encode(gzip.compress(raw, 9, mtime=0)).decode("ascii"), csp_hash(raw)


def csp_hash(source: bytes) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source).digest()).decode('ascii')}'"


def script_json(value: Any) -> Markup:
    """JSON that cannot end the script element it sits in, nor open a comment."""
    body = json.dumps(value, allow_nan=False, separators=(",", ":"), sort_keys=True)
    return Markup(body.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def render_page(template: str, plots: list[Plot], **context: Any) -> str:
    """Fill a page template with the shared frame: styles, plots, scripts, policy."""
    own = template_text("page.js").strip()
    packed, packed_hash = plotly_script() if plots else ("", "")
    policy = (
        f"default-src 'none'; script-src {csp_hash(own.encode())} {packed_hash}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    page = (
        environment()
        .get_template(template)
        .render(
            policy=policy,
            style=Markup(template_text("style.css")),
            script=Markup(own),
            plotly=Markup(packed),
            plots=script_json([p.spec for p in plots]) if plots else None,
            heat_labels=records.HEAT_LABELS,
            levels=headline.LEVELS,
            **context,
        )
    )
    # A lone surrogate in a title or id has no UTF-8 form; `shown` has made it visible wherever text is shown.
    return page.encode("utf-8", "replace").decode("utf-8")


def render_report(findings: Findings, *, reveal: bool = False) -> str:
    """The report as one HTML text. `reveal` shows record contents the findings hold; otherwise none is in the page."""
    shown = findings if reveal else findings.masked()
    parts = sections.sections(shown)
    level, summary = headline.overall(shown)
    exposed = records.exposed_views(shown, reveal=reveal)
    return render_page(
        "report.html.j2",
        [plot for part in parts for panel in part.panels for plot in panel.plots],
        f=shown,
        level=level,
        summary=summary,
        cards=headline.cards(shown),
        remarks=headline.remarks(shown),
        figures=[part for part in parts if part.id != "measures"],
        measures=[part for part in parts if part.id == "measures"],
        exposed=exposed[: records.OPEN_EXPOSED],
        exposed_more=exposed[records.OPEN_EXPOSED :],
        revealed=reveal and any(not view.masked for view in exposed),
        language=shown.kind == "audit-lm",
        caveats=small_print.caveats(shown),
        settings=small_print.setting_rows(shown.settings.items()),
        model_facts=small_print.facts_of(shown.model.model_dump(), skip=("name",)),
        record_facts=small_print.facts_of(shown.records.model_dump(), skip=("name", "skipped")),
        skipped=shown.records.skipped[:MOST_SKIPPED],
        skipped_more=max(0, len(shown.records.skipped) - MOST_SKIPPED),
    )


def write_report(findings: Findings, path: str | Path, *, reveal: bool = False) -> Path:
    """Write report.html atomically (into `path`, or `path`/report.html when it is a directory)."""
    target = Path(path)
    return write_atomic(target / "report.html" if target.is_dir() else target, render_report(findings, reveal=reveal))
