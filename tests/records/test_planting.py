"""Controlled insertion: the counts of Hubble's suites, and what must be true of every planted stream."""

import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rote.errors import InputError
from rote.records.planting import (
    assign_duplicates,
    level_counts,
    pack,
    plant,
    read_log,
    segment_starts,
    slot_range,
    splice,
    splice_offset,
    write_log,
)

EOS = 0
WIDTH = 17


def small_stream(seed=0, sequences=96, width=WIDTH):
    """Documents of 3 to 20 tokens with ids 10 .. 99; probes below use ids >= 1000, so a copy cannot occur by chance."""
    rng = np.random.default_rng(seed)
    documents = [np.append(rng.integers(10, 100, rng.integers(3, 20)), EOS) for _ in range(200)]
    return pack(documents, sequences=sequences, width=width, seed=seed)


def probes_of(lengths):
    return [np.append(1000 + 100 * i + np.arange(n - 1), EOS).astype(np.int32) for i, n in enumerate(lengths)]


def occurrences(stream, probe):
    """Brute force: (row, position) of every occurrence of `probe` inside a row."""
    n = len(probe)
    return [
        (row, at)
        for row in range(len(stream))
        for at in range(stream.shape[1] - n + 1)
        if np.array_equal(stream[row, at : at + n], probe)
    ]


def test_level_counts_are_those_of_hubbles_suites():
    assert level_counts(5000) == {0: 2500, 1: 893, 4: 893, 16: 446, 64: 179, 256: 89}
    assert level_counts(7999) == {0: 4000, 1: 1428, 4: 1428, 16: 714, 64: 286, 256: 143}


@given(n=st.integers(0, 3000), weights=st.dictionaries(st.integers(0, 300), st.floats(0.01, 50), min_size=1))
def test_level_counts_add_up_and_stay_close_to_the_weights(n, weights):
    counts = level_counts(n, weights)
    assert sum(counts.values()) == n
    total = sum(weights.values())
    # Zero is rounded up first, the others share what is left: no level is off by 2 or more.
    assert all(abs(count - n * weights[level] / total) < 2 for level, count in counts.items())


@pytest.mark.parametrize("weights", [{}, {1: 0.0}, {1: -1.0}, {-1: 1.0}, {1: float("nan")}])
def test_bad_weights_are_refused(weights):
    with pytest.raises(InputError):
        level_counts(10, weights)


def test_assignment_is_a_seeded_permutation_of_the_counts():
    drawn = assign_duplicates(500, seed=3)
    assert collections.Counter(drawn.tolist()) == level_counts(500)
    assert np.array_equal(drawn, assign_duplicates(500, seed=3))
    assert not np.array_equal(drawn, assign_duplicates(500, seed=4))


@pytest.mark.parametrize("window", [(0.0, 1.0), (0.0, 0.25), (0.75, 1.0), (0.3, 0.5)])
def test_every_copy_is_whole_alone_in_its_slot_and_inside_the_window(window):
    clean = small_stream(sequences=200)
    stream = clean.copy()
    probes = probes_of([5, 9, 12, 4])
    duplicates = np.array([0, 1, 7, 20])
    log = plant(stream, probes, duplicates, eos_id=EOS, batch_size=4, window=window, seed=1)

    assert len(log) == duplicates.sum() == 28
    assert collections.Counter(copy.record for copy in log) == {1: 1, 2: 7, 3: 20}
    slots = [copy.slot for copy in log]
    assert len(set(slots)) == len(slots)
    batches = 200 // 4
    low, high = int(np.floor(batches * window[0] + 1e-9)) * 4, int(np.ceil(batches * window[1] - 1e-9)) * 4
    assert (low, high) == slot_range(200, batch_size=4, window=window)
    assert all(low <= slot < high for slot in slots)
    assert stream.shape == clean.shape  # every sequence still holds L + 1 tokens, the budget is the same
    for index, probe in enumerate(probes):
        logged = sorted((copy.slot, copy.start) for copy in log if copy.record == index)
        assert occurrences(stream, probe) == logged  # verbatim, exactly once, where the log says
    untouched = np.setdiff1d(np.arange(200), slots)
    assert stream[untouched].tobytes() == clean[untouched].tobytes()


def test_a_spliced_sequence_is_the_document_order_with_the_copy_in_the_gap():
    clean = small_stream(sequences=200)
    stream = clean.copy()
    probe = probes_of([6])
    for copy in plant(stream, probe, np.array([150]), eos_id=EOS, batch_size=4, seed=2):
        starts = segment_starts(clean[copy.slot], eos_id=EOS)
        g = starts[copy.gap]
        whole = np.concatenate([clean[copy.slot][:g], probe[0], clean[copy.slot][g:]])
        assert np.array_equal(stream[copy.slot], whole[copy.offset : copy.offset + WIDTH])
        assert copy.start == g - copy.offset
        assert copy.gap > 0 or copy.offset == 0  # w = 0 when the gap is 0
        assert 0 <= copy.start <= WIDTH - copy.length


