"""Audits: each puts records, one pass, measures and findings together for one kind of model."""

from rote._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "AuditSettings": "rote.audit.settings",
        "audit_lm": "rote.audit.lm",
        "audit_recited": "rote.audit.recited",
        "audit_counterfactual": "rote.audit.counterfactual",
        "remake": "rote.audit.lm",
        "Estimate": "rote.audit.lm",
        "Companion": "rote.audit.companions",
        "Treated": "rote.audit.treatment",
        "Treatment": "rote.audit.treatment",
        "treat": "rote.audit.treatment",
    },
)
