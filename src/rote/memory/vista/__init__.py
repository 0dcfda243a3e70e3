"""VISTA: a user's whole history summarised into a few cached vectors (arXiv 2510.22049)."""

from __future__ import annotations

from rote._lazy import lazy

_HOMES = {
    "audit": ("audit_model",),
    "baselines": ("RawTargetAttention", "SequenceModel", "make_baseline"),
    "checkpoint": ("check_place", "load_model", "save_model"),
    "config": ("VistaConfig",),
    "embedding": ("EventEmbedding", "Histories"),
    "evaluation": (
        "auc",
        "hit_rate",
        "ndcg",
        "normalised_entropy",
        "ranking_figures",
        "relative_quality",
        "target_ranks",
    ),
    "figures": ("audit_figure", "latency_figure", "staleness_figure", "training_figure", "write_figure"),
    "hstu": ("FullAttentionLayer", "QuasiLinearLayer"),
    "incremental": ("drift", "is_exact", "update"),
    "interactions": ("InteractionLog", "read_interactions"),
    "latency": ("latency_rows",),
    "model": ("Vista",),
    "quantisation": ("dequantise", "quantise"),
    "quasi_linear": ("delta", "history_state", "quasi_linear_attention", "read_state"),
    "reconstruction": ("Decoder", "reconstruction_error", "shuffled_gap"),
    "recommender": ("LeaveOneOut", "Trained", "against_baselines", "leave_one_out", "ranks", "train_recommender"),
    "service": ("Summarised", "model_numbers", "recommend", "score", "summarise_log", "summarise_user"),
    "simulate": ("LifelongInterest", "lifelong_interest"),
    "staleness": ("click_logits", "staleness_curve"),
    "store": ("SummaryStore", "open_store"),
    "summariser": ("Summariser",),
    "target_attention": ("TargetAttention", "isolated_attention"),
    "training": ("TrainingSettings", "fit_clicks", "fit_next_item"),
    "value_layout": ("Summary", "decode", "encode", "raw_events"),
    "vocabulary": ("Vocabulary",),
}

_getattr, __dir__, _names = lazy(
    __name__, {name: f"{__name__}.{module}" for module, names in _HOMES.items() for name in names}
)
__getattr__ = _getattr
__all__ = [*_names]
