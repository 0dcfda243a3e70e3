"""What steering does in the matched design: probe, causal layer, and sweeps of the strength, on keys it never saw.

Half of the exceptions are for fitting, the other half for judging. The strength is chosen inside the fitting half: a
probe and a vector from one half of it are swept on the other half, and the other way round.

Knows the design and the library's steering. Knows nothing about: claims, prose.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from rote.runtime import derive_seed
from rote.studies._mode_design import (
    FIRST,
    LENGTH,
    Exceptions,
    Tuples,
    fresh_tuples,
    near_tuples,
    partner_tuples,
    prompts,
    ruled,
)

if TYPE_CHECKING:
    from rote.controls.decoding import CausalLayer, ModeProbe, SteeringVector
    from rote.models.causal_lm import CausalLM

ALPHAS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0)
FEW = (1.0, 2.0, 4.0, 8.0)  # at the blocks that were not chosen
CUT, FLIPS, OVER_CHANCE = 0.6, 0.2, 3.0  # what steering must reach: the card's section 5
PRECISION = 0.05  # of the strength at which static steering recites as much as dynamic
RANDOM_DRAWS = 3  # random vectors where the strength is chosen
TUNING_FRESH = 300  # fresh tuples a fold's rule is judged by
DEV_RULE = 0.96  # rule accuracy asked for where the strength is chosen: 0.95 and a margin for chance


@dataclass(frozen=True)
class Keys:
    """Exceptions and as many fresh tuples as asked for, with the residual states h_l at `=` of both."""

    planted: Exceptions
    fresh: Tuples
    states: Float[np.ndarray, "rows layers width"]

    @property
    def labels(self) -> Int[np.ndarray, " rows"]:
        """1 for exceptions, 0 for fresh tuples, in the order of `states`."""
        return np.repeat([1, 0], [len(self.planted), len(self.fresh)])

    def take(self, planted: np.ndarray, fresh: np.ndarray) -> Keys:
        rows = np.concatenate([planted, len(self.planted) + fresh])
        return Keys(self.planted.take(planted), self.fresh[fresh], self.states[rows])


def keys(model: CausalLM, planted: Exceptions, fresh: Tuples) -> Keys:
    """Keys with their states."""
    from rote.controls.decoding.blocks import residual_states

    return Keys(planted, fresh, residual_states(model, [*prompts(planted.tuples), *prompts(fresh)]))


def said(model: CausalLM, tuples: Tuples) -> Tuples:
    """Greedy answers as symbols (negative where a token is none), under whatever hooks are in place."""
    from rote.scores.continuations import greedy_continuations

    return np.asarray(greedy_continuations(model, prompts(tuples), LENGTH), np.int64) - FIRST


def rates(model: CausalLM, judged: Keys) -> dict[str, float]:
    """recite: exceptions answered as planted; flip: answered by the rule; rule: fresh tuples answered by it."""
    answers = said(model, judged.planted.tuples)
    return {
        "recite": float((answers == judged.planted.answers).all(1).mean()),
        "flip": float((answers == ruled(judged.planted.tuples)).all(1).mean()),
        "rule": float((said(model, judged.fresh) == ruled(judged.fresh)).all(1).mean()),
    }


def rule_accuracy(
    model: CausalLM, fresh: Tuples, probe: ModeProbe | None, vector: SteeringVector, alpha: float
) -> float:
    """Share of fresh tuples answered by the rule under dynamic steering, or under static steering without a probe."""
    from rote.controls.decoding import mode_steering

    with mode_steering(model, probe, vector, alpha=alpha, dynamic=probe is not None):
        return float((said(model, fresh) == ruled(fresh)).all(1).mean())


def fit(fitted: Keys, *, seed: int, layers: Sequence[int] | None = None) -> tuple[ModeProbe, list[SteeringVector]]:
    """Probes of all blocks (or of `layers`), and the raw mean difference at each."""
    from rote.controls.decoding import ModeProbe
    from rote.controls.decoding.steering_vector import vector_from_states

    layers = range(fitted.states.shape[1]) if layers is None else layers
    states = fitted.states[:, list(layers)]
    names = np.arange(len(states)).astype(str)  # every key is a document of its own
    probe = ModeProbe.from_states(states, fitted.labels, names, layers=tuple(layers), seed=seed)
    vectors = [
        vector_from_states(states[:, place], fitted.labels, layer=layer, scale="raw", seed=seed)
        for place, layer in enumerate(layers)
    ]
    return probe, vectors


def sweep(
    model: CausalLM,
    judged: Keys,
    probe: ModeProbe | None,
    vector: SteeringVector,
    *,
    alphas: Sequence[float] | None = None,
    dynamic: bool = True,
    name: str = "",
) -> list[dict[str, Any]]:
    """One row per strength: rates under steering, and the mean m_t of both kinds of keys."""
    from rote.controls.decoding import mode_steering

    found = []
    for alpha in ALPHAS if alphas is None else alphas:
        with mode_steering(model, probe, vector, alpha=alpha, dynamic=dynamic) as steering:
            row = rates(model, judged)
        found.append(
            {"vector": name or vector.kind, "dynamic": dynamic, "layer": vector.layer, "alpha": alpha, **row,
             "mean_mode_score": steering.mean_mode_score}
        )  # fmt: skip
    return found


def choose_alpha(
    model: CausalLM, fitted: Keys, layer: int, *, vectors: int = RANDOM_DRAWS, seed: int
) -> tuple[float, list[dict[str, Any]]]:
    """(alpha, the curve it was read from), by two-fold cross-fitting.

    Of the strengths that keep the rule at DEV_RULE, the one whose worst requirement is met best: the cut against CUT,
    the flips against FLIPS, and the cut against OVER_CHANCE times that of random vectors. The smallest when none does.
    """
    rng = np.random.default_rng(derive_seed(seed, "strength"))
    planted = np.array_split(rng.permutation(len(fitted.planted)), 2)
    fresh = np.array_split(rng.permutation(len(fitted.fresh)), 2)
    curves, chance = [], []
    for here, there in ((0, 1), (1, 0)):
        probe, (vector,) = fit(fitted.take(planted[there], fresh[there]), layers=[layer], seed=seed)
        judged = fitted.take(planted[here], fresh[here][:TUNING_FRESH])
        curves.append([{"alpha": 0.0, **rates(model, judged)}, *sweep(model, judged, probe, vector)])
        chance.append(random_sweeps(model, judged, probe, vector, ALPHAS, count=vectors, seed=seed))
    base, *curve = mean_rates(curves)
    for row, random in zip(curve, mean_rates(chance), strict=True):
        row["cut"], row["cut by random vectors"] = (1 - one["recite"] / base["recite"] for one in (row, random))
        row["worst margin"] = min(
            row["cut"] / CUT, row["flip"] / FLIPS, row["cut"] / (OVER_CHANCE * max(row["cut by random vectors"], 1e-3))
        )
    kept = [row for row in curve if row["rule"] >= DEV_RULE] or curve[:1]
    return max(kept, key=lambda row: row["worst margin"])["alpha"], curve


def mean_rates(curves: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Curves over the same strengths, averaged."""
    return [
        {**at[0], **{key: float(np.mean([row[key] for row in at])) for key in ("recite", "flip", "rule")}}
        for at in zip(*curves, strict=True)
    ]


