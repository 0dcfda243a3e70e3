"""`rote testbed build | train | report`: controlled insertion from the command line.

Thin: parses, calls `rote.testbed`, prints. Heavy libraries are imported inside the commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rote.cli.console import out as console
from rote.cli.console import print_json, progress_bars, say
from rote.errors import InputError

testbed_app = typer.Typer(
    help="Controlled insertion (Hubble): plant texts a random number of times, train, see what was memorized.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no summary.")]
BedPath = Annotated[Path, typer.Argument(help="A directory that `rote testbed build` wrote.")]


def parse_levels(text: str) -> dict[int, float]:
    """ "0,1,4" or "0:5,1:2,4:1" -> copies -> weight. Without weights 0 weighs as much as all others, which follow
    Hubble's 10:10:5:2:1."""
    from rote.records.planting import HUBBLE_WEIGHTS

    weights: dict[int, float] = {}
    bare = ":" not in text
    for part in text.split(","):
        level, _, weight = part.partition(":")
        try:
            weights[int(level)] = float(weight) if weight else HUBBLE_WEIGHTS.get(int(level), 1.0)
        except ValueError:
            raise InputError(f"--levels {text!r}: {part!r} is not COPIES or COPIES:WEIGHT") from None
    if bare and 0 in weights:
        weights[0] = sum(weight for level, weight in weights.items() if level) or 1.0
    return weights


def parse_window(text: str) -> tuple[float, float]:
    """ "0:1" -> (0.0, 1.0), shares of training."""
    low, _, high = text.partition(":")
    try:
        return float(low), float(high)
    except ValueError:
        raise InputError(f"--window {text!r} is not LOW:HIGH with shares of training, like 0:1 or 0.75:1") from None


