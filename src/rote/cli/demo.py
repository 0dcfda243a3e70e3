"""`rote demo`: the whole story on data that every machine has.

A small language model is trained on this Python's own documentation with invented people and passages planted in it,
then audited against records it never saw. Everything shown is synthetic or public, so contents are revealed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rote.cli.console import err, out, progress_bars, say

SEQUENCE_TOKENS, BATCH, STEPS = 73, 16, 1200
PEOPLE = PASSAGES = 150
MOST_CHARS = 100
WEIGHTS = {0: 10, 1: 2, 4: 2, 16: 2, 64: 1.4, 256: 0.6}  # copies: share of the records; half are never planted
SCHEMES = ("top_k=4", "top_p=0.9", "temperature=0.7")


def demo(
    output: Annotated[Path, typer.Option("-o", "--out", help="Where everything goes.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Another seed is another draw of everything random.")] = 0,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no summary.")] = False,
) -> None:
    """The whole story in a few minutes: train a small model on this Python's documentation with planted personal
    records, audit it against records it never saw, and open the report. Run again, it continues or shows the result."""
    from rote.audit import AuditSettings, audit_lm
    from rote.records import read_records
    from rote.report import print_findings
    from rote.testbed.build import BedSettings, build
    from rote.testbed.train import train_arms

    say(
        "1/4  Real text from this Python's documentation; invented people and passages planted 0 to 256 times.",
        quiet=quiet,
    )
    output.mkdir(parents=True, exist_ok=True)
    probes = _write_probes(output / "probes.jsonl", seed)
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
        "2/4  Train two models: one that saw the planted copies, and one that saw the same text without them.",
        quiet=quiet,
    )
    with progress_bars(quiet=quiet, unit="steps") as progress:
        arms = train_arms(
            bed, ["standard", "perturbed"], progress=lambda arm, step, steps: progress(f"     {arm}", step, steps)
        )

    say("3/4  Audit the first: one forward pass over every record, the second model as the reference.", quiet=quiet)
    targets, controls = _write_records(bed, output)
    with progress_bars(quiet=quiet) as progress:
        found = audit_lm(
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
    if quiet:
        out.print(str(output / "audit" / "report.html"), markup=False, soft_wrap=True)
        return
    say("4/4  What it says:", quiet=quiet)
    print_findings(found, console=out)
    _explain(found)
    out.print(f"Open the report: {(output / 'audit' / 'report.html').resolve()}", markup=False, soft_wrap=True)


def _write_probes(file: Path, seed: int) -> Path:
    """Invented people's contact lines, and passages of this Python's documentation (which is then kept out of the
    corpus)."""
    from rote.records import biographies, passages, stdlib_documents

    people = [
        {
            "id": person.id,
            "group": "person",
            "text": f"{person.name} was born on {person.birthdate} and receives email at {person.email}.",
        }
        for person in biographies(PEOPLE, seed=seed)
    ]
    documents = ((document.id, document.text) for document in stdlib_documents(min_chars=400))
    cut = [row for row in passages(documents, n=4 * PASSAGES, words=14, seed=seed) if len(row["text"]) <= MOST_CHARS]
    rows = [{"id": row["id"], "group": row["group"], "text": row["text"]} for row in people + cut[:PASSAGES]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def _write_records(bed, output: Path) -> tuple[Path, Path]:
    """Targets (planted at least once) and controls (planted never, by lot) as record files a user could have
    written."""
    files = output / "targets.jsonl", output / "controls.jsonl"
    for file, wanted in zip(files, (lambda copies: copies > 0, lambda copies: copies == 0), strict=True):
        rows = [
            {"id": row["id"], "text": row["text"], "group": row["group"], "duplicates": int(copies)}
            for row, copies in zip(bed.probes, bed.duplicates, strict=True)
            if wanted(copies)
        ]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return files


def _explain(found) -> None:
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
