"""What is known about infinite datasets, as text with its standing: nothing here is computed.

Source: Yu, Gao and Zhang 2025 (arXiv 2511.01190), of whose part on infinite sets only the announcement was read; the
statements marked [derived] are proved here and are not quoted from the paper.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class InfiniteStatement:
    """One statement: where it stands ("read" or "derived"), for which kind of model, and its proof or source."""

    id: str
    standing: str
    model: str
    statement: str
    because: str


INFINITE_STATEMENTS = (
    InfiniteStatement(
        "beyond-both",
        "read",
        "with and without chain of thought",
        "Some simple infinite datasets cannot be memorized by fixed-precision transformers of either kind.",
        "Announced in the paper's abstract; the sets and the proofs were not available.",
    ),
    InfiniteStatement(
        "parity-of-length",
        "derived",
        "without chain of thought, no positions",
        "The dataset {(a^n b, parity of n) : n >= 1} cannot be memorized.",
        "All rows of a^n are one and the same vector in every layer, whatever n. A later position attends to n equal "
        "rows and to the fixed number of rows after them: its output is a fixed composition of n e^s / (n e^s + ..), "
        "products and maxima: a function of the real variable n that is definable in the ordered field of reals with "
        "exp. That structure is o-minimal (Wilkie 1996), so the difference of two logits changes sign finitely often, "
        "and parity would need it to change sign for ever. The argument needs the run a^n to stand first: after a "
        "nonempty u the rows of u a^n differ from each other, and sums over them need not be definable.",
    ),
    InfiniteStatement(
        "not-for-chains",
        "derived",
        "with chain of thought",
        "The argument above says nothing about chains of thought: their number of steps may grow with n.",
        "The answer is no longer one definable function of n.",
    ),
)


def infinite_statements() -> tuple[InfiniteStatement, ...]:
    """The statements on infinite datasets, each labelled "read" or "derived"."""
    return INFINITE_STATEMENTS