@testbed_app.command("build")
def build(
    output: Annotated[Path, typer.Option("-o", "--out", help="Directory of the bed.")],
    corpus: Annotated[
        Path | None, typer.Option(help="Folder of .txt, .md, .rst, .jsonl; default: this Python's own documentation.")
    ] = None,
    probes: Annotated[
        Path | None, typer.Option(help="Record file with `text`; default: passages held out of the corpus.")
    ] = None,
    passages: Annotated[int, typer.Option(help="Passages to hold out as probes, when no file is given.")] = 480,
    passage_tokens: Annotated[int, typer.Option(help="Tokens of a passage.")] = 32,
    biographies: Annotated[int, typer.Option(help="Invented personal records to plant too.")] = 0,
    levels: Annotated[
        str, typer.Option(help="Copies, with weights if wanted: 0,1,4,16,64,256 or 0:28,1:10,...")
    ] = "0,1,4,16,64,256",
    window: Annotated[str, typer.Option(help="Share of training in which copies may stand, LOW:HIGH.")] = "0:1",
    mode: Annotated[str, typer.Option(help="splice (a document among documents) or seq_start.")] = "splice",
    steps: Annotated[int, typer.Option(help="Training steps of one arm.")] = 1500,
    batch_size: Annotated[int, typer.Option(help="Sequences in a step.")] = 16,
    sequence_tokens: Annotated[
        int, typer.Option(help="Tokens in a sequence; the longest probe and one more must fit.")
    ] = 49,
    vocab_size: Annotated[int, typer.Option(help="Size of the byte-level BPE.")] = 1024,
    architecture: Annotated[str, typer.Option(help="gpt2 or llama.")] = "gpt2",
    width: Annotated[int, typer.Option(help="Hidden size of the model.")] = 96,
    layers: Annotated[int, typer.Option(help="Layers of the model.")] = 2,
    heads: Annotated[int, typer.Option(help="Attention heads.")] = 4,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 3e-3,
    copying_rows: Annotated[
        int, typer.Option(help="Rows a batch in which a segment recurs, for a llama that starts with heads that copy.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Another seed is another draw of everything random.")] = 0,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Build a bed: tokenizer, packed stream, probes with random numbers of copies, and where each copy stands."""
    from rote.testbed.build import BedSettings
    from rote.testbed.build import build as build_bed

    settings = BedSettings(
        seed=seed,
        vocab_size=vocab_size,
        sequence_tokens=sequence_tokens,
        batch_size=batch_size,
        steps=steps,
        passages=passages,
        passage_tokens=passage_tokens,
        biographies=biographies,
        weights=parse_levels(levels),
        window=parse_window(window),
        mode=mode,  # type: ignore[arg-type]  # BedSettings checks it
        architecture=architecture,
        width=width,
        layers=layers,
        heads=heads,
        learning_rate=learning_rate,
        copying_rows=copying_rows,
    )
    bed = build_bed(
        output,
        settings=settings,
        corpus=corpus,
        probes=probes,
        progress=lambda text: say(f"  {text}", quiet=quiet or json_),
    )
    if json_:
        print_json(dict(bed.manifest))
    elif not quiet:
        manifest = bed.manifest
        levels_text = ", ".join(f"{count} texts x {level}" for level, count in manifest["level_counts"].items())
        console.print(
            f"{output}: {manifest['probes']} probes ({levels_text}), {manifest['copies']} copies, "
            f"{manifest['copy_token_share']:.1%} of {manifest['stream_tokens']:,} tokens",
            markup=False,
            soft_wrap=True,
        )
        console.print(f"next: rote testbed train {output}", markup=False, soft_wrap=True)


@testbed_app.command("train")
def train(
    bed_path: BedPath,
    arms: Annotated[
        str,
        typer.Option(
            help="standard, perturbed, early:0-25, late:75-100, NAME:A-B, dilute:xN, half:K (a random half of the"
            " texts), mosaic:R (R tokens exchanged in all copies but one); comma-separated."
        ),
    ] = "standard,perturbed",
    workers: Annotated[int | None, typer.Option(help="Arms trained at a time (default: CPU cores).")] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train arms. Each becomes a Hugging Face checkpoint under BED/arms; finished ones are left as they are."""
    from rote.testbed.build import Bed
    from rote.testbed.train import train_arms

    bed = Bed.open(bed_path)
    with progress_bars(quiet=quiet or json_, unit="steps") as progress:
        made = train_arms(
            bed, [arm.strip() for arm in arms.split(",") if arm.strip()], workers=workers, progress=progress
        )
    if json_:
        print_json({name: str(path) for name, path in made.items()})
    elif not quiet:
        for name, path in made.items():
            console.print(f"{name}: {path}", markup=False, soft_wrap=True)
        console.print(f"next: rote testbed report {bed_path}", markup=False, soft_wrap=True)


@testbed_app.command("report")
def report(
    bed_path: BedPath,
    arms: Annotated[
        str | None, typer.Option(help="Arms to report, comma-separated (default: all that are trained).")
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Some of ll, generate, mia, choice, unlearning, counterfactual, mosaic (default: all that the arms"
            " allow)."
        ),
    ] = None,
    prefix: Annotated[
        int | None, typer.Option(help="Tokens given before the part to recite (default: half a text).")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--out", help="Directory of the tables (default: BED/report).")
    ] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Dose-response, verbatim recall, membership, personal data, unlearning of the trained arms; counterfactual
    memorization (half:K arms) and the worth of altered copies (mosaic:R arms)."""
    import csv

    from rote.report import dump, parse, print_findings, write_report
    from rote.testbed.build import Bed
    from rote.testbed.findings import to_findings
    from rote.testbed.report import report as report_bed

    bed = Bed.open(bed_path)
    names = [arm.strip() for arm in arms.split(",")] if arms else None
    result = report_bed(
        bed,
        arms=names,
        metrics=[metric.strip() for metric in metrics.split(",")] if metrics else None,
        prefix=prefix,
        progress=lambda text: say(f"  {text}", quiet=quiet or json_),
    )
    folder = output or bed_path / "report"
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in result.tables.items():
        if rows:
            with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
                writer.writeheader()
                writer.writerows(rows)
    findings = parse(to_findings(bed, result))
    dump(findings, folder)
    write_report(findings, folder)
    if json_:
        from rote.report import dumps

        typer.echo(dumps(findings), nl=False)
    elif not quiet:
        print_findings(findings, console=console, report=folder / "report.html")
