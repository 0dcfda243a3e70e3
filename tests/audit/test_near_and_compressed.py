"""Passes beyond the one: almost reciting and adversarial compression inside an audit."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from rote.audit import AuditSettings, audit_lm, blocks, remake
from rote.audit.near import NearExtraction
from rote.cli.main import main
from rote.errors import InputError
from rote.models import CausalLM
from rote.records import RecordTable, read_records
from rote.scores.approximate import approximate_extraction
from rote.scores.prompt_search import compress_records
from rote.scores.schemes import DecodingScheme
from rote.scores.sequences import Split

SETTINGS = AuditSettings(
    schemes=("top_k=3",),
    prefix=16,
    suffix=6,
    near=("eps=1,width=8", "eps=1,method=hamming1"),
    near_records=12,
    compress=3,
    compress_tokens=6,
    compress_steps=3,
)


@pytest.fixture(scope="module")
def run(memorizer, tmp_path_factory):
    model, targets, controls = memorizer
    out = tmp_path_factory.mktemp("near") / "run"
    found = audit_lm(model, read_records(targets), out, control=read_records(controls), settings=SETTINGS)
    return out, found


def blocks_of(run, name):
    return pq.read_table(sorted((run / name).glob("part-*.parquet"))).to_pydict()


def test_the_draw_is_targets_and_controls_and_does_not_hang_on_each_other():
    control = np.array([False] * 30 + [True] * 5)
    rows = blocks.draw_rows(np.arange(35), control, 10, seed=0, purpose="near")
    assert (~control[rows]).sum() == 10
    assert control[rows].sum() == 5
    same = blocks.draw_rows(np.arange(30), control[:30], 10, seed=0, purpose="near")
    assert np.array_equal(same, rows[rows < 30])
    assert not np.array_equal(same, blocks.draw_rows(np.arange(30), control[:30], 10, seed=1, purpose="near"))


def test_rates_are_those_of_the_library_on_the_same_records(run, memorizer):
    out, found = run
    inputs = RecordTable(pq.read_table(out / "inputs.parquet"))
    kept = blocks_of(out, "near-2")
    rows = np.array(kept["row"])
    alone = approximate_extraction(
        CausalLM.load(memorizer[0], device="cpu"),
        inputs.take(rows),
        scheme=DecodingScheme(top_k=3),
        eps=1,
        method="hamming1",
        split=Split(16, 6),
    )
    assert np.allclose(kept["log_p"], alone.log_p, atol=1e-4)
    target = ~inputs.is_control[rows]
    # n = 1, p = 0.5: tau is 0.5, so the rate is the plain share of records with p_{z,1} of at least a half.
    measure = found.measure("extraction.near_rate")
    dims = {"eps": 1.0, "method": "hamming1", "queries": 1, "p": 0.5}
    (value,) = measure.select(population="target", **dims)
    assert value.value == pytest.approx(np.mean(np.exp(alone.log_p[target]) >= 0.5))
    assert value.n == target.sum()
    for row in measure.select(population="target", method="exact"):
        (beam,) = measure.select(population="target", method="beam", queries=row.dims["queries"])
        (whole,) = measure.select(population="target", method="hamming1", queries=row.dims["queries"])
        assert row.value <= beam.value <= whole.value <= beam.high
        assert beam.low <= beam.value <= beam.high


def test_the_exact_rate_is_of_the_same_records(run):
    out, found = run
    rows = np.array(blocks_of(out, "near-1")["row"])
    table = pq.read_table(out / "records.parquet").to_pydict()  # no record was skipped: row = place
    target = np.array(table["population"])[rows] == "target"
    hits = np.exp(np.array(table["log_pz:top_k=3"])[rows][target]) >= 0.5
    (value,) = found.measure("extraction.near_rate").select(population="target", eps=0.0, queries=1)
    assert value.value == pytest.approx(hits.mean())


def test_compression_is_the_librarys_and_is_counted(run, memorizer):
    out, found = run
    kept = blocks_of(out, "compression")
    inputs = RecordTable(pq.read_table(out / "inputs.parquet"))
    rows = np.array(kept["row"])
    assert len(rows) == 6
    alone = compress_records(
        CausalLM.load(memorizer[0], device="cpu"), inputs.take(rows[:4]), split=Split(16, 6), tokens=6, steps=3, cap=1
    )
    assert kept["ratio"][:4] == alone.ratio.tolist()
    assert [tuple(p) if p else None for p in kept["prompt"][:4]] == alone.prompts
    (share,) = found.measure("compression.share").select(population="target")
    ratio = np.array(kept["ratio"])
    assert share.value == pytest.approx((ratio[~inputs.is_control[rows]] > 1).mean())
    assert any(verdict.measure == "compression.share" for verdict in found.verdicts)


def test_the_report_shows_them_where_people_look_and_remaking_changes_nothing(run):
    out, _ = run
    before = (out / "findings.json").read_bytes()
    page = (out / "report.html").read_text()
    assert "Getting almost the suffix" in page
    assert "plot-extraction-figure-0" in page
    assert "Share of compressible records" in page
    remake(out)
    assert (out / "findings.json").read_bytes() == before


def test_a_lost_block_alone_is_made_again(run, memorizer, monkeypatch):
    import rote.scores.approximate as approximate

    out, _ = run
    before = (out / "findings.json").read_bytes()
    lost = sorted((out / "near-1").glob("part-*.parquet"))[1]
    lost.write_bytes(lost.read_bytes()[:50])
    asked = []
    real = approximate.approximate_extraction

    def counted(model, records, **options):
        asked.append(len(records))
        return real(model, records, **options)

    monkeypatch.setattr(approximate, "approximate_extraction", counted)
    model, targets, controls = memorizer
    audit_lm(model, read_records(targets), out, control=read_records(controls), settings=SETTINGS)
    assert asked == [8]
    assert (out / "findings.json").read_bytes() == before


@pytest.mark.parametrize(
    ("near", "words"),
    [
        ("2", "eps=2"),
        ("eps=x", "needs a number"),
        ("eps=2,method=hamming1", "eps = 1"),
        ("eps=1,distance=bleu", "monte_carlo"),
        ("eps=1,widht=3", "widht"),
        ("eps=1.5", "whole number"),
    ],
)
def test_settings_that_do_not_exist_are_refused(near, words):
    with pytest.raises(InputError, match=words):
        NearExtraction.parse(near)
    with pytest.raises(InputError):
        AuditSettings(near=(near,))


def test_more_settings_that_cannot_be():
    with pytest.raises(InputError, match="given twice"):
        AuditSettings(near=("eps=1", "eps=1,width=64"))
    with pytest.raises(InputError, match="cuts the vocabulary"):
        AuditSettings(schemes=("sample",), near=("eps=1,method=hamming1",))
    with pytest.raises(InputError, match="compress_tokens"):
        AuditSettings(compress=3, compress_tokens=1)
    assert AuditSettings(near=("eps=2",)).near == ("eps=2,method=beam,width=32",)
    assert AuditSettings.from_dict(SETTINGS.as_dict()) == SETTINGS


def test_the_command(memorizer, tmp_path, capsys):
    model, targets, controls = map(str, memorizer)
    arguments = [
        "audit",
        "lm",
        model,
        targets,
        "--control",
        controls,
        "--scheme",
        "top_k=3",
        "--suffix",
        "4",
        "--limit",
        "6",
    ]
    near = ["--near", "eps=2,method=monte_carlo,distance=levenshtein,samples=20", "--near-records", "4"]
    compress = ["--compress", "1", "--compress-tokens", "4", "--compress-steps", "1"]
    assert main([*arguments, *near, *compress, "-o", str(tmp_path / "run"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = next(m for m in found["measures"] if m["name"] == "extraction.near_rate")["values"]
    assert {row["distance"] for row in rows} == {"hamming", "levenshtein"}
    assert all(row["n"] == 4 for row in rows)
    assert main([*arguments, "--near", "eps=oops", "-o", str(tmp_path / "other")]) == 2
    assert "needs a number" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
