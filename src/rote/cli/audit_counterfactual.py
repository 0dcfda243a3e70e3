"""`rote audit counterfactual`: what did training on each record add? Needs models trained on different subsets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rote.cli import treat_options as shared
from rote.cli.console import progress_bars
from rote.errors import InputError


def counterfactual(
    records: Annotated[Path, typer.Argument(help="Record file with every record that some model was trained on.")],
    model: Annotated[list[str], typer.Option(help="A checkpoint; give one for each training, at least two.")],
    seen: Annotated[
        list[Path], typer.Option(help="The ids that training was shown, one a line: one file a --model, same order.")
    ],
    output: Annotated[Path, typer.Option("-o", "--out", help="Run directory.")],
    text_column: shared.TextColumn = None,
    id_column: shared.IdColumn = None,
    long: Annotated[str, typer.Option(help="Records over the context window: error or truncate.")] = "error",
    bos: shared.Bos = "auto",
    batch_tokens: Annotated[int | None, typer.Option(help="Padded tokens in one forward pass.")] = None,
    seed: shared.Seed = 0,
    device: shared.Device = "auto",
    dtype: shared.Dtype = "auto",
    overwrite: shared.Overwrite = False,
    json_: shared.Json = False,
    quiet: shared.Quiet = False,
) -> None:
    """Counterfactual memorization: the model's accuracy on a record with and without having been trained on it.

    The only measure that needs no guess about what an unmemorizing model would do. `rote testbed train --arms
    half:1,half:2` makes such models.
    """
    from rote.audit.counterfactual import Trained, audit_counterfactual
    from rote.cli.audit import command_line
    from rote.cli.main import finish
    from rote.records import read_records

    if len(model) != len(seen):
        raise InputError(f"{len(model)} --model but {len(seen)} --seen: give one file of ids for each model")
    columns = {field: name for field, name in (("text", text_column), ("id", id_column)) if name}
    table = read_records(records, columns=columns or None)
    known = set(table.column("id"))
    trained = [Trained(name, read_ids(file, known)) for name, file in zip(model, seen, strict=True)]
    with progress_bars(quiet=quiet or json_) as progress:
        found = audit_counterfactual(
            trained,
            table,
            output,
            long=long,
            bos=bos,
            device=device,
            dtype=dtype,
            batch_tokens=batch_tokens,
            seed=seed,
            overwrite=overwrite,
            command=command_line(),
            records_name=records.name,
            progress=progress,
        )
    finish(found, output, [], json_=json_, quiet=quiet)


def read_ids(file: Path, known: set[str]) -> frozenset[str]:
    """Ids, one a line; an empty file is a training that saw no record.

    Raises InputError when the file cannot be read or no line is a record's id."""
    try:
        found = frozenset(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})") from None
    if found and not found & known:
        raise InputError(f"{file}: none of its {len(found):,} lines is the id of a record; write one id a line")
    return found
