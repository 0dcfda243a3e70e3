"""The bed end to end at toy size: what is built, what arms share, that reported numbers are the definitions'."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from rote.cli.testbed import parse_levels, parse_window
from rote.cli.testbed import testbed_app as commands
from rote.errors import InputError, RunMismatchError
from rote.records.planting import read_log
from rote.testbed.bed import Bed, BedSettings, encode
from rote.testbed.build import build, read_corpus
from rote.testbed.findings import to_findings
from rote.testbed.report import BedReport, report
from rote.testbed.scoring import load_arm, score_ids, trained_arms
from rote.testbed.train import Arm, parse_arm, train_arms
from rote.testbed.unlearning import METHODS, UnlearningConfig, unlearn

SIZES = {"vocab_size": 400, "sequence_tokens": 25, "batch_size": 4, "steps": 400, "passages": 40, "passage_tokens": 16}
MODEL = {"width": 48, "layers": 1, "heads": 2, "learning_rate": 5e-3}
SETTINGS = BedSettings(**SIZES, **MODEL, unseen_passages=20, weights={0: 16, 1: 8, 16: 8, 128: 8})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Sentences over a small vocabulary: enough structure to learn, no two documents alike."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    words = [f"{a}{b}" for a in ("ba", "do", "ki", "lu", "me", "so") for b in ("ran", "til", "von", "zek", "pum")]
    texts = [" ".join(rng.choice(words, rng.integers(12, 40))) + "." for _ in range(300)]
    for number, text in enumerate(texts[:50]):
        (folder / f"{number:03d}.txt").write_text(text)
    (folder / "more.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[50:]))
    return folder


@pytest.fixture(scope="module")
def bed(corpus, tmp_path_factory):
    made = build(tmp_path_factory.mktemp("bed") / "bed", settings=SETTINGS, corpus=corpus)
    train_arms(made, ["standard", "perturbed"], workers=1)
    return made


def test_a_bed_holds_what_it_says(bed):
    manifest = bed.manifest
    stream = np.load(bed.path / "stream.npy")
    assert stream.shape == (400 * 4, 25)
    assert manifest["level_counts"] == {"0": 16, "1": 8, "16": 8, "128": 8}
    assert manifest["copies"] == 8 + 16 * 8 + 128 * 8 == len(list(read_log(bed.path / "copies.jsonl")))
    assert [row["member"] for row in bed.probes] == (bed.duplicates > 0).tolist()
    assert all(len(ids) == 16 for ids in bed.probe_tokens)
    assert bed.unseen.shape == (20, 25)


def test_probes_with_no_copies_are_nowhere_in_training(bed):
    planted, log = bed.planted_stream(window=(0.0, 1.0))
    assert log == list(read_log(bed.path / "copies.jsonl"))
    flat = planted.astype("<i4").tobytes()
    for ids, copies in zip(bed.probe_tokens, bed.duplicates, strict=True):
        rows = np.lib.stride_tricks.sliding_window_view(planted, 16, axis=1)
        assert int((rows == ids).all(-1).sum()) == copies
    assert len(flat) == bed.clean_stream().astype("<i4").nbytes  # the same token budget


def test_arms_share_everything_but_their_copies(bed):
    clean = bed.clean_stream()
    early, log = bed.planted_stream(window=(0.0, 0.75))
    touched = {copy.slot for copy in log}
    assert max(touched) < 0.75 * len(clean)
    rest = [row for row in range(len(clean)) if row not in touched]
    assert np.array_equal(early[rest], clean[rest])
    longer = bed.clean_stream(2)
    assert len(longer) == 2 * len(clean)
    assert np.array_equal(longer[: len(clean)], clean)


def test_the_same_request_is_reused_and_another_is_refused(bed, corpus):
    before = (bed.path / "stream.npy").stat().st_mtime_ns
    assert build(bed.path, settings=SETTINGS, corpus=corpus).fingerprint == bed.fingerprint
    assert (bed.path / "stream.npy").stat().st_mtime_ns == before
    with pytest.raises(RunMismatchError, match="other settings"):
        build(bed.path, settings=BedSettings(**SIZES, **MODEL, seed=1), corpus=corpus)


def test_the_draw_depends_on_the_seed_only(bed, corpus, tmp_path):
    again = build(tmp_path / "again", settings=SETTINGS, corpus=corpus)
    assert again.fingerprint == bed.fingerprint
    assert (again.path / "copies.jsonl").read_bytes() == (bed.path / "copies.jsonl").read_bytes()


def test_a_directory_of_something_else_is_left_alone(corpus, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunMismatchError, match="not a test bed"):
        build(tmp_path, settings=SETTINGS, corpus=corpus)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(InputError, match="rote testbed build"):
        Bed.open(tmp_path)


def test_given_probes_keep_their_text_lose_their_counts_and_drop_contaminated_documents(corpus, tmp_path):
    inside = (corpus / "007.txt").read_text()
    probes = tmp_path / "probes.jsonl"
    rows = [{"id": f"p{i}", "text": f"my own secret number {i} is {i * 7919}", "duplicates": 99} for i in range(7)]
    rows.append({"id": "contaminated", "text": inside[: inside.index(" ", 60)]})
    probes.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = BedSettings(
        **(SIZES | {"sequence_tokens": 80, "steps": 30}), **MODEL, unseen_passages=5, weights={0: 1, 4: 1}
    )
    made = build(tmp_path / "bed", settings=settings, corpus=corpus, probes=probes)
    assert [row["id"] for row in made.probes] == [row["id"] for row in rows]
    assert sorted(row["duplicates"] for row in made.probes) == [0] * 4 + [4] * 4
    assert made.manifest["documents_dropped"] == 1


def test_bad_corpora_name_file_and_line(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        list(read_corpus(tmp_path / "none"))
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"body": 1}\n')
    with pytest.raises(InputError, match=r"a\.jsonl, line 2: no field `text`"):
        list(read_corpus(tmp_path))
    (tmp_path / "a.jsonl").write_text("{oops\n")
    with pytest.raises(InputError, match="line 1: not JSON"):
        list(read_corpus(tmp_path))
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        list(read_corpus(tmp_path))


def test_a_probe_too_long_for_a_sequence_is_named(corpus, tmp_path):
    (tmp_path / "p.jsonl").write_text(json.dumps({"id": "long-one", "text": "word " * 60}) + "\n")
    with pytest.raises(InputError, match=r"probe long-one has .* set sequence_tokens to at least"):
        build(tmp_path / "bed", settings=SETTINGS, corpus=corpus, probes=tmp_path / "p.jsonl")
    assert not (tmp_path / "bed").exists()


def test_a_text_that_spells_the_end_out_is_plain_text(bed):
    ids = encode(bed.tokenizer, ["a <|endoftext|> b"])[0]
    assert bed.eos_id not in ids
    assert bed.tokenizer.decode(ids) == "a <|endoftext|> b"


def test_an_arm_is_an_ordinary_checkpoint_and_is_not_trained_twice(bed):
    path = bed.path / "arms" / "perturbed"
    model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) <= 400
    before = (path / "model.safetensors").stat().st_mtime_ns
    train_arms(bed, ["standard", "perturbed"], workers=1)
    assert (path / "model.safetensors").stat().st_mtime_ns == before
    assert trained_arms(bed) == ["standard", "perturbed"]
    assert not list((bed.path / "arms").glob(".*"))


@pytest.mark.slow
def test_worker_processes_give_the_same_weights_as_this_one(bed, tmp_path):
    other = tmp_path / "bed"
    shutil.copytree(bed.path, other, ignore=shutil.ignore_patterns("arms"))
    steps = []
    train_arms(
        Bed.open(other), ["standard", "perturbed"], workers=2, progress=lambda arm, step, of: steps.append((arm, step))
    )
    for arm in ("standard", "perturbed"):
        files = [root / "arms" / arm / "model.safetensors" for root in (bed.path, other)]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert {arm for arm, _ in steps} == {"standard", "perturbed"}


def test_arms_of_another_bed_are_refused(bed, tmp_path):
    other = tmp_path / "bed"
    shutil.copytree(bed.path, other)
    manifest = json.loads((other / "bed.json").read_text())
    (other / "bed.json").write_text(json.dumps(manifest | {"fingerprint": "0" * 64}))
    with pytest.raises(RunMismatchError, match="another bed"):
        train_arms(Bed.open(other), ["standard"], workers=1)


def test_arm_names():
    assert parse_arm("standard") == Arm("standard", None)
    assert parse_arm("perturbed", window=(0.2, 0.4)) == Arm("perturbed", (0.2, 0.4))
    assert parse_arm("early") == Arm("early:0-25", (0.0, 0.25))
    assert parse_arm("late:75-100") == Arm("late:75-100", (0.75, 1.0))
    assert parse_arm("dilute:x5") == Arm("dilute:x5", (0.0, 1.0), 5)
    assert parse_arm("late").folder == "late_75-100"
    for bad in ("", "sometimes", "early:25-0", "early:0-101", "dilute:x0", "dilute:2", "../x:0-5", "Early:0-5"):
        with pytest.raises(InputError):
            parse_arm(bad)


@pytest.fixture(scope="module")
def tables(bed):
    return report(bed, unlearning=UnlearningConfig(steps=20)).tables


def test_reported_losses_are_the_models_own(bed, tables):
    model = AutoModelForCausalLM.from_pretrained(bed.path / "arms" / "perturbed", local_files_only=True).eval()
    rows = np.array([np.concatenate([[bed.eos_id], ids]) for ids in bed.probe_tokens])
    batch = torch.from_numpy(rows.astype(np.int64))
    with torch.no_grad():
        logits = model(input_ids=batch[:, :-1]).logits
    token_nll = -torch.log_softmax(logits, -1).gather(-1, batch[:, 1:, None])[..., 0].numpy()
    greedy = (logits.argmax(-1) == batch[:, 1:]).numpy()
    size = np.array([len(row["text"].encode()) for row in bed.probes])
    for row in tables["dose_response"]:
        if row["arm"] == "perturbed":
            chosen = bed.duplicates == row["duplicates"]
            assert row["n"] == chosen.sum()
            assert row["nll"] == pytest.approx(token_nll[chosen].mean(), abs=1e-4)
            assert row["ll_per_byte"] == pytest.approx((-token_nll.sum(1) / size)[chosen].mean(), abs=1e-4)
            assert row["low"] <= row["nll"] <= row["high"]
    for row in tables["verbatim"]:
        if row["arm"] == "perturbed":
            chosen = bed.duplicates == row["duplicates"]
            assert row["exact_match"] == pytest.approx(greedy[chosen, 8:].all(1).mean())
    rows = torch.from_numpy(bed.unseen.astype(np.int64))  # as in the stream: nothing in front, the first one is given
    with torch.no_grad():
        logits = model(input_ids=rows[:, :-1]).logits
    expected = float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).exp())
    (unseen,) = [row for row in tables["unseen"] if row["arm"] == "perturbed"]
    assert unseen["perplexity"] == pytest.approx(expected, rel=1e-4)


def test_verbatim_by_teacher_forcing_is_what_generation_recites(bed, tables):
    arm = load_arm(bed, parse_arm("perturbed"))
    ids = np.array([np.concatenate([[bed.eos_id], ids]) for ids in bed.probe_tokens])
    prompt = torch.from_numpy(ids[:, : 1 + 8].astype(np.int64))
    made = arm.hf.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=8,
        min_new_tokens=8,
        do_sample=False,
        pad_token_id=0,
    )
    exact = (made.numpy() == ids).all(1)
    for row in tables["verbatim"]:
        if row["arm"] == "perturbed":
            assert row["exact_match"] == pytest.approx(exact[bed.duplicates == row["duplicates"]].mean())


def test_copies_are_memorized_in_the_perturbed_arm_only(tables):
    nll = {(row["arm"], row["duplicates"]): row["nll"] for row in tables["dose_response"]}
    assert nll["perturbed", 128] < nll["perturbed", 16] < nll["perturbed", 0]
    assert nll["perturbed", 128] < 0.5 * nll["standard", 128]
    auroc = {(row["arm"], row["attack"], row["duplicates"]): row for row in tables["mia"]}
    assert auroc["perturbed", "loss", 128]["auroc"] > 0.95
    assert auroc["standard", "loss", "any"]["low"] < 0.5 < auroc["standard", "loss", "any"]["high"]
    assert ("standard", "reference", "any") not in auroc
    assert {row["arm"] for row in tables["unseen"]} == {"standard", "perturbed"}


def test_the_three_way_table_has_its_anchors_and_judges_each_method(tables):
    rows = {row["method"]: row for row in tables["unlearning"]}
    assert set(rows) == {"standard", "perturbed", *METHODS}
    assert [rows["standard"][f"n_{name}"] for name in ("forget", "keep", "test")] == [8, 8, 16]
    assert rows["perturbed"]["forget"] < rows["standard"]["forget"]
    for method in METHODS:
        row = rows[method]
        forgotten = abs(row["forget"] / rows["standard"]["forget"] - 1) <= 0.10
        kept = all(abs(row[name] / rows["perturbed"][name] - 1) <= 0.05 for name in ("keep", "test"))
        assert row["passes"] == (forgotten and kept)


@pytest.mark.parametrize("method", METHODS)
def test_unlearning_raises_the_loss_of_what_is_forgotten(bed, method):
    rows = np.array([np.concatenate([[bed.eos_id], ids]) for ids in bed.probe_tokens])
    forget, retain = (rows[bed.duplicates == 128][part] for part in (slice(0, 4), slice(4, 8)))
    model = load_arm(bed, parse_arm("perturbed"))
    before = -np.nanmean(score_ids(model, forget[:, 1:].tolist()).logp)
    changed = load_arm(bed, parse_arm("perturbed"))
    unlearn(changed.hf, forget, retain, method=method, config=UnlearningConfig(steps=40, learning_rate=3e-3), seed=0)
    fresh = type(changed)(changed.hf, bed.tokenizer, bos="always")
    after = -np.nanmean(score_ids(fresh, forget[:, 1:].tolist()).logp)
    assert after > before + 0.05
    with pytest.raises(InputError, match="unknown unlearning method"):
        unlearn(changed.hf, forget, retain, method="hope")  # type: ignore[arg-type]


def test_the_report_refuses_what_is_not_there(bed):
    with pytest.raises(InputError, match="unknown metric"):
        report(bed, metrics=("luck",))
    with pytest.raises(InputError, match="is not trained: run"):
        report(bed, arms=["late"])


def test_biographies_are_asked_for_at_every_strength(corpus, tmp_path):
    sizes = SIZES | {"passages": 4, "sequence_tokens": 400, "batch_size": 2, "steps": 12}
    settings = BedSettings(**sizes, **MODEL, unseen_passages=2, biographies=8, weights={0: 2, 1: 1, 2: 1})
    made = build(tmp_path / "bed", settings=settings, corpus=corpus)
    assert [person.text for person in made.people] == [r["text"] for r in made.probes if r["group"] == "biography"]
    train_arms(made, ["perturbed"], workers=1)
    rows = report(made, metrics=("choice",)).tables["choice"]
    asked = {(row["field"], row["strength"]) for row in rows}
    assert len(asked) == 7 * 4
    for field, strength in asked:
        mine = [row for row in rows if (row["field"], row["strength"]) == (field, strength)]
        assert sum(row["n"] for row in mine) == 8
        assert all(0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1 for row in mine)
    assert {round(row["chance"], 3) for row in rows if row["field"] == "email"} == {0.1}


def test_findings_are_valid_and_hold_no_text(bed, tables):
    from rote.report import dumps, parse

    found = parse(to_findings(bed, BedReport(bed.fingerprint, ("standard", "perturbed"), tables)))
    assert {measure.name for measure in found.measures} == {"dose.loss", "membership.auroc", "extraction.greedy_rate"}
    text = dumps(found)
    assert not any(row["text"] in text for row in bed.probes)


def test_the_command_line_builds_trains_and_reports(corpus, tmp_path):
    run, out = CliRunner(), tmp_path / "bed"
    flags = [
        "--corpus",
        str(corpus),
        "--passages",
        "16",
        "--passage-tokens",
        "12",
        "--sequence-tokens",
        "20",
        "--steps",
        "20",
        "--vocab-size",
        "400",
        "--width",
        "16",
        "--layers",
        "1",
        "--heads",
        "2",
        "--levels",
        "0,1,4",
        "--batch-size",
        "4",
    ]
    built = run.invoke(commands, ["build", "-o", str(out), *flags, "--json", "--seed", "3"])
    assert built.exit_code == 0, built.output
    assert json.loads(built.stdout)["level_counts"] == {"0": 8, "1": 4, "4": 4}
    trained = run.invoke(commands, ["train", str(out), "--arms", "standard,perturbed", "--workers", "1", "--json"])
    assert trained.exit_code == 0, trained.output
    assert set(json.loads(trained.stdout)) == {"standard", "perturbed"}
    told = run.invoke(commands, ["report", str(out), "--metrics", "ll,generate,mia", "-q"])
    assert told.exit_code == 0, told.output
    names = {path.name for path in (out / "report").iterdir()}
    assert {"findings.json", "report.html", "dose_response.csv", "mia.csv", "verbatim.csv"} <= names


def test_flags_are_parsed_or_refused():
    assert parse_levels("0,1,4,16,64,256") == {0: 28, 1: 10, 4: 10, 16: 5, 64: 2, 256: 1}
    assert parse_levels("0,3") == {0: 1, 3: 1}
    assert parse_levels("0:2,8:1.5") == {0: 2, 8: 1.5}
    assert parse_window("0.75:1") == (0.75, 1.0)
    for bad in ("x", "1:y", "1,,2"):
        with pytest.raises(InputError):
            parse_levels(bad)
    with pytest.raises(InputError):
        parse_window("half")
