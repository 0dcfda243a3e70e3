"""How much of the individual item is left in a state? What the information bottleneck can honestly be asked for here.

The paper reads memorization as a failure to compress: I(X; Z) near H(X) for training items. I(X; Z) of a network's
activations cannot be estimated by binning; what can be had from n items seen twice (the same prompt perturbed in two
ways) is

    retrieval accuracy    share of items whose second view is nearest to their own first view, in [1 / n, 1] by chance
    InfoNCE               mean log( n softmax_j(sim(z_i, z'_j) / tau) at j = i ) <= I(item; Z), never above log n

Both are properties of this sample and this similarity: a low bound does not prove compression. `gaussian_ib_curve` is
the one case with a closed form (jointly Gaussian), to check estimators against.

Sources: Zhang 2025, arXiv 2510.22099 (the reading) [abstract]; van den Oord et al. 2018 (InfoNCE, section 2.3); Chechik
et al. 2005 (Gaussian information bottleneck). The use of both here is reconstructed. Knows nothing about: models.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from rote.errors import InputError

ROUNDING = 1e-9


def cosine_similarity(
    first: Float[np.ndarray, "items width"], second: Float[np.ndarray, "items width"]
) -> Float[np.ndarray, "items items"]:
    """cos(z_i, z'_j), after the mean over both views is taken away (states share a large common part)."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.shape != b.shape or len(a) < 2:
        raise InputError("two views of the same 2 items or more are needed")
    mean = (a.mean(0) + b.mean(0)) / 2
    a, b = a - mean, b - mean
    norms = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)[None]
    return a @ b.T / np.maximum(norms, np.finfo(float).tiny)


def retrieval_accuracy(first: Float[np.ndarray, "items width"], second: Float[np.ndarray, "items width"]) -> float:
    """Share of items i with argmax_j cos(z_i, z'_j) = i; 1 / n by chance. Ties count as misses."""
    similarity = cosine_similarity(first, second)
    own = np.diag(similarity)
    others = similarity.copy()
    np.fill_diagonal(others, -np.inf)
    return float((own > others.max(1)).mean())


def infonce_bound(
    first: Float[np.ndarray, "items width"], second: Float[np.ndarray, "items width"], *, temperature: float = 0.1
) -> float:
    """Lower bound on I(item; Z) in nats, in (-inf, log n]. The temperature is a free parameter of the bound."""
    if not temperature > 0:
        raise InputError(f"temperature must be above 0, not {temperature}")
    z = cosine_similarity(first, second) / temperature
    top = z.max(1, keepdims=True)
    log_sum = top[:, 0] + np.log(np.exp(z - top).sum(1))
    return float(np.mean(np.diag(z) - log_sum) + np.log(len(z)))


def gaussian_ib_curve(
    eigenvalues: Float[np.ndarray, " modes"], beta: Float[np.ndarray, " points"]
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """(I(Z; Y), I(X; Z)) in nats of the best Z for jointly Gaussian X, Y, at each beta of min I(X; Z) - beta I(Z; Y).

    eigenvalues: lambda_i in (0, 1] of Sigma_{x|y} Sigma_x^{-1}. Mode i is used once beta > 1 / (1 - lambda_i), with
    weight alpha_i^2 r_i = (beta (1 - lambda_i) - 1) / lambda_i. Source: Chechik et al. 2005, theorem 3.1.
    """
    lam, beta = np.asarray(eigenvalues, float)[None], np.asarray(beta, float)[:, None]
    if (lam <= 0).any() or (lam > 1 + ROUNDING).any():
        raise InputError("the eigenvalues of Sigma_{x|y} Sigma_x^-1 lie above 0 and at most at 1")
    lam = np.minimum(lam, 1.0)  # a mode of X that says nothing about Y
    weight = np.maximum(beta * (1 - lam) - 1, 0) / lam
    relevance = 0.5 * (np.log1p(weight) - np.log1p(lam * weight)).sum(1)
    return relevance, 0.5 * np.log1p(weight).sum(1)