def test_gaps_and_slots_are_spread_over_all_of_training():
    stream = small_stream(sequences=4000)
    log = plant(stream, probes_of([6]), np.array([2000]), eos_id=EOS, batch_size=4, seed=5)
    quarters = np.bincount([copy.slot * 4 // 4000 for copy in log], minlength=4)
    assert quarters.min() > 430  # 500 expected, hypergeometric standard deviation 14
    assert {copy.gap for copy in log} >= {0, 1, 2}


def test_a_copy_as_long_as_the_sequence_fits_at_one_offset_only():
    for start in (0, 3, WIDTH - 1):
        assert splice_offset(gap=1, drawn=5, start=start, length=WIDTH, sequence_length=WIDTH) == start
    stream = small_stream()
    probe = probes_of([WIDTH])
    log = plant(stream, probe, np.array([30]), eos_id=EOS, batch_size=4, seed=0)
    assert all(copy.start == 0 and np.array_equal(stream[copy.slot], probe[0]) for copy in log)


@given(
    width=st.integers(2, 40),
    data=st.data(),
)
def test_the_clipped_offset_always_keeps_the_copy_whole(width, data):
    length = data.draw(st.integers(1, width))
    start = data.draw(st.integers(1, width - 1))
    drawn = data.draw(st.integers(0, length - 1))
    offset = splice_offset(gap=1, drawn=drawn, start=start, length=length, sequence_length=width)
    row, probe = np.arange(width), 1000 + np.arange(length)
    kept = splice(row, probe, start=start, offset=offset)
    assert len(kept) == width
    assert np.array_equal(kept[start - offset : start - offset + length], probe)


def test_same_seed_same_log_and_a_memory_map_is_planted_in_place(tmp_path):
    clean = small_stream()
    np.save(tmp_path / "stream.npy", clean)
    mapped = np.load(tmp_path / "stream.npy", mmap_mode="r+")
    in_memory = clean.copy()
    args = {"eos_id": EOS, "batch_size": 4, "seed": 9}
    log = plant(in_memory, probes_of([5, 7]), np.array([3, 4]), **args)
    assert plant(mapped, probes_of([5, 7]), np.array([3, 4]), **args) == log
    assert np.array_equal(np.load(tmp_path / "stream.npy"), in_memory)
    assert plant(clean.copy(), probes_of([5, 7]), np.array([3, 4]), **(args | {"seed": 10})) != log
    write_log(tmp_path / "copies.jsonl", log, ["a", "b"])
    assert list(read_log(tmp_path / "copies.jsonl")) == log


def test_sequence_start_overwrites_the_head_only():
    clean = small_stream()
    stream = clean.copy()
    probe = probes_of([5])
    for copy in plant(stream, probe, np.array([20]), eos_id=EOS, batch_size=4, mode="seq_start", seed=0):
        assert np.array_equal(stream[copy.slot, :5], probe[0])
        assert np.array_equal(stream[copy.slot, 5:], clean[copy.slot, 5:])


@pytest.mark.parametrize(
    ("probes", "duplicates", "window", "message"),
    [
        (probes_of([WIDTH + 1]), [1], (0, 1), "a sequence holds 17"),
        ([np.array([5, 6, 7])], [1], (0, 1), "end-of-text"),
        (probes_of([5]), [97], (0, 1), "97 copies"),
        (probes_of([5]), [30], (0, 0.25), "30 copies"),
        (probes_of([5]), [-1], (0, 1), "negative"),
        (probes_of([5]), [1, 2], (0, 1), "one count per text"),
        (probes_of([5]), [1], (0.5, 0.5), "window"),
    ],
)
def test_what_cannot_be_planted_is_refused_and_nothing_is_written(probes, duplicates, window, message):
    stream = small_stream()
    before = stream.copy()
    with pytest.raises(InputError, match=message):
        plant(stream, probes, np.array(duplicates), eos_id=EOS, batch_size=4, window=window)
    assert np.array_equal(stream, before)


def test_a_longer_stream_begins_with_the_shorter_one():
    documents = [np.array([i, i + 1, EOS]) for i in range(10, 40)]
    short, long = (pack(documents, sequences=n, width=8, seed=1) for n in (20, 60))
    assert np.array_equal(long[:20], short)
    # One pass holds every document once.
    assert collections.Counter(long.ravel()[: 3 * 30].tolist()) == collections.Counter(
        np.concatenate(documents).tolist()
    )
