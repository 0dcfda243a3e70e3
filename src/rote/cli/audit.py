"""`rote audit lm`: what has a language model memorized?"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rote.cli import console
from rote.cli import treat_options as shared
from rote.cli.audit_counterfactual import counterfactual
from rote.cli.audit_recited import recited
from rote.cli.audit_unlearning import unlearning
from rote.cli.console import config_option, print_config, progress_bars, say
from rote.errors import InputError

if TYPE_CHECKING:
    from rote.records.table import RecordTable

audit_app = typer.Typer(
    help="Find and prove what a model has memorized.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@audit_app.callback()
def _group() -> None:
    """Find and prove what a model has memorized."""


@audit_app.command(
    "lm", epilog="Example: rote audit lm ./model people.jsonl --control unseen.jsonl --scheme top_k=40 -o runs/mine"
)
def lm(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="A local Hugging Face checkpoint directory (safetensors), or a hub name.")
    ],
    records: shared.Records,
    control: shared.Unseen = None,
    reference: Annotated[
        list[str] | None, typer.Option(help="A model that never saw the records (may be given several times).")
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="The training corpus: counts how often it holds each record.")
    ] = None,
    corpus_column: Annotated[str, typer.Option(help="Field of the corpus that holds its text.")] = "text",
    scheme: Annotated[
        list[str] | None,
        typer.Option(help="Decoding scheme: 'top_k=40,temperature=0.7', 'sample'. [default: top_k=40]"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--out", help="Run directory. [default: runs/MODEL-RECORDS]")
    ] = None,
    prefix: Annotated[int | None, typer.Option(help="Tokens given. [default: 50, or half of a shorter record]")] = None,
    suffix: Annotated[int | None, typer.Option(help="Tokens to be recited. [default: 50, or the rest]")] = None,
    long: Annotated[str, typer.Option(help="Records over the context window: error or truncate.")] = "error",
    bos: Annotated[
        str, typer.Option(help="Beginning-of-sequence token: auto (as the tokenizer does), always, never.")
    ] = "auto",
    attack: Annotated[
        list[str] | None,
        typer.Option(
            help="Further membership attacks that need passes of their own: lowercase, recall, con_recall,"
            " neighbourhood, gradient_norm."
        ),
    ] = None,
    near: Annotated[
        list[str] | None,
        typer.Option(
            help="Also count almost reciting: 'eps=2' (tokens exchanged, bounds by beam), 'eps=1,method=hamming1'"
            " (exact), 'eps=3,method=monte_carlo,distance=levenshtein,samples=10000'."
        ),
    ] = None,
    near_records: Annotated[
        int, typer.Option(help="Targets, and controls, drawn at random for --near: it costs many passes a record.")
    ] = 200,
    compress: Annotated[
        int,
        typer.Option(
            help="Search so many random targets and controls for a prompt shorter than the text that makes the model"
            " recite it (adversarial compression; hundreds of passes a record)."
        ),
    ] = 0,
    compress_tokens: Annotated[int, typer.Option(help="Of each such record, the first so many tokens.")] = 16,
    compress_steps: Annotated[int, typer.Option(help="Steps of the search at its first prompt length.")] = 200,
    randomized: Annotated[
        bool, typer.Option(help="Membership was decided by coin flips: also give a privacy lower bound.")
    ] = False,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(help="Exit 1 when this holds, e.g. 'extraction.rate{queries=100,p=0.5}.high>0.01'."),
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="Field that holds the text. [default: text]")] = None,
    id_column: shared.IdColumn = None,
    column: shared.Columns = None,
    format_: shared.Format = None,
    txt_unit: shared.TxtUnit = "paragraph",
    limit: shared.Limit = None,
    reveal: Annotated[bool, typer.Option(help="Show record contents in findings and report.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Start over although the run directory holds another run.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    batch_tokens: Annotated[
        int | None, typer.Option(help="Padded tokens in one forward pass. [default: by device]")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="local, or ray: workers on many machines that share the file system.")
    ] = "local",
    json_: Annotated[bool, typer.Option("--json", help="Print the findings as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no summary.")] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            callback=config_option, is_eager=True, help="YAML file with the flags' names as keys; a flag wins."
        ),
    ] = None,
    print_config_: Annotated[bool, typer.Option("--print-config", help="Show what would run, and stop.")] = False,
) -> None:
    """Audit a causal language model: extraction, membership, dose-response, guards, one report.

    One forward pass over the records answers everything; no token is generated. The same command continues an
    interrupted run. Record contents stay out of the report unless --reveal.
    """
    if print_config_:
        print_config(context)
        return
    from rote.audit.settings import AuditSettings
    from rote.report.gates import parse_gate

    gates = [parse_gate(text) for text in fail_if or ()]
    chosen: dict[str, Any] = {
        "prefix": prefix,
        "suffix": suffix,
        "long": long,
        "bos": bos,
        "attacks": tuple(attack or ()),
        "near": tuple(near or ()),
        "near_records": near_records,
        "compress": compress,
        "compress_tokens": compress_tokens,
        "compress_steps": compress_steps,
        "randomized": randomized,
        "corpus_column": corpus_column,
        "seed": seed,
        "device": device,
        "dtype": dtype,
        "batch_tokens": batch_tokens,
        "engine": engine,
    }
    if scheme:
        chosen["schemes"] = tuple(scheme)
    settings = AuditSettings(**chosen)

    from rote.audit import audit_lm

    columns = columns_of(text_column, id_column, column)
    targets, controls = read_sides(records, control, columns, limit=limit, format=format_, txt_unit=txt_unit)
    run = output or Path("runs") / f"{Path(model).name}-{records[0].name.split('.')[0]}"
    silent = quiet or json_
    with progress_bars(quiet=silent) as progress:
        found = audit_lm(
            model,
            targets,
            run,
            control=controls,
            references=reference or (),
            corpus=corpus,
            settings=settings,
            overwrite=overwrite,
            reveal=reveal,
            command=command_line(),
            records_name=records[0].name,
            progress=progress,
            announce=lambda estimate: say(
                f"{estimate.tokens:,} tokens in all passes: about {_duration(estimate.seconds)},"
                f" {estimate.memory_mb:,.0f} MiB;"
                f" results go to {run}",
                quiet=silent,
            ),
        )
    from rote.cli.main import finish

    finish(found, run, gates, json_=json_, quiet=quiet)


audit_app.command(
    "recited", epilog="Example: rote audit recited ./model corpus.jsonl --control unseen.jsonl -o runs/recited"
)(recited)

audit_app.command(
    "unlearning",
    epilog="Example: rote audit unlearning ./before ./after --forget f.jsonl --retain r.jsonl --holdout h.jsonl"
    " --oracle ./retrained -o runs/forgotten",
)(unlearning)

audit_app.command(
    "counterfactual",
    epilog="Example: rote audit counterfactual all.jsonl --model ./run-1 --seen ids-1.txt --model ./run-2"
    " --seen ids-2.txt -o runs/counterfactual",
)(counterfactual)


def command_line() -> str:
    """The command as it was typed, for the report's "how to reproduce"."""
    return shlex.join(["rote", *console.arguments])


def read_sides(
    records: list[Path],
    control: list[Path] | None,
    columns: dict[str, str] | None,
    *,
    limit: int | None,
    **options: Any,
) -> tuple[RecordTable, RecordTable | None]:
    """Targets and unseen controls. Of controls everybody knows how often they were trained on: never. Their files need
    no such column."""
    from rote.records import read_records

    named = {name: field for name, field in (columns or {}).items() if name not in ("duplicates", "member")}
    targets = read_records(records, limit=limit, columns=columns, **options)
    return targets, read_records(control, columns=named or None, **options) if control else None


def columns_of(text: str | None, identifier: str | None, others: list[str] | None) -> dict[str, str] | None:
    """--text-column, --id-column and --column FIELD=NAME as `read_records` takes them."""
    columns = {} if text is None else {"text": text}
    if identifier is not None:
        columns["id"] = identifier
    for entry in others or ():
        field, equals, name = entry.partition("=")
        if not equals or not field or not name:
            raise InputError(f"--column {entry!r}: write FIELD=NAME, e.g. duplicates=copies")
        columns[field] = name
    return columns or None


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
