"""Near duplicates and overlap against brute force."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rote.errors import InputError
from rote.records import RecordTable, near_duplicate_pairs, near_duplicates_in_corpus, overlap
from rote.records.near_duplicates import bands_and_rows, find_similar, jaccard, shingles
from rote.records.words import words

VOCABULARY = [f"w{i}" for i in range(60)]


def passage(rng, length=60):
    return [rng.choice(VOCABULARY) for _ in range(length)]


def altered(rng, sequence, changes):
    out = list(sequence)
    for _ in range(changes):
        out[rng.randrange(len(out))] = f"new{rng.randrange(10**9)}"
    return out


def family(rng, size, changes=3):
    """`size` passages in groups of relatives, so that similarities spread over (0, 1]."""
    rows = []
    while len(rows) < size:
        root = passage(rng)
        rows += [root, *(altered(rng, root, rng.randrange(changes + 1)) for _ in range(3))]
    return rows[:size]


def table(rows, prefix="r"):
    return RecordTable.from_rows([{"id": f"{prefix}{i}", "text": " ".join(row)} for i, row in enumerate(rows)])


def test_jaccard_and_shingles_by_hand():
    assert shingles(list("abcdef"), k=5) == [tuple("abcde"), tuple("bcdef")]
    assert shingles(["only", "three", "words"], k=5) == [("only", "three", "words")]
    assert shingles([], k=5) == []
    assert jaccard([1, 2, 3], [2, 3, 4]) == 0.5
    assert jaccard([], []) == 0.0


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_miss_less_than_one_in_a_thousand(threshold):
    bands, rows = bands_and_rows(threshold, 128)
    assert bands * rows <= 128
    assert (1 - threshold**rows) ** bands <= 0.001
    if rows < 128:
        assert (1 - threshold ** (rows + 1)) ** (128 // (rows + 1)) > 0.001  # no longer band would do


@pytest.mark.parametrize("threshold", [0.4, 0.6, 0.8])
def test_pairs_equal_brute_force(threshold):
    rng = random.Random(0)
    rows = family(rng, 80)
    records = table(rows)
    sets = [set(shingles(row)) for row in rows]
    first: dict[frozenset, int] = {}
    distinct = [first.setdefault(frozenset(s), i) == i for i, s in enumerate(sets)]
    expected = {
        (f"r{i}", f"r{j}"): jaccard(sets[i], sets[j])
        for i in range(len(rows))
        for j in range(i + 1, len(rows))
        if jaccard(sets[i], sets[j]) >= threshold and distinct[i] and (distinct[j] or sets[i] == sets[j])
    }
    found = near_duplicate_pairs(records, threshold=threshold, seed=1)
    assert {(p.left, p.right): p.jaccard for p in found} == expected
    assert len(expected) > 20
    assert near_duplicate_pairs(records, threshold=threshold, seed=1) == found


def test_pairs_between_two_tables_equal_brute_force():
    rng = random.Random(3)
    left = [passage(rng) for _ in range(30)]
    right = [altered(rng, rng.choice(left), rng.randrange(4)) for _ in range(30)] + [passage(rng) for _ in range(10)]
    right = [row for i, row in enumerate(right) if row not in right[:i]]
    expected = {
        (f"a{i}", f"b{j}"): value
        for i, x in enumerate(left)
        for j, y in enumerate(right)
        if (value := jaccard(shingles(x), shingles(y))) >= 0.6
    }
    found = near_duplicate_pairs(table(left, "a"), table(right, "b"), threshold=0.6)
    assert {(p.left, p.right): p.jaccard for p in found} == expected
    assert len(expected) > 10


def test_many_equal_records_give_a_linear_answer():
    rows = [["same", "old", "story", "again", "and", "again"]] * 300
    pairs = near_duplicate_pairs(table(rows))
    assert [(p.left, p.right) for p in pairs] == [("r0", f"r{i}") for i in range(1, 300)]
    assert {p.jaccard for p in pairs} == {1.0}


def test_case_space_and_punctuation_do_not_matter_and_token_ids_are_symbols():
    records = RecordTable.from_rows(
        [
            {"id": "a", "text": "The quick brown fox jumps!"},
            {"id": "b", "text": "the QUICK, brown\nfox jumps"},
            {"id": "c", "token_ids": [1, 2, 3, 4, 5, 6]},
            {"id": "d", "token_ids": [1, 2, 3, 4, 5, 6]},
            {"id": "e", "text": "!!!"},
            {"id": "f", "text": "???"},
        ]
    )
    assert [(p.left, p.right) for p in near_duplicate_pairs(records)] == [("a", "b"), ("c", "d")]


def test_bad_thresholds():
    for threshold in (0.0, -1.0, 1.5):
        with pytest.raises(InputError, match="above 0 and at most 1"):
            list(find_similar([frozenset([1])], None, threshold=threshold))
    with pytest.raises(InputError, match="num_perm = 4 is too small"):
        bands_and_rows(0.5, 4)


# ---- records inside documents


def best_by_brute_force(record, document):
    """max over windows of the record's number of shingles."""
    mine, theirs = shingles(record), shingles(document)
    if not mine or not theirs:
        return 0.0
    size = len(mine)
    return max(jaccard(mine, theirs[i : i + size]) for i in range(max(1, len(theirs) - size + 1)))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6), threshold=st.sampled_from([0.3, 0.5, 0.8, 1.0]), alphabet=st.sampled_from([2, 5, 60])
)
def test_near_copies_in_documents_equal_brute_force(seed, threshold, alphabet, tmp_path_factory):
    rng = random.Random(seed)
    letters = VOCABULARY[:alphabet]
    records = [[rng.choice(letters) for _ in range(rng.randrange(1, 25))] for _ in range(4)]
    documents = []
    for _ in range(4):
        parts = []
        for _ in range(rng.randrange(3)):
            parts += altered(rng, rng.choice(records), rng.randrange(3)) + [
                rng.choice(letters) for _ in range(rng.randrange(12))
            ]
        documents.append(parts)
    folder = tmp_path_factory.mktemp("corpus")
    for i, document in enumerate(documents):
        (folder / f"{i}.txt").write_text(" ".join(document) or "-")
    found = near_duplicates_in_corpus(table(records), folder, threshold=threshold)
    best = [[best_by_brute_force(r, words(" ".join(d))) for d in documents] for r in records]
    assert found.documents.tolist() == [sum(b >= threshold for b in row) for row in best]
    assert found.best.tolist() == pytest.approx([max([b for b in row if b >= threshold], default=0.0) for row in best])


