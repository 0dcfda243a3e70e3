"""The pure parts of approximate extraction, against brute-force enumeration."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rote.errors import InputError
from rote.measures.approximate import (
    DISTANCES,
    constrained_beam,
    hamming1_log_probability,
    monte_carlo,
    one_minus_bleu,
    token_hamming,
    token_levenshtein,
    within,
)

V, K = 5, 4


class Chain:
    """A random next-token distribution for every context: a language model of which everything can be enumerated."""

    def __init__(self, seed: int, sharpness: float = 1.5, support: int = V):
        self.seed, self.sharpness, self.support, self.calls = seed, sharpness, support, 0
        self.known: dict[tuple, np.ndarray] = {}

    def logq(self, context: tuple) -> np.ndarray:
        if context not in self.known:
            self.known[context] = self._logq(context)
        return self.known[context]

    def _logq(self, context: tuple) -> np.ndarray:
        z = np.random.default_rng([self.seed, *(int(token) + 1 for token in context)]).normal(size=V) * self.sharpness
        z[np.argsort(z)[: V - self.support]] = -np.inf
        return z - np.log(np.exp(z).sum())

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        self.calls += 1
        return np.array([self.logq(tuple(row.tolist())) for row in tokens])

    def probability(self, tokens: tuple) -> float:
        return float(np.exp(sum(self.logq(tokens[:t])[token] for t, token in enumerate(tokens))))

    def ball(self, target, eps: int) -> float:
        return sum(
            self.probability(s)
            for s in itertools.product(range(V), repeat=len(target))
            if sum(a != b for a, b in zip(s, target, strict=True)) <= eps
        )

    def branches(self, target):
        logq = np.array([self.logq(tuple(target[:t]))[y] for t, y in enumerate(target)])
        branch, rest = np.full((2, len(target), V), -np.inf)
        for j in range(len(target)):
            for v in set(range(V)) - {target[j]}:
                branch[j, v] = self.logq(tuple(target[:j]))[v]
                path = [*target[:j], v, *target[j + 1 :]]
                rest[j, v] = sum(self.logq(tuple(path[:t]))[path[t]] for t in range(j + 1, len(target)))
        return logq, branch, rest


def likely(chain: Chain, k: int = K) -> tuple:
    tokens = ()
    for _ in range(k):
        tokens += (int(chain.logq(tokens).argmax()),)
    return tokens


@pytest.mark.parametrize("support", [2, 3, 5])
@pytest.mark.parametrize("seed", range(5))
def test_ball_equals_branch_sum_equals_unpruned_beam(seed, support):
    chain = Chain(seed, support=support)
    for target in (likely(chain), tuple(np.random.default_rng(seed).integers(0, V, K))):
        truth = chain.ball(target, 1)
        assert np.exp(hamming1_log_probability(*chain.branches(target))) == pytest.approx(truth, rel=1e-12)
        for eps in range(K + 1):
            bound = constrained_beam(chain, target, eps=eps, width=V**K)
            assert bound.exact
            assert bound.log_lower == bound.log_upper
            assert np.exp(bound.log_lower) == pytest.approx(chain.ball(target, eps), rel=1e-12)
            assert (bound.mismatches == token_hamming(bound.tokens, np.array(target))).all()
            assert np.allclose(np.exp(bound.logq), [chain.probability(tuple(row)) for row in bound.tokens])
        assert np.exp(constrained_beam(chain, target, eps=K, width=V**K).log_lower) == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(8))
def test_beam_bound_rises_with_its_width_to_the_truth(seed):
    chain = Chain(seed)
    target = likely(chain)
    truth = chain.ball(target, 1)
    bounds = [constrained_beam(chain, target, eps=1, width=width) for width in (1, 2, 4, 8, 16, 32)]
    lower = np.exp([bound.log_lower for bound in bounds])
    assert (np.diff(lower) >= -1e-15).all()
    assert lower[0] == pytest.approx(chain.probability(target))
    assert lower[-1] == pytest.approx(truth)
    assert bounds[-1].exact


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(0, 3), st.integers(2, V))
def test_both_beam_bounds_hold_for_every_width(seed, width, eps, support):
    chain = Chain(seed, support=support)
    target = tuple(np.random.default_rng(seed + 1).integers(0, V, K))
    bound = constrained_beam(chain, target, eps=eps, width=width)
    truth = chain.ball(target, eps)
    assert np.exp(bound.log_lower) <= truth * (1 + 1e-12)
    assert np.exp(bound.log_upper) >= truth * (1 - 1e-12)
    assert np.exp(bound.log_lower) >= chain.probability(target) * (1 - 1e-12)  # the verbatim beam survives
    assert len(bound.logq) <= width
    assert chain.calls <= K  # one call a position
    if bound.exact:
        assert np.exp(bound.log_lower) == pytest.approx(truth, rel=1e-12)


def test_an_impossible_suffix_has_probability_zero_and_no_nan():
    def certain(tokens):  # only token 0 is ever possible
        return np.tile(np.array([0.0, -np.inf]), (len(tokens), 1))

    bound = constrained_beam(certain, np.array([1, 1, 1]), eps=1, width=4)
    assert (bound.log_lower, bound.log_upper, bound.exact) == (-np.inf, -np.inf, True)
    assert bound.tokens.shape == (0, 3)
    assert np.exp(constrained_beam(certain, np.array([1, 0, 0]), eps=1, width=4).log_lower) == 1.0
    empty = np.full((2, 1), -np.inf)
    assert hamming1_log_probability(np.array([-np.inf, -np.inf]), empty, empty) == -np.inf


def test_deep_probabilities_do_not_underflow():
    k = 400
    flat = np.full(V, -np.log(V))
    bound = constrained_beam(lambda tokens: np.tile(flat, (len(tokens), 1)), np.zeros(k, int), eps=0, width=2)
    assert bound.log_lower == pytest.approx(-k * np.log(V))
    exact = hamming1_log_probability(
        np.full(k, -np.log(V)),
        np.full((k, V - 1), -np.log(V)),
        -np.arange(k - 1, -1, -1)[:, None] * np.log(V) * np.ones(V - 1),
    )
    assert exact == pytest.approx(-k * np.log(V) + np.log(1 + k * (V - 1)))


def test_distances_in_closed_form():
    target = np.array([1, 2, 3, 4, 5, 6])
    samples = np.array(
        [[1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6, 7], [1, 9, 3, 4, 5, 6], [9, 9, 9, 9, 9, 9], [1, 2, 3, 4, 5, 6]]
    )
    assert token_hamming(samples, target).tolist() == [0, 6, 1, 6, 0]
    assert token_levenshtein(samples, target).tolist() == [0, 2, 1, 6, 0]
    bleu = 1 - one_minus_bleu(samples, target)
    # second: 5/6 unigrams, 4/5, 3/4, 2/3; third: 5/6, 3/5, 2/4, 1/3
    expected = [1, (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25, (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25, 0, 1]
    np.testing.assert_allclose(bleu, expected, atol=1e-12)
    # brevity: four of the eight words, all right
    assert 1 - one_minus_bleu(np.array([[1, 2, 3, 4]]), np.arange(1, 9))[0] == pytest.approx(np.exp(1 - 2))
    assert within(samples, target, eps=1).tolist() == [True, False, True, False, True]
    assert within(samples, target, eps=2, distance="levenshtein").tolist() == [True, True, True, False, True]
    assert within(samples, target, eps=0.25, distance="bleu").tolist() == [True, True, False, False, True]
    assert set(DISTANCES) == {"hamming", "levenshtein", "bleu"}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=7), st.lists(st.integers(0, 3), min_size=1, max_size=7))
def test_levenshtein_against_the_textbook_recursion(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    table[:, 0], table[0] = np.arange(len(a) + 1), np.arange(len(b) + 1)
    for i, j in itertools.product(range(len(a)), range(len(b))):
        table[i + 1, j + 1] = min(table[i, j + 1] + 1, table[i + 1, j] + 1, table[i, j] + (a[i] != b[j]))
    assert token_levenshtein(np.array([a]), np.array(b))[0] == table[-1, -1]


def test_monte_carlo_interval_and_rule_of_three():
    estimate = monte_carlo(np.array([0, 5, 100]), 100)
    np.testing.assert_allclose(estimate.estimate, [0, 0.05, 1])
    np.testing.assert_allclose([estimate.low[0], estimate.high[0]], [0, 1 - 0.025 ** (1 / 100)])
    np.testing.assert_allclose([estimate.low[1], estimate.high[1]], [0.01643, 0.11283], atol=1e-5)
    np.testing.assert_allclose([estimate.low[2], estimate.high[2]], [0.025 ** (1 / 100), 1])
    np.testing.assert_array_equal(estimate.rule_of_three, [0.03, np.nan, np.nan])
    # 3/R bounds the exact one-sided 95 % limit 1 - 0.05^(1/R) from above
    assert 0 < 0.03 - (1 - 0.05 ** (1 / 100)) < 1e-3


def test_wrong_use_is_refused():
    with pytest.raises(InputError, match="eps >= 0"):
        constrained_beam(lambda tokens: np.zeros((len(tokens), 2)), np.array([0]), eps=-1)
    with pytest.raises(InputError, match="at least one sample"):
        monte_carlo(np.array([0]), 0)
    with pytest.raises(InputError, match="between 0 and trials"):
        monte_carlo(np.array([7]), 5)
    with pytest.raises(InputError, match="unknown distance"):
        within(np.zeros((1, 2), int), np.zeros(2, int), eps=1, distance="cosine")
    with pytest.raises(InputError, match="Hamming distance needs"):
        token_hamming(np.zeros((1, 2), int), np.zeros(3, int))
