"""Reasoning from remembered cases: this EEG looks like these EEGs.

A detector whose prediction is the mean vote of the k most similar training segments; the memory can be read, audited
and edited case by case. Works for any multichannel epochs.
"""

from rote._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "ProtoKNN": "rote.memory.cases.estimator",
        "save_case_base": "rote.memory.cases.model_files",
        "load_case_base": "rote.memory.cases.model_files",
        "Explanation": "rote.memory.cases.explanation",
        "Neighbour": "rote.memory.cases.explanation",
        "audit_cases": "rote.memory.cases.audit",
        "leave_one_patient_out": "rote.memory.cases.audit",
        "Event": "rote.memory.cases.scan",
        "Scan": "rote.memory.cases.scan",
        "scan_recording": "rote.memory.cases.scan",
        "quiet_threshold": "rote.memory.cases.scan",
        "evaluate_votes": "rote.memory.cases.evaluation",
        "patient_folds": "rote.memory.cases.splits",
        "held_out_patients": "rote.memory.cases.splits",
        "Montage": "rote.memory.cases.montage",
        "make_montage": "rote.memory.cases.montage",
        "SignalSettings": "rote.memory.cases.preprocessing",
        "TrainingSettings": "rote.memory.cases.training",
        "CaseBase": "rote.memory.cases.case_base",
        "CaseModel": "rote.memory.cases.model",
        "SpikeNet": "rote.memory.cases.backbone",
        "ChannelTrunk": "rote.memory.cases.backbone",
        "search_exact": "rote.memory.cases.search",
        "Shortlist": "rote.memory.cases.search",
    },
)
