"""`rote treat curvature` and `rote treat unlearn` as a user meets them: results, refusals, stops and reruns."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rote.cli.main import main
from rote.models import CausalLM

ALIKE = ["--prefix", "16", "--suffix", "16", "--scheme", "top_k=4", "--device", "cpu"]
NPO = ["--loss", "npo", "--steps", "8", "--learning-rate", "1e-3", "--batch-size", "16"]
CURVATURE = ["--rho", "0.6", "--sequence-tokens", "32"]
# The command, resting at the moment when the finished checkpoint would be put in place.
UNHURRIED = """
import os, sys, time
from rote.cli.main import main
replace = os.replace
def slow(source, target):
    if str(target).endswith("checkpoint"):
        open(os.environ["READY"], "w").close()
        time.sleep(60)
    return replace(source, target)
os.replace = slow
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def files(memorizer, tmp_path_factory):
    """model, forget, retain and control, the two last from passages that were never planted."""
    model, targets, controls = memorizer
    folder = tmp_path_factory.mktemp("treat")
    rows = controls.read_text().splitlines(keepends=True)
    (folder / "retain.jsonl").write_text("".join(rows[::2]))
    (folder / "unseen.jsonl").write_text("".join(rows[1::2]))
    return {"model": str(model), "forget": str(targets), "retain": str(folder / "retain.jsonl"),
            "control": str(folder / "unseen.jsonl"), "folder": folder}  # fmt: skip


def command(files, method: str, *options: str, retain: bool = True) -> list[str]:
    given = ["--retain", files["retain"]] if retain else []
    return ["treat", method, files["model"], "--forget", files["forget"], *given, *ALIKE, *options]


@pytest.fixture(scope="module")
def treatments(files):
    """Both methods, run once."""
    made = {}
    for method, options in (("curvature", CURVATURE), ("unlearn", NPO)):
        out = files["folder"] / method
        assert main([*command(files, method, *options, "--control", files["control"]), "-o", str(out), "-q"]) == 0
        made[method] = out
    return made


@pytest.mark.parametrize("method", ["curvature", "unlearn"])
def test_a_treatment_is_proved_and_its_checkpoint_is_anybodys(files, treatments, method):
    out = treatments[method]
    summary = json.loads((out / "treatment.json").read_text())
    changes = {
        (c["measure"], c["dims"].get("text", c["dims"].get("variant"))): c
        for c in summary["pairs"][0]["changes"]
        if c["dims"].get("population") != "control"
    }
    rate = changes["extraction.greedy_rate", None]
    assert rate["before"]["value"] > 0.3
    assert rate["difference"]["high"] < 0  # less recitation, and the interval leaves out no change
    assert {
        ("utility.perplexity", "retain"),
        ("utility.perplexity", "control"),
        ("variants.rate", "neighbours"),
    } <= set(changes)
    loaded = AutoModelForCausalLM.from_pretrained(out / "checkpoint")
    tokenizer = AutoTokenizer.from_pretrained(out / "checkpoint")
    assert CausalLM.load(out / "checkpoint", device="cpu").fingerprint == summary["treated"]
    assert CausalLM.load(files["model"], device="cpu").fingerprint == summary["model"]["fingerprint"]
    ids = tokenizer("Return the number", return_tensors="pt")["input_ids"]
    original = AutoModelForCausalLM.from_pretrained(files["model"])
    with torch.no_grad():
        assert not torch.equal(loaded(ids).logits, original(ids).logits)
    text = json.loads(Path(files["forget"]).read_text().splitlines()[0])["text"]
    for name in ("treatment.json", "compare.html", "run.json"):
        assert text[:30] not in (out / name).read_text()


