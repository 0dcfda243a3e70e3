"""MiniPrompt's search: exact traces, and the shortest prompt found for every oracle that is monotone in length."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rote.errors import InputError
from rote.measures.compression import MiniPrompt, compression_ratio, mini_prompt, portion_memorized


def test_ratio():
    assert compression_ratio(30, 10) == 3.0
    with pytest.raises(InputError, match="positive"):
        compression_ratio(0, 1)


def test_trace_of_a_search():
    result = mini_prompt(20, lambda n, steps: n >= 8)
    assert result.trace == (
        (5, 200, False), (10, 240, True), (9, 240, True), (8, 240, True), (7, 240, False),
    )  # fmt: skip
    assert (result.prompt_tokens, result.ratio) == (8, 2.5)


def test_hits_at_once_walk_down_to_one_token():
    result = mini_prompt(10, lambda n, steps: True)
    assert [n for n, _, _ in result.trace] == [5, 4, 3, 2, 1]
    assert {steps for _, steps, _ in result.trace} == {200}
    assert result.ratio == 10.0


def test_never_hitting_stops_at_the_cap_with_ratio_zero():
    result = mini_prompt(4, lambda n, steps: False)
    assert [n for n, _, _ in result.trace] == [5, 10, 15]  # 20 = 5 |y| is out of bounds
    assert [steps for _, steps, _ in result.trace] == [200, 240, 288]
    assert (result.prompt_tokens, result.ratio) == (None, 0.0)


@given(st.integers(1, 40), st.integers(1, 60))
def test_monotone_oracles_give_the_shortest_prompt_within_reach(target, shortest):
    result = mini_prompt(target, lambda n, steps: n >= shortest)
    tried = [n for n, _, _ in result.trace]
    reachable = max(tried) >= shortest
    assert result.prompt_tokens == (shortest if reachable else None)
    assert len(tried) == len(set(tried))
    assert max(tried) < 5 * target or tried[0] == 5 * target == 5  # the very first length may be the cap itself
    if not reachable:
        assert shortest > 5 * target - 5  # only targets at the cap are given up


@given(st.lists(st.booleans(), min_size=60, max_size=60), st.integers(1, 20))
def test_any_oracle_ends_and_reports_a_hit_it_really_saw(answers, target):
    replies = iter(answers)
    result = mini_prompt(target, lambda n, steps: next(replies))
    hits = [n for n, _, success in result.trace if success]
    assert result.prompt_tokens == (min(hits) if hits else None)


def test_state_machine_is_pure_and_ends():
    state = MiniPrompt.start(20)
    assert not state.done
    missed = state.advance(False)
    assert (state.length, missed.length, missed.steps) == (5, 10, 240)
    ended = missed.advance(True).advance(False)
    assert ended.done
    assert ended.best == 10
    with pytest.raises(InputError, match="ended"):
        ended.advance(True)


def test_portion_memorized():
    estimate = portion_memorized([0.0, 1.0, 1.01, 3.0])
    assert estimate.value == 0.5  # a ratio of exactly 1 is no compression
    assert estimate.n == 4
    assert estimate.low < 0.5 < estimate.high
