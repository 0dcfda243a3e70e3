"""What a construction says about itself: exact inequalities that imply its promise, and where its layout comes from.

Deliberately does not check networks: that is `rote.theory.certify`, whose exact verdicts do not read this.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from rote.theory.exact_network import ExactNetwork


@dataclass(frozen=True)
class StructuralProof:
    """Inequalities over exact numbers that imply f = y_i on all of ball i, if the network is what the layout says.

    `steps` are (what is compared, left side, right side), each left <= right.
    """

    statement: str
    steps: tuple[tuple[str, Fraction, Fraction], ...]

    @property
    def holds(self) -> bool:
        return all(left <= right for _, left, right in self.steps)


@dataclass(frozen=True)
class Construction:
    """A network of one regime. `error` bounds P[f != y] on every ball (0: none); `label` says what is rebuilt."""

    network: ExactNetwork
    regime: str
    label: str
    error: Fraction = Fraction(0)
    proof: StructuralProof | None = None
    details: dict[str, Any] = field(default_factory=dict)
