"""Guards: quiet on random splits of real prose, loud on planted shifts, and never fooled by related records."""

from __future__ import annotations

from pydoc_data.topics import topics

import numpy as np
import pytest

from rote.errors import InputError
from rote.measures.blind import bag_of_words, date_only, date_ordinals, length_only, overlap


@pytest.fixture(scope="module")
def passages():
    """Passages of the running Python's own documentation, in random order."""
    found = [p for text in topics.values() for p in text.split("\n\n") if 80 <= len(p) <= 600]
    order = np.random.default_rng(0).permutation(len(found))
    return [found[i] for i in order[:400]]


@pytest.fixture(scope="module")
def member():
    return np.random.default_rng(1).random(400) < 0.5


def test_random_split_of_one_pool_passes(passages, member):
    guard = bag_of_words(passages, member)
    assert guard.status == "pass"
    assert guard.low < 0.5 < guard.high
    assert guard.spoils == ("membership.auroc", "membership.tpr")
    lengths = [len(p) for p in passages]
    assert length_only(lengths, member).status == "pass"


def test_useless_features_are_unbiased(passages):
    """Pooled cross-validated scores would sit below one half; the mean over random labels must not."""
    values = []
    for seed in range(16):
        labels = np.random.default_rng(seed).random(120) < 0.5
        values.append(bag_of_words(passages[:120], labels, seed=seed).value)
    assert np.mean(values) == pytest.approx(0.5, abs=0.04)


def test_folds_are_never_compared_with_each_other():
    """Equal records: each fold's classifier gives them one score, but another in every fold."""
    guard = bag_of_words(["same words"] * 41, np.arange(41) < 20)
    assert guard.value == 0.5


def test_another_vocabulary_fails_and_the_message_shows_no_text(passages, member):
    shifted = [f"{p} zyzzyva" if m else p for p, m in zip(passages, member, strict=True)]
    guard = bag_of_words(shifted, member)
    assert guard.status == "fail"
    assert guard.value == pytest.approx(1.0)
    assert 0.9 < guard.low < 1.0
    assert "zyzzyva" not in guard.message
    assert "1.00" in guard.message
    assert guard.as_dict()["spoils"] == ["membership.auroc", "membership.tpr"]


def test_token_ids_serve_as_words(member):
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 50, 30).tolist() + ([77, 77] if m and i % 2 else []) for i, m in enumerate(member)]
    guard = bag_of_words(ids, member)
    assert guard.status == "fail"
    assert guard.value == pytest.approx(0.75, abs=0.06)  # half of the members carry the mark
    assert bag_of_words([np.array(x) for x in ids], member) == guard


def test_guard_is_deterministic_for_a_seed(passages, member):
    assert bag_of_words(passages, member, seed=3) == bag_of_words(passages, member, seed=3)
    assert bag_of_words(passages, member, seed=3).value != bag_of_words(passages, member, seed=4).value


def test_groups_keep_related_records_together():
    """20 books, each wholly member or not, whose passages share one word: leaks across folds unless grouped."""
    rng = np.random.default_rng(0)
    books = np.repeat(np.arange(20), 12)
    member = books % 2 == 0
    texts = [f"book{b} " + " ".join(f"w{v}" for v in rng.integers(0, 30, 20)) for b in books]
    assert bag_of_words(texts, member).status == "fail"
    grouped = bag_of_words(texts, member, groups=[f"g{b}" for b in books])
    assert grouped.status == "pass"
    assert grouped.low < 0.5
    single = bag_of_words(texts, member, groups=["same"] * 240)
    assert single.status == "not_run"
    assert "one group" in single.message
    own = bag_of_words(texts, member, groups=[None] * 240)  # a record without a group is its own group
    assert own.status == "fail"


def test_length_shift_of_known_auroc(member):
    length = np.random.default_rng(0).normal(200, 20, 400) + 20 * member  # d = 1
    guard = length_only(length, member)
    assert guard.status == "fail"
    assert guard.low < 0.760250 < guard.high
    shorter = length_only(-length, member)
    assert shorter.value == pytest.approx(guard.value, abs=0.01)  # shorter members are as telling as longer ones


