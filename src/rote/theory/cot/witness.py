"""Witness transformers: real position-free causal transformers with q-digit weights that memorize a dataset, proved by
their margins. [derived]

Body: random weights rounded to q decimals. Read-out: least squares on the last-position features of the words that
matter (the inputs, or the unrolled set of a plan) with targets +-s, rounded to q decimals. The theorem says when this
can work; that it did work is checked with the rounded weights: on every word the right output leads by more than ten
times the bound on the evaluation error, and decoding step by step gives every chain and answer.

Size: the read-out needs about as many features as words, so the weights grow with the square of the number of words;
it is a certificate for small datasets. `linear_witness` grows in proportion to the words.

Knows nothing about: how plans are found, files (see `witness_files`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from rote.errors import InputError, RoteError
from rote.runtime import derive_seed
from rote.theory.cot.bounded_evaluation import BoundedTransformer
from rote.theory.cot.fixed_precision import FixedPrecisionTransformer, Shape, features_of, random_integers
from rote.theory.cot.no_cot import conflicting_pair
from rote.theory.cot.plan import Table, check_plan, run_from
from rote.theory.cot.size_floor import bits_per_weight, fixed_precision_floor, label_bits
from rote.theory.cot.words import STOP, QADataset, Word, single_symbol

SAFETY = 10.0  # the margin must exceed so many times the bound on the evaluation error
MOST_WORDS = 400
TARGET = 10.0  # targets are +-TARGET: a margin of about 20


@dataclass(frozen=True)
class Verification:
    """What was checked of a witness.

    words: words on which the output matters; right: those whose right output leads strictly; margin: the least lead of
    the right logit over any other; error: the largest bound on the error of a lead; proved: every lead exceeds 10
    times its bound; decoded: inputs whose step-by-step decoding gave the chain and the answer; records: inputs.
    """

    words: int
    right: int
    margin: float
    error: float
    proved: bool
    decoded: int
    records: int

    @property
    def holds(self) -> bool:
        return self.proved and self.right == self.words and self.decoded == self.records


@dataclass(frozen=True)
class CotWitness:
    """A transformer that memorizes `dataset`: directly (plan None) or through the chains of `plan`."""

    dataset: QADataset
    plan: dict[Word, Word] | None
    model: FixedPrecisionTransformer
    seed: int

    @property
    def table(self) -> Table:
        """The words that matter and their outputs: S itself, or the unrolled set."""
        return dict(self.dataset.answers) if self.plan is None else check_plan(self.dataset, self.plan)

    def next_symbol(self, word: Word) -> int:
        """F^(word) by the PyTorch model; STOP for gamma_0."""
        return _outputs(self.model, [word])[0]

    def answer(self, word: Word, *, steps: int) -> int | None:
        """F^(x), or with a plan F^_cot(x) by decoding until gamma_0, at most `steps` symbols."""
        if self.plan is not None:
            return run_from(self.next_symbol, word, steps=steps).answer
        symbol = self.next_symbol(word)
        return None if symbol == STOP else symbol

    def verify(self) -> Verification:
        """Check the weights as they are: margins against error bounds in numpy, decoding in PyTorch."""
        table = self.table
        right, margin, error, proved = margins(self.model, table)
        decoded = 0
        for word, answer in self.dataset.answers.items():
            if self.plan is None:
                decoded += self.next_symbol(word) == answer
            else:
                run = run_from(self.next_symbol, word, steps=len(self.plan[word]))
                decoded += run.answer == answer and run.cot == tuple(self.plan[word])
        return Verification(len(table), right, margin, error, proved, int(decoded), len(self.dataset))

    def size(self) -> dict[str, float]:
        """P, q, bits = P B(q), bits for each record, the bits of the labels N log2 T, and the floor in parameters."""
        parameters, digits = self.model.shape.parameters, self.model.digits
        records, symbols = len(self.dataset), len(self.dataset.alphabet)
        bits = parameters * bits_per_weight(digits)
        return {
            "parameters": parameters,
            "digits": digits,
            "bits": bits,
            "bits_per_record": bits / records,
            "label_bits": label_bits(n=records, labels=symbols),
            "floor_parameters": fixed_precision_floor(n=records, labels=symbols, digits=digits),
        }


def build_cot_witness(
    dataset: QADataset,
    *,
    plan: Mapping[Word, Word] | None = None,
    digits: int = 4,
    layers: int = 2,
    width: int | None = None,
    seed: int = 0,
    attempts: int = 6,
) -> CotWitness:
    """A verified fixed-precision transformer that memorizes S without chain of thought, or with the chains of `plan`.

    digits: q, 1 to 7. layers: 2 or 3 are enough for short words, 1 is not (it raises RoteError when words coincide).
    width: d; default 96, or more when there are more words. Tried with other random bodies and larger widths until
    verified. [derived] for words of one symbol in the setting without positions.
    Errors: InputError when the theorem forbids it (naming the conflicting records), for a bad plan, for more than 400
    words; RoteError when no attempt verified.
    """
    if plan is None:
        pair = conflicting_pair(dataset)
        if pair is not None:
            raise InputError(
                f"{dataset.place(pair.first)} and {dataset.place(pair.second)} repeat one symbol {len(pair.first)} and "
                f"{len(pair.second)} times and have different answers: no transformer without positions memorizes both "
                "without chain of thought (Theorem 4.1)"
            )
        table = dict(dataset.answers)
    else:
        table = check_plan(dataset, plan)
    if len(table) > MOST_WORDS:
        raise InputError(f"a witness for {len(table)} words; the builder is for at most {MOST_WORDS}")
    kept = None if plan is None else {word: tuple(cot) for word, cot in plan.items()}
    best = None
    for attempt in range(attempts):
        d = width or max(96, 24 * -(-int(1.25 * len(table)) // 24)) + 24 * (attempt // 2)
        shape = Shape(len(dataset.alphabet), d, layers, 2, 4 * d)
        body = random_integers(shape, digits=digits, seed=derive_seed(seed, "witness", attempt))
        model = read_out(shape, body, table, digits=digits)
        witness = CotWitness(dataset, kept, model, seed)
        found = witness.verify()
        if found.holds:
            return witness
        best = max(best or found, found, key=lambda item: item.right)
    assert best is not None
    raise RoteError(
        f"no witness verified in {attempts} attempts: at best {best.right} of {best.words} words right, margin "
        f"{best.margin:.3g} against an error bound of {best.error:.3g}; raise digits, width or layers"
    )


def read_out(
    shape: Shape, body: dict[str, np.ndarray], table: Table, *, digits: int, target: float = TARGET
) -> FixedPrecisionTransformer:
    """The body with a least-squares read-out for the outputs of `table`, rounded to q digits.

    Minimum-norm solution of Phi W^T = +-target, Phi the last-position features; words gamma_k^m of one k have equal
    features, so one of them stands for all. When a weight would exceed 10^q the targets are made smaller.
    """
    words = distinct_words(table)
    phi = features_of(FixedPrecisionTransformer(shape, body, digits=digits), words)
    goal = np.full((len(words), shape.symbols + 1), -target)
    goal[range(len(words)), [table[word] % (shape.symbols + 1) for word in words]] = target  # STOP = -1: last row
    solution = np.linalg.lstsq(phi, goal, rcond=1e-12)[0].T
    solution *= min(1.0, 0.999 * 10**digits / np.abs(solution).max())
    unembed = np.ascontiguousarray(np.rint(solution * 10.0**digits).astype(np.int64))
    return FixedPrecisionTransformer(shape, body | {"unembed": unembed}, digits=digits)


def margins(model: FixedPrecisionTransformer, table: Table) -> tuple[int, float, float, bool]:
    """(words whose right output leads, least lead, largest bound on a lead's error, every lead > 10 bounds)."""
    bounded = BoundedTransformer(model)
    right, least, largest, proved = 0, np.inf, 0.0, True
    for word, output in table.items():
        logits, error = bounded.logits(word)
        others = np.arange(len(logits)) != output % len(logits)
        leads = logits[~others] - logits[others]
        bounds = error[~others] + error[others] + 2.0**-52 * np.abs(leads)
        right += bool((leads > 0).all())
        least, largest = min(least, float(leads.min())), max(largest, float(bounds.max()))
        proved &= bool((leads > SAFETY * bounds).all())
    return right, float(least), largest, proved


def no_cot_least_squares(
    dataset: QADataset, *, digits: int = 4, layers: int = 2, seed: int = 0
) -> tuple[Float[np.ndarray, "records symbols"], float]:
    """What a linear read-out of random features makes of S, with targets 1 for the answer and 0 else, and its least
    lead: 1/2 and about 0 on records that Theorem 4.1 makes indistinguishable."""
    shape = Shape(len(dataset.alphabet), layers=layers)
    body = random_integers(shape, digits=digits, seed=derive_seed(seed, "witness", 0))
    words = list(dataset.answers)
    phi = features_of(FixedPrecisionTransformer(shape, body, digits=digits), words)
    goal = np.eye(shape.symbols)[[dataset.answers[word] for word in words]]
    # rcond: features of gamma_k^m differ by rounding alone, which is no information
    fitted = phi @ np.linalg.lstsq(phi, goal, rcond=1e-9)[0]
    truth = goal.astype(bool)
    lead = fitted[truth] - np.where(truth, -np.inf, fitted).max(1)
    return fitted, float(lead.min())


def distinct_words(table: Table) -> list[Word]:
    """The words of a table, without further words gamma_k^m of a k that is there already."""
    found: dict[object, Word] = {}
    for word in table:
        k = single_symbol(word)
        found.setdefault(word if k is None else k, word)
    return list(found.values())


def _outputs(model: FixedPrecisionTransformer, words: list[Word]) -> list[int]:
    logits = model.read(torch.from_numpy(features_of(model, words))).numpy()
    return [STOP if symbol == model.shape.symbols else int(symbol) for symbol in logits.argmax(1)]
