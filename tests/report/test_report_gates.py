"""Gates: what they parse, what they select, what they say, and that silence is never a pass."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_samples import bare_dict, measure

from rote.errors import InputError
from rote.report.findings import Findings, parse
from rote.report.gates import evaluate, parse_gate


@pytest.fixture(scope="module")
def small() -> Findings:
    rate = [
        {
            "value": 0.005,
            "low": 0.001,
            "high": 0.02,
            "n": 60,
            "population": "target",
            "scheme": "top_k=40",
            "queries": 100,
            "p": 0.5,
        },
        {
            "value": 0.2,
            "low": 0.1,
            "high": 0.3,
            "n": 60,
            "population": "target",
            "scheme": "T=0.7, top_p=0.9",
            "queries": 1000,
            "p": 0.5,
        },
        {
            "value": 0.9,
            "low": 0.8,
            "high": 0.95,
            "n": 60,
            "population": "control",
            "scheme": "top_k=40",
            "queries": 100,
            "p": 0.5,
        },
    ]
    auroc = [{"value": 0.61, "low": 0.55, "high": 0.67, "attack": "loss"}, {"value": None, "attack": "zlib"}]
    guard = {"name": "blind", "title": "Blind baseline", "status": "fail", "spoils": ["membership.auroc"]}
    return parse(
        bare_dict(
            measures=[
                measure("extraction.rate", "R", rate),
                measure("membership.auroc", "A", auroc),
                measure("extraction.ceiling", "C", []),
            ],
            guards=[guard],
        )
    )


@pytest.mark.parametrize(
    ("text", "fails"),
    [
        ("extraction.rate{queries=100}.high>0.01", 1),
        ("extraction.rate{queries=100, p=0.5, population=target}.high > 1%", 1),
        ("extraction.rate{queries=100}.high>0.02", 0),
        ("extraction.rate{queries=100}.high>=0.02", 1),
        ("extraction.rate.high>0.01", 2),
        ("extraction.rate>0.1", 1),
        ("extraction.rate.value > 1e-1", 1),
        ("extraction.rate{scheme=top_k=40}.value>0.001", 1),
        ('extraction.rate{scheme="T=0.7, top_p=0.9"}>0.1', 1),
        ("extraction.rate{population=control}<0.95", 1),
        ("membership.auroc{attack=loss} >= 0.6", 1),
        ("membership.auroc{attack=loss}.low >= 0.6", 0),
        ("membership.auroc{attack=loss} != 0.61", 0),
        ("membership.auroc{attack=zlib} >= 0.6", 1),
    ],
)
def test_gates(small: Findings, text: str, fails: int) -> None:
    assert len(evaluate(small, [text])) == fails


def test_failures_say_what_and_where(small: Findings) -> None:
    first, second = evaluate(small, ["extraction.rate{queries=100}.high>0.01", "membership.auroc>=0.6"])[:2]
    assert "extraction.rate{" in first.text
    assert "queries=100" in first.text
    assert "= 0.02" in first.text
    assert "Blind baseline" in second.text
    nothing = evaluate(small, ["membership.auroc{attack=zlib}>0.6"])[0]
    assert nothing.value is None
    assert "cannot be shown to hold" in nothing.text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("extraction.rat>0.1", "did you mean extraction.rate.*there are: extraction.rate, membership.auroc"),
        ("extraction.rate{query=3}>0.1", "did you mean queries"),
        ("extraction.rate{queries=7}>0.1", "queries=7; there are: 100, 1000"),
        ("membership.auroc{attack=los}>0.1", "there are: loss, zlib"),
        ('extraction.rate{queries=100,scheme="T=0.7, top_p=0.9"}>0', "all these dimensions at once"),
        ("extraction.ceiling>0.1", "has no values"),
    ],
)
def test_unknown_names_are_met_with_what_exists(small: Findings, text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        evaluate(small, [text])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "does not start with a measure"),
        ("extraction.rate", "no comparison"),
        ("extraction.rate > ", "no number"),
        ("extraction.rate > lots", "'lots' is not a number"),
        ("extraction.rate{p=0.5 > 0.1", "not closed"),
        ("extraction.rate{} > 0.1", "empty"),
        ("extraction.rate{p} > 0.1", "dimension=value"),
        ("extraction.rate{p=0.5}.top > 0.1", "unknown field .top"),
        ("__import__('os').system('x') > 0", "no comparison"),
        ("extraction.rate > 0.1 and 1", "not a number"),
        ("extraction.rate = 0.1", "no comparison"),
    ],
)
def test_wrong_syntax_says_which_part(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        parse_gate(text)
    assert "extraction.rate{queries=100,p=0.5}.high>0.01" in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_parses_or_is_refused_in_one_line(text: str) -> None:
    try:
        parse_gate(text)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017  either outcome is fine, the message must be one line


@given(
    st.sampled_from([">", ">=", "<", "<=", "==", "!="]),
    st.floats(-1e6, 1e6, allow_nan=False),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 99), max_size=3),
)
def test_what_is_written_is_what_is_read(sign: str, limit: float, dims: dict[str, int]) -> None:
    body = "{" + ",".join(f"{k}={v}" for k, v in dims.items()) + "}" if dims else ""
    gate = parse_gate(f"x.y{body}.low {sign} {limit!r}")
    assert (gate.measure, gate.field, gate.operator, gate.limit, dict(gate.dims)) == ("x.y", "low", sign, limit, dims)


def test_a_gate_means_all_records_unless_it_names_a_breakdown() -> None:
    values = [
        {"value": 0.9, "attack": "loss", "duplicates": 64},
        {"value": 0.5, "attack": "loss"},
        {"value": 0.4, "attack": "loss", "duplicates": 1},
    ]
    findings = parse(bare_dict(measures=[measure("membership.auroc", "A", values)]))
    assert evaluate(findings, ["membership.auroc>0.6", "membership.auroc{attack=loss}>0.6"]) == []
    assert len(evaluate(findings, ["membership.auroc{duplicates=64}>0.6"])) == 1
    only = parse(bare_dict(measures=[measure("membership.auroc", "A", values[:1])]))
    assert len(evaluate(only, ["membership.auroc>0.6"])) == 1  # nothing over all records: never silently pass
