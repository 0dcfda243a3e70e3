"""Rote finds what a machine-learning model has memorized, proves it, changes it, and proves the change."""

from rote._lazy import lazy
from rote.errors import InputError, MissingDependencyError, RoteError, RunMismatchError

__version__ = "0.1.0"

_getattr, __dir__, _names = lazy(
    __name__,
    {
        "audit_lm": "rote.audit",
        "AuditSettings": "rote.audit",
        "CausalLM": "rote.models",
        "RecordTable": "rote.records",
        "read_records": "rote.records",
        "DecodingScheme": "rote.scores",
        "score_tokens": "rote.scores",
    },
)
__getattr__ = _getattr
__all__ = [*_names, "InputError", "MissingDependencyError", "RoteError", "RunMismatchError", "__version__"]
