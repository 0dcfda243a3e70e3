"""A treatment is judged by the audit before and after it, on what was shipped, with paired numbers."""

from __future__ import annotations

import json
import math
from contextlib import contextmanager

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from rote.audit import AuditSettings, Treated, treat
from rote.audit.companions import perplexity, prefix_neighbours
from rote.audit.treatment import headline_changes
from rote.errors import InputError, RunMismatchError
from rote.models import CausalLM
from rote.records import RecordTable, read_records
from rote.scores.tokens import score_in_memory

SETTINGS = AuditSettings(schemes=("top_k=4",), prefix=16, suffix=16, device="cpu", dtype="float32")


def flatten_the_predictions(model: CausalLM, progress) -> Treated:
    with torch.no_grad():
        for parameter in model.hf.transformer.ln_f.parameters():
            parameter.mul_(0.1)
    progress("treating", 1, 1)
    return Treated({"factor": 0.1}, notes=("predictions were flattened",))


@pytest.fixture(scope="module")
def sets(memorizer):
    model, targets, controls = memorizer
    forget = read_records(targets)
    unseen = read_records(controls)
    half = len(unseen) // 2
    return model, forget, unseen.take(np.arange(half)), unseen.take(np.arange(half, len(unseen)))


@pytest.fixture(scope="module")
def treated(sets, tmp_path_factory):
    model, forget, control, other = sets
    out = tmp_path_factory.mktemp("treatment") / "run"
    lines = []
    found = treat(
        model, "flatten", flatten_the_predictions, out, forget=forget, control=control, utility={"other": other},
        settings=SETTINGS, say=lines.append,
    )  # fmt: skip
    return found, lines


def test_the_treated_checkpoint_is_an_ordinary_one_and_is_what_was_audited(treated):
    found, _ = treated
    again = AutoModelForCausalLM.from_pretrained(found.checkpoint)
    assert CausalLM.load(found.checkpoint, device="cpu").fingerprint == found.summary["treated"]
    assert found.summary["treated"] != found.summary["model"]["fingerprint"]
    assert found.after.model.fingerprint == found.summary["treated"]
    assert sum(p.numel() for p in again.parameters()) > 0


def test_utility_is_the_perplexity_of_the_text_before_and_after(treated, sets):
    found, _ = treated
    for findings, path in ((found.before, sets[0]), (found.after, found.checkpoint)):
        scores = score_in_memory(CausalLM.load(path, device="cpu", dtype="float32"), sets[3])
        logp = scores.logp[~np.isnan(scores.logp)].astype(float)
        value = next(v for v in findings.measure("utility.perplexity").values if v.dims == {"text": "other"})
        assert value.value == pytest.approx(math.exp(-logp.mean()), rel=1e-5)
        assert value.low < value.value < value.high


def test_the_comparison_pairs_companions(treated):
    found, _ = treated
    changes = {(c.measure, c.dims.get("text") or c.dims.get("variant")): c for c in found.comparison.pairs[0].changes}
    shift = changes["utility.perplexity", "other"]
    assert shift.difference.paired
    assert shift.judgement == "worse"  # flatter predictions cost perplexity on all text
    assert shift.difference.low > 0
    # Paired over the same texts the interval is narrower than from two separate intervals.
    apart = math.hypot(shift.before.high - shift.before.low, shift.after.high - shift.after.low)
    assert shift.difference.high - shift.difference.low < apart
    assert changes["variants.greedy_rate", "neighbours"].difference.paired
    assert changes["variants.rate", "neighbours"].difference.paired
    rows = headline_changes(found)
    assert {"extraction.rate", "utility.perplexity", "variants.rate"} <= {row["measure"] for row in rows}
    assert (found.out / "compare.html").stat().st_size > 10_000


def test_machine_readable_summary_and_no_contents(treated, memorizer):
    found, _ = treated
    summary = json.loads((found.out / "treatment.json").read_text())
    assert summary["details"] == {"factor": 0.1}
    assert summary["notes"][-1] == "predictions were flattened"
    texts = [json.loads(line)["text"] for line in memorizer[1].read_text().splitlines()]
    for file in ("treatment.json", "compare.html", "before/companions.parquet", "run.json"):
        content = (found.out / file).read_bytes()
        assert not any(text[:30].encode() in content for text in texts), file


