"""`rote audit unlearning`: every part of it on a small model, what is kept on a rerun, and what its verdicts say."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rote.audit.unlearning import RECOVERED, documents_of, verdicts
from rote.cli.main import main
from rote.controls.editing.unlearning import quantised
from rote.controls.editing.unlearning.relearn import halves
from rote.errors import InputError
from rote.models import CausalLM
from rote.records import RecordTable, read_records
from rote.report.unlearning_html import _figures, render_unlearning

ALIKE = ["--prefix", "16", "--suffix", "16", "--scheme", "top_k=4", "--device", "cpu"]
QUICK = ["--k", "2", "--classifier", "logistic", "--relearn-steps", "1,3", "--relearn-rate", "1e-3"]


@pytest.fixture(scope="module")
def files(memorizer, tmp_path_factory):
    """before (recites), after (its last norm damped: as greedy, less sure), oracle (other weights), the three sets."""
    model, targets, controls = memorizer
    folder = tmp_path_factory.mktemp("unlearned")
    damped = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        for parameter in damped.get_submodule("transformer.ln_f").parameters():
            parameter.mul_(0.3)
        other = copy.deepcopy(damped)
        for parameter in other.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    for name, hf in (("after", damped), ("oracle", other)):
        hf.save_pretrained(folder / name)
        CausalLM.load(model, device="cpu").tokenizer.save_pretrained(folder / name)
    rows = controls.read_text().splitlines(keepends=True)
    (folder / "retain.jsonl").write_text("".join(rows[:10]))
    (folder / "holdout.jsonl").write_text("".join(rows[10:20]))
    places = {name: str(folder / name) for name in ("after", "oracle")}
    sets = {name: str(folder / f"{name}.jsonl") for name in ("retain", "holdout")}
    return {"before": str(model), "forget": str(targets), **places, **sets, "folder": folder}


def command(files, *options: str) -> list[str]:
    sets = [part for name in ("forget", "retain", "holdout") for part in (f"--{name}", files[name])]
    return ["audit", "unlearning", files["before"], files["after"], *sets, *ALIKE, *QUICK, *options]


@pytest.fixture(scope="module")
def run(files):
    out = files["folder"] / "run"
    assert main([*command(files, "--oracle", files["oracle"]), "-o", str(out), "-q"]) == 0
    return out, json.loads((out / "unlearning.json").read_text())


def test_every_part_is_there_for_every_model(run):
    out, result = run
    assert set(result["models"]) == set(result["figures"]) == {"before", "after", "oracle"}
    assert result["counts"] == {"forget": 30, "retain": 10, "holdout": 10}
    assert set(result["remind"]["pairs"]) == {"retained / forgotten", "retained / holdout", "forgotten / holdout"}
    assert result["remind"]["queries"] == 50 * (1 + 3 * 2)
    assert result["remind"]["oracle"]["pairs"].keys() == result["remind"]["pairs"].keys()
    assert [row["bits"] for row in result["attacks"]["quantisation"]] == [8, 4]
    assert [curve["name"] for curve in result["attacks"]["relearning"]] == ["after", "oracle"]
    assert [curve["steps"] for curve in result["attacks"]["relearning"]] == [[0, 1, 3]] * 2
    assert (out / "compare.html").exists()
    page = (out / "unlearning.html").read_text()
    assert 'id="plot-relearning"' in page
    assert "REMIND" in page


def test_attacks_are_direct_computations(run, files):
    """Extraction strength of the model as it is, rounded, and before any relearning: from greedy verdicts, by loops."""
    _, result = run
    forget = read_records(files["forget"])

    def strength(model: CausalLM, records: RecordTable) -> float:
        found = []
        for encoding in model.encode(records.column("text")):
            ids = torch.tensor([encoding.ids[: model.context_length]])
            with torch.no_grad():
                right = (model.hf(ids).logits[0, :-1].argmax(-1) == ids[0, 1:]).tolist()
            k = next((k for k in range(len(right)) if all(right[k:])), len(right))
            found.append(1 - k / len(right))
        return float(np.mean(found))

    for name in ("before", "after", "oracle"):
        model = CausalLM.load(files[name], device="cpu", dtype="float32")
        assert result["attacks"]["extraction_strength"][name] == pytest.approx(strength(model, forget), abs=1e-6)
        _, asked = halves(forget, groups=documents_of(forget))
        for curve in result["attacks"]["relearning"]:
            if curve["name"] == name:
                assert curve["values"][0] == pytest.approx(strength(model, asked), abs=1e-6)
        if name == "after":
            for row in result["attacks"]["quantisation"]:
                with quantised(model, bits=row["bits"]) as coarse:
                    assert row["extraction_strength"] == pytest.approx(strength(coarse, forget), abs=1e-6)
        if name == "before":
            level = result["attacks"]["recovery"]["level"]
            assert level == pytest.approx(RECOVERED * strength(model, asked), abs=1e-6)


def test_no_contents_and_the_same_command_keeps_finished_parts(run, files, capsys):
    out, result = run
    texts = [
        json.loads(line)["text"][:30] for name in ("forget", "retain", "holdout") for line in open_lines(files[name])
    ]
    for name in ("unlearning.json", "unlearning.html", "compare.html"):
        content = (out / name).read_text()
        assert not any(text in content for text in texts), name
    stamps = {file: file.stat().st_mtime_ns for file in (out / "parts").iterdir()}
    assert len(stamps) == 5
    (out / "unlearning.json").unlink()
    same = [*command(files, "--oracle", files["oracle"]), "-o", str(out)]
    assert main([*same, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["attacks"] == result["attacks"]
    assert stamps == {file: file.stat().st_mtime_ns for file in (out / "parts").iterdir()}
    assert main([*same, "--k", "3"]) == 2
    assert "belongs to another run (unlearning changed)" in capsys.readouterr().err


def open_lines(path: str) -> list[str]:
    with open(path, encoding="utf-8") as file:
        return file.read().splitlines()


def test_too_few_records_and_bad_steps_are_refused(files, tmp_path, capsys):
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(open_lines(files["holdout"])[:9]) + "\n")
    assert main([*command({**files, "holdout": str(few)}), "-o", str(tmp_path / "x")]) == 2
    assert "the holdout set has 9 records; at least 10 are needed" in capsys.readouterr().err
    assert main([*command(files), "--relearn-steps", "five", "-o", str(tmp_path / "x")]) == 2
    assert "give numbers like 5,15,30,60, or none" in capsys.readouterr().err
    wrong = [
        ("--k", "0", "k of 1 or more"),
        ("--classifier", "svm", "unknown classifier 'svm'"),
        ("--relearn-steps", "5,3", "must rise from 1"),
        ("--relearn-rate", "0", "above 0"),
    ]
    for option, value, says in wrong:
        assert main([*command(files), option, value, "-o", str(tmp_path / "x")]) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_kinds_of_records_are_not_taken_for_documents():
    def table(groups) -> RecordTable:
        return RecordTable.from_rows({"id": str(i), "text": f"text {i}", "group": g} for i, g in enumerate(groups))

    kinds = table(["person", "passage"] * 20)
    assert documents_of(kinds) == [None] * 40
    taught, asked = halves(kinds, groups=documents_of(kinds))
    assert {len(taught), len(asked)} == {20}
    assert set(taught.column("group")) == set(asked.column("group")) == {"person", "passage"}
    authors = table([f"author {i // 4}" for i in range(40)])
    assert documents_of(authors) == authors.column("group")
    taught, asked = halves(authors, groups=documents_of(authors))
    assert not set(taught.column("group")) & set(asked.column("group"))
    with pytest.raises(InputError, match="at least two records"):
        halves(table(["one"] * 3))


def said(strength, *, rounding=(), recovery=None, remind=None) -> dict[str, str]:
    """Level of each verdict on made-up numbers."""
    result = {
        "attacks": {
            "extraction_strength": strength,
            "quantisation": [{"bits": bits, "extraction_strength": value} for bits, value in rounding],
            "recovery": recovery or {},
        },
        "remind": remind or {"skipped": "no tokenizer"},
    }
    return {row["about"]: row["level"] for row in verdicts(result)}


def test_verdicts():
    forgotten, kept = {"before": 1.0, "after": 0.12, "oracle": 0.1}, {"before": 1.0, "after": 0.6, "oracle": 0.1}
    assert said(forgotten)["extraction"] == "low"
    assert said(kept)["extraction"] == "high"
    assert said({"before": 1.0, "after": 0.1})["oracle"] == "medium"  # without an oracle no figure has a known target
    assert "oracle" not in said(forgotten)
    assert said(forgotten, rounding=[(8, 0.13), (4, 0.3)])["quantisation"] == "high"
    assert "quantisation" not in said(forgotten, rounding=[(8, 0.13), (4, 0.16)])
    assert said(forgotten, recovery={"after": 10.0, "oracle": 40.0, "level": 0.5})["relearning"] == "high"
    assert said(forgotten, recovery={"after": 10.0, "oracle": None, "level": 0.5})["relearning"] == "high"
    assert said(forgotten, recovery={"after": 38.0, "oracle": 40.0, "level": 0.5})["relearning"] == "low"
    assert said(forgotten, recovery={"after": None, "oracle": 40.0, "level": 0.5})["relearning"] == "low"
    assert "relearning" not in said(kept, recovery={"after": 0.0, "oracle": 40.0, "level": 0.5})  # it never went
    pair = {"landscape": 0.7, "landscape_low": 0.6, "landscape_high": 0.8, "pointwise": 0.5}
    assert said(forgotten, remind={"pairs": {"forgotten / holdout": pair}})["remind"] == "medium"
    assert said(forgotten, remind={"pairs": {"forgotten / holdout": pair | {"landscape_low": 0.45}}})["remind"] == "low"
    oracle = {"pairs": {"forgotten / holdout": pair}}
    found = verdicts({
        "attacks": {"extraction_strength": kept, "quantisation": [], "recovery": {}},
        "remind": {"pairs": {"forgotten / holdout": pair}, "oracle": oracle},
    })  # fmt: skip
    assert any("the sets themselves differ" in row["text"] for row in found)
    levels = [row["level"] for row in verdicts({
        "attacks": {"extraction_strength": kept, "quantisation": [], "recovery": {}}, "remind": {"skipped": "x"},
    })]  # fmt: skip
    assert levels == sorted(levels, key=["high", "medium", "low"].index)  # the worst first


def test_the_page_escapes_names(run):
    _, result = run
    hostile = json.loads(json.dumps(result))
    hostile["models"]["after"]["name"] = "<script>alert(1)</script>"
    assert sum(len(rows) for _, rows in _figures(result, ["before", "after", "oracle"])) == len(
        result["figures"]["after"]["figures"]
    )
    hostile["verdicts"][0]["text"] = "</script><img src=x onerror=alert(1)>"
    page = render_unlearning(hostile)
    assert "<script>alert(1)" not in page
    assert "<img src=x" not in page
