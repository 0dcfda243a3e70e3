"""What goes into every part of the attention capacity theory: contexts, conditional distributions, priors.

Knows shapes and ranges, and names the first bad row. Deliberately never shows a token in a message: contexts may be
secret.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from rote.errors import InputError


def check_contexts(
    contexts: Int[np.ndarray, "contexts context"], *, vocab: int, context: int | None = None
) -> Int[np.ndarray, "contexts context"]:
    """Contexts as an integer matrix with tokens in [0, vocab). Errors: `InputError` that names the first bad row."""
    array = np.asarray(contexts)
    if array.ndim != 2 or array.shape[1] == 0:
        raise InputError(f"contexts must be a matrix (contexts, context length >= 1), got shape {array.shape}")
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"contexts must hold whole-number token ids, got {array.dtype}")
    if context is not None and array.shape[1] != context:
        raise InputError(f"contexts have {array.shape[1]} tokens, the model reads {context}")
    bad = np.flatnonzero(((array < 0) | (array >= vocab)).any(axis=1))
    if bad.size:
        raise InputError(f"context {bad[0]}: a token lies outside the vocabulary of {vocab} (ids 0 to {vocab - 1})")
    return array.astype(np.int64, copy=False)


def check_distribution(pi) -> Float[np.ndarray, "contexts vocab"]:
    """pi as a float64 matrix whose rows are distributions. Errors: `InputError` naming the first bad row."""
    array = np.asarray(pi, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] < 1 or array.shape[1] < 2:
        raise InputError(f"pi must be a matrix (contexts, at least 2 tokens), got shape {array.shape}")
    bad = np.flatnonzero(
        ~np.isfinite(array).all(axis=1) | (array < 0).any(axis=1) | (np.abs(array.sum(axis=1) - 1) > 1e-9)
    )
    if bad.size:
        raise InputError(f"pi row {bad[0]} is no distribution: values must be at least 0 and sum to 1")
    return array


def check_prior(prior, contexts: int) -> Float[np.ndarray, " contexts"]:
    """The prior over contexts, normalised; uniform when None. Errors: `InputError` for a bad weight or length."""
    if prior is None:
        return np.full(contexts, 1 / contexts)
    array = np.asarray(prior, dtype=np.float64)
    if array.shape != (contexts,):
        raise InputError(f"the prior needs one weight for each of {contexts} contexts, got shape {array.shape}")
    if not np.isfinite(array).all() or (array < 0).any() or array.sum() == 0:
        raise InputError("the prior over contexts needs finite weights of at least 0, not all 0")
    return array / array.sum()