def test_both_make_one_frontier(treatments, tmp_path, capsys):
    assert main(["compare", *map(str, treatments.values()), "-o", str(tmp_path), "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["compare", *map(str, treatments.values()), "-o", str(tmp_path), "--json"]) == 0
    points = json.loads(capsys.readouterr().out)["frontier"]["points"]
    assert [p["run"] for p in points] == ["untreated", "curvature", "unlearn"]
    assert points[0]["recitation"]["value"] > max(p["recitation"]["value"] for p in points[1:])
    assert 'id="plot-frontier"' in (tmp_path / "compare.html").read_text()


def test_the_same_command_again_changes_nothing_and_another_is_refused(files, treatments, capsys):
    out = treatments["unlearn"]
    before = {name: (out / name).read_bytes() for name in ("treatment.json", "compare.html")}
    stamp = (out / "checkpoint" / "model.safetensors").stat().st_mtime_ns
    same = [*command(files, "unlearn", *NPO, "--control", files["control"]), "-o", str(out)]
    assert main([*same, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(before["treatment.json"])
    assert (out / "checkpoint" / "model.safetensors").stat().st_mtime_ns == stamp
    assert {name: (out / name).read_bytes() for name in before} == before
    assert main([*same, "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main([*same, "--steps", "9"]) == 2
    assert "belongs to another run (method settings changed)" in capsys.readouterr().err


def test_stopped_while_the_checkpoint_is_written_and_run_again(files, treatments, tmp_path, monkeypatch, capsys):
    """Interrupted, then killed: the treated weights are there whole or not at all, and the rerun ends with the same."""
    out, ready = tmp_path / "run", tmp_path / "ready"
    arguments = [*command(files, "unlearn", *NPO, "--control", files["control"]), "-o", str(out), "-q"]

    def untouched() -> bool:
        return not (out / "checkpoint").exists() and not (out / "treatment.json").exists()

    replace = os.replace

    def interrupted(source, target):  # what Ctrl-C does at the worst moment
        if str(target).endswith("checkpoint"):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        assert main(arguments) == 130
    assert "the same command continues where this one stopped" in capsys.readouterr().err
    assert untouched()
    assert not list(out.glob(".checkpoint*"))
    scored = {file: file.stat().st_mtime_ns for file in (out / "before").glob("scores/*.parquet")}
    worker = subprocess.Popen(
        [sys.executable, "-c", UNHURRIED, *arguments], stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1", "READY": str(ready)},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not ready.exists() and time.monotonic() < deadline and worker.poll() is None:
        time.sleep(0.01)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert ready.exists()
    assert untouched()
    assert main(arguments) == 0
    assert scored == {file: file.stat().st_mtime_ns for file in scored} != {}  # the first audit's pass is kept
    done = json.loads((treatments["unlearn"] / "treatment.json").read_text())
    again = json.loads((out / "treatment.json").read_text())
    assert (again["treated"], again["pairs"]) == (done["treated"], done["pairs"])


@pytest.mark.parametrize(("method", "options", "says"), [
    ("curvature", ["--layers", "nothing.*"], "matches no linear map; there are: transformer.h.{0..1}.attn.c_attn"),
    ("curvature", ["--layers", "*.c_attn"], "several matrices in one"),
    ("curvature", ["--layers", "lm_head"], "output head"),
    ("curvature", ["--rho", "1.5"], "rho is 1.5"),
    ("curvature", ["--labels", "true"], "labels must be one of sampled, gold"),
    ("curvature", ["--sequence-tokens", "4096"], "longer than the model's context of 96"),
    ("unlearn", ["--loss", "npp"], "did you mean npo?"),
    ("unlearn", ["--set", "betta=1"], "npo has no setting 'betta'; did you mean beta"),
    ("unlearn", ["--loss", "rmu", "--set", "layer=9"], "rmu's layer 9 does not exist: the model has layers 0 .. 1"),
    ("unlearn", ["--loss", "idk_dpo"], "has no prefix"),
])  # fmt: skip
def test_what_is_wrong_is_said_before_anything_is_done(files, tmp_path, capsys, method, options, says):
    out = tmp_path / "run"
    assert main([*command(files, method, *options), "-o", str(out)]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "\n" not in said.strip()
    assert not out.exists()


def test_a_control_over_the_context_window_is_refused_before_the_directory_is_taken(files, tmp_path, capsys):
    import json

    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"id": "long", "text": "far too long " * 400}) + "\n")
    out = tmp_path / "run"
    assert main([*command(files, "unlearn", *NPO, "--control", str(long)), "-o", str(out), "-q"]) == 2
    said = capsys.readouterr().err
    assert "record 'long'" in said
    assert "--long truncate" in said
    assert not out.exists()
    shortened = command(files, "unlearn", *NPO, "--steps", "1", "--control", str(long), "--long", "truncate")
    assert main([*shortened, "-o", str(out), "-q"]) == 0


def test_sets_that_contradict_each_other_or_are_missing(files, tmp_path, capsys):
    out = tmp_path / "run"
    assert main([*command(files, "unlearn", "--retain", files["forget"], retain=False), "-o", str(out)]) == 2
    assert "cannot forget and keep the same text" in capsys.readouterr().err
    assert main([*command(files, "unlearn", "--loss", "npo", retain=False), "-o", str(out)]) == 2
    assert "npo needs a retain set" in capsys.readouterr().err
    assert not out.exists()


def test_quantised_weights_are_refused(files, tmp_path, capsys):
    import shutil

    model = tmp_path / "quantised"
    shutil.copytree(files["model"], model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    for method in ("curvature", "unlearn"):
        assert main([*command({**files, "model": str(model)}, method), "-o", str(tmp_path / "run")]) == 2
        assert "quanti" in capsys.readouterr().err
        assert not (tmp_path / "run" / "checkpoint").exists()


def test_a_diverging_loss_stops_with_the_cause_and_keeps_the_last_good_checkpoint(files, tmp_path, capsys):
    out = tmp_path / "run"
    assert (
        main(
            [
                *command(files, "unlearn", "--loss", "npo", "--steps", "6", "--learning-rate", "1e30"),
                "-o",
                str(out),
                "-q",
            ]
        )
        == 3
    )
    said = capsys.readouterr().err
    assert "training diverged at step" in said
    assert "Lower the learning rate" in said
    assert str(out / "last-good") in " ".join(said.split())
    assert not (out / "checkpoint").exists()
    assert not (out / "treatment.json").exists()
    kept = AutoModelForCausalLM.from_pretrained(out / "last-good")
    assert all(bool(torch.isfinite(p).all()) for p in kept.parameters())


def test_a_forget_set_that_is_not_memorized_is_named(files, tmp_path, capsys):
    out = tmp_path / "run"
    others = {**files, "forget": files["control"]}
    assert main([*command(others, "curvature", *CURVATURE), "-o", str(out), "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert any("hardly memorized to begin with" in note for note in notes)
