"""An audit from end to end, on a model that really memorized."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from rote.audit import AuditSettings, audit_lm, remake
from rote.audit.lm import with_controls
from rote.errors import InputError, RunMismatchError
from rote.records import RecordTable, read_records

SETTINGS = AuditSettings(schemes=("top_k=4", "top_p=0.9"), prefix=16, suffix=16)


@pytest.fixture(scope="module")
def run(memorizer, tmp_path_factory):
    model, targets, controls = memorizer
    out = tmp_path_factory.mktemp("audit") / "run"
    found = audit_lm(
        model,
        read_records(targets),
        out,
        control=read_records(controls),
        settings=SETTINGS,
        command="rote audit lm ...",
    )
    return out, found


def one(found, name, **dims):
    values = [v for v in found.measure(name).select(**dims) if set(v.dims) == set(dims)]
    assert len(values) == 1, (name, dims, values)
    return values[0]


def test_what_was_planted_often_is_found_and_what_was_not_is_not(run):
    _, found = run
    often = one(found, "extraction.rate", population="target", scheme="top_k=4", queries=100, p=0.5, duplicates=40)
    unseen = one(found, "extraction.rate", population="control", scheme="top_k=4", queries=100, p=0.5)
    assert often.value > 0.5 > unseen.high
    assert one(found, "membership.auroc", attack="loss", duplicates=40).value > 0.95
    losses = [one(found, "dose.loss", duplicates=copies).value for copies in (1, 8, 40)]
    assert losses == sorted(losses, reverse=True)


def test_per_record_results_agree_with_the_findings_and_hold_no_contents(run, memorizer):
    out, found = run
    table = pq.read_table(out / "records.parquet").to_pydict()
    target = np.array(table["population"]) == "target"
    assert one(found, "extraction.greedy_rate", population="target").value == pytest.approx(
        np.mean(np.array(table["greedy"])[target])
    )
    ceiling = np.mean(np.isfinite(np.array(table["log_pz:top_k=4"], float))[target])
    assert one(found, "extraction.ceiling", population="target", scheme="top_k=4").value == pytest.approx(ceiling)
    texts = [json.loads(line)["text"] for line in memorizer[1].read_text().splitlines()]
    for file in ("findings.json", "report.html", "records.parquet", "run.json"):
        content = (out / file).read_bytes()
        assert not any(text[:30].encode() in content for text in texts), file


def test_reveal_shows_contents_and_masking_takes_them_away_again(run, memorizer):
    out, masked = run
    shown = remake(out, reveal=True)
    record = shown.exposed[0]
    text = {json.loads(line)["id"]: json.loads(line)["text"] for line in memorizer[1].read_text().splitlines()}[
        record.id
    ]
    assert "".join(token.t for token in record.tokens) == text
    assert remake(out, reveal=False) == masked


def test_findings_do_not_depend_on_batches_and_remaking_is_byte_identical(run, memorizer, tmp_path):
    out, _ = run
    before = (out / "findings.json").read_bytes()
    remake(out)
    assert (out / "findings.json").read_bytes() == before
    model, targets, controls = memorizer
    small = AuditSettings(**{**SETTINGS.__dict__, "batch_tokens": 64})
    audit_lm(model, read_records(targets), tmp_path / "other", control=read_records(controls), settings=small)
    ours, theirs = (json.loads((path / "findings.json").read_text())["measures"] for path in (out, tmp_path / "other"))
    for mine, other in zip(ours, theirs, strict=True):
        for a, b in zip(mine["values"], other["values"], strict=True):
            close = a["value"] == b["value"] or a["value"] == pytest.approx(b["value"], rel=1e-3, abs=1e-4)
            assert close, mine["name"]


def test_a_run_directory_is_never_mixed(run, memorizer):
    out, _ = run
    model, targets, controls = memorizer
    with pytest.raises(RunMismatchError, match="records changed"):
        audit_lm(model, read_records(targets), out, settings=SETTINGS)
    with pytest.raises(RunMismatchError, match="settings changed"):
        audit_lm(
            model,
            read_records(targets),
            out,
            control=read_records(controls),
            settings=AuditSettings(schemes=("top_k=5",)),
        )


def test_a_reference_model_and_the_training_corpus(memorizer, checkpoints, tmp_path):
    model, targets, controls = memorizer
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    rows = [json.loads(line) for line in targets.read_text().splitlines()]
    (corpus / "part.jsonl").write_text(
        "".join(json.dumps({"text": f"Before. {row['text']} After."}) + "\n" for row in rows for _ in range(3))
    )
    plain = RecordTable.from_rows({"id": row["id"], "text": row["text"]} for row in rows)
    found = audit_lm(
        model,
        plain,
        tmp_path / "run",
        control=read_records(controls),
        references=[checkpoints("gpt2")],
        corpus=corpus,
        settings=SETTINGS,
    )
    table = pq.read_table(tmp_path / "run" / "corpus.parquet").to_pydict()
    by_id = dict(zip(table["id"], table["copies"], strict=True))
    assert [by_id[row["id"]] for row in rows] == [3] * len(rows)
    assert all(count == 0 for name, count in by_id.items() if name not in {row["id"] for row in rows})
    attacks = {value.dims["attack"] for value in found.measure("membership.auroc").values}
    assert {"reference", "rmia", "loss"} <= attacks
    assert {guard.name: guard.status for guard in found.guards}["controls_in_corpus"] == "pass"


def test_without_controls_the_report_says_so_first(memorizer, tmp_path):
    model, targets, _ = memorizer
    found = audit_lm(model, read_records(targets), tmp_path / "run", settings=SETTINGS)
    assert found.measure("membership.auroc") is None
    assert {guard.name: guard.status for guard in found.guards}["controls"] == "fail"
    assert any("control" in verdict.text for verdict in found.verdicts)


def test_targets_among_the_controls_are_called_out(memorizer, tmp_path):
    model, targets, _ = memorizer
    rows = [json.loads(line) for line in targets.read_text().splitlines()]
    control = RecordTable.from_rows({"id": f"c{number}", "text": row["text"]} for number, row in enumerate(rows))
    found = audit_lm(model, read_records(targets), tmp_path / "run", control=control, settings=SETTINGS)
    guard = next(guard for guard in found.guards if guard.name == "control_overlap")
    assert guard.status == "fail"
    assert guard.value == 1.0


def test_randomized_membership_gives_a_privacy_bound(memorizer, tmp_path):
    model, targets, controls = memorizer
    found = audit_lm(
        model,
        read_records(targets),
        tmp_path / "run",
        control=read_records(controls),
        settings=AuditSettings(**{**SETTINGS.__dict__, "randomized": True}),
    )
    assert found.measure("privacy.epsilon_lower").values[0].value > 0


def test_controls_are_controls_whatever_their_rows_say():
    targets = RecordTable.from_rows([{"id": "a", "text": "one two"}])
    control = RecordTable.from_rows([{"id": "b", "text": "three four", "member": True}])
    assert with_controls(targets, control).is_control.tolist() == [False, True]
    with pytest.raises(InputError, match="used before"):
        with_controls(targets, targets)


def test_attacks_with_passes_of_their_own(memorizer, tmp_path):
    model, targets, controls = memorizer
    settings = AuditSettings(
        **{
            **SETTINGS.__dict__,
            "neighbours": 4,
            "shots": 2,
            "attacks": ("lowercase", "recall", "con_recall", "neighbourhood", "gradient_norm"),
        }
    )
    found = audit_lm(model, read_records(targets), tmp_path / "run", control=read_records(controls), settings=settings)
    scores = {
        value.dims["attack"]: value
        for value in found.measure("membership.auroc").values
        if "duplicates" not in value.dims
    }
    assert set(settings.attacks) <= set(scores)
    n = scores["loss"].n
    assert scores["recall"].n == scores["con_recall"].n == n - 4  # the shots are not judged
    assert scores["neighbourhood"].n == scores["gradient_norm"].n == n
    table = pq.read_table(tmp_path / "run" / "records.parquet").to_pydict()
    means = {
        row["id"]: row
        for row in (dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True))
    }
    assert sum(np.isnan(row["score:recall"]) for row in means.values()) == 4