# ---- overlap of populations


def test_overlap_of_populations_by_hand():
    base = [f"word{i}" for i in range(40)]
    changed = [*base[:20], "other", *base[21:]]
    targets = table([base, VOCABULARY[:30]], "t")
    controls = table(
        [
            [w.upper() for w in base],  # the same words
            changed,  # near
            [*base[:15], *(f"x{i}" for i in range(25))],  # shares a 13-gram
            [f"y{i}" for i in range(40)],  # nothing
        ],
        "c",
    )
    result = overlap(targets, controls, threshold=0.6)
    assert (result.targets, result.controls) == (2, 4)
    assert (result.exact, result.near, result.ngram) == (1, 2, 3)
    assert (result.exact_share, result.near_share, result.ngram_share) == (0.25, 0.5, 0.75)
    # 28 windows of 13 words each: all; all but the 13 that hold the changed word; the first 3; none
    assert result.mean_ngrams == pytest.approx((1 + 15 / 28 + 3 / 28 + 0) / 4)
    assert [(p.left, p.right) for p in result.pairs] == [("t0", "c0"), ("t0", "c1")]
    assert result.pairs[1].jaccard == pytest.approx(jaccard(shingles(base), shingles(changed)))


def test_overlap_counts_every_equal_control_and_handles_empty_populations():
    row = [f"word{i}" for i in range(20)]
    result = overlap(table([row], "t"), table([row, row, row], "c"))
    assert (result.exact, result.near, result.ngram) == (3, 3, 3)
    none = overlap(table([row], "t"), table([row], "c").take([]))
    assert (none.controls, none.exact_share, none.mean_ngrams) == (0, 0.0, 0.0)
    with pytest.raises(InputError, match="must be 1 or more"):
        overlap(table([row], "t"), table([row], "c"), n=0)