def static_at_equal_recitation(
    model: CausalLM, judged: Keys, vector: SteeringVector, recite: float, most: float
) -> dict[str, Any] | None:
    """Static steering at the mildest strength that recites no more than `recite`: its row of a sweep, by bisection of
    (0, most] down to PRECISION; None when even `most` recites more.

    Dynamic steering never adds more than static steering of the same strength, so its own is a bound to start from.
    """
    (best,) = sweep(model, judged, None, vector, alphas=[most], dynamic=False)
    if best["recite"] > recite:
        return None
    low, high = 0.0, most
    while high - low > PRECISION:
        middle = (low + high) / 2
        (row,) = sweep(model, judged, None, vector, alphas=[middle], dynamic=False)
        low, high, best = (low, middle, row) if row["recite"] <= recite else (middle, high, best)
    return best


def causal(model: CausalLM, fitted: Keys, everything: Exceptions, *, seed: int) -> tuple[CausalLayer, CausalLayer]:
    """Patching at `=` between each exception and a prompt that the rule answers: (partners, near tuples).

    The block is chosen from the partners' noising curve: where the state of an exception, put into a prompt that shares
    nothing but the last symbol with it, makes that one recite. Partners share that symbol because the rule's answer
    begins with it: a state that brought another one would change what is predicted whatever the mode. Near tuples share
    three symbols, so that their own positions recall half of the exception; their curves are for comparison.
    """
    from rote.controls.decoding import Pair, causal_layer

    found = []
    for name, kind in (("partner", partner_tuples), ("near", near_tuples)):
        general = kind(fitted.planted, everything, np.random.default_rng(derive_seed(seed, name)))
        pairs = [
            Pair(memorized, other, tuple((FIRST + answer).tolist()), tuple((FIRST + rule).tolist()))
            for memorized, other, answer, rule in zip(
                prompts(fitted.planted.tuples), prompts(general), fitted.planted.answers, ruled(general), strict=True
            )
        ]
        found.append(causal_layer(model, pairs, curve="noising"))
    return found[0], found[1]


