"""Trained ablation: what Adam reaches on the separating datasets, without and with chain of thought and positions.

The impossibility of the first row is Theorem 4.1's, not the training's: the runs only fail to contradict it. The others
show that what stands in the way is exactly what the theorem names. Knows the separations of section 3.4 of the card.
"""

from __future__ import annotations

from dataclasses import dataclass

from rote.runtime import derive_seed
from rote.theory.cot.check import cot_check
from rote.theory.cot.fixed_precision import Shape
from rote.theory.cot.plan import unroll
from rote.theory.cot.trained import TrainedRuns, train_table
from rote.theory.cot.words import qa_dataset

# Over {a, b}. [derived]
COT_ONLY = {"a": "a", "aa": "b"}
NO_COT_ONLY = {"ab": "a", "aba": "b", "abb": "b"}
BOTH = {"ab": "a", "ba": "b"}
NEITHER = COT_ONLY | NO_COT_ONLY


@dataclass(frozen=True)
class AblationRow:
    """One setting: whether the theorem lets it be memorized, and what the trained runs reached."""

    name: str
    records: dict[str, str]
    positions: str
    cot: bool
    possible: bool
    trained: TrainedRuns

    @property
    def holds(self) -> bool:
        """Possible: every start trained; impossible: none did."""
        return self.trained.solved == (len(self.trained.steps) if self.possible else 0)


def trained_ablation(*, runs: int = 5, steps: int = 2000, width: int = 16, seed: int = 0) -> list[AblationRow]:
    """Train `runs` starts for `steps` Adam steps in each setting (infeasible ones to the end).

    With chain of thought the table is the unrolled set of a shortest plan; where there is no plan every unrolled set
    contradicts itself, so there is nothing to train and no row.
    """
    settings = (
        ("same input type", COT_ONLY, "none", False),
        ("same input type, chain of thought", COT_ONLY, "none", True),
        ("same input type, absolute positions", COT_ONLY, "absolute", False),
        ("same input type, BOS", COT_ONLY, "bos", False),
        ("prefix collision", NO_COT_ONLY, "none", False),
        ("both obstructions", NEITHER, "none", False),
        ("neither obstruction", BOTH, "none", False),
        ("neither obstruction, chain of thought", BOTH, "none", True),
    )
    rows = []
    for name, records, positions, cot in settings:
        dataset = qa_dataset(records, alphabet="ab")
        found = cot_check(dataset, positions=positions)  # type: ignore[arg-type]
        table = dict(dataset.answers)
        if cot:
            assert found.plan is not None
            table = unroll(dataset, found.plan)
        trained = train_table(
            table,
            shape=Shape(2, width, 2, 2, 4 * width),
            positions=positions,
            runs=runs,
            steps=steps,
            seed=derive_seed(seed, "ablation", name),
        )
        rows.append(AblationRow(name, records, positions, cot, found.cot if cot else found.no_cot, trained))
    return rows
