"""Hubble: how many copies until a model recites, and what order, dilution and unlearning change (arXiv 2510.19811).

One bed, five arms that differ in nothing but the copies: standard, perturbed, early (first quarter of training), late
(last quarter) and dilution (twice the steps, the same copies). Real English from the running Python's documentation,
one passage a document, copies drawn at random. The background repeats (see `background_passes` in the table "bed"),
every copy stands in the stream once, so exposures = copies.

Thresholds are those of the paper's small-scale replication, fixed before any run. Five levels are tested at once
against 0.5 +- 2 standard errors, so a correct bed misses `standard_is_blind` in about one run of five: a miss there is
to be read with its observed deviations. Source: Wei et al. 2025, "Hubble", arXiv 2510.19811.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from rote.studies.protocol import Claim, Study, StudyContext

ARMS = ("standard", "perturbed", "early:0-25", "late:75-100", "dilute:x2")
#: Copies -> texts.
LEVELS = {0: 192, 1: 96, 4: 96, 16: 48, 64: 12, 256: 4}
BAND = 2.0  # standard errors

CLAIMS = (
    Claim(
        "standard_is_blind",
        "A model that never saw the copies cannot tell the levels apart: the counts were drawn at random.",
        "standard models: AUROC .48 to .54 everywhere",
        "loss AUROC of every level against 0 copies within 0.5 +- 2 s.e.",
    ),
    Claim(
        "sixteen_copies",
        "Sixteen copies are enough to tell members from non-members by loss.",
        "8B/500B: .732 at 16 copies; prototype .89",
        "perturbed arm, loss AUROC >= 0.85 at 16 copies",
    ),
    Claim(
        "sixty_four_copies",
        "At 64 copies membership is certain.",
        "8B/500B: .996 at 64 copies; prototype 1.0",
        "perturbed arm, loss AUROC >= 0.99 at 64 copies",
    ),
    Claim(
        "dose_response",
        "Loss falls with every step in copies, from 4 on.",
        "LL/byte -.66 -.59 -.11 -.02 at 4, 16, 64, 256 copies (8B/500B)",
        "NLL strictly decreasing over 4, 16, 64, 256 copies",
    ),
    Claim(
        "early_is_forgotten",
        "Copies seen in the first quarter of training only are mostly forgotten by the end.",
        "window (0, 25): indistinguishable from the standard model even at 256 copies (1B)",
        "early arm loses >= 70 % of the standard - perturbed NLL gap at 64 and at 256 copies",
    ),
    Claim(
        "late_sticks",
        "Copies seen in the last quarter are remembered at least as well as copies spread over training.",
        "window (75, 100) exceeds the spread-out run: MMLU .87 against .52 at 16 copies",
        "late arm NLL <= perturbed arm NLL at 16 copies",
    ),
    Claim(
        "dilution_helps",
        "The same copies in twice the training are remembered less.",
        "1B LL/byte at 16 and 64 copies: 100B tokens -.72, -.37; 500B tokens -.73, -.68",
        "dilution arm NLL > perturbed arm NLL at 16 and at 64 copies",
    ),
    Claim(
        "reference_bound",
        "Calibrating by the paired standard model is at least as good as the bare loss.",
        "the paired standard model is an upper bound",
        "AUROC of the reference attack >= loss attack, all members against 0 copies",
    ),
    Claim(
        "text_tells_nothing",
        "No classifier of the text alone can tell members from non-members.",
        "impossible by randomization",
        "bag-of-words AUROC in [0.4, 0.6]",
    ),
    Claim(
        "utility_unchanged",
        "Planting copies leaves unseen text as it was.",
        "Lambada perplexity 7.43 against 7.23",
        "perplexity on unseen text of the standard and the perturbed arm within 3 %",
    ),
    Claim(
        "unlearning_fails",
        "No simple unlearning method forgets the forget set and keeps its neighbours and unseen text.",
        "no method reaches the target; all hurt Keep and Test",
        "none of gradient ascent, SatImp, RMU: Forget within 10 % of standard and Keep, Test within 5 % of perturbed",
    ),
)


def run(context: StudyContext) -> None:
    from rote.testbed.build import BedSettings, build
    from rote.testbed.report import report
    from rote.testbed.train import train_arms

    settings = BedSettings(
        seed=context.seed,
        passages=sum(LEVELS.values()),
        weights=LEVELS,
        corpus_tokens=800_000,
        architecture="llama",
        batch_size=8,
        steps=2500,
    )
    bed = build(context.out / "bed", settings=settings, progress=context.progress)
    context.progress(f"training {len(ARMS)} arms")
    train_arms(bed, ARMS, workers=2)
    tables = report(bed, arms=ARMS, metrics=("ll", "generate", "mia", "unlearning"), progress=context.progress).tables
    for name, rows in tables.items():
        context.table(name, rows)
    context.table("bed", [{k: v for k, v in bed.manifest.items() if not isinstance(v, dict)}])
    decide(context, tables)
    context.figure("dose_response", dose_figure(tables["dose_response"]))


def decide(context: StudyContext, tables: Mapping[str, list[dict]]) -> None:
    """Every claim, from the tables of this run and nothing else."""
    nll = {(row["arm"], row["duplicates"]): row["nll"] for row in tables["dose_response"]}
    auroc = {(row["arm"], row["attack"], row["duplicates"]): row for row in tables["mia"]}
    levels = [level for level in LEVELS if level]

    blind = {level: auroc["standard", "loss", level] for level in levels}
    deviations = {
        level: (row["auroc"] - 0.5) / null_error(row["members"], row["nonmembers"]) for level, row in blind.items()
    }
    context.claim(
        "standard_is_blind",
        observed={level: f"{blind[level]['auroc']:.3f} ({deviations[level]:+.2f} s.e.)" for level in levels},
        holds=all(abs(value) <= BAND for value in deviations.values()),
    )
    for claim, level, least in (("sixteen_copies", 16, 0.85), ("sixty_four_copies", 64, 0.99)):
        value = auroc["perturbed", "loss", level]["auroc"]
        context.claim(claim, observed=value, holds=value >= least)
    dose = [nll["perturbed", level] for level in (4, 16, 64, 256)]
    context.claim("dose_response", observed=dose, holds=all(a > b for a, b in pairwise(dose)))
    lost = {
        level: (nll["early:0-25", level] - nll["perturbed", level]) / (nll["standard", level] - nll["perturbed", level])
        for level in (64, 256)
    }
    context.claim("early_is_forgotten", observed=lost, holds=all(share >= 0.70 for share in lost.values()))
    late = nll["late:75-100", 16], nll["perturbed", 16]
    context.claim("late_sticks", observed={"late": late[0], "perturbed": late[1]}, holds=late[0] <= late[1])
    diluted = {level: (nll["dilute:x2", level], nll["perturbed", level]) for level in (16, 64)}
    context.claim(
        "dilution_helps",
        observed={level: {"dilution": a, "perturbed": b} for level, (a, b) in diluted.items()},
        holds=all(a > b for a, b in diluted.values()),
    )
    attacks = {name: auroc["perturbed", name, "any"]["auroc"] for name in ("reference", "loss")}
    context.claim("reference_bound", observed=attacks, holds=attacks["reference"] >= attacks["loss"])
    words = tables["blind"][0]["value"]
    context.claim("text_tells_nothing", observed=words, holds=words is not None and 0.4 <= words <= 0.6)
    unseen = {row["arm"]: row["perplexity"] for row in tables["unseen"]}
    ratio = unseen["perturbed"] / unseen["standard"]
    context.claim("utility_unchanged", observed=ratio, holds=abs(ratio - 1) <= 0.03)
    methods = {row["method"]: row for row in tables["unlearning"]}
    context.claim(
        "unlearning_fails",
        observed={name: {key: row[key] for key in ("forget", "keep", "test")} for name, row in methods.items()},
        holds=not any(row.get("passes") for row in methods.values()),
    )


def null_error(members: int, nonmembers: int) -> float:
    """Standard error of an AUROC when the labels say nothing: sqrt((m + n + 1) / (12 m n)) (Mann and Whitney 1947)."""
    return float(np.sqrt((members + nonmembers + 1) / (12 * members * nonmembers)))


def dose_figure(rows: list[dict]):
    """NLL against copies, one line per arm, 95 % bootstrap intervals."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for arm in ARMS:
        mine = [row for row in rows if row["arm"] == arm]
        figure.add_scatter(
            x=[str(row["duplicates"]) for row in mine],
            y=[row["nll"] for row in mine],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [row["high"] - row["nll"] for row in mine],
                "arrayminus": [row["nll"] - row["low"] for row in mine],
            },
            name=arm,
        )
    texts = ", ".join(f"{count} x {level}" for level, count in LEVELS.items())
    figure.update_layout(
        title=f"Loss by number of copies (texts x copies: {texts})",
        xaxis={"title": "copies in training", "type": "category"},
        yaxis_title="NLL, nats per token",
        template="plotly_white",
    )
    return figure


STUDY = Study("hubble", "Controlled insertion: how copies become memory", "2510.19811", CLAIMS, run)
