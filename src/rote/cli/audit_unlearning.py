"""`rote audit unlearning`: is it really forgotten?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rote.cli import treat_options as shared
from rote.cli.console import out as console
from rote.cli.console import progress_bars, say
from rote.errors import InputError


def unlearning(
    before: Annotated[str, typer.Argument(help="The checkpoint before unlearning.")],
    after: Annotated[str, typer.Argument(help="The checkpoint after unlearning.")],
    forget: shared.Forget,
    retain: Annotated[list[Path], typer.Option(help="Records that should have stayed.")],
    holdout: Annotated[list[Path], typer.Option(help="Unseen records of the same kind as the forget set.")],
    output: shared.Output,
    oracle: Annotated[
        str | None, typer.Option(help="A checkpoint of the same training without the forget set: what to aim at.")
    ] = None,
    neighbours: Annotated[
        str | None, typer.Option(help="Checkpoint whose embeddings make REMIND's neighbours. [default: BEFORE's]")
    ] = None,
    k: Annotated[int, typer.Option("--k", help="REMIND: changed texts a shell.")] = 16,
    classifier: Annotated[
        str, typer.Option(help="REMIND: random_forest, logistic or gradient_boosting.")
    ] = "random_forest",
    relearn_steps: Annotated[str, typer.Option(help="Steps of the relearning attack, 5,15,30,60; 'none' for none.")] = (
        "5,15,30,60"
    ),
    relearn_rate: Annotated[float, typer.Option(help="Learning rate of the relearning attack.")] = 2e-4,
    scheme: shared.Scheme = None,
    prefix: shared.Prefix = None,
    suffix: shared.Suffix = None,
    bos: shared.Bos = "auto",
    text_column: shared.TextColumn = None,
    seed: shared.Seed = 0,
    device: shared.Device = "auto",
    dtype: shared.Dtype = "auto",
    overwrite: shared.Overwrite = False,
    json_: shared.Json = False,
    quiet: shared.Quiet = False,
) -> None:
    """Audit an unlearned model: extraction, membership, the field's figures, REMIND, rounding, relearning."""
    from rote.audit import AuditSettings
    from rote.audit.unlearning import UnlearningSettings, audit_unlearning
    from rote.cli.audit import command_line
    from rote.records import read_records

    columns = {"text": text_column} if text_column else None
    chosen: dict[str, Any] = {
        "prefix": prefix, "suffix": suffix, "bos": bos, "seed": seed, "device": device, "dtype": dtype
    }  # fmt: skip
    if scheme:
        chosen["schemes"] = tuple(scheme)
    silent = quiet or json_
    with progress_bars(quiet=silent) as progress:
        result = audit_unlearning(
            before,
            after,
            output,
            forget=read_records(forget, columns=columns),
            retain=read_records(retain, columns=columns),
            holdout=read_records(holdout, columns=columns),
            oracle=oracle,
            neighbours=neighbours,
            settings=AuditSettings(**chosen),
            unlearning=UnlearningSettings(
                k=k, classifier=classifier, relearn_steps=parse_steps(relearn_steps), relearn_rate=relearn_rate
            ),
            overwrite=overwrite,
            command=command_line(),
            progress=progress,
            say=lambda text: say(text, quiet=silent),
        )
    if json_:
        sys.stdout.write((output / "unlearning.json").read_text(encoding="utf-8"))
        return
    if quiet:
        return
    for verdict in result["verdicts"]:
        console.print(f"[{verdict['level']}] {verdict['text']}", markup=False, soft_wrap=True)
    console.print(f"report: {output / 'unlearning.html'}", markup=False, soft_wrap=True)


def parse_steps(text: str) -> tuple[int, ...]:
    """ "5,15,30" -> steps; "none" -> no relearning."""
    if text.strip().lower() == "none":
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--relearn-steps {text!r}: give numbers like 5,15,30,60, or none") from None
