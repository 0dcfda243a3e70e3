"""The conditions for memorizing with and without chain of thought: every decision against a brute-force twin."""

from __future__ import annotations

import itertools
import random
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rote.errors import InputError
from rote.theory.cot.check import cot_check
from rote.theory.cot.decision import decide_cot
from rote.theory.cot.infinite_sets import infinite_statements
from rote.theory.cot.labelings import all_labelings, all_words, label_census
from rote.theory.cot.no_cot import conflicting_pair
from rote.theory.cot.obstruction import Block, Obstruction, verify_block, verify_obstruction
from rote.theory.cot.oracle import cot_feasible_by_milp
from rote.theory.cot.plan import check_plan, run_from, unroll, violates_single_type
from rote.theory.cot.size_floor import bits_per_weight, fixed_precision_floor
from rote.theory.cot.words import STOP, Alphabet, QADataset, qa_dataset, single_symbol, typ

COT_ONLY = {"a": "a", "aa": "b"}
NO_COT_ONLY = {"ab": "a", "aba": "b", "abb": "b"}
BOTH = {"ab": "a", "ba": "b"}
WORDS = all_words(length=2)  # a, b, aa, ab, ba, bb


# --- words and datasets


def test_typ_is_a_set_of_symbols():
    assert typ((0, 0, 1)) == typ((0, 1, 1)) == {0, 1}
    assert single_symbol((2, 2, 2)) == 2
    assert single_symbol((2, 2, 1)) is None


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        ([], {}, "empty"),
        ([("", "a")], {}, "record 1: the input is empty"),
        ([("ab", "a"), ("b", "ab")], {}, "record 2: the answer has 2 symbols"),
        ([("ab", "")], {}, "record 1: the answer has 0 symbols"),
        ([("ab", "a"), ("ba", "c")], {"alphabet": "ab"}, "record 2: the answer is not in the alphabet of 2"),
        ([("ax", "a")], {"alphabet": "ab"}, "record 1: the input has a symbol outside"),
        ([("ab", "a"), ("ba", "b"), ("ab", "b")], {"lines": [4, 5, 9]}, "line 9: the same input as line 4"),
        ([("ab", "a")], {"alphabet": "aab"}, "twice"),
    ],
)
def test_bad_datasets_are_refused_with_the_place_and_without_the_content(records, options, message):
    with pytest.raises(InputError) as caught:
        qa_dataset(records, **options)
    assert message in str(caught.value)


def test_a_repeated_pair_is_counted_once_and_told():
    found = qa_dataset([("ab", "a"), ("ab", "a"), ("ba", "b")])
    assert (len(found), found.repeats) == (2, 1)


def test_inputs_may_be_sequences_of_words():
    found = qa_dataset([(("the", "cat"), "sat"), (("a", "cat"), ("ran",))])
    assert found.alphabet.symbols == ("a", "cat", "ran", "sat", "the")


# --- the separations of the card


@pytest.mark.parametrize(
    ("records", "verdict"),
    [
        (COT_ONLY, "CoT only"),
        (NO_COT_ONLY, "no-CoT only"),
        (COT_ONLY | NO_COT_ONLY, "neither"),
        (BOTH, "both"),
    ],
)
def test_separations(records, verdict):
    assert cot_check(records, alphabet="ab").verdict == verdict


def test_cot_only_plan_is_the_one_of_the_card():
    found = cot_check(COT_ONLY)
    text = found.dataset.alphabet.text
    assert found.plan is not None
    assert {text(word): text(cot) for word, cot in found.plan.items()} == {"a": "ba", "aa": "b"}


def test_witnesses_of_what_is_impossible():
    found = cot_check(COT_ONLY | NO_COT_ONLY)
    assert found.conflict is not None
    assert found.obstruction is not None
    assert (found.conflict.first, found.conflict.second) == ((0,), (0, 0))
    assert found.blocking_prefix == (0, 1)
    assert found.obstruction.blocks[0].cut == ((0, 1, 0), (0, 1, 1))


