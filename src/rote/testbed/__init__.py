"""Controlled insertion as a library: build a bed, train its arms, report how memorization grows with copies.

    bed = build("bed/", settings=BedSettings(seed=0))
    train_arms(bed, ["standard", "perturbed", "early:0-25", "late:75-100", "dilute:x2"])
    findings = report(bed)

Source: Wei et al. 2025, "Hubble", arXiv 2510.19811.
"""

from rote._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Bed": "rote.testbed.build",
        "BedSettings": "rote.testbed.build",
        "build": "rote.testbed.build",
        "Arm": "rote.testbed.train",
        "parse_arm": "rote.testbed.train",
        "train_arm": "rote.testbed.train",
        "train_arms": "rote.testbed.train",
        "report": "rote.testbed.report",
        "unlearn": "rote.testbed.unlearning",
    },
)
