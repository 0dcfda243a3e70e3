"""Comparison: differences and their intervals, pairing only where it is honest, refusals, direction, and the page."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_samples import SECRET, bare_dict, findings_dict, measure, proportion

from rote.errors import InputError
from rote.report import compare, compare_runs, load_run, paired, render_comparison, write_comparison
from rote.report.findings import Findings, dump, parse

N = 400


def run_with_records(seed: int, shift: float, *, order: np.ndarray | None = None) -> tuple[Findings, pa.Table]:
    """A small run whose findings are computed from its own per-record table. The same records have the same noise."""
    rng = np.random.default_rng(1)
    base = rng.normal(-4, 3, N)
    log_pz = np.minimum(base + shift + np.random.default_rng(seed).normal(0, 0.2, N), -0.001)
    control = np.full(N, -np.inf)
    score = np.concatenate([rng.normal(1, 1, N) + shift / 4, rng.normal(0, 1, N)])
    greedy = np.concatenate([log_pz > -1, np.zeros(N, bool)])
    population = np.array(["target"] * N + ["control"] * N)
    table = pa.table(
        {
            "id": [f"r{i}" for i in range(2 * N)],
            "population": population,
            "duplicates": [4] * N + [None] * N,
            "greedy": greedy,
            "log_pz:top_k=40": np.concatenate([log_pz, control]),
            "score:loss": score,
        }
    )
    if order is not None:
        table = table.take(order)
    tau = -math.expm1(math.log1p(-0.5) / 100)
    rate = proportion(int((log_pz >= math.log(tau)).sum()), N)
    u = sum((score[:N, None] > score[None, N:]).sum(axis=1)) / N / N
    dims = {"population": "target", "scheme": "top_k=40", "queries": 100, "p": 0.5}
    findings = parse(
        bare_dict(
            kind="audit-lm",
            settings={"prefix": 50, "suffix": 50, "schemes": ["top_k=40"], "seed": seed},
            verdicts=[{"level": "high", "text": "t", "measure": "extraction.rate", "dims": dims}],
            measures=[
                measure("extraction.rate", "Extraction rate", [rate | dims]),
                measure(
                    "extraction.greedy_rate",
                    "Greedy rate",
                    [proportion(int(greedy[:N].sum()), N) | {"population": "target"}],
                ),
                measure(
                    "extraction.ceiling", "Ceiling", [proportion(N, N) | {"population": "target", "scheme": "top_k=40"}]
                ),
                measure(
                    "membership.auroc",
                    "AUROC",
                    [{"value": u, "low": u - 0.03, "high": u + 0.03, "n": 2 * N, "attack": "loss"}],
                    unit="probability",
                ),
                measure(
                    "utility.accuracy",
                    "Accuracy",
                    [proportion(300, 500)],
                    direction="higher = better",
                    unit="share of questions",
                ),
            ],
        )
    )
    return findings, table


def test_paired_differences_are_used_where_the_tables_reproduce_the_findings() -> None:
    (f1, t1), (f2, t2) = (
        run_with_records(1, 0.0),
        run_with_records(2, -3.0, order=np.random.default_rng(0).permutation(2 * N)),
    )
    result = compare([f1, f2], names=["a", "b"], records=[t1, t2])
    changes = {c.measure: c for c in result.pairs[0].changes}
    assert {name: c.difference.paired for name, c in changes.items()} == {
        "extraction.rate": True,
        "extraction.greedy_rate": True,
        "extraction.ceiling": True,
        "membership.auroc": True,
        "utility.accuracy": False,
    }
    alone = {c.measure: c for c in compare([f1, f2]).pairs[0].changes}
    for name in ("extraction.rate", "membership.auroc"):
        c, u = changes[name], alone[name]
        assert c.difference.value == pytest.approx(u.difference.value)
        assert c.difference.high - c.difference.low < u.difference.high - u.difference.low  # type: ignore[operator]
        assert c.judgement == "better"
    assert changes["extraction.ceiling"].judgement == "same"
    assert changes["utility.accuracy"].judgement == "same"


def test_tables_that_do_not_reproduce_the_findings_are_not_paired() -> None:
    (f1, t1), (f2, t2) = run_with_records(1, 0.0), run_with_records(2, -3.0)
    half = t2.slice(0, N)  # other ids
    assert not any(c.difference.paired for c in compare([f1, f2], records=[t1, half]).pairs[0].changes)
    column = t2.column_names.index("log_pz:top_k=40")
    wrong = t2.set_column(column, "log_pz:top_k=40", pa.array(np.full(2 * N, -0.1)))
    changes = {c.measure: c for c in compare([f1, f2], records=[t1, wrong]).pairs[0].changes}
    assert not changes["extraction.rate"].difference.paired
    assert changes["extraction.greedy_rate"].difference.paired
    twice = pa.concat_tables([t2.slice(0, 2 * N - 1), t2.slice(0, 1)])
    assert not any(c.difference.paired for c in compare([f1, f2], records=[twice, twice]).pairs[0].changes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "audit-ehr"}, "different kinds"),
        ({"records": {"name": "x", "fingerprint": "other", "n": 12}}, "different records"),
        ({"settings": {"prefix": 25}}, "differ in prefix"),
        ({"settings": {"schemes": ["top_p=0.9"]}}, "differ in schemes"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused_unless_forced(change: dict, says: str) -> None:
    base = {"settings": {"prefix": 50, "schemes": ["top_k=40"]}}
    a = parse(bare_dict(**base))
    b = parse(bare_dict(**(base | change | {"settings": base["settings"] | change.get("settings", {})})))
    with pytest.raises(InputError, match=says) as caught:
        compare([a, b])
    assert "--force" in str(caught.value)
    forced = compare([a, b], force=True)
    assert says in forced.warnings[0]
    assert "Compared by force" in render_comparison(forced)


def test_forced_comparison_of_other_records_pairs_nothing() -> None:
    (f1, t1), (f2, t2) = run_with_records(1, 0.0), run_with_records(2, -3.0)
    other = f2.model_copy(update={"records": f2.records.model_copy(update={"fingerprint": "other"})})
    forced = compare([f1, other], records=[t1, t2], force=True)
    assert not any(c.difference.paired for c in forced.pairs[0].changes)


def test_direction_decides_better_and_worse_and_auroc_is_two_sided() -> None:
    def run(queries: float, loss: float, auroc: float, plain: float) -> Findings:
        def value(x: float, width: float) -> list[dict]:
            return [{"value": x, "low": x - width, "high": x + width, "n": 50}]

        return parse(
            bare_dict(
                measures=[
                    measure(
                        "extraction.queries", "Q", value(queries, 1), direction="lower = more memorized", unit="queries"
                    ),
                    measure("utility.loss", "L", value(loss, 0.01), direction="lower = better", unit="nats"),
                    measure("membership.auroc", "A", value(auroc, 0.02), unit="probability"),
                    measure("other.thing", "O", value(plain, 0.01), direction="neither", unit="x"),
                ]
            )
        )

    changes = {c.measure: c for c in compare([run(10, 2.0, 0.8, 1), run(1000, 2.5, 0.05, 2)]).pairs[0].changes}
    assert changes["extraction.queries"].judgement == "better"
    assert changes["utility.loss"].judgement == "worse"
    assert changes["membership.auroc"].judgement == "worse"  # 0.8 -> 0.05 is further from 0.5
    assert "Below 0.5" in changes["membership.auroc"].note
    assert changes["other.thing"].judgement == "same"
    nearer = {c.measure: c for c in compare([run(10, 2, 0.8, 1), run(10, 2, 0.45, 1)]).pairs[0].changes}
    assert nearer["membership.auroc"].judgement == "better"


def test_square_and_add_reproduces_newcombe() -> None:
    # Newcombe 1998, Statistics in Medicine 17:873, table II (a): 56/70 - 48/80 by Wilson limits is (0.0524, 0.3339).
    def wilson(x: int, n: int) -> tuple[float, float, float]:
        low, high = paired._wilson(x / n, n, 0.95)
        return x / n, low, high

    d = paired.from_intervals(wilson(56, 70), wilson(48, 80))
    assert (round(d.low or 0, 4), round(d.high or 0, 4)) == (0.0524, 0.3339)
    assert paired.from_intervals((1.0, None, 2.0), (0.0, 0.0, 0.0)).low is None


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_paired_shares_invariants(pairs: list[tuple[bool, bool]]) -> None:
    new, old = np.array([a for a, _ in pairs]), np.array([b for _, b in pairs])
    d, back = paired.proportions(new, old), paired.proportions(old, new)
    assert d.value == pytest.approx(new.mean() - old.mean())
    assert -1 <= d.low <= d.value + 1e-12 <= d.high + 2e-12 <= 1 + 3e-12  # type: ignore[operator]
    assert (d.low, d.high) == pytest.approx((-back.high, -back.low))  # type: ignore[operator]


def test_paired_share_interval_covers() -> None:
    rng = np.random.default_rng(0)
    hits, trials = 0, 600
    for _ in range(trials):
        old = rng.random(60) < 0.4
        new = np.where(old, rng.random(60) < 0.6, rng.random(60) < 0.1)
        d = paired.proportions(new, old)
        hits += d.low <= (0.4 * 0.6 + 0.6 * 0.1) - 0.4 <= d.high  # type: ignore[operator]
    assert 0.92 <= hits / trials <= 0.995  # 95% nominal; three standard errors are 0.027


def test_run_directories(tmp_path: Path) -> None:
    for name, seed, shift in (("before", 1, 0.0), ("after", 2, -3.0)):
        (tmp_path / name).mkdir()
        findings, table = run_with_records(seed, shift)
        dump(findings, tmp_path / name)
        pq.write_table(table, tmp_path / name / "records.parquet")
    result = compare_runs([tmp_path / "before", tmp_path / "after"])
    assert [r.name for r in result.runs] == ["before", "after"]
    assert result.settings == [("seed", [1, 2])]
    page = write_comparison(result, tmp_path).read_text("utf-8")
    assert "before → after" in page
    assert "paired over the same records" in page
    assert 'id="plot-frontier"' in page
    assert result.to_dict()["pairs"][0]["changes"][0]["difference"]["paired"] is True
    (tmp_path / "after" / "records.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="not a readable parquet"):
        load_run(tmp_path / "after")
    with pytest.raises(InputError, match="at least two"):
        compare_runs([tmp_path / "before"])


def test_page_escapes_and_holds_no_contents() -> None:
    a, b = (parse(findings_dict(hostile=True, n=60, strength=s)) for s in (1.0, 0.4))
    page = render_comparison(compare([a, b, a], names=["<b>x</b>", "<b>x</b>", "third"]))
    assert SECRET not in page
    assert "<b>x" not in page
    assert "\u202e" not in page
    assert page.count("&lt;b&gt;x&lt;/b&gt; (2)") >= 1
    assert "No frontier" in page
