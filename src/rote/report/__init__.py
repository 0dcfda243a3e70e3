"""From findings to what people read: JSON, tables, one HTML page, terminal, gates, comparisons, viewer.

Knows the findings format. Knows nothing about models, torch, or how a finding was computed.
"""

from rote._lazy import lazy

_HOMES = {
    "rote.report.comparison": ("Comparison", "Run", "compare", "compare_runs", "load_run"),
    "rote.report.comparison_html": ("render_comparison", "write_comparison"),
    "rote.report.findings": ("SCHEMA_VERSION", "Findings", "dump", "dumps", "json_schema", "load", "loads", "parse"),
    "rote.report.frontier": ("Frontier", "frontier_of"),
    "rote.report.gates": ("Failure", "Gate", "evaluate", "parse_gate"),
    "rote.report.html": ("render_report", "write_report"),
    "rote.report.tables": ("measure_rows", "measure_table", "write_tables"),
    "rote.report.terminal": ("print_findings",),
    "rote.report.treatments": ("is_treatment",),
    "rote.report.viewer": ("serve",),
}
__getattr__, __dir__, __all__ = lazy(__name__, {name: home for home, names in _HOMES.items() for name in names})
