"""findings.json: validation says what is wrong and never what is inside; writing is deterministic and whole or not
at all.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from report_samples import SECRET, bare_dict, findings_dict, measure

from rote.errors import InputError
from rote.report import findings as format_
from rote.report.findings import Findings, dump, dumps, json_schema, load, loads, parse, published_schema


def test_published_schema_is_the_models_and_accepts_what_we_write(findings: Findings) -> None:
    assert published_schema() == json_schema(), "write json_schema() to findings.schema.json"
    jsonschema.Draft202012Validator.check_schema(published_schema())
    jsonschema.validate(json.loads(dumps(findings)), published_schema())
    jsonschema.validate(json.loads(dumps(parse(bare_dict()))), published_schema())


def test_schema_refuses_what_the_model_refuses() -> None:
    bad = findings_dict(n=60)
    bad["measures"][0]["values"][0]["value"] = "much"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(bad, published_schema())
    with pytest.raises(InputError):
        parse(bad)


def test_round_trip_is_a_fixed_point(findings: Findings, tmp_path: Path) -> None:
    text = dumps(findings)
    again = loads(text)
    assert dumps(again) == text
    assert dump(findings, tmp_path).read_text() == text
    assert load(tmp_path) == again
    assert load(tmp_path / "findings.json") == again


def test_numbers_are_rounded_and_never_nan() -> None:
    values = [
        {"value": 1 / 3, "low": float("nan"), "high": float("inf"), "n": 3, "scheme": "a"},
        {"value": np.float64(-0.0), "low": np.float32(0.1), "high": None, "scheme": "b"},
    ]
    data = json.loads(dumps(parse(bare_dict(measures=[measure("x.y", "X", values)]))))
    first, second = data["measures"][0]["values"]
    assert first["value"] == 0.3333333333
    assert first["low"] is None
    assert first["high"] is None
    assert math.copysign(1, second["value"]) == 1
    assert second["low"] == float(f"{float(np.float32(0.1)):.10g}")


@pytest.mark.parametrize(
    ("version", "says"),
    [
        ("0.9", "rote report RUN"),
        ("1.1", "newer Rote"),
        ("2.0", "newer Rote"),
        (None, "not a findings file"),
        ("x", "of the form 1.0"),
    ],
)
def test_other_schema_versions_are_refused_with_the_way_out(version: str | None, says: str) -> None:
    data = bare_dict(schema_version=version)
    with pytest.raises(InputError, match=says):
        parse(data)


def test_errors_name_the_field_and_never_its_content() -> None:
    data = findings_dict(n=60)
    data["exposed"][2]["tokens"][20]["n_chars"] = SECRET
    with pytest.raises(InputError) as caught:
        parse(data, where="runs/a/findings.json")
    message = str(caught.value)
    assert "runs/a/findings.json" in message
    assert "exposed[2].tokens[20].n_chars" in message
    assert SECRET not in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"schema_version": NaN}', "\x00", "[" * 100_000, '"x"', b"\xff\xfe{"], ids=range(8)
)
def test_broken_json_is_one_clear_line(text: str | bytes) -> None:
    with pytest.raises(InputError) as caught:
        loads(text, where="f.json")
    assert str(caught.value).startswith("f.json")
    assert "\n" not in str(caught.value)


def test_unknown_fields_and_double_values_are_refused() -> None:
    with pytest.raises(InputError, match="verdict_list"):
        parse(bare_dict(verdict_list=[]))
    twice = [{"value": 1.0, "queries": 100}, {"value": 2.0, "queries": 100.0}]
    with pytest.raises(InputError, match="same dimensions"):
        parse(bare_dict(measures=[measure("x.y", "X", twice)]))
    with pytest.raises(InputError, match="listed twice"):
        parse(bare_dict(measures=[measure("x.y", "X", []), measure("x.y", "X", [])]))


def test_missing_file_and_directory_name_the_path(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path)
    (tmp_path / "findings.json").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path)


def test_guards_spoil_a_measure_or_its_family(findings: Findings) -> None:
    assert [g.name for g in findings.failed_guards("membership.tpr")] == ["blind_baseline"]
    assert findings.failed_guards("extraction.rate") == []
    assert not format_.spoils("membership", "membershipx.auroc")


def test_masked_findings_hold_no_text(findings: Findings) -> None:
    assert SECRET in dumps(findings)
    hidden = findings.masked()
    assert SECRET not in dumps(hidden)
    assert [len(e.tokens) for e in hidden.exposed] == [len(e.tokens) for e in findings.exposed]
    assert hidden.exposed[0].tokens[5].p == findings.exposed[0].tokens[5].p


def test_a_failed_write_leaves_the_old_file_and_no_litter(
    findings: Findings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "findings.json").write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        dump(findings, tmp_path)
    assert (tmp_path / "findings.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["findings.json"]
