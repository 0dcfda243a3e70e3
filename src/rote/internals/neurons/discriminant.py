"""How far along the difference of means one token is: Fisher's discriminant of two classes of activations.

    d = mu_1 - mu_0,  S = pooled covariance within the classes + shrinkage,  r = S^-1 d / (d . S^-1 d)

r . (h - mu_0) is 1 on average over class 1 and 0 over class 0, and of all such readings the one with the least variance
within the classes (Fisher 1936); so an intervention in proportion to it disturbs other tokens least. Taking it out at
dose 1 is the affine erasure of Belrose et al. 2023, "LEACE", arXiv 2306.03819, for two classes.

Knows nothing about: models, labels, what is done with the reading.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from rote.errors import InputError

SHRINKAGE = 0.01  # of the mean variance, added to every coordinate's


def fisher_reader(
    one: Float[np.ndarray, "tokens dim"], zero: Float[np.ndarray, "others dim"], *, shrinkage: float = SHRINKAGE
) -> Float[np.ndarray, " dim"]:
    """r of the head of this file. Raises InputError when a class has fewer than 2 tokens, or nothing differs."""
    if len(one) < 2 or len(zero) < 2:
        raise InputError(f"a discriminant needs 2 tokens or more of both classes, got {len(one)} and {len(zero)}")
    one, zero = np.asarray(one, np.float64), np.asarray(zero, np.float64)
    mean1, mean0 = one.mean(0), zero.mean(0)
    within = (one - mean1).T @ (one - mean1) + (zero - mean0).T @ (zero - mean0)
    within /= len(one) + len(zero) - 2
    within += shrinkage * np.trace(within) / len(within) * np.eye(len(within))
    delta = mean1 - mean0
    if not np.abs(delta).max() > 0 or not np.trace(within) > 0:
        raise InputError("the two classes have the same activations: there is nothing to discriminate")
    reader = np.linalg.solve(within, delta)
    return reader / (reader @ delta)
