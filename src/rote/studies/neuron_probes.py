"""Study: recited tokens seen in activations (Slonski 2024, arXiv 2412.01014).

A Hubble bed with two arms that differ in copies only: `perturbed` saw 80 passages 64 times and 40 passages 256 times,
`standard` none of them. Tokens are memorized (M: p > .5 in perturbed, < .1 in standard), certain (C: p > .5 in both)
or uncertain (U: p < .3 in passages planted in neither). The paper's full text was not available: claims and thresholds
are those fixed for the small-scale replication, where near-perfect accuracy is not to be promised.

Two choices the claims need, made beforehand: claims on repetition use the probe against both kinds of other tokens,
since one trained against uncertain ones alone reads confidence; and repeated segments are compared with the same tokens
at the same positions for the first time, so that position tells nothing.

A model that trains for minutes does not copy from its context, and what is not there cannot be found. So both arms
start with heads that copy and practise them on recurring text (`rote.testbed.copying`): the mechanism is planted like
the passages are. Whether it survived training is measured beside both claims, as loss and greedy hits on first and
second occurrences. The repetition probe may stand at any site, chosen on other segments than it is judged on.

Recitation is judged under the difference of means with every token's own dose (`weighted`). Strong enough, that ends
recitation in any direction, because what works then is the choice of tokens; so places and dose are those of the
largest lead over random directions, on passages set aside. On the passages judged these may take less than half as
much, both at the same dose and at the same cost. Beside it stands one dose for all tokens.
"""

from __future__ import annotations

from rote.runtime import threads
from rote.studies._neuron_bed import Found, both_halves, measure
from rote.studies._neuron_figures import (
    comparison_rows,
    doses_figure,
    probes_figure,
    recitation_figure,
    recitation_row,
    repetition_figure,
    unit_figure,
)
from rote.studies.protocol import Claim, Study, StudyContext

ARMS = ("standard", "perturbed")
LEVELS = {0: 160, 64: 80, 256: 40}  # copies -> passages
DOSES = (1.0, 2.0)

CLAIMS = (
    Claim(
        "passages_are_memorized",
        "Enough passages are recited to study them.",
        "a few hundred tokens of diverse well-known texts",
        "at least 60 planted passages with NLL < 0.5 nats per token",
    ),
    Claim(
        "beyond_difficulty",
        "A probe tells recited from uncertain tokens of held-out passages better than on a model that never saw them.",
        "near-perfect probe accuracy; prototype .83 to .85 against .54 to .66 on the untrained model",
        "AUROC M against U >= the control model's + 0.15",
    ),
    Claim(
        "permuted_labels",
        "With labels exchanged between passages the same pipeline finds nothing.",
        "implied",
        "mean held-out AUROC over 20 permutations within 0.5 +- 0.05",
    ),
    Claim(
        "steering_is_selective",
        "Subtracting the difference of means makes recited tokens less likely, and others much less so.",
        "suppression with general performance kept; prototype M +.47, C +.15, U +.04 nats at dose 1",
        "at doses 1 and 2: NLL of M rises at least 2 times as much as that of C and 3 times that of U",
    ),
    Claim(
        "not_any_direction",
        "A random direction of the same norm does not do that.",
        "not in what could be read; the card's control",
        "at doses 1 and 2: NLL of M rises by less than 1/4 as much",
    ),
    Claim(
        "recitation_stops",
        "Recitation is suppressed at a small price.",
        "suppression with general performance kept",
        "greedy match of 16 tokens on the 256-copy passages falls by >= 50 % at a cost < 3 % of held-out perplexity,"
        " under random directions by less than half as much",
    ),
    Claim(
        "repetition_is_seen",
        "The same pipeline finds tokens that repeat a segment of the context, in text nobody trained on.",
        "the repetition mechanism is found and switched off likewise",
        "AUROC of the repetition probe on held-out segments >= 0.9",
    ),
    Claim(
        "repetition_is_not_memory",
        "The memorization probe does not take repeated unseen text for recited.",
        "two different mechanisms",
        "AUROC of the memorization probe on repeated unseen text < 0.65",
    ),
)


def run(context: StudyContext) -> None:
    from rote.records.table import RecordTable
    from rote.testbed.build import BedSettings, build
    from rote.testbed.scoring import load_arm
    from rote.testbed.train import parse_arm, train_arms

    settings = BedSettings(
        seed=context.seed,
        passages=sum(LEVELS.values()),
        weights=LEVELS,
        corpus_tokens=800_000,
        architecture="llama",
        layers=4,
        heads=3,
        copying_rows=8,
        batch_size=16,
        steps=1800,
        unseen_passages=240,
    )
    bed = build(context.out / "bed", settings=settings, progress=context.progress)
    context.progress("training both arms")
    train_arms(bed, ARMS, workers=2)
    control, model = (load_arm(bed, parse_arm(arm)) for arm in ARMS)
    passages = RecordTable.from_rows({key: row[key] for key in ("id", "text", "duplicates")} for row in bed.probes)
    with threads(1):
        found = measure(
            model, control, passages, bed.unseen, recited_from=max(LEVELS), seed=context.seed,
            progress=context.progress,
        )  # fmt: skip
    write(context, found)
    decide(context, found)