def shuffled_aucs(fitted: Keys, judged: Keys, layers: Sequence[int], *, shuffles: int, seed: int) -> np.ndarray:
    """[shuffles, layers]: AUC on unseen keys of probes whose labels were shuffled, on both sides."""
    from rote.controls.decoding.mode_probe import fit_logistic
    from rote.measures.roc import auroc

    names = np.arange(len(fitted.states)).astype(str)
    found = np.empty((shuffles, len(layers)))
    for number in range(shuffles):
        rng = np.random.default_rng(derive_seed(seed, "shuffle", number))
        labels, truth = rng.permutation(fitted.labels), rng.permutation(judged.labels) == 1
        for place, layer in enumerate(layers):
            probe = fit_logistic(fitted.states[:, layer], labels, names, calibrate=False, folds=2, seed=seed)
            scores = judged.states[:, layer] @ probe.w + probe.b
            found[number, place] = auroc(scores[truth], scores[~truth])
    return found


def unseen_aucs(probe: ModeProbe, judged: Keys) -> list[float]:
    """AUC of every block's probe on unseen keys."""
    from rote.measures.roc import auroc

    truth = judged.labels == 1
    scores = [probe.score(judged.states[:, place], layer) for place, layer in enumerate(probe.layers)]
    return [auroc(m[truth], m[~truth]) for m in scores]


def identities(model: CausalLM, judged: Keys, probe: ModeProbe, vector: SteeringVector, near: Tuples) -> dict[str, Any]:
    """What must not change, and by how much it does: largest differences of logits.

    self: a prompt patched with its own state, any block. last block: patched with another's state, against that one's
    logits. alpha 0: logits and greedy answers under steering of strength 0.
    """
    import torch

    from rote.controls.decoding import mode_steering
    from rote.controls.decoding.blocks import blocks_of, padded, residual_states
    from rote.controls.decoding.patching import Patch, patched

    asked, others = prompts(judged.planted.tuples), prompts(near)
    ids, bos = padded(model, asked)
    last = torch.full((len(asked),), bos + len(asked[0]) - 1)

    def logits(tokens: torch.Tensor, patch: Patch | None = None, steer: AbstractContextManager | None = None):
        with patched(model, patch, np.arange(len(tokens)), last), steer or nullcontext(), torch.inference_mode():
            return model.hf(input_ids=tokens, use_cache=False).logits[:, -1]

    plain, source = logits(ids), logits(padded(model, others)[0])
    own, their = residual_states(model, asked), residual_states(model, others)
    layers = range(len(blocks_of(model.hf)))
    end = layers[-1]
    steering = mode_steering(model, probe, vector, alpha=0.0)
    with mode_steering(model, probe, vector, alpha=0.0):
        answers = said(model, judged.planted.tuples)
    return {
        "self": max(float((logits(ids, Patch(at, own[:, at])) - plain).abs().max()) for at in layers),
        "last block": float((logits(ids, Patch(end, their[:, end])) - source).abs().max()),
        "alpha 0, logits": float((logits(ids, steer=steering) - plain).abs().max()),
        "alpha 0, same answers": bool((answers == said(model, judged.planted.tuples)).all()),
    }


def random_sweeps(
    model: CausalLM,
    judged: Keys,
    probe: ModeProbe,
    vector: SteeringVector,
    alphas: Sequence[float],
    *,
    count: int,
    seed: int,
) -> list[dict[str, Any]]:
    """The same with random vectors of the same norm: mean rates over `count` of them, one row per strength."""
    from rote.controls.decoding import random_vector

    draws = [
        sweep(model, judged, probe, random_vector(vector, seed=derive_seed(seed, "random", n)),
              alphas=alphas)
        for n in range(count)
    ]  # fmt: skip
    return mean_rates(draws)


def split_keys(model: CausalLM, planted: Exceptions, *, fresh: int, judged_fresh: int, seed: int) -> tuple[Keys, Keys]:
    """(fitting half, judging half) of the exceptions, each with fresh tuples of its own."""
    rng = np.random.default_rng(derive_seed(seed, "keys"))
    order = rng.permutation(len(planted))
    half = len(planted) // 2
    tuples = fresh_tuples(fresh + judged_fresh, planted, rng)
    return (
        keys(model, planted.take(order[:half]), tuples[:fresh]),
        keys(model, planted.take(order[half:]), tuples[fresh:]),
    )
