"""Tables keep every value and its dimensions; the terminal summary puts failures first and is safe on any width."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from report_samples import SECRET, bare_dict, measure
from rich.console import Console

from rote.errors import InputError
from rote.report import measure_rows, measure_table, print_findings, write_tables
from rote.report.findings import Findings, parse


def test_tables_hold_every_value(findings: Findings, tmp_path: Path) -> None:
    total = sum(len(m.values) for m in findings.measures)
    rows = measure_rows(findings)
    assert len(rows) == total
    written = write_tables(findings, tmp_path)
    assert [p.name for p in written] == ["measures.parquet", "measures.csv"]
    table = pq.read_table(written[0])
    assert table.equals(measure_table(findings))
    assert table.to_pylist() == rows
    assert table.schema.field("queries").type == pa.int64()
    assert table.schema.field("p").type == pa.float64()
    csv = pyarrow.csv.read_csv(written[1])
    assert csv.num_rows == total
    assert csv.column("value").to_pylist() == pytest.approx(table.column("value").to_pylist())
    with pytest.raises(InputError, match="xlsx"):
        write_tables(findings, tmp_path, formats=("xlsx",))


def test_mixed_and_clashing_dimensions_and_formulas(tmp_path: Path) -> None:
    values = [
        {"value": 1.0, "level": 3, "title": "=HYPERLINK(1)", "flag": True},
        {"value": 2.0, "level": "many", "flag": False},
    ]
    findings = parse(bare_dict(measures=[measure("x.y", "X", values)]))
    table = measure_table(findings)
    assert table.column("level").to_pylist() == ["3", "many"]
    assert table.column("dim_title").to_pylist() == ["=HYPERLINK(1)", None]
    assert table.column("flag").to_pylist() == [True, False]
    assert "'=HYPERLINK(1)" in write_tables(findings, tmp_path, formats=("csv",))[0].read_text()
    assert measure_table(parse(bare_dict())).num_rows == 0


def printed(findings: Findings, width: int) -> str:
    out = io.StringIO()
    print_findings(findings, console=Console(file=out, width=width, color_system=None), report="runs/a/report.html")
    return out.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_terminal_fits_and_puts_failures_first(hostile: Findings, width: int) -> None:
    text = printed(hostile, width)
    assert max(len(line) for line in text.splitlines()) <= width
    flowing = " ".join(text.split())
    assert flowing.index("GUARD FAILED") < flowing.index("word for word")
    assert text.rstrip().endswith("report.html")
    assert "6.5%" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\x00" not in text


def test_terminal_prints_no_contents_and_reads_no_markup(findings: Findings) -> None:
    assert SECRET not in printed(findings, 100)
    text = printed(parse(bare_dict(title="[red]x[/red] [link=http://a]y[/link]")), 100)
    assert "[red]x[/red] [link=http://a]y[/link]" in text
