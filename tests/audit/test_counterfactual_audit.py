"""Counterfactual memorization of given checkpoints, against the models' own argmaxes."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from rote.cli.audit_counterfactual import read_ids
from rote.cli.main import main

FAMILIES = ("gpt2", "llama", "gpt_neox", "qwen2")


@pytest.fixture(scope="module")
def setting(checkpoints, texts, tmp_path_factory):
    root = tmp_path_factory.mktemp("counterfactual")
    rows = [{"id": f"r{i}", "text": text, "group": "ab"[i % 2]} for i, text in enumerate(texts[:12])]
    (root / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rng = np.random.default_rng(3)
    included = np.array([rng.permutation(4) < 2 for _ in rows]).T
    included[:, 10], included[:, 11] = True, False
    command = ["audit", "counterfactual", str(root / "all.jsonl")]
    for number, family in enumerate(FAMILIES):
        ids = root / f"ids-{number}.txt"
        ids.write_text("".join(f"r{i}\n" for i in np.flatnonzero(included[number])))
        command += ["--model", str(checkpoints(family)), "--seen", str(ids)]
    return root, rows, included, command


def test_every_record_is_accuracy_with_minus_without(setting, checkpoints, tokenizer):
    root, rows, included, command = setting
    assert main([*command, "-o", str(root / "run"), "-q"]) == 0
    accuracy = np.zeros(included.shape)
    for number, family in enumerate(FAMILIES):
        model = AutoModelForCausalLM.from_pretrained(checkpoints(family)).eval()
        for i, row in enumerate(rows):
            ids = torch.tensor([tokenizer(row["text"], add_special_tokens=False)["input_ids"]])
            with torch.no_grad():
                right = model(ids).logits[0, :-1].argmax(-1) == ids[0, 1:]
            accuracy[number, i] = right.float().mean()
    table = pq.read_table(root / "run" / "records.parquet").to_pydict()
    assert table["id"] == [f"r{i}" for i in range(10)]
    for i in range(10):
        inside = included[:, i]
        assert table["memorization"][i] == pytest.approx(
            accuracy[inside, i].mean() - accuracy[~inside, i].mean(), abs=0.02
        )
        assert (table["models_with"][i], table["models_without"][i]) == (2, 2)
    found = json.loads((root / "run" / "findings.json").read_text())
    assert {row["id"]: row["reason"] for row in found["records"]["skipped"]} == {
        "r10": "seen by every model",
        "r11": "seen by no model",
    }
    (measure,) = found["measures"]
    assert measure["values"][0]["value"] == pytest.approx(np.mean(table["memorization"]))
    assert [value.get("group") for value in measure["values"]] == [None, "a", "b"]
    assert found["guards"][0]["status"] == "pass"
    assert rows[0]["text"][:20] not in (root / "run" / "report.html").read_text()
    before = (root / "run" / "findings.json").read_bytes()
    assert main([*command, "-o", str(root / "run"), "-q"]) == 0  # continued: nothing left to do
    assert (root / "run" / "findings.json").read_bytes() == before


def test_what_cannot_be_compared_is_refused(setting, tmp_path, capsys):
    root, _, _, command = setting

    def fails(arguments, words):
        assert main([*arguments, "-o", str(tmp_path / "run")]) == 2
        said = capsys.readouterr().err
        assert words in " ".join(said.split())
        assert not (tmp_path / "run").exists()

    fails(command[:-2], "4 --model but 3 --seen")
    fails(command[:7], "at least two")
    other = tmp_path / "other.txt"
    other.write_text("nobody\n")
    fails([*command[:-1], str(other)], "none of its 1 lines")
    fails([*command[:-1], str(tmp_path / "missing.txt")], "cannot be read")
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    assert read_ids(empty, {"a"}) == frozenset()  # a training that saw none of them
    fails([*command[:7], *command[3:7]], "nothing can be compared")
    assert main([*command[:-1], command[6], "-o", str(root / "run")]) == 2  # other ids: another run
    assert "another run" in capsys.readouterr().err
