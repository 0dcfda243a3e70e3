"""Chain of thought and memorization (Yu, Gao and Zhang 2025, arXiv 2511.01190): conditions, witnesses, floors.

Public names load their module when first used. The smallest entry is `cot_check`.
"""

from __future__ import annotations

from rote._lazy import lazy

_HOMES = {
    "bounded_evaluation": ("BoundedTransformer",),
    "check": ("CotReport", "cot_check"),
    "decision": ("CotDecision", "decide_cot"),
    "feature_rank": ("FeatureRank",),
    "fixed_precision": ("FixedPrecisionTransformer", "Shape"),
    "infinite_sets": ("InfiniteStatement", "infinite_statements"),
    "labelings": ("CensusRow", "all_labelings", "all_words", "label_census"),
    "linear_witness": ("build_linear_witness",),
    "no_cot": ("Conflict", "conflicting_pair"),
    "obstruction": ("Block", "Obstruction", "verify_obstruction"),
    "oracle": ("cot_feasible_by_milp",),
    "plan": ("check_plan", "run_from", "unroll"),
    "size_floor": ("bits_per_weight", "fixed_precision_floor"),
    "trained": ("TrainedRuns", "train_table"),
    "trained_ablation": ("AblationRow",),
    "trained_capacity": ("MeasuredCapacity", "side_by_side", "smallest_trained"),
    "witness": ("CotWitness", "Verification", "build_cot_witness"),
    "witness_files": ("load_cot_witness", "save_cot_witness"),
    "words": ("STOP", "Alphabet", "QADataset", "qa_dataset"),
}

_getattr, __dir__, _names = lazy(
    __name__, {name: f"{__name__}.{module}" for module, names in _HOMES.items() for name in names}
)
__getattr__ = _getattr
__all__ = [*_names]
