"""`rote audit recited`: which records does the model recite? Verdicts alone, fast enough to mine a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rote.cli import treat_options as shared
from rote.cli.console import progress_bars, say


def recited(
    model: shared.Model,
    records: shared.Records,
    output: Annotated[Path, typer.Option("-o", "--out", help="Run directory.")],
    control: shared.Unseen = None,
    prefix: shared.Prefix = None,
    suffix: shared.Suffix = None,
    long: shared.Long = "error",
    bos: shared.Bos = "auto",
    text_column: shared.TextColumn = None,
    id_column: shared.IdColumn = None,
    column: shared.Columns = None,
    format_: shared.Format = None,
    txt_unit: shared.TxtUnit = "paragraph",
    limit: shared.Limit = None,
    device: shared.Device = "auto",
    dtype: shared.Dtype = "auto",
    batch_tokens: Annotated[
        int | None, typer.Option(help="Padded tokens in one forward pass. [default: by device]")
    ] = None,
    overwrite: shared.Overwrite = False,
    json_: shared.Json = False,
    quiet: shared.Quiet = False,
) -> None:
    """Which records does the model recite from a single greedy query? Verdicts alone, to mine a corpus.

    A record is dropped at its first wrong token, so this costs little more than reading the prefixes; `rote audit lm`
    reads everything and says how likely, under which decoding and how surely memorized. The ids of what is recited
    go to recited-ids.txt.
    """
    from rote.audit.recited import audit_recited
    from rote.cli.audit import columns_of, command_line, read_sides
    from rote.cli.main import finish

    columns = columns_of(text_column, id_column, column)
    table, unseen = read_sides(records, control, columns, limit=limit, format=format_, txt_unit=txt_unit)
    with progress_bars(quiet=quiet or json_) as progress:
        found = audit_recited(
            model,
            table,
            output,
            control=unseen,
            prefix=prefix,
            suffix=suffix,
            long=long,
            bos=bos,
            device=device,
            dtype=dtype,
            batch_tokens=batch_tokens,
            overwrite=overwrite,
            command=command_line(),
            records_name=records[0].name,
            progress=progress,
        )
    finish(found, output, [], json_=json_, quiet=quiet)
    say(f"who is recited: {output / 'recited-ids.txt'}", quiet=quiet or json_)
