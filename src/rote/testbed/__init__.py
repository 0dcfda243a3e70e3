"""Controlled insertion as a library: build a bed, train its arms, report how memorization grows with copies.

    from rote.testbed.build import BedSettings, build
    from rote.testbed.report import report
    from rote.testbed.train import train_arms

    bed = build("bed/", settings=BedSettings(seed=0))
    train_arms(bed, ["standard", "perturbed", "early:0-25", "late:75-100", "dilute:x2"])
    tables = report(bed).tables

`build` and `report` are also the names of their modules, so they are imported from there.

Source: Wei et al. 2025, "Hubble", arXiv 2510.19811.
"""

from rote._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Bed": "rote.testbed.bed",
        "BedSettings": "rote.testbed.bed",
        "Arm": "rote.testbed.train",
        "parse_arm": "rote.testbed.train",
        "train_arm": "rote.testbed.train",
        "train_arms": "rote.testbed.train",
        "train_beds": "rote.testbed.train",
        "BedReport": "rote.testbed.report",
        "to_findings": "rote.testbed.findings",
        "unlearn": "rote.testbed.unlearning",
    },
)