def test_an_obstruction_two_steps_below_is_found():
    """x c is no record for c = a, but all of x a's extensions are, with another answer, and x a itself ends in the
    wrong symbol: a checker of one-step extensions would call it feasible."""
    records = {"ab": "b", "abb": "a", "abaa": "a", "abab": "a"}
    found = cot_check(records)
    assert not found.cot
    assert found.blocking_prefix == (0, 1)
    assert found.obstruction is not None
    assert set(found.obstruction.blocks[0].cut) == {(0, 1, 1), (0, 1, 0, 0), (0, 1, 0, 1)}
    assert cot_check({**records, "abab": "b"}).cot
    assert not cot_feasible_by_milp(qa_dataset(records))


def test_one_symbol_alone_never_stops_with_an_answer():
    found = cot_check({"a": "a", "aaa": "a"})
    assert found.obstruction is not None
    assert (found.no_cot, found.cot, found.obstruction.kind) == (True, False, "alphabet")
    assert cot_check({"a": "a"}, positions="bos").cot


def test_a_symbol_that_no_input_contains_always_helps():
    assert cot_check(COT_ONLY | NO_COT_ONLY, alphabet="abc").cot
    for dataset in all_labelings(length=2):
        wider = QADataset(Alphabet(("a", "b", "c")), dataset.answers)
        assert cot_check(wider).cot


def test_positions_void_the_single_type_obstruction_but_not_the_prefix_collisions():
    for positions in ("bos", "absolute"):
        assert cot_check(COT_ONLY, positions=positions).verdict == "both"
        found = cot_check(NO_COT_ONLY, positions=positions)
        assert (found.no_cot_applies, found.verdict) == (False, "no-CoT only")


def test_bad_options():
    with pytest.raises(InputError, match="positions"):
        cot_check(BOTH, positions="rope")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="max_cot"):
        cot_check(BOTH, max_cot=0)


# --- no CoT against all pairs


def smallest_pair_by_brute_force(dataset):
    pairs = [
        (len(x) + len(z))
        for x, z in itertools.combinations(dataset.answers, 2)
        if typ(x) == typ(z) and len(typ(x)) == 1 and dataset.answers[x] != dataset.answers[z]
    ]
    return min(pairs, default=None)


datasets = st.dictionaries(
    st.lists(st.integers(0, 1), min_size=1, max_size=4).map(tuple), st.integers(0, 1), min_size=1, max_size=24
).map(lambda answers: QADataset(Alphabet(("a", "b")), answers))


@given(datasets)
@settings(max_examples=200, deadline=None)
def test_the_conflict_is_a_smallest_one(dataset):
    found, best = conflicting_pair(dataset), smallest_pair_by_brute_force(dataset)
    assert (found is None) == (best is None)
    if found:
        assert len(found.first) + len(found.second) == best
        assert dataset.answers[found.first] == found.first_answer != found.second_answer


# --- CoT against all tables F^


@pytest.fixture(scope="module")
def outcomes_of_all_tables():
    """Every table on words of up to 3 symbols over {a, b} (one output for all a^m, one for all b^m; words of 4 stop),
    and what each input of up to 2 symbols then does: (answer, symbols emitted), or None. 3^10 tables.

    It is enough to look so far: a run that has left the records can answer anything with one symbol more.
    """
    classes = {}
    keys = {}
    for word in all_words(length=3):
        k = single_symbol(word)
        keys[word] = classes.setdefault(word if k is None else k, len(classes))
    found = set()
    for outputs in itertools.product((0, 1, STOP), repeat=len(classes)):
        vector = []
        for word in WORDS:
            here = word
            while len(here) <= 3 and outputs[keys[here]] != STOP:
                here = (*here, outputs[keys[here]])
            # a word gamma_k^4 repeats its class: it stops only if that class stops
            endless = len(here) > 3 and single_symbol(here) is not None
            vector.append(None if endless or here == word else (here[len(here) - 1], len(here) - len(word)))
        found.add(tuple(vector))
    return found


