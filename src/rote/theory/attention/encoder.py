"""The information-theoretic floor: the best KL of any rank-d sequence encoder f = W E(t).

Knows the optimisation and its exact special cases. Deliberately knows nothing about attention: every Transformer that
ends in W_U, of any depth, is a sequence encoder, so none goes below (Proposition 1). For 2 <= d < N - 1 the problem is
not convex, so the number is the best of several starts: an upper estimate of the infimum, and labelled so.

Source: Dana, Pydi & Chevaleyre 2024 (arXiv 2411.10115, section 3, Propositions 1 to 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize

from rote.errors import InputError
from rote.theory.attention.checks import check_distribution, check_prior
from rote.theory.attention.codes import circle_code, circle_scale_for
from rote.theory.attention.lookup_bound import negative_entropy
from rote.theory.attention.model import kl_by_context

TINY = 1e-17  # probability that stands for 0 where logits must be finite
REACHED = 1e-12  # KL at which Proposition 3's limit is stopped


@dataclass(frozen=True)
class EncoderFloor:
    """W, E and their KL in nats (prior mean over contexts, >= 0). `float(floor)` is the KL.

    `attained`: False where the infimum is a limit (some pi is 0), so more scale gives a little less. `exact`: True
    where the value is known (d >= N - 1, or point masses with d >= 2), False where it is the best of `starts` starts.
    `agreement`: how many starts came within 1e-6 of the best. `rank` <= d coordinates are in use.
    """

    kl: float
    unembedding: Float[np.ndarray, "vocab rank"]
    encoding: Float[np.ndarray, "contexts rank"]
    d: int
    attained: bool
    exact: bool
    starts: int
    agreement: int

    def __float__(self) -> float:
        return self.kl

    @property
    def logits(self) -> Float[np.ndarray, "contexts vocab"]:
        return self.encoding @ self.unembedding.T


def sequence_encoder_floor(
    pi: Float[np.ndarray, "contexts vocab"],
    *,
    d: int,
    prior: Float[np.ndarray, " contexts"] | None = None,
    seed: int = 0,
    starts: int = 8,
) -> EncoderFloor:
    """d_KL(pi, L(N,S,d)) = min_{W, E} E_t KL(pi(.|t) || softmax W E(t)), W of N x d, E(t) in R^d free.

    d >= N - 1: exactly 0 (Proposition 2), E = log pi_j - log pi_N. Point masses and d >= 2: infimum 0 (Proposition 3),
    the circle at a scale where KL <= 1e-12. Otherwise L-BFGS in float64 from a truncated SVD of the centred log pi and
    from random starts. Contexts of prior 0 do not count.
    Errors: `InputError` for a row that is no distribution, d < 1, or d = 1 with zeros in pi (the limit is no number).
    """
    pi = check_distribution(pi)
    weight = check_prior(prior, len(pi))
    vocab = pi.shape[1]
    if d < 1:
        raise InputError(f"d must be at least 1, not {d}")
    full_support = bool((pi > 0).all())
    if d >= vocab - 1:
        log_pi = np.log(np.maximum(pi, TINY))
        encoding = log_pi[:, :-1] - log_pi[:, -1:]
        code = np.concatenate([np.eye(vocab - 1), np.zeros((1, vocab - 1))])
        return _floor(pi, weight, code, encoding, d, attained=full_support, exact=True, starts=0, agreement=0)
    if d >= 2 and (negative_entropy(pi) == 0).all():
        code = circle_code(vocab)
        encoding = circle_scale_for(vocab, REACHED) * code[pi.argmax(axis=1)]
        return _floor(pi, weight, code, encoding, d, attained=False, exact=True, starts=0, agreement=0)
    if not full_support and d == 1:
        raise InputError("d = 1 and probabilities of exactly 0: give full-support targets (floor them) or use d >= 2")
    found = [_descend(pi, weight, start) for start in _starts(pi, weight, d, seed, starts)]
    kls = np.array([kl for kl, _, _ in found])
    _, code, encoding = found[int(kls.argmin())]
    agreement = int((kls < kls.min() + 1e-6).sum())
    return _floor(pi, weight, code, encoding, d, attained=full_support, exact=False, starts=starts, agreement=agreement)


def floored(pi: Float[np.ndarray, "contexts vocab"], delta: float) -> Float[np.ndarray, "contexts vocab"]:
    """(1 - delta) pi + delta / N: full support (Assumption 2) for targets that have zeros."""
    pi = check_distribution(pi)
    if not 0 < delta < 1:
        raise InputError(f"the floor delta must be in (0, 1), not {delta}")
    return (1 - delta) * pi + delta / pi.shape[1]


def _floor(pi, weight, code, encoding, d, **known) -> EncoderFloor:
    kl = max(0.0, float(weight @ kl_by_context(pi, encoding @ code.T)))
    return EncoderFloor(kl=kl, unembedding=code, encoding=encoding, d=d, **known)


def _starts(pi, weight, d, seed, starts):
    """The best rank-d fit of the centred logits in weighted least squares, then random ones."""
    generator = np.random.default_rng(seed)
    log_pi = np.log(np.maximum(pi, 1e-6))
    centred = log_pi - log_pi.mean(axis=1, keepdims=True)
    _, singular, right = np.linalg.svd(np.sqrt(weight)[:, None] * centred, full_matrices=False)
    code = np.zeros((pi.shape[1], d))
    code[:, : min(d, len(singular))] = right[:d].T * np.sqrt(singular[:d])
    yield code, np.linalg.lstsq(code, centred.T, rcond=None)[0].T
    for _ in range(starts - 1):
        yield generator.standard_normal((pi.shape[1], d)), generator.standard_normal((len(pi), d))


def _descend(pi, weight, start) -> tuple[float, np.ndarray, np.ndarray]:
    (vocab, d), contexts = start[0].shape, len(pi)
    entropy = float(weight @ negative_entropy(pi))
    # The descent is on E(t) sqrt(prior(t)), so that rare contexts do not make the problem ill-conditioned.
    size = np.sqrt(np.maximum(weight, 1e-12) / weight.max())[:, None]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        code, encoding = flat[: vocab * d].reshape(vocab, d), flat[vocab * d :].reshape(contexts, d) / size
        scores = encoding @ code.T
        scores -= scores.max(axis=1, keepdims=True)
        exponentials = np.exp(scores)
        total = exponentials.sum(axis=1, keepdims=True)
        value = entropy + float(weight @ (np.log(total[:, 0]) - (pi * scores).sum(axis=1)))
        slope = weight[:, None] * (exponentials / total - pi)
        return value, np.concatenate([(slope.T @ encoding).ravel(), (slope @ code / size).ravel()])

    options = {"maxiter": 5_000, "maxfun": 10_000, "ftol": 1e-15, "gtol": 1e-10, "maxcor": 30}
    flat = np.concatenate([start[0].ravel(), (start[1] * size).ravel()])
    done = minimize(loss, flat, jac=True, method="L-BFGS-B", options=options)
    code, encoding = done.x[: vocab * d].reshape(vocab, d), done.x[vocab * d :].reshape(contexts, d) / size
    return float(done.fun), code, encoding
