"""The dataset linter: both conditions at once, with witnesses, as one result that can be printed or kept.

Knows the two conditions and what positions do to them. Deliberately does not know files, tokenizers, transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rote.theory.cot.decision import CotDecision, Positions, decide_cot
from rote.theory.cot.no_cot import Conflict, conflicting_pair
from rote.theory.cot.obstruction import Obstruction, verify_obstruction
from rote.theory.cot.plan import check_plan
from rote.theory.cot.words import Pair, QADataset, Word, qa_dataset

SOURCES = {
    "no_cot": "Theorem 4.1 of Yu, Gao and Zhang 2025 (arXiv 2511.01190) [read]",
    "cot": "condition on the unrolled set [derived from the paper's definitions, not quoted]",
    "positions": "with BOS or absolute positions no two words coincide: Theorem 4.1's obstruction is void [derived]",
}


@dataclass(frozen=True)
class CotReport:
    """What a transformer of fixed precision and free size can memorize of a dataset.

    no_cot: memorizable without chain of thought. no_cot_applies: False when positions make the condition void (then
    no_cot is True). conflict: the smallest pair of records in the way.
    cot: memorizable with chains of any length. plan: a shortest one. obstruction: a checked certificate when not.
    within_max_cot, needed_max_cot: see `CotDecision`.
    """

    dataset: QADataset
    positions: Positions
    no_cot: bool
    no_cot_applies: bool
    conflict: Conflict | None
    decision: CotDecision

    @property
    def cot(self) -> bool:
        return self.decision.feasible

    @property
    def plan(self) -> dict[Word, Word] | None:
        return self.decision.plan

    @property
    def obstruction(self) -> Obstruction | None:
        return self.decision.obstruction

    @property
    def blocking_prefix(self) -> Word | None:
        return self.obstruction.blocking_prefix if self.obstruction else None

    @property
    def verdict(self) -> str:
        """ "both", "no-CoT only", "CoT only" or "neither"."""
        return {(1, 1): "both", (1, 0): "no-CoT only", (0, 1): "CoT only", (0, 0): "neither"}[(self.no_cot, self.cot)]


def cot_check(
    records: QADataset | Mapping[str, str] | Iterable[Pair],
    *,
    alphabet: Sequence[str] | str = "infer",
    positions: Positions = "none",
    max_cot: int | None = None,
) -> CotReport:
    """Decide whether S can be memorized without and with chain of thought.

    records: a `QADataset`, or pairs for `qa_dataset` with `alphabet`. positions: what the model adds to its input:
      "none" (the paper's setting), "bos" (a token before every input), "absolute" (a vector for every position).
    max_cot: longest chain allowed; "infeasible within max_cot" is reported apart from "infeasible".
    Before it returns, the plan is simulated from the definitions, or the obstruction re-checked.
    Source: Theorem 4.1 [read]; the rest [derived], proofs in `rote.theory.cot.decision`.
    Errors: InputError, as `qa_dataset` and `decide_cot`.
    """
    dataset = records if isinstance(records, QADataset) else qa_dataset(records, alphabet=alphabet)
    decision = decide_cot(dataset, positions=positions, max_cot=max_cot)
    conflict = conflicting_pair(dataset) if positions == "none" else None
    if decision.plan is not None:
        check_plan(dataset, decision.plan, positions=positions)
    if decision.obstruction is not None and not verify_obstruction(dataset, decision.obstruction, positions=positions):
        raise AssertionError("the obstruction does not check: a fault of the decision")
    return CotReport(dataset, positions, conflict is None, positions == "none", conflict, decision)