@pytest.mark.parametrize("max_cot", [1, 2, 3, None])
def test_decision_equals_all_tables_on_every_dataset_of_short_words(outcomes_of_all_tables, max_cot):
    """All 728 datasets of words of up to 2 symbols, with and without a limit on the chain."""
    reachable = {
        tuple(None if run is None or (max_cot and run[1] > max_cot) else run[0] for run in vector)
        for vector in outcomes_of_all_tables
    }
    possible = set()
    for vector in reachable:
        for kept in itertools.product((True, False), repeat=len(WORDS)):
            if all(answer is not None for answer, keep in zip(vector, kept, strict=True) if keep):
                possible.add(tuple(a if keep else None for a, keep in zip(vector, kept, strict=True)))
    checked = 0
    for labels in itertools.product((0, 1, None), repeat=len(WORDS)):
        if labels == (None,) * len(WORDS):
            continue
        answers = {word: label for word, label in zip(WORDS, labels, strict=True) if label is not None}
        found = cot_check(QADataset(Alphabet(("a", "b")), answers), max_cot=max_cot)
        expected = labels in possible
        assert (found.cot if max_cot is None else found.decision.within_max_cot) == expected, answers
        checked += 1
    assert checked == 728


@pytest.mark.parametrize("positions", ["none", "bos"])
@pytest.mark.parametrize(("symbols", "length", "seed"), [(2, 3, 0), (2, 4, 1), (3, 2, 2), (2, 3, 3), (3, 2, 4)])
def test_decision_equals_the_integer_program(symbols, length, seed, positions):
    """Dense random datasets, so that about half are blocked; the integer program knows only what a run is."""
    rng = random.Random(seed)
    words = all_words(length=length, symbols=symbols)
    alphabet = Alphabet(tuple("abc"[:symbols]))
    verdicts = []
    for _ in range(12):
        kept = [word for word in words if rng.random() < 0.85] or words[:1]
        bias = rng.choice((0.5, 0.9))  # mostly one label: often feasible
        answers = {word: 0 if rng.random() < bias else rng.randrange(symbols) for word in kept}
        dataset = QADataset(alphabet, answers)
        found = cot_check(dataset, positions=positions)
        assert found.cot == cot_feasible_by_milp(dataset, positions=positions), answers
        verdicts.append(found.cot)
    assert len(verdicts) == 12


def attainable(dataset, z, y, limit):
    """Val(z) by the recursion, word for word: whether a run at z (two types) can end with y in `limit` symbols."""
    if limit < 0:
        return False
    letters = range(len(dataset.alphabet))
    if z in dataset.answers:
        return dataset.answers[z] == y and any(attainable(dataset, (*z, c), y, limit - 1) for c in letters)
    return z[-1] == y or any(attainable(dataset, (*z, c), y, limit - 1) for c in letters)


