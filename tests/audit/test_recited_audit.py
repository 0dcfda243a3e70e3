"""`rote audit recited`: its verdicts are those of generating, its shares are counted, it goes on where it stopped."""

import json
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import beta
from transformers import AutoModelForCausalLM

import rote.audit.recited as module
from rote.cli.main import main
from rote.models import CausalLM
from rote.records import read_records


@pytest.fixture(scope="module")
def setting(checkpoints, tmp_path_factory):
    """Twelve targets with 0, 2 or 8 copies, two of three as the model continues them, and six controls."""
    root = tmp_path_factory.mktemp("recited")
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoints("gpt2")).eval()
    generator = torch.Generator().manual_seed(4)
    rows = []
    for i in range(18):
        prefix = torch.randint(3, model.config.vocab_size, (1, 6), generator=generator)
        ids = model.generate(
            prefix, attention_mask=torch.ones_like(prefix), max_new_tokens=5, min_new_tokens=5, do_sample=False,
            pad_token_id=0, eos_token_id=None,
        )[0].tolist()  # fmt: skip
        if i % 3 == 0 or i >= 12:
            ids[-1 - i % 2] = (ids[-1 - i % 2] + 1) % model.config.vocab_size
        rows.append({"id": f"r{i}", "token_ids": ids, "prefix_tokens": 6, "duplicates": (2, 8)[i % 2]})
    for name, some in (("targets", rows[:12]), ("unseen", [{**row, "duplicates": None} for row in rows[12:]])):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    said = {row["id"] for i, row in enumerate(rows) if i % 3 and i < 12}
    command = ["audit", "recited", str(checkpoints("gpt2")), str(root / "targets.jsonl")]
    return root, [*command, "--control", str(root / "unseen.jsonl")], rows, said


def test_who_is_recited_and_how_many(setting):
    root, command, rows, said = setting
    assert main([*command, "-o", str(root / "run"), "-q"]) == 0
    assert set((root / "run" / "recited-ids.txt").read_text().split()) == said
    table = pq.read_table(root / "run" / "records.parquet").to_pylist()
    assert {row["id"] for row in table if row["recited"]} == said
    assert [row["control"] for row in table] == [False] * 12 + [True] * 6
    assert {(row["prefix"], row["suffix"]) for row in table} == {(6, 5)}
    found = json.loads((root / "run" / "findings.json").read_text())
    (measure,) = found["measures"]
    values = {(value["population"], value.get("duplicates")): value for value in measure["values"]}
    assert values["target", None]["value"] == pytest.approx(8 / 12)
    assert values["target", None]["low"] == pytest.approx(beta.ppf(0.025, 8, 5), abs=1e-6)
    assert values["control", None]["value"] == 0
    for copies in (2, 8):
        group = [row["id"] in said for row in rows[:12] if row["duplicates"] == copies]
        assert values["target", copies]["value"] == pytest.approx(sum(group) / len(group))
    assert found["guards"][0]["status"] == "fail"  # six controls are too few
    assert (root / "run" / "report.html").exists()


def test_an_interrupted_run_goes_on(setting, monkeypatch, checkpoints):
    root, command, _, _ = setting
    monkeypatch.setattr(module, "BLOCK", 5)
    assert main([*command, "-o", str(root / "whole"), "-q"]) == 0
    screen, calls = module.greedy_screen, []

    def stops(prepared, rows, **options):
        calls.append(len(rows))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return screen(prepared, rows, **options)

    monkeypatch.setattr(module, "greedy_screen", stops)
    model = CausalLM.load(checkpoints("gpt2"), device="cpu")
    targets, unseen = read_records(root / "targets.jsonl"), read_records(root / "unseen.jsonl")
    with pytest.raises(KeyboardInterrupt):
        module.audit_recited(model, targets, root / "stopped", control=unseen)
    assert not (root / "stopped" / "findings.json").exists()
    module.audit_recited(model, targets, root / "stopped", control=unseen, records_name="targets.jsonl")
    assert calls == [5, 5, 5, 5, 3]  # two blocks were kept, the third is read again
    for file in ("recited-ids.txt", "records.parquet"):
        assert (root / "stopped" / file).read_bytes() == (root / "whole" / file).read_bytes()


def test_another_run_is_refused_and_an_empty_list_is_a_result(setting, checkpoints, tmp_path, capsys):
    _, command, _, _ = setting
    assert main([*command, "-o", str(tmp_path / "run"), "-q"]) == 0
    assert main([*command, "--suffix", "3", "-o", str(tmp_path / "run"), "-q"]) == 2
    assert "settings" in capsys.readouterr().err
    assert main([*command, "--limit", "1", "-o", str(tmp_path / "one"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "audit-recited"
    assert (tmp_path / "one" / "recited-ids.txt").read_text() == ""
    (tmp_path / "short.jsonl").write_text('{"token_ids": [5], "id": "short"}\n')
    model = str(checkpoints("gpt2"))
    assert main(["audit", "recited", model, str(tmp_path / "short.jsonl"), "-o", str(tmp_path / "short"), "-q"]) == 2
    assert "nothing to score" in capsys.readouterr().err