def decide(context: StudyContext, found: Found) -> None:
    """Every claim, from what was measured in this run."""
    below = sum(row["below"] for level, row in found.passages.items() if level != "0")
    context.claim("passages_are_memorized", observed={**found.passages, "below": below}, holds=below >= 60)

    report = found.probes["M / U"].report
    assert report.control is not None
    assert report.gap is not None
    context.claim(
        "beyond_difficulty",
        observed={
            "probe": report.probe.auroc.as_dict(), "control": report.control.auroc.as_dict(),
            "gap": report.gap.as_dict(), "layer": found.probes["M / U"].layer, "tokens": found.counts,
        },
        holds=report.gap.value >= 0.15,
    )  # fmt: skip
    context.claim(
        "permuted_labels",
        observed={"mean": found.permuted.mean(), "sd": found.permuted.std(), "n": len(found.permuted)},
        holds=abs(float(found.permuted.mean()) - 0.5) <= 0.05,
    )

    steered = {dose: both_halves(found.doses, "selected", dose) for dose in DOSES}
    random = {dose: both_halves(found.doses, "random", dose) for dose in DOSES}
    rises = {
        dose: {name: row[f"rise_{kind}"] for name, kind in (("M", "memorized"), ("C", "certain"), ("U", "uncertain"))}
        for dose, row in steered.items()
    }
    context.claim(
        "steering_is_selective",
        observed={f"dose {dose:g}": rise for dose, rise in rises.items()},
        holds=all(rise["M"] > 0 and rise["M"] >= max(2 * rise["C"], 3 * rise["U"]) for rise in rises.values()),
    )
    context.claim(
        "not_any_direction",
        observed={
            f"dose {dose:g}": {"selected": rises[dose]["M"], "random": random[dose]["rise_memorized"]} for dose in DOSES
        },
        holds=all(random[dose]["rise_memorized"] < rises[dose]["M"] / 4 for dose in DOSES),
    )
    recitation = {mode: recitation_row(found, mode) for mode in ("weighted", "diff-means")}
    best = recitation["weighted"]
    fallen, cost = best["fallen by"], best["cost"]
    random_fall = max(best[f"fallen by, random{at}"] or 0.0 for at in ("", " at equal cost"))
    context.claim(
        "recitation_stops",
        observed={**best, "passages": LEVELS[max(LEVELS)], "one dose for all tokens": recitation["diff-means"]},
        holds=fallen is not None and fallen >= 0.5 and cost is not None and cost < 0.03 and random_fall < fallen / 2,
    )

    matched = found.repetition["matched"]
    names = ("site", "layer", "nll, first", "nll, second", "greedy right, first", "greedy right, second")
    own = {name: matched[name] for name in names}
    context.claim(
        "repetition_is_seen",
        observed={**matched["auroc"], **own, "random tokens": found.repetition["random tokens"]["auroc"]["value"]},
        holds=matched["auroc"]["value"] >= 0.9,
    )
    crossed = matched["probe M / C and U"]
    context.claim(
        "repetition_is_not_memory",
        observed={"auroc": crossed, "cosine": matched["cosine"], **own},
        holds=crossed < 0.65,
    )


def write(context: StudyContext, found: Found) -> None:
    """Tables and figures."""
    context.table("comparisons", comparison_rows(found))
    context.table("by_site", found.by_site)
    context.table("units", found.units_rows)
    context.table(
        "units_passing",
        [
            {"site": site, "passing": count, "coordinates": found.units.coordinates[site],
             "threshold": found.units.permutation_threshold, "permutations": found.units.permutations}
            for site, count in found.units.passing.items()
        ],
    )  # fmt: skip
    context.table("certainty_units", found.certainty)
    context.table("places", found.places)
    context.table("doses", found.doses)
    context.table("repetition", [{"negatives": name, **row} for name, row in found.repetition.items()])
    context.figure("probes", probes_figure(comparison_rows(found)))
    context.figure("doses", doses_figure(found.doses))
    context.figure("recitation", recitation_figure(found))
    context.figure("repetition", repetition_figure(found))
    context.figure("best_unit", unit_figure(found))


STUDY = Study(
    "neuron-probes", "Detecting memorization in large language models: neurons and probes", "2412.01014", CLAIMS, run
)
