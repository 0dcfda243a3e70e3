"""Arms with half of the texts, and arms with altered copies: what stands in their streams, and what is made of them."""

import csv
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rote.cli.main import main
from rote.errors import InputError
from rote.records.planting import plant
from rote.testbed.bed import Bed
from rote.testbed.contrast_tables import counterfactual_tables, mosaic_table, possible
from rote.testbed.contrasts import altered, half_of
from rote.testbed.train import Arm, parse_arm

ALL = (0.0, 1.0)


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A bed with the arms of both contrasts, built, trained and reported from the command line."""
    root = tmp_path_factory.mktemp("contrasts")
    (root / "corpus").mkdir()
    rng = np.random.default_rng(0)
    words = [f"{a}{b}" for a in ("ba", "do", "ki", "lu", "me", "so") for b in ("ran", "til", "von", "zek", "pum")]
    for number in range(200):
        (root / "corpus" / f"{number:03d}.txt").write_text(" ".join(rng.choice(words, rng.integers(12, 40))) + ".")
    path = root / "bed"
    sizes = "--passages 32 --passage-tokens 12 --levels 0:16,1:8,8:8 --steps 80 --batch-size 4 --sequence-tokens 21"
    shape = "--vocab-size 400 --width 32 --layers 1 --heads 2 --learning-rate 5e-3"
    build = [
        "testbed",
        "build",
        "--corpus",
        str(root / "corpus"),
        "-o",
        str(path),
        *sizes.split(),
        *shape.split(),
        "-q",
    ]
    assert main(build) == 0
    assert (
        main(
            [
                "testbed",
                "train",
                str(path),
                "--arms",
                "standard,perturbed,half:1,half:2,mosaic:3",
                "--workers",
                "1",
                "-q",
            ]
        )
        == 0
    )
    assert main(["testbed", "report", str(path), "--metrics", "ll,counterfactual,mosaic", "-q"]) == 0
    return Bed.open(path)


def test_halves_are_complements_and_differ_from_split_to_split():
    first, second, third = (half_of(11, number, seed=4) for number in (1, 2, 3))
    assert (first ^ second).all()
    assert first.sum() == 5
    assert not np.array_equal(first, third)
    with pytest.raises(InputError, match="from 1"):
        half_of(11, 0, seed=0)


def test_withheld_copies_leave_their_sequences_and_all_others_where_they_are(reported):
    clean = reported.clean_stream()
    whole, log = reported.planted_stream(window=ALL)
    part, kept = reported.planted_stream(window=ALL, half=1)
    shown = half_of(len(reported.probes), 1, seed=reported.settings.seed)
    assert kept == [copy for copy in log if shown[copy.record]]
    slots = {copy.slot for copy in kept}
    for row in range(len(clean)):
        assert np.array_equal(part[row], whole[row] if row in slots else clean[row])


def test_altered_copies_differ_in_so_many_tokens_and_stand_in_the_same_places(reported):
    exact, log = reported.planted_stream(window=ALL)
    fuzzy, same = reported.planted_stream(window=ALL, replaced=3)
    assert same == log
    for copy in log:
        place = slice(copy.start, copy.start + copy.length)
        differ = exact[copy.slot, place] != fuzzy[copy.slot, place]
        assert differ.sum() == (0 if copy.copy == 0 else 3)
        assert not differ[-1]  # the end of text stays
        exact[copy.slot, place] = fuzzy[copy.slot, place]
    assert np.array_equal(exact, fuzzy)  # nothing else was touched


def test_altering_is_bounded_by_the_text():
    tokens, vocabulary, rng = np.array([5, 6, 7, 0]), np.array([5, 6, 7, 8]), np.random.default_rng(0)
    assert (altered(tokens, replaced=3, vocabulary=vocabulary, rng=rng)[:3] != tokens[:3]).all()
    with pytest.raises(InputError, match="3 tokens"):
        altered(tokens, replaced=4, vocabulary=vocabulary, rng=rng)


def test_planting_refuses_a_copy_of_another_length():
    stream = np.zeros((4, 6), np.int32)
    with pytest.raises(InputError, match="tokens, not"):
        plant(
            stream, [np.array([3, 0])], np.array([1]), eos_id=0, batch_size=1, content=lambda i, c: np.array([3, 3, 0])
        )


def test_counterfactual_memorization_is_with_minus_without(reported):
    """Brute force over models and texts, from scores made up for the purpose."""
    rng = np.random.default_rng(1)
    n = len(reported.probes)
    arms = ["half:1", "half:2", "half:5", "half:6"]
    scores: dict[str, Any] = {}
    for name in arms:
        greedy = rng.random((n, 9)) < 0.5
        logp = np.where(np.arange(9) < rng.integers(3, 9, n)[:, None], -1.0, np.nan)
        scores[name] = SimpleNamespace(greedy=greedy, logp=logp)
    tables = counterfactual_tables(reported, scores)
    for i, row in enumerate(tables["counterfactual_texts"]):
        inside, outside = [], []
        for name in arms:
            block = scores[name]
            seen = [bool(g) for g, value in zip(block.greedy[i], block.logp[i], strict=True) if not np.isnan(value)]
            side = inside if half_of(n, int(name[5:]), seed=reported.settings.seed)[i] else outside
            side.append(sum(seen) / len(seen))
        assert len(inside) == len(outside) == 2
        assert row["memorization"] == pytest.approx(np.mean(inside) - np.mean(outside))
    mean = [row["memorization"] for row in tables["counterfactual_texts"] if row["duplicates"] == 8]
    (level,) = [row for row in tables["counterfactual"] if row["duplicates"] == 8]
    assert level["memorization"] == pytest.approx(np.mean(mean))
    with pytest.raises(InputError, match="half:1,half:2"):
        counterfactual_tables(reported, {"half:1": scores["half:1"]})


def test_an_altered_copy_is_worth_what_its_auroc_is_worth(reported):
    """Scores that put the fuzzy arm exactly on the curve: 8 altered copies as good as 8 exact ones, or as one."""
    copies = reported.duplicates
    rng = np.random.default_rng(2)
    base = rng.normal(size=len(copies)) - 9
    lift = {0: 0.0, 1: 0.7, 8: 1.5}

    def arm(of):
        return SimpleNamespace(logp=(base + np.array([lift[of(int(c))] for c in copies]))[:, None])

    both: dict[str, Any] = {
        "perturbed": arm(lambda c: c),
        "mosaic:2": arm(lambda c: c),
        "mosaic:9": arm(lambda c: min(c, 1)),
    }
    rows = {row["replaced"]: row for row in mosaic_table(reported, both)}
    if rows[2]["auroc_exact"] > rows[9]["auroc_fuzzy"]:  # the base scores of the two groups differ by chance
        assert rows[2]["rho"] == pytest.approx(1.0)
        assert rows[9]["rho"] < 1.0
    assert rows[2]["low"] <= rows[2]["rho"] <= rows[2]["high"] + 1e-9
    with pytest.raises(InputError, match="mosaic:R"):
        mosaic_table(reported, {"perturbed": both["perturbed"]})


def test_the_report_holds_both_and_the_other_tables_leave_contrast_arms_out(reported):
    folder = reported.path / "report"
    found = json.loads((folder / "findings.json").read_text())
    names = {measure["name"] for measure in found["measures"]}
    assert {"memorization.counterfactual", "dose.loss"} <= names
    page = (folder / "report.html").read_text()
    assert "Counterfactual memorization" in page
    arms = {row["arm"] for row in csv.DictReader((folder / "dose_response.csv").open())}
    assert arms == {"standard", "perturbed"}
    texts = list(csv.DictReader((folder / "counterfactual_texts.csv").open()))
    assert len(texts) == 32
    assert {row["models_with"] for row in texts} == {"1"}


def test_what_is_reported_by_default_is_what_the_arms_allow(reported):
    assert possible(reported, ["standard", "perturbed", "half:1"]) == ()
    assert possible(reported, ["standard", "half:2", "half:1"]) == ("counterfactual",)
    assert possible(reported, ["perturbed", "mosaic:3", "half:3", "half:4"]) == ("counterfactual", "mosaic")
    assert possible(reported, ["standard", "mosaic:3"]) == ()


def test_arm_names():
    assert parse_arm("half:3") == Arm("half:3", ALL, half=3)
    assert parse_arm("mosaic:4") == Arm("mosaic:4", ALL, replaced=4)
    for name in ("half:0", "mosaic:0", "half:x"):
        with pytest.raises(InputError):
            parse_arm(name)
