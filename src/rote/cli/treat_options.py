"""What every `rote treat` command shares: its options, reading the sets, running, printing before and after."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rote.cli.console import out as console
from rote.cli.console import progress_bars, say

if TYPE_CHECKING:
    from rote.records.table import RecordTable

Model = Annotated[str, typer.Argument(help="A local Hugging Face checkpoint directory (safetensors), or a hub name.")]
Forget = Annotated[list[Path], typer.Option(help="Records to be forgotten: jsonl, csv, parquet, txt, ...")]
Retain = Annotated[list[Path] | None, typer.Option(help="Ordinary text that must stay; its perplexity is measured.")]
Control = Annotated[
    list[Path] | None, typer.Option(help="Unseen records of the same kind as the forget set, to compare with.")
]
Paraphrases = Annotated[
    list[Path] | None, typer.Option(help="The forget records in other words: what do they still get back?")
]
Utility = Annotated[list[Path] | None, typer.Option(help="Further text whose perplexity is measured (repeatable).")]
Output = Annotated[Path, typer.Option("-o", "--out", help="Directory of the treatment.")]
Scheme = Annotated[
    list[str] | None, typer.Option(help="Decoding scheme: 'top_k=40,temperature=0.7', 'sample'. [default: top_k=40]")
]
Prefix = Annotated[int | None, typer.Option(help="Tokens given. [default: 50, or half of a shorter record]")]
Suffix = Annotated[int | None, typer.Option(help="Tokens to be recited. [default: 50, or the rest]")]
Long = Annotated[str, typer.Option(help="Records over the context window: error or truncate.")]
Bos = Annotated[str, typer.Option(help="Beginning-of-sequence token: auto (as the tokenizer does), always, never.")]
TextColumn = Annotated[str | None, typer.Option(help="Field that holds the text. [default: text]")]
Records = Annotated[
    list[Path], typer.Argument(help="Record files or folders: jsonl, csv, parquet, txt, saved datasets; .gz, .zst.")
]
Unseen = Annotated[
    list[Path] | None, typer.Option(help="Unseen records of the same kind; needed to call anything memorized.")
]
IdColumn = Annotated[str | None, typer.Option(help="Field that holds the id. [default: id]")]
Columns = Annotated[list[str] | None, typer.Option(help="Any other field: FIELD=NAME, e.g. duplicates=copies.")]
Format = Annotated[str | None, typer.Option("--format", help="Read the files as this format whatever their names.")]
TxtUnit = Annotated[str, typer.Option(help="A record in a text file: paragraph or file.")]
Limit = Annotated[int | None, typer.Option(help="Only the first so many records.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")]
Overwrite = Annotated[bool, typer.Option(help="Start over although the directory holds another run.")]
Tasks = Annotated[
    Path | None,
    typer.Option(help="Folder of lm-evaluation-harness task files (needs lm-eval): run before and after as utility."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no summary.")]


@dataclass(frozen=True)
class Sets:
    """The record tables of a treatment, read and checked."""

    forget: RecordTable
    retain: RecordTable | None
    control: RecordTable | None
    paraphrases: RecordTable | None
    utility: dict[str, RecordTable]


def read_sets(
    *,
    forget: list[Path],
    retain: list[Path] | None = None,
    control: list[Path] | None = None,
    paraphrases: list[Path] | None = None,
    utility: list[Path] | None = None,
    text_column: str | None = None,
) -> Sets:
    """Read every set; a further utility text is called by its file's name."""
    from rote.records import read_records

    columns = {"text": text_column} if text_column else None

    def read(paths: list[Path] | None) -> Any:
        return read_records(paths, columns=columns) if paths else None

    texts = {path.name.split(".")[0]: read_records([path], columns=columns) for path in utility or ()}
    return Sets(read_records(forget, columns=columns), read(retain), read(control), read(paraphrases), texts)


def run_treatment(
    method: str,
    model: str,
    apply: Callable[[Any, Any], Any],
    sets: Sets,
    output: Path,
    *,
    method_settings: Mapping[str, Any],
    check: Callable[[Any], object] | None = None,
    scheme: list[str] | None = None,
    prefix: int | None = None,
    suffix: int | None = None,
    long: str = "error",
    bos: str = "auto",
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    overwrite: bool = False,
    tasks: Path | None = None,
    json_: bool = False,
    quiet: bool = False,
) -> None:
    """Audit, `apply`, audit again, print before and after, and store everything under `output`."""
    from rote.audit import AuditSettings, treat
    from rote.cli.audit import command_line

    chosen: dict[str, Any] = {
        "prefix": prefix,
        "suffix": suffix,
        "long": long,
        "bos": bos,
        "seed": seed,
        "device": device,
        "dtype": dtype,
    }
    if scheme:
        chosen["schemes"] = tuple(scheme)
    silent = quiet or json_
    with progress_bars(quiet=silent, unit="tokens") as progress:
        treatment = treat(
            model,
            method,
            apply,
            output,
            forget=sets.forget,
            retain=sets.retain,
            control=sets.control,
            paraphrases=sets.paraphrases,
            utility=sets.utility,
            method_settings=method_settings,
            settings=AuditSettings(**chosen),
            check=check,
            overwrite=overwrite,
            command=command_line(),
            progress=progress,
            say=lambda text: say(text, quiet=silent),
            tasks=tasks,
        )
    if json_:
        sys.stdout.write((output / "treatment.json").read_text(encoding="utf-8"))
        return
    if quiet:
        return
    print_treatment(treatment)
    if treatment.checkpoint:
        console.print(f"treated model: {treatment.checkpoint}", markup=False, soft_wrap=True)
    else:
        console.print(f"control for decoding: {output / 'control'}", markup=False, soft_wrap=True)
    console.print(f"before and after: {output / 'compare.html'}", markup=False, soft_wrap=True)


def print_treatment(treatment: Any) -> None:
    """The headline numbers as a table: what fell, what it cost, and how sure that is."""
    from rich.table import Table

    from rote.audit.treatment import headline_changes

    table = Table(title=f"{treatment.summary['method']}: before and after")
    for name, side in (("measure", "left"), ("of", "left"), ("before", "right"), ("after", "right"),
                       ("difference (95 %)", "right"), ("", "left")):  # fmt: skip
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for row in headline_changes(treatment):
        ends = "" if row["low"] is None else f" ({row['low']:+.3g} to {row['high']:+.3g})"
        table.add_row(
            row["title"], row["of"], f"{row['before']:.3g}", f"{row['after']:.3g}", f"{row['difference']:+.3g}{ends}",
            {"same": "no clear change"}.get(row["judgement"], row["judgement"]),
        )  # fmt: skip
    console.print(table)
    for note in treatment.summary["notes"]:
        console.print(f" - {note}", markup=False)
