"""`rote demo`: the whole story on data that every machine has.

A small language model is trained on this Python's own documentation with invented people and passages planted in it,
audited against records it never saw, treated, and audited again. Everything shown is synthetic or public, so contents
are revealed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rote.cli.console import err, out, progress_bars, say

SEQUENCE_TOKENS, BATCH, STEPS = 73, 16, 1200
WEIGHTS = {0: 10, 1: 2, 4: 2, 16: 2, 64: 1.4, 256: 0.6}  # copies: share of the records; half are never planted
SCHEMES = ("top_k=4", "top_p=0.9", "temperature=0.7")
LOSS, SETTINGS, UNLEARNING = "npo", {"alpha": 2.0}, {"steps": 60, "learning_rate": 5e-4}


def demo(
    output: Annotated[Path, typer.Option("-o", "--out", help="Where everything goes.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Another seed is another draw of everything random.")] = 0,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no summary.")] = False,
) -> None:
    """The whole story in a few minutes: train a small model on this Python's documentation with planted personal
    records, audit it against records it never saw, take the records out, and prove it with the same audit. Run again,
    it continues or shows the result."""
    from rote.report import print_findings
    from rote.testbed.build import BedSettings, build
    from rote.testbed.demo_records import write_probes, write_retain_and_unseen, write_targets_and_controls
    from rote.testbed.train import train_arms

    say(
        "1/5  Real text from this Python's documentation; invented people and passages planted 0 to 256 times.",
        quiet=quiet,
    )
    output.mkdir(parents=True, exist_ok=True)
    probes = write_probes(output / "probes.jsonl", seed)
    settings = BedSettings(seed=seed, sequence_tokens=SEQUENCE_TOKENS, batch_size=BATCH, steps=STEPS, weights=WEIGHTS)
    bed = build(
        output / "bed", settings=settings, probes=probes, progress=lambda text: say(f"     {text}", quiet=quiet)
    )
    copies = bed.manifest["copies"]
    say(
        f"     {len(bed.probes)} records, {copies:,} copies among {bed.manifest['stream_tokens']:,} tokens.",
        quiet=quiet,
    )

    say(
        "2/5  Train two models: one that saw the planted copies, and one that saw the same text without them.",
        quiet=quiet,
    )
    with progress_bars(quiet=quiet, unit="steps") as progress:
        arms = train_arms(
            bed, ["standard", "perturbed"], progress=lambda arm, step, steps: progress(f"     {arm}", step, steps)
        )
    targets, controls = write_targets_and_controls(bed, output)
    retain, unseen = write_retain_and_unseen(bed, output)

    say("3/5  Audit the first: one forward pass over every record, the second model as the reference.", quiet=quiet)
    found = _audit(arms, targets, controls, output, seed, quiet)
    if not quiet:
        print_findings(found, console=out)
        _explain(found)

    say("4/5  Take the planted records out of it, by unlearning (NPO), and audit again.", quiet=quiet)
    treatment = _treat(arms, targets, controls, retain, unseen, output, seed, quiet)
    if not quiet:
        from rote.cli.treat_options import print_treatment

        say("5/5  Before and after:", quiet=quiet)
        print_treatment(treatment)
        _explain_treatment(treatment)
        out.print("To ask further, with the second model as what true forgetting looks like:")
        out.print(
            f"  rote audit unlearning {arms['perturbed']} {treatment.checkpoint} --forget {targets} --retain {retain}"
            f" --holdout {controls} --oracle {arms['standard']} --bos always -o {output / 'forgotten'}",
            markup=False,
            soft_wrap=True,
        )
        out.print(f"Before and after: {(treatment.out / 'compare.html').resolve()}", markup=False, soft_wrap=True)
        report = output / "audit" / "report.html"
        out.print(f"Open the report: {report.resolve()}", markup=False, soft_wrap=True)


def _audit(arms: Any, targets: Path, controls: Path, output: Path, seed: int, quiet: bool) -> Any:
    from rote.audit import AuditSettings, audit_lm
    from rote.records import read_records

    with progress_bars(quiet=quiet) as progress:
        return audit_lm(
            arms["perturbed"],
            read_records(targets),
            output / "audit",
            control=read_records(controls),
            references=[arms["standard"]],
            settings=AuditSettings(schemes=SCHEMES, seed=seed, bos="always"),
            reveal=True,
            command=f"rote audit lm {arms['perturbed']} {targets} --control {controls} --reference"
            f" {arms['standard']} --bos always "
            + " ".join(f"--scheme {scheme}" for scheme in SCHEMES)
            + f" --reveal -o {output / 'audit'}",
            records_name="planted people and passages",
            progress=lambda stage, done, total: progress(f"     {stage}", done, total),
        )


def _treat(
    arms: Any, targets: Path, controls: Path, retain: Path, unseen: Path, output: Path, seed: int, quiet: bool
) -> Any:
    from rote.audit import AuditSettings, treat
    from rote.cli.treat import by_unlearning, unlearning_identity
    from rote.cli.treat_options import read_sets
    from rote.controls.editing.unlearning.methods import method_settings
    from rote.controls.editing.unlearning.settings import recipe_for

    sets = read_sets(forget=[targets], retain=[retain], control=[controls], utility=[unseen])
    settings = method_settings(LOSS, SETTINGS)
    recipe = recipe_for(settings, UNLEARNING)
    place = output / "treated"
    with progress_bars(quiet=quiet) as progress:
        return treat(
            arms["perturbed"],
            "unlearn",
            by_unlearning(
                sets, LOSS, settings=settings, recipe=recipe, lora=None, seed=seed, last_good=place / "last-good"
            ),
            place,
            forget=sets.forget,
            retain=sets.retain,
            control=sets.control,
            utility=sets.utility,
            method_settings=unlearning_identity(sets, LOSS, settings=settings, recipe=recipe, lora=None),
            settings=AuditSettings(schemes=SCHEMES, seed=seed, bos="always"),
            command=f"rote treat unlearn {arms['perturbed']} --forget {targets} --retain {retain} --control {controls}"
            f" --utility {unseen} --loss {LOSS} --set alpha={SETTINGS['alpha']} --steps"
            f" {UNLEARNING['steps']} --learning-rate {UNLEARNING['learning_rate']:g} --bos always --seed {seed} "
            + " ".join(f"--scheme {scheme}" for scheme in SCHEMES)
            + f" -o {place}",
            progress=lambda stage, done, total: progress(f"     {stage}", done, total),
        )


def _explain(found: Any) -> None:
    """Three sentences a newcomer needs to read the numbers rightly."""
    out.print("How to read this", style="bold")
    rates = [
        value
        for value in found.measure("extraction.rate").select(population="target", scheme=SCHEMES[0], queries=100, p=0.5)
        if value.dims.get("duplicates") is not None
    ]
    if rates:
        steps = ", ".join(f"{value.value:.0%} of those planted {value.dims['duplicates']:g} times" for value in rates)
        out.print(f" - Copies make memory: within 100 queries an attacker gets back {steps}.", markup=False)
    out.print(
        " - The controls were drawn from the same pool by lot and planted never: what they show is what the"
        " model would say"
        " about any such text. Only the distance to them is memorization.",
        markup=False,
    )
    out.print(
        " - The guards ask whether the comparison itself is fair; a failed one is printed above the number it spoils.",
        markup=False,
    )
    err.print("")


def _explain_treatment(treatment: Any) -> None:
    """What the proof says: recitation first, then its price, each with the interval of the paired difference."""
    from rote.audit.treatment import headline_changes

    rows = {(row["measure"], row["of"]): row for row in headline_changes(treatment)}
    recited, price = rows.get(("extraction.rate", "forget")), rows.get(("utility.perplexity", "unseen"))
    out.print("What this proves", style="bold")
    if recited is not None:
        out.print(
            f" - On records: within 100 queries {recited['before']:.1%} came out before and {recited['after']:.1%} do"
            f" after (difference {_ends(recited, '.1%')}). The checkpoint was read back from disk and audited alike.",
            markup=False,
        )
    if price is not None:
        out.print(
            f" - On utility: perplexity of documentation that neither training nor unlearning saw went from"
            f" {price['before']:.1f} to {price['after']:.1f} (difference {_ends(price, '.1f')}).",
            markup=False,
        )


def _ends(row: dict[str, Any], style: str) -> str:
    """The interval of a difference."""
    if row["low"] is None or row["high"] is None:
        return f"{row['difference']:+{style}}"
    return f"{row['low']:+{style}} to {row['high']:+{style}}"