def test_the_same_call_continues_and_another_is_refused(treated, sets):
    found, _ = treated
    model, forget, control, other = sets

    def must_not_run(adapter, progress):
        raise AssertionError("a finished treatment was done again")

    same = {"forget": forget, "control": control, "utility": {"other": other}, "settings": SETTINGS}
    again = treat(model, "flatten", must_not_run, found.out, **same)
    assert again.summary == found.summary
    with pytest.raises(RunMismatchError, match="method"):
        treat(model, "other", must_not_run, found.out, **same)


def test_a_decode_time_control_is_active_during_the_second_audit_only(sets, tmp_path):
    model, forget, control, _ = sets
    seen = []

    def steer(adapter, progress):
        @contextmanager
        def hook(subject):
            def louder(module, inputs, output):
                return output + 1.0

            handle = subject.hf.transformer.h[-1].mlp.register_forward_hook(louder)
            seen.append("on")
            try:
                yield
            finally:
                handle.remove()
                seen.append("off")

        return Treated({}, hook=hook, save=lambda folder: (folder / "control.json").write_text("{}"))

    found = treat(model, "steer", steer, tmp_path / "run", forget=forget, control=control, settings=SETTINGS)
    assert seen == ["on", "off"]
    assert found.checkpoint is None
    assert (tmp_path / "run" / "control" / "control.json").exists()
    before, after = (f.measure("utility.perplexity").values[0].value for f in (found.before, found.after))
    assert after != before


def test_damaged_weights_are_never_saved(sets, tmp_path):
    model, forget, *_ = sets

    def destroy(adapter, progress):
        with torch.no_grad():
            adapter.hf.transformer.h[0].mlp.c_fc.weight[0, 0] = float("nan")
        return Treated()

    with pytest.raises(InputError, match="NaN or infinite weights"):
        treat(model, "destroy", destroy, tmp_path / "run", forget=forget, settings=SETTINGS)
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_forget_and_retain_must_differ_and_an_unmemorized_set_is_named(sets, tmp_path):
    model, forget, _, other = sets
    with pytest.raises(InputError, match="cannot forget and keep the same text"):
        treat(
            model, "flatten", flatten_the_predictions, tmp_path / "a", forget=forget, retain=forget, settings=SETTINGS
        )
    lines = []
    renamed = RecordTable.from_rows({"id": f"new-{i}", "text": text} for i, text in enumerate(other.column("text")))
    treat(
        model, "flatten", flatten_the_predictions, tmp_path / "b", forget=renamed, settings=SETTINGS, say=lines.append
    )
    assert any("hardly memorized to begin with" in line for line in lines)


def test_neighbours_change_the_prefix_and_keep_the_suffix(sets):
    model, forget, *_ = sets
    adapter = CausalLM.load(model, device="cpu", dtype="float32")
    from rote.scores.sequences import Split, prepare

    split = Split(16, 16)
    changed = prefix_neighbours(adapter, forget, split=split, rate=0.25)
    originals = prepare(adapter, forget, split).sequences(np.arange(len(forget)))
    assert changed.column("id") == forget.column("id")
    for ids, original in zip(changed.column("token_ids"), originals, strict=True):
        assert list(ids[16:]) == original.ids[16:32]
        assert len(ids) == 32
    moved = [sum(a != b for a, b in zip(ids[:16], o.ids, strict=False)) for ids, o in
             zip(changed.column("token_ids"), originals, strict=True)]  # fmt: skip
    assert max(moved) > 0
    again = prefix_neighbours(adapter, forget, split=split, rate=0.25)
    assert again.column("token_ids") == changed.column("token_ids")


def test_perplexity_interval():
    nll, tokens = np.array([10.0, 30.0, 22.0]), np.array([10, 20, 20])
    value, low, high = perplexity(nll, tokens, seed=0)
    assert value == pytest.approx(math.exp(62 / 50))
    assert math.exp(1.0) <= low < value < high <= math.exp(1.5)
    assert perplexity(nll[::-1], tokens[::-1], seed=0) == (value, low, high)
    assert perplexity(nll[:1], tokens[:1], seed=0) == (math.exp(1.0), None, None)


def test_companion_files_hold_one_row_a_record(treated, sets):
    found, _ = treated
    table = pq.read_table(found.out / "before" / "companions.parquet").to_pydict()
    assert set(table["name"]) == {"other", "control", "neighbours"}
    assert table["name"].count("neighbours") == len(sets[1])
