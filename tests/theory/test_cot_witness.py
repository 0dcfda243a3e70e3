"""Witness transformers, their proofs, feature ranks and trained networks."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter, defaultdict
from fractions import Fraction

import numpy as np
import pytest
import torch

from rote.errors import InputError, RoteError
from rote.theory.cot import trained, trained_capacity
from rote.theory.cot.bounded_evaluation import BoundedTransformer
from rote.theory.cot.check import cot_check
from rote.theory.cot.feature_rank import feature_rank
from rote.theory.cot.fixed_precision import FixedPrecisionTransformer, Shape, features_of, random_integers
from rote.theory.cot.labelings import all_words
from rote.theory.cot.linear_witness import build_linear_witness
from rote.theory.cot.plan import unroll
from rote.theory.cot.size_floor import bits_per_weight
from rote.theory.cot.trained import train_table
from rote.theory.cot.trained_ablation import trained_ablation
from rote.theory.cot.trained_capacity import (
    MeasuredCapacity,
    log_log_slope,
    random_table,
    shape_ladder,
    side_by_side,
    smallest_trained,
)
from rote.theory.cot.witness import CotWitness, build_cot_witness, margins, no_cot_least_squares, read_out
from rote.theory.cot.witness_files import load_cot_witness, save_cot_witness
from rote.theory.cot.words import STOP, Alphabet, QADataset, qa_dataset, single_symbol

COT_ONLY = {"a": "a", "aa": "b"}
NO_COT_ONLY = {"ab": "a", "aba": "b", "abb": "b"}
BOTH = {"ab": "a", "ba": "b"}


def all_short_words(seed):
    """All 62 words of length <= 5 over {a, b}, random answers on those of two types, one answer for each a^m, b^m."""
    rng = random.Random(seed)
    answers = {word: rng.randrange(2) if single_symbol(word) is None else word[0] for word in all_words(length=5)}
    return QADataset(Alphabet(("a", "b")), answers)


# --- witnesses


def test_size_of_the_card():
    assert Shape(2).parameters == 222_432


@pytest.mark.parametrize(
    ("records", "way"), [(COT_ONLY, "cot"), (NO_COT_ONLY, "no-cot"), (BOTH, "cot"), (BOTH, "no-cot")]
)
def test_separations_as_real_transformers(records, way):
    found = cot_check(records)
    witness = build_cot_witness(found.dataset, plan=found.plan if way == "cot" else None, digits=4)
    verified = witness.verify()
    assert verified.holds
    assert verified.right == verified.words
    assert verified.margin == pytest.approx(20, abs=0.1)
    assert verified.margin > 10 * verified.error
    for word, answer in found.dataset.answers.items():
        assert witness.answer(word, steps=5) == answer


def test_what_the_theorem_forbids_is_refused_with_the_pair():
    with pytest.raises(InputError, match=r"record 1 and record 2 .* 4\.1"):
        build_cot_witness(qa_dataset(COT_ONLY))


def test_least_squares_is_stuck_at_one_half_on_indistinguishable_words():
    fitted, lead = no_cot_least_squares(qa_dataset(COT_ONLY))
    assert fitted == pytest.approx(np.full((2, 2), 0.5), abs=1e-9)
    assert abs(lead) < 1e-9


@pytest.mark.parametrize("digits", [2, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_all_62_words_with_two_layers(digits, seed):
    dataset = all_short_words(seed)
    verified = build_cot_witness(dataset, digits=digits, seed=seed).verify()
    assert (verified.right, verified.words, verified.proved) == (62, 62, True)


def test_one_layer_cannot_answer_all_62_words():
    """One layer sees the last symbol and the frequencies: no read-out gets more right than the commonest answer of
    each class."""
    dataset = all_short_words(0)
    classes = defaultdict(Counter)
    for word, answer in dataset.answers.items():
        classes[word[-1], Fraction(sum(word), len(word))][answer] += 1
    possible = sum(max(counts.values()) for counts in classes.values())
    shape = Shape(2, layers=1)
    table = dict(dataset.answers)
    model = read_out(shape, random_integers(shape, digits=4, seed=0), table, digits=4)
    right, *_ = margins(model, table)
    assert right <= possible < 62
    with pytest.raises(RoteError, match="no witness verified"):
        build_cot_witness(dataset, layers=1, attempts=1)


def test_weights_are_decimals_of_q_digits():
    witness = build_cot_witness(qa_dataset(BOTH), digits=2)
    for name, integers in witness.model.integers.items():
        assert integers.dtype == np.int64
        assert np.abs(integers).max(initial=0) <= 10**4
        assert witness.model.weight(name).numpy() * 100 == pytest.approx(integers, abs=1e-9)
    size = witness.size()
    assert size["bits"] == pytest.approx(size["parameters"] * bits_per_weight(2))
    assert size["bits_per_record"] == size["bits"] / 2


def test_a_changed_answer_or_weight_no_longer_verifies():
    witness = build_cot_witness(qa_dataset(BOTH), digits=3)
    swapped = CotWitness(qa_dataset({"ab": "b", "ba": "a"}), None, witness.model, 0)
    assert not swapped.verify().holds
    unembed = np.zeros_like(witness.model.integers["unembed"])
    blank = FixedPrecisionTransformer(witness.model.shape, witness.model.integers | {"unembed": unembed}, digits=3)
    verified = CotWitness(witness.dataset, None, blank, 0).verify()
    assert (verified.right, verified.proved) == (0, False)  # all logits equal: a tie is not right


def test_limits_of_the_builder():
    with pytest.raises(InputError, match="digits"):
        build_cot_witness(qa_dataset(BOTH), digits=8)
    many = QADataset(Alphabet(("a", "b")), {w: 0 for w in all_words(length=8) if single_symbol(w) is None})
    with pytest.raises(InputError, match="at most 400"):
        build_cot_witness(many)
    with pytest.raises(InputError, match="heads divide"):
        Shape(2, width=9)
    with pytest.raises(InputError, match="above"):
        FixedPrecisionTransformer(
            Shape(2, 2, 1, 1, 2),
            {name: np.full(size, 101, np.int64) for name, size in Shape(2, 2, 1, 1, 2).weights().items()},
            digits=1,
        )


# --- size linear in the number of words


@pytest.mark.parametrize(("records", "digits"), [(1, 2), (2, 3), (40, 3), (40, 7), (300, 4)])
def test_linear_witness_is_verified_and_linear(records, digits):
    table = random_table(records=records, seed=records)
    dataset = QADataset(Alphabet(("a", "b", "c", "d")), table)
    witness = build_linear_witness(dataset, digits=digits)
    verified, shape = witness.verify(), witness.model.shape
    assert (verified.right, verified.holds) == (records, True)
    assert shape.readout <= 2 * (records - 1) + 1
    body = Shape(4, shape.width, shape.layers, shape.heads, shape.mlp).parameters
    assert shape.parameters == body + shape.readout * (shape.width + 4 + 2)


def test_linear_witness_with_a_chain_of_thought_is_right_in_sixty_digits():
    found = cot_check(COT_ONLY)
    assert found.plan is not None
    witness = build_linear_witness(found.dataset, plan=found.plan, width=8)
    assert witness.verify().holds
    for word, output in unroll(found.dataset, found.plan).items():
        logits = exact_logits(witness.model, word)
        assert all(logits[output % 3] - other > 50 for i, other in enumerate(logits) if i != output % 3)


def test_linear_witness_says_when_it_cannot():
    with pytest.raises(InputError, match=r"4\.1"):
        build_linear_witness(qa_dataset(COT_ONLY))
    dataset = QADataset(Alphabet(("a", "b", "c", "d")), random_table(records=200, seed=0))
    with pytest.raises(RoteError, match="raise digits"):
        build_linear_witness(dataset, digits=1)


def test_linear_witness_files(tmp_path):
    witness = build_linear_witness(qa_dataset(NO_COT_ONLY))
    assert save_cot_witness(witness, tmp_path).holds
    assert load_cot_witness(tmp_path)[0].model.shape == witness.model.shape


# --- the evaluation and its bound


def exact_logits(model, word):
    """The same network in 60-digit arithmetic, weights as exact decimals: slow, and by other code."""
    mpmath = pytest.importorskip("mpmath")
    mp = mpmath.mp.clone() if hasattr(mpmath.mp, "clone") else mpmath.mp
    mp.dps = 60
    shape = model.shape
    w = {
        name: [[mp.mpf(int(k)) / 10**model.digits for k in np.atleast_1d(row)] for row in array]
        for name, array in model.integers.items()
    }

    def times(matrix, vector):
        return [mp.fsum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]

    z = [list(w["embed"][symbol]) for symbol in word]
    each = shape.width // shape.heads
    for layer in range(shape.layers):
        query, key, value = ([times(w[f"{layer}.{n}"], row) for row in z] for n in ("query", "key", "value"))
        for i in reversed(range(len(word))):
            mixed = []
            for h in range(shape.heads):
                part = slice(h * each, (h + 1) * each)
                powers = [
                    mp.exp(mp.fsum(a * b for a, b in zip(query[i][part], key[j][part], strict=True)) / mp.sqrt(each))
                    for j in range(i + 1)
                ]
                total = mp.fsum(powers)
                mixed += [mp.fsum(p * value[j][part][c] for j, p in enumerate(powers)) / total for c in range(each)]
            z[i] = [a + b for a, b in zip(z[i], times(w[f"{layer}.out"], mixed), strict=True)]
        for i in range(len(word)):
            hidden = [
                max(a + b[0], mp.mpf(0)) for a, b in zip(times(w[f"{layer}.up"], z[i]), w[f"{layer}.bias"], strict=True)
            ]
            z[i] = [a + b for a, b in zip(z[i], times(w[f"{layer}.down"], hidden), strict=True)]
    logits = times(w["unembed"], z[-1])
    if shape.readout:
        before = zip(times(w["readout.up"], z[-1]), w["readout.bias"], strict=True)
        steps = times(w["readout.down"], [max(a + b[0], mp.mpf(0)) for a, b in before])
        logits = [a + b for a, b in zip(logits, steps, strict=True)]
    return logits


@pytest.mark.parametrize("seed", range(3))
def test_error_bound_holds_against_sixty_digits_and_is_not_idle(seed):
    shape = Shape(3, width=8, layers=2, heads=2, mlp=12)
    integers = random_integers(shape, digits=3, seed=seed)
    integers["unembed"] = np.random.default_rng(seed).integers(-(10**6), 10**6, integers["unembed"].shape)
    model = FixedPrecisionTransformer(shape, integers, digits=3)
    bounded = BoundedTransformer(model)
    for word in ((0,), (1, 1), (0, 1, 2), (2, 0, 0, 1)):
        logits, error = bounded.logits(word)
        exact = exact_logits(model, word)
        off = [abs(float(a - b)) for a, b in zip(exact, (type(exact[0])(float(x)) for x in logits), strict=True)]
        assert all(d <= e for d, e in zip(off, error, strict=True))
        assert (error < 1e-6 * (1 + np.abs(logits).max())).all()
        torch_logits = model(torch.tensor([word]))[0].numpy()
        assert (np.abs(torch_logits - logits) <= 2 * error).all()


def test_the_small_witness_is_right_in_sixty_digits():
    found = cot_check(COT_ONLY)
    assert found.plan is not None
    witness = build_cot_witness(found.dataset, plan=found.plan, digits=4, width=24)
    table = unroll(found.dataset, found.plan)
    assert len(table) == 5
    for word, output in table.items():
        logits = exact_logits(witness.model, word)
        right = logits[output % 3]
        assert all(right - other > 10 for index, other in enumerate(logits) if index != output % 3)


def test_features_do_not_depend_on_what_else_is_in_the_batch():
    shape = Shape(2, width=16, layers=2, heads=2, mlp=32)
    model = FixedPrecisionTransformer(shape, random_integers(shape, digits=4, seed=0), digits=4)
    words = all_words(length=4)
    together = features_of(model, words)
    for row, word in enumerate(words):
        assert features_of(model, [word])[0] == pytest.approx(together[row], abs=1e-12)


# --- files


def test_witness_files_are_read_back_and_verified(tmp_path):
    found = cot_check(COT_ONLY)
    assert found.plan is not None
    witness = build_cot_witness(found.dataset, plan=found.plan, digits=4)
    assert save_cot_witness(witness, tmp_path).holds
    again, verified = load_cot_witness(tmp_path)
    assert verified == witness.verify()
    assert again.plan == witness.plan
    for name, integers in witness.model.integers.items():
        assert (again.model.integers[name] == integers).all()


def test_damaged_witness_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="no witness"):
        load_cot_witness(tmp_path / "nothing")
    save_cot_witness(build_cot_witness(qa_dataset(BOTH)), tmp_path)
    file = tmp_path / "witness.json"
    content = json.loads(file.read_text())
    for change, message in (
        ({"records": [row | {"answer": 1 - row["answer"]} for row in content["records"]]}, "do not give"),
        ({"format": "other"}, "not a"),
        ({"digits": None}, "wrong kind"),
        ({"shape": {"symbols": 2, "width": 48}}, "of shape"),
    ):
        file.write_text(json.dumps({**content, **change}))
        with pytest.raises(InputError, match=message):
            load_cot_witness(tmp_path)
    file.write_text(json.dumps(content))
    (tmp_path / "witness.safetensors").write_bytes(b"\x08\x00\x00\x00")
    with pytest.raises(InputError, match="damaged"):
        load_cot_witness(tmp_path)


# --- feature ranks


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("length", "deep", "shallow"), [(3, 10, 8), (4, 24, 12), (5, 54, 20)])
def test_feature_ranks_of_the_card(length, deep, shallow, seed):
    words = all_words(length=length)
    # twins: words of two types and one class for each symbol; classes of (last symbol, frequencies)
    assert deep == len({word if len(set(word)) > 1 else word[0] for word in words})
    assert shallow == len({(word[-1], Fraction(sum(word), len(word))) for word in words})
    for layers in (2, 3):
        found = feature_rank(length=length, layers=layers, seed=seed)
        assert (found.rank, found.nearest > 0.8) == (deep, True)
        assert found.single_spread < 1e-11
        assert found.gap > 1e6
    one = feature_rank(length=length, layers=1, seed=seed)
    assert one.rank == shallow
    assert one.nearest < 1e-10


# --- trained


def test_trained_runs_agree_with_the_theorem_on_each_separation():
    rows = trained_ablation(runs=2, steps=150, seed=0)
    assert all(row.holds for row in rows)
    by_name = {row.name: row for row in rows}
    assert not by_name["same input type"].possible
    assert max(by_name["same input type"].trained.accuracy) == 0.5
    assert by_name["same input type, absolute positions"].trained.solved == 2


def test_training_is_deterministic_and_runs_do_not_depend_on_their_number():
    table = {(0, 1): 0, (1, 0): 1, (0, 1, 1): STOP}
    shape = Shape(2, width=8, layers=1, heads=1, mlp=16)
    first = train_table(table, shape=shape, runs=3, steps=50, enough=4, seed=3)
    assert first == train_table(table, shape=shape, runs=3, steps=50, enough=4, seed=3)
    alone = train_table(table, shape=shape, runs=1, steps=50, enough=2, seed=3)
    assert alone.accuracy[0] == first.accuracy[0]
    assert alone.parameters == shape.parameters


@pytest.mark.parametrize("positions", ["none", "bos", "absolute"])
def test_prefixes_computed_once_give_every_word_its_own_logits(positions):
    """The shared prefixes against a transformer that reads each word by itself, position by position."""
    words = [(0, 1), (0, 1, 2), (0,), (2, 2, 1, 0), (0, 1, 1), (2, 2, 1)]
    shape, lead_in = Shape(3, width=6, layers=2, heads=2, mlp=5), (3,) if positions == "bos" else ()
    seen = [lead_in + word for word in words]
    weights = trained._start(shape, 2, 4 if positions == "absolute" else 0, positions == "bos", seed=1)
    weights = {name: weight.detach().double() for name, weight in weights.items()}
    prefixes = trained._prefixes(seen)
    assert len(prefixes.token) == len({word[:end] for word in seen for end in range(1, len(word) + 1)})
    found = trained._logits(weights, shape, prefixes)
    for run in range(2):
        w = {name: weight[run] for name, weight in weights.items()}
        for number, word in enumerate(seen):
            z = [w["embed"][s] + (w["places"][at] if "places" in w else 0) for at, s in enumerate(word)]
            for layer in range(2):
                q, k, v = ([w[f"{layer}.{name}"] @ x for x in z] for name in ("query", "key", "value"))
                for at in range(len(z)):
                    heads = []
                    for head in (slice(0, 3), slice(3, 6)):
                        scores = torch.stack([q[at][head] @ k[j][head] for j in range(at + 1)]) / 3**0.5
                        heads.append(sum(a * v[j][head] for j, a in enumerate(scores.softmax(0))))
                    x = z[at] + w[f"{layer}.out"] @ torch.cat(heads)
                    z[at] = x + w[f"{layer}.down"] @ (w[f"{layer}.up"] @ x + w[f"{layer}.bias"]).relu()
            np.testing.assert_allclose(found[run, number], w["unembed"] @ z[-1], atol=1e-12)


def test_training_refuses_nonsense():
    with pytest.raises(InputError, match="positions"):
        train_table({(0,): 0}, shape=Shape(2, 4, 1, 1, 4), positions="rope")
    with pytest.raises(InputError, match="at least one"):
        train_table({}, shape=Shape(2, 4, 1, 1, 4))


def test_random_tables_have_distinct_words_of_two_types():
    table = random_table(records=500, seed=1)
    assert len(table) == 500
    assert all(single_symbol(word) is None for word in table)
    with pytest.raises(InputError, match="1020 words"):
        random_table(records=1021)


def test_the_ladder_has_the_proportions_of_the_witnesses():
    ladder = shape_ladder(symbols=2)
    assert all(shape.mlp == 4 * shape.width for shape in ladder)
    assert (np.diff([shape.parameters for shape in ladder]) > 0).all()


def test_measured_capacity_is_above_the_floor_and_below_the_bits_of_its_weights():
    found = smallest_trained(records=16, runs=2, steps=200, begin=250)
    assert found.bits_per_parameter == 32 / found.parameters
    assert found.digits is not None
    assert found.floor_parameters is not None
    assert found.bits_per_parameter < bits_per_weight(found.digits)
    assert found.parameters > found.floor_parameters
    assert found.failed_parameters is None or found.failed_parameters < found.parameters


@pytest.mark.parametrize("begin", [1, 300, 2000, 10**6])
def test_the_search_ends_between_a_shape_that_trains_and_one_that_does_not(begin, monkeypatch):
    ladder = shape_ladder()
    for needed in range(len(ladder)):
        asked = []

        def train(table, *, shape, runs, needed=needed, asked=asked, **options):
            asked.append(shape.width)
            step = 1 if shape.width > needed else None
            return trained.TrainedRuns((1.0,) * runs, (step,) * runs, shape.parameters, step)

        monkeypatch.setattr(trained_capacity, "train_table", train)
        found = smallest_trained(records=8, begin=begin)
        assert found.parameters == ladder[needed].parameters
        assert found.failed_parameters == (ladder[needed - 1].parameters if needed else None)
        assert len(asked) == len(set(asked)) <= 10  # never one shape twice, and few of the 32
    monkeypatch.setattr(trained_capacity, "shape_ladder", lambda symbols: ladder[:3])
    with pytest.raises(InputError, match="no shape up to"):
        smallest_trained(records=8)


@pytest.mark.slow
def test_a_process_of_its_own_gives_the_same_capacity():
    options = {"runs": 2, "steps": 100, "seed": 3}
    assert side_by_side((8,), workers=2, **options) == side_by_side((8,), **options)


def test_a_process_that_fails_is_told(monkeypatch):
    monkeypatch.setattr("sys.executable", shutil.which("false"))
    with pytest.raises(RoteError, match="8 records: the process"):
        side_by_side((8,), workers=2)


def test_slope_of_exact_powers():
    rows = [MeasuredCapacity(n, 3 * n, 1, 2, 2, 0.1, 1.0, 1, None) for n in (10, 20, 40)]
    assert log_log_slope(rows) == pytest.approx(1.0)
    with pytest.raises(InputError, match="two numbers"):
        log_log_slope(rows[:1])
