"""Measures: pure functions from arrays of scores to numbers with their uncertainty. No models, no files, no terminal.

Public names load their module when first used. One file per method; the attacks are called by module
(`rote.measures.membership.min_k`), because their names are short.
"""

from __future__ import annotations

from rote._lazy import lazy

_HOMES = {
    "approximate": ("constrained_beam", "hamming1_log_probability", "monte_carlo"),
    "blind": ("Guard",),
    "catalog": ("ATTACKS", "MEASURES", "AttackInfo", "MeasureInfo"),
    "compression": ("compression_ratio", "mini_prompt", "portion_memorized"),
    "counterfactual": ("counterfactual_memorization", "influence", "token_accuracy"),
    "dp_audit": ("gaussian_delta", "gaussian_epsilon", "gaussian_mu", "one_run_audit", "one_run_epsilon"),
    "exposure": ("exposure_by_enumeration", "exposure_by_extrapolation", "exposure_by_sampling"),
    "extraction": (
        "ceiling",
        "extractable",
        "extraction_strength",
        "greedy_extractable",
        "log_pz",
        "log_tau",
        "queries_needed",
        "rate",
        "success",
        "window_log_pz",
    ),
    "membership": ("battery",),
    "mosaic": ("mosaic_equivalence",),
    "proxies": ("extreme_strata", "feldman_scores", "proxy_report", "refine", "symmetric_kl"),
    "reference_models": ("lira", "rmia", "tune_a"),
    "roc": (
        "auroc",
        "best_balanced_accuracy",
        "delong",
        "delong_paired",
        "delong_stratified",
        "roc_points",
        "tpr_at_fpr",
    ),
    "statistics": (
        "Estimate",
        "benjamini_hochberg",
        "bootstrap",
        "bootstrap_difference",
        "clopper_pearson",
        "ks_two_sample",
        "proportion",
        "spearman",
        "wilson",
    ),
    "strings": (
        "edit_distance",
        "edit_similarity",
        "longest_common_subsequence",
        "longest_common_substring",
        "longest_run",
        "rouge_l",
    ),
    "unlearned_classifier": ("against_oracles", "classifier_figures", "entanglement", "tug_of_war", "tug_of_war_mia"),
}

_getattr, __dir__, _names = lazy(
    __name__, {name: f"{__name__}.{module}" for module, names in _HOMES.items() for name in names}
)
__getattr__ = _getattr
__all__ = [*_names]