def test_length_in_between_is_seen_too():
    rng = np.random.default_rng(0)
    member = np.arange(300) < 150
    length = np.where(member, rng.normal(100, 5, 300), 100 + rng.choice([-40, 40], 300))
    assert length_only(length, member).value > 0.95


def test_random_lengths_fail_no_more_often_than_the_confidence_allows():
    rng = np.random.default_rng(0)
    member = np.arange(100) < 50
    outcomes = [length_only(rng.random(100), member, limit=0.5) for _ in range(400)]
    assert all(guard.value >= 0.5 for guard in outcomes)
    assert np.mean([guard.status == "fail" for guard in outcomes]) < 0.07


def test_related_records_count_once_in_a_length():
    """12 members and 12 controls, each repeated 20 times: 480 records, but only 24 lengths."""
    rng = np.random.default_rng(1)
    member = np.repeat(np.arange(24) < 12, 20)
    lengths = np.repeat(rng.normal(size=24), 20)
    alone = length_only(lengths, member)
    grouped = length_only(lengths, member, groups=np.repeat(np.arange(24), 20).tolist())
    assert grouped.value == pytest.approx(alone.value)
    assert grouped.high - grouped.low > 3 * (alone.high - alone.low)


def test_constant_length_says_nothing(member):
    guard = length_only(np.full(400, 64), member)
    assert guard.value == 0.5
    assert guard.status == "pass"


def test_date_cut_off_fails_and_undated_records_are_counted(member):
    rng = np.random.default_rng(0)
    dates = [f"{2010 + rng.integers(0, 5) + 6 * (not m)}-0{rng.integers(1, 9)}" for m in member]
    guard = date_only(dates, member)
    assert guard.status == "fail"
    assert guard.value == pytest.approx(1.0)
    partly = date_only([d if i % 2 else None for i, d in enumerate(dates)], member)
    assert partly.status == "fail"
    assert "200 of 400" in partly.message
    assert date_only([None] * 400, member).status == "not_run"
    one_sided = date_only([d if m else None for d, m in zip(dates, member, strict=True)], member)
    assert one_sided.status == "not_run"


def test_date_ordinals():
    got = date_ordinals(
        ["1970-01-02", "1971", "1970-02", "2021-03-04T05:06:07Z", None, "soon", "2021-02-31", "19700101"]
    )
    assert got[:4] == pytest.approx([1, 365, 31, 18690])
    assert np.isnan(got[4:]).all()


def test_few_records_are_not_judged():
    guard = bag_of_words(["a b", "c d"] * 6, np.arange(12) < 9)
    assert guard.status == "not_run"
    assert guard.value is None
    assert "got 9 and 3" in guard.message
    assert bag_of_words([""] * 40, np.arange(40) < 20).status == "not_run"


def test_wide_intervals_say_what_they_cannot_exclude():
    guard = length_only(np.random.default_rng(3).normal(size=30), np.arange(30) % 2 == 0, limit=0.6)
    assert guard.status == "pass"
    assert guard.high > 0.6
    assert "cannot be excluded" in guard.message


def test_overlap_finds_copies_and_near_copies():
    rng = np.random.default_rng(0)

    def passage():
        return " ".join(f"w{v}" for v in rng.integers(0, 5000, 40))

    targets, controls = [passage() for _ in range(50)], [passage() for _ in range(50)]
    clean = overlap(targets, controls)
    assert (clean.status, clean.value) == ("pass", 0.0)
    near = targets[0].split()
    near[30] = "changed"
    guard = overlap(targets, [targets[3].upper(), " ".join(near), *controls[:8]])
    assert guard.status == "fail"
    assert guard.value == pytest.approx(0.2)
    assert "2 of 10" in guard.message
    assert overlap(["short one"], ["short one", "other two"]).value == 0.5
    assert overlap([], controls).status == "not_run"


def test_bad_labels_are_refused(passages):
    with pytest.raises(InputError, match="one true/false per record"):
        bag_of_words(passages, [True, False])
    with pytest.raises(InputError, match=r"lengths\[1\]"):
        length_only([1.0, np.nan], [True, False])
    with pytest.raises(InputError, match="groups must hold"):
        length_only([1.0, 2.0], [True, False], groups=["a"])
