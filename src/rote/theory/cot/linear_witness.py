"""A witness whose size is linear in the number of words: a body of fixed size, a line, and a staircase. [derived]

The features of a random body of fixed width separate the words, so almost every linear form t(x) = w . z_n gives them
different numbers. Sorted by t, the output changes at most once between neighbours; each change, from output u to v
between t_i < t_{i+1}, is a ramp of height H between two knots in the gap,

    s ReLU(t - kappa_1) - s ReLU(t - kappa_2),   s = H / (kappa_2 - kappa_1),   added to v and taken from u,

and one constant unit starts the first output at H. So r <= 2 (W - 1) + 1 read-out units for W words, and
P <= P_body + r (d + T + 2): linear in W, with a depth and a width that do not depend on W. Weights of q digits and at
most 10^q place about 10^{2q} knots, and the least gap of W random numbers is about 1/W^2 of their span, hence
W <~ 10^q at a fixed q: this shows the linear upper bound of the paper in that range, not beyond. The paper's own
constants were not available.

Knows nothing about: how plans are found, files (`witness_files` saves these witnesses too).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from rote.errors import InputError, RoteError
from rote.runtime import derive_seed
from rote.theory.cot.fixed_precision import FixedPrecisionTransformer, Shape, features_of, random_integers
from rote.theory.cot.no_cot import conflicting_pair
from rote.theory.cot.plan import check_plan
from rote.theory.cot.witness import CotWitness, distinct_words
from rote.theory.cot.words import QADataset, Word

HEIGHT = 100.0  # of a step, or less where a narrow gap would need a slope above 10^q
DIRECTIONS = 200
LEAST_GAP = 8  # in units of 10^-q: room for two knots with distance to both neighbours


def build_linear_witness(
    dataset: QADataset,
    *,
    plan: Mapping[Word, Word] | None = None,
    digits: int = 4,
    width: int = 24,
    layers: int = 2,
    seed: int = 0,
) -> CotWitness:
    """A verified fixed-precision transformer of size linear in the number of words, without or with the chains of
    `plan`.

    digits: q, 1 to 7; a table of W words needs about 10^q >= W. Errors: InputError when Theorem 4.1 forbids it or the
    plan is bad; RoteError when no direction leaves room for the knots or the result does not verify (raise digits).
    """
    if plan is None and conflicting_pair(dataset) is not None:
        raise InputError(
            "two records that repeat one symbol have different answers (see conflicting_pair): no transformer without "
            "positions memorizes both without chain of thought (Theorem 4.1)"
        )
    table = dict(dataset.answers) if plan is None else check_plan(dataset, plan)
    body = Shape(len(dataset.alphabet), width, layers, 2, 4 * width)
    integers = random_integers(body, digits=digits, seed=derive_seed(seed, "linear witness"))
    words = distinct_words(table)
    phi = features_of(FixedPrecisionTransformer(body, integers, digits=digits), words)
    outputs = np.array([table[word] % (body.symbols + 1) for word in words])
    form, t = _best_form(phi, outputs, digits=digits, seed=seed)
    staircase = _staircase(form, t, outputs, symbols=body.symbols, digits=digits)
    shape = replace(body, readout=len(staircase["readout.bias"]))
    model = FixedPrecisionTransformer(shape, integers | staircase, digits=digits)
    kept = None if plan is None else {word: tuple(cot) for word, cot in plan.items()}
    witness = CotWitness(dataset, kept, model, seed)
    found = witness.verify()
    if not found.holds:
        raise RoteError(
            f"{found.right} of {found.words} words right, margin {found.margin:.3g} against an error bound of "
            f"{found.error:.3g}; raise digits or give another seed"
        )
    return witness


def _best_form(
    phi: Float[np.ndarray, "words width"], outputs: Int[np.ndarray, " words"], *, digits: int, seed: int
) -> tuple[Int[np.ndarray, " width"], Float[np.ndarray, " words"]]:
    """The linear form, of many random ones, whose least gap between neighbours of different output is widest:
    (weights as integers, values of the words)."""
    rng = np.random.default_rng(derive_seed(seed, "direction"))
    best, widest = None, 0.0
    for _ in range(DIRECTIONS):
        drawn = rng.standard_normal(phi.shape[1])
        # |weights| and knots up to 10^q; steeper than 10^4 only magnifies the evaluation error
        drawn *= 0.9 * min(10**digits, 10**4) / max(np.abs(drawn).max(), np.abs(phi @ drawn).max())
        form = np.rint(drawn * 10.0**digits).astype(np.int64)
        t = phi @ (form / 10.0**digits)
        order = np.argsort(t)
        gaps = np.diff(t[order])[np.diff(outputs[order]) != 0]
        least = float(gaps.min(initial=np.inf))
        if least > widest:
            best, widest = (form, t), least
    if best is None or widest < LEAST_GAP * 10.0**-digits:
        raise RoteError(
            f"{len(outputs)} words do not fit on a line with {digits} digits: the widest least gap is {widest:.3g}; "
            "raise digits"
        )
    return best


def _staircase(
    form: Int[np.ndarray, " width"],
    t: Float[np.ndarray, " words"],
    outputs: Int[np.ndarray, " words"],
    *,
    symbols: int,
    digits: int,
) -> dict[str, np.ndarray]:
    """Integer weights of the read-out layer: two units for each change of output along t, and the constant unit."""
    unit = 10.0**digits
    order = np.argsort(t)
    t, outputs = t[order], outputs[order]
    changes = np.flatnonzero(np.diff(outputs))
    middle, half = (t[changes] + t[changes + 1]) / 2, np.minimum((t[changes + 1] - t[changes]) / 4, 0.5)
    knots = np.rint(np.stack([middle - half, middle + half]) * unit).astype(np.int64)
    ramp = (knots[1] - knots[0]) / unit
    height = min(HEIGHT, 0.99 * unit * float(ramp.min(initial=np.inf)))
    slopes = np.rint(height / ramp * unit).astype(np.int64)
    count = len(changes)
    up = np.zeros((2 * count + 1, len(form)), np.int64)
    up[: 2 * count] = form
    bias = np.concatenate([-knots[0], -knots[1], [int(unit)]])  # the last unit is ReLU(1) = 1
    down = np.zeros((symbols + 1, 2 * count + 1), np.int64)
    before, after, place = outputs[changes], outputs[changes + 1], np.arange(count)
    down[after, place], down[before, place] = slopes, -slopes
    down[after, count + place], down[before, count + place] = -slopes, slopes
    down[outputs[0], -1] = round(height * unit)
    return {"readout.up": up, "readout.bias": bias, "readout.down": down}