@given(datasets, st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_chains_are_shortest_and_the_limit_is_exact(dataset, limit):
    """Twin: the recursion unrolled to a depth, without the tree and its shortcuts."""

    def feasible(depth):
        answers = dataset.answers
        mixed = all(attainable(dataset, x, answers[x], depth) for x in answers if len(typ(x)) > 1)
        return mixed and all(
            any(
                all(attainable(dataset, (*x, j), answers[x], depth - 1) for x in answers if typ(x) == {k})
                for j in (0, 1)
                if j != k
            )
            for k in (0, 1)
            if any(typ(x) == {k} for x in answers)
        )

    found = decide_cot(dataset, max_cot=limit)
    assert found.within_max_cot == feasible(limit)
    if found.feasible:
        assert found.needed_max_cot == next(depth for depth in range(1, 9) if feasible(depth))
        full = decide_cot(dataset)
        assert full.plan is not None
        for x, cot in full.plan.items():
            if len(typ(x)) > 1:
                assert not attainable(dataset, x, dataset.answers[x], len(cot) - 1)
    else:
        assert not feasible(6)  # longer than any record and two symbols more


@given(datasets, st.sampled_from(["none", "bos", "absolute"]))
@settings(max_examples=150, deadline=None)
def test_every_verdict_comes_with_a_checked_witness(dataset, positions):
    found = cot_check(dataset, positions=positions)
    if found.plan is not None:
        assert found.cot
        table = check_plan(dataset, found.plan, positions=positions)
        for x, y in dataset.answers.items():
            assert run_from(table.get, x, steps=10).answer == y
    else:
        assert not found.cot
        assert found.obstruction is not None
        assert verify_obstruction(dataset, found.obstruction, positions=positions)


def test_a_wrong_certificate_is_refused():
    dataset = qa_dataset(NO_COT_ONLY)
    good = cot_check(dataset).obstruction
    assert good is not None
    (block,) = good.blocks
    assert verify_obstruction(dataset, good)
    assert not verify_block(dataset, Block(block.record, block.start, block.cut[:1]))
    assert not verify_block(dataset, Block((0, 1, 0), (0, 1, 0), block.cut))
    relabelled = qa_dataset(NO_COT_ONLY | {"abb": "a"})
    assert not verify_obstruction(relabelled, good)
    assert not verify_obstruction(dataset, Obstruction("alphabet", None, ()))


@given(datasets)
@settings(max_examples=100, deadline=None)
def test_independent_prompts_are_always_memorizable_with_chain_of_thought(dataset):
    """[derived] No input a prefix of another, T >= 2."""
    kept = {x: y for x, y in dataset.answers.items() if not any(x != z and z[: len(x)] == x for z in dataset.answers)}
    assert cot_check(QADataset(dataset.alphabet, kept)).cot


def test_a_large_vocabulary_and_long_inputs_are_linear_work():
    rng = random.Random(0)
    alphabet = Alphabet(tuple(str(i) for i in range(50_257)))
    answers = {tuple(rng.randrange(50_257) for _ in range(200)): rng.randrange(50_257) for _ in range(300)}
    found = cot_check(QADataset(alphabet, answers | {(7,) * m: m % 5 for m in range(1, 1500)}))
    assert (found.no_cot, found.cot) == (False, True)
    assert found.plan is not None
    assert all(len(cot) <= 2 for x, cot in found.plan.items() if len(typ(x)) > 1)


# --- plans


def test_bad_plans_are_refused():
    dataset = qa_dataset(BOTH)
    ab, ba = (0, 1), (1, 0)
    with pytest.raises(InputError, match="no chain"):
        unroll(dataset, {ab: (0,)})
    with pytest.raises(InputError, match="does not end with the answer"):
        unroll(dataset, {ab: (1,), ba: (1,)})
    nested = qa_dataset({"ab": "a", "aba": "a"})
    with pytest.raises(InputError, match="contradicts"):
        unroll(nested, {ab: (0,), (0, 1, 0): (0,)})
    single = qa_dataset(COT_ONLY)
    with pytest.raises(InputError, match=r"4\.1"):
        check_plan(single, {(0,): (1, 0), (0, 0): (0, 0, 1)})
    assert violates_single_type({(0,): 1, (0, 0): STOP, (0, 1): 0}) == ((0,), (0, 0))


def test_a_run_that_never_stops_has_no_answer():
    assert run_from(lambda word: 0, (1,), steps=4).answer is None
    assert run_from(lambda word: STOP, (1,), steps=4).answer is None


# --- census


@pytest.mark.parametrize(("length", "expected"), [(1, (4, 0, 0, 0)), (2, (4, 12, 12, 36)), (3, (36, 988, 540, 14820))])
def test_census_of_the_card(length, expected):
    row = label_census(length=length)
    assert (row.both, row.no_cot_only, row.cot_only, row.neither) == expected


def count(length, symbols):
    tally = {"both": 0, "no-CoT only": 0, "CoT only": 0, "neither": 0}
    for dataset in all_labelings(length=length, symbols=symbols):
        tally[cot_check(dataset).verdict] += 1  # which also simulates the plan or re-checks the obstruction
    return tuple(tally.values())


@pytest.mark.parametrize(("length", "symbols"), [(1, 1), (3, 1), (1, 2), (2, 2), (1, 3), (1, 4)])
def test_census_equals_deciding_every_labeling(length, symbols):
    row = label_census(length=length, symbols=symbols)
    assert (row.both, row.no_cot_only, row.cot_only, row.neither) == count(length, symbols)


@pytest.mark.slow
def test_census_equals_deciding_all_16384_labelings_of_length_three():
    assert count(3, 2) == (36, 988, 540, 14820)


def test_census_shares_agree_with_random_labelings_where_not_all_can_be_listed():
    """T = 3, L = 2: 531,441 labelings; 600 random ones that satisfy 4.1's clause are far more often CoT-feasible than
    the counting error."""
    row = label_census(length=2, symbols=3)
    rng = random.Random(5)
    words = all_words(length=2, symbols=3)
    alphabet = Alphabet(("a", "b", "c"))
    draws = 1500
    hits = sum(
        decide_cot(QADataset(alphabet, {word: rng.randrange(3) for word in words})).feasible for _ in range(draws)
    )
    share = (row.both + row.cot_only) / row.labelings
    assert abs(hits / draws - share) < 4 * (share * (1 - share) / draws) ** 0.5


def test_census_refuses_what_it_cannot_write_down():
    with pytest.raises(InputError):
        label_census(length=0)
    with pytest.raises(InputError, match="10,000"):
        label_census(length=20)


# --- the floor


def test_bits_per_weight_of_the_card():
    assert [round(bits_per_weight(q), 2) for q in (1, 2, 3, 4)] == [7.65, 14.29, 20.93, 27.58]


def test_floor_of_the_card():
    assert fixed_precision_floor(n=1_000_000, labels=50_257, digits=2) == 1_093_035


@given(st.integers(1, 300), st.integers(1, 60), st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_floor_is_the_first_count_of_settings_that_covers_all_labelings(n, labels, digits):
    floor = fixed_precision_floor(n=n, labels=labels, digits=digits)
    levels = 2 * 10 ** (2 * digits) + 1
    assert levels**floor >= labels**n
    assert floor == 0 or levels ** (floor - 1) < labels**n


def test_floor_at_an_exact_power():
    """T = levels: the quotient is whole, and the ceiling must not step over it."""
    assert fixed_precision_floor(n=12_345, labels=201, digits=1) == 12_345
    with localcontext() as context:
        context.prec = 40
        quotient = Decimal(10**6) * Decimal(50_257).ln() / Decimal(20_001).ln()
    assert quotient.to_integral_value(rounding="ROUND_CEILING") == 1_093_035
    assert Fraction(1_093_034) < Fraction(quotient)


@pytest.mark.parametrize("options", [{"n": 0}, {"labels": 0}, {"digits": 0}])
def test_floor_refuses_nonsense(options):
    with pytest.raises(InputError):
        fixed_precision_floor(**{"n": 5, "labels": 3, "digits": 2} | options)


# --- infinite sets


def test_statements_on_infinite_sets_say_where_they_stand():
    standing = {item.id: item.standing for item in infinite_statements()}
    assert standing["parity-of-length"] == "derived"
    assert standing["beyond-both"] == "read"
    assert all(item.because for item in infinite_statements())


# --- the proof of sufficiency, listed


def three_layers(word):
    """What the last position holds in the proof of `no_cot`, in exact fractions: which (x_i, m/i) occur, or the symbol
    alone for words of one type."""
    m = next((i for i, symbol in enumerate(word) if symbol != word[0]), None)
    if m is None:
        return word[0]
    return frozenset((symbol, Fraction(min(i, m), i)) for i, symbol in enumerate(word, 1))


def two_layers(word):
    """The multiset of (x_i, frequencies of the first i symbols): all that plain averages after one layer can see."""
    if len(set(word)) == 1:
        return word[0]
    counts = [tuple(Fraction(word[:i].count(k), i) for k in set(word)) for i in range(1, len(word) + 1)]
    return tuple(sorted(zip(word, counts, strict=True)))


@pytest.mark.parametrize(("layers", "length", "symbols"), [(3, 10, 2), (3, 6, 3), (2, 9, 2)])
def test_the_features_of_the_proof_separate_all_words_but_those_of_one_symbol(layers, length, symbols):
    features = {3: three_layers, 2: two_layers}[layers]
    words = all_words(length=length, symbols=symbols)
    mixed = [word for word in words if len(set(word)) > 1]
    assert len({features(word) for word in words}) == len(mixed) + symbols
