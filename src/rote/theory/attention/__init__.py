"""Attention-only memory: what one attention layer can memorize, built, bounded and measured.

Public names load their module when first used.
Source: Dana, Pydi & Chevaleyre 2024 (arXiv 2411.10115, AISTATS 2025).
"""

from __future__ import annotations

from rote._lazy import lazy

_HOMES = {
    "bounds": (
        "Rate", "accuracy_from_associations", "associations_from_accuracy", "capacity", "corollary2_accuracy",
        "heads_for", "kim_rate", "mahdavi_capacity", "mahdavi_heads", "parameter_count", "t_epsilon", "theorem1_bound",
        "theorem1_constant", "zero_floor_dimension",
    ),
    "codes": ("circle_code", "circle_kl", "circle_margin", "code_margin", "spread_code"),
    "construction": ("AttentionMemory", "NumericallyInfeasible", "build_attention_memory"),
    "distribution_memory": ("DistributionMemory", "build_attention_distribution"),
    "encoder": ("EncoderFloor", "floored", "sequence_encoder_floor"),
    "facts": ("Facts", "facts_from_rows", "facts_from_text", "read_facts"),
    "figures": ("floor_figure", "scaling_figure", "slope_figure", "trained_figure"),
    "lookup_bound": ("LookupBound", "coherence", "lookup_encoder", "smallest_useful_d", "theorem2"),
    "measurement": ("AttentionCurve", "line_before_saturation", "log_log_exponent", "lookup_task", "measure_attention"),
    "model": (
        "AttentionWeights", "attention_patterns", "attention_reads", "kl_by_context", "log_softmax", "logits",
        "margins",
    ),
    "partial": ("Remainder",),
    "plan": ("AttentionPlan", "attention_plan", "scaling_rows"),
    "ranks": ("RankLimit", "rank_limit", "rank_limit_at_best", "rank_limit_of"),
    "torch_model": ("AttentionOnly", "MultiheadStack"),
    "training": ("Run", "TrainedRuns", "train_runs"),
}  # fmt: skip

_getattr, __dir__, _names = lazy(
    __name__, {name: f"{__name__}.{module}" for module, names in _HOMES.items() for name in names}
)
__getattr__ = _getattr
__all__ = [*_names]
