"""`rote`: the commands and how they fail.

Exit status: 0 done; 1 a gate or a claim failed; 2 wrong use or bad input; 3 a fault at run time; 130 interrupted.
Errors are one line; `--debug` anywhere shows the traceback instead.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from rote.cli import console
from rote.cli.console import err, out, print_json
from rote.errors import InputError, RoteError

app = typer.Typer(
    name="rote",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find what a machine-learning model has memorized, prove it, change it, and prove the change.",
)


def _version(show: bool) -> None:
    if show:
        from rote import __version__

        out.print(f"rote {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
):
    """Start here: `rote demo` tells the whole story in a few minutes; `rote audit lm MODEL RECORDS` does it for your
    model."""


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run directory that `rote audit` wrote.")],
    reveal: Annotated[
        bool | None, typer.Option("--reveal/--mask", help="Show record contents (default: as the run was made).")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    fail_if: Annotated[
        list[str] | None, typer.Option(help="Exit 1 when this holds, e.g. 'extraction.rate.high>0.01'.")
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no summary.")] = False,
) -> None:
    """Make findings and report again from a run's stored scores. No model is needed."""
    from rote.audit import remake
    from rote.report import parse_gate

    gates = [parse_gate(text) for text in fail_if or ()]
    finish(remake(run, reveal=reveal), run, gates, json_=json_, quiet=quiet)


def finish(found: Any, run: Path, gates: list, *, json_: bool, quiet: bool) -> None:
    """Print findings for people or as JSON, then judge the gates: exit status 1 when one fails."""
    from rote.report import dumps, evaluate, print_findings

    failures = evaluate(found, gates)  # first: a gate on a measure that does not exist is an error, not a result
    if json_:
        sys.stdout.write(dumps(found))
    elif not quiet:
        print_findings(found, console=out, report=run / "report.html")
    for failure in failures:
        err.print(f"gate failed: {failure.text}", markup=False)
    if failures:
        raise typer.Exit(1)


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Run directories, and directories that `rote treat` wrote; the first is the one compared with (of a"
            " treatment: its untreated model)."
        ),
    ],
    output: Annotated[Path | None, typer.Option("-o", "--out", help="Where to write compare.html.")] = None,
    force: Annotated[bool, typer.Option(help="Compare although records, settings or models differ.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no summary.")] = False,
) -> None:
    """Compare audits of the same records: what fell, what rose, with intervals on the differences. Several treatments
    become one frontier: what each model still recites against its perplexity."""
    from rote.report import is_treatment

    treatments = [run for run in runs if is_treatment(run)]
    if len(runs) < 2 and not treatments:
        raise InputError("compare needs at least two run directories, or one that `rote treat` wrote")
    from rote.cli.listing import comparison_table, frontier_table
    from rote.report import compare_runs, frontier_of, write_comparison

    found = compare_runs(runs, force=force)
    # A treatment has a page of its own under this name, of its own two audits: the joint one goes beside it.
    beside = runs[-1].resolve().parent if treatments else runs[-1]
    page = output if output is not None and output.suffix == ".html" else (output or beside) / "compare.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    write_comparison(found, page)
    points = frontier_of(found)
    if json_:
        print_json({**found.to_dict(), "frontier": points.to_dict() if points else None})
        return
    if quiet:
        return
    for pair in found.pairs:
        out.print(comparison_table(pair))
    if points:
        out.print(frontier_table(points))
    out.print(f"comparison: {page}", markup=False, soft_wrap=True)


@app.command()
def view(
    directory: Annotated[Path, typer.Argument(help="A folder of runs.")] = Path("runs"),
    port: Annotated[int, typer.Option(help="Port on this machine; 0 picks a free one.")] = 8765,
) -> None:
    """Browse the runs of a folder in a local, read-only viewer (bound to 127.0.0.1)."""
    from rote.report import serve

    serve(directory, port)


@app.command("ls")
def list_runs(
    directory: Annotated[Path, typer.Argument(help="A folder of runs.")] = Path("runs"),
    json_: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List the runs below a folder: kind, model, records, state."""
    from rote.cli.listing import find_runs

    rows = find_runs(directory)
    if json_:
        print_json(rows)
        return
    if not rows:
        out.print(f"no runs below {directory}; `rote audit lm MODEL RECORDS` makes one", markup=False)
    for row in rows:
        out.print(
            f"{row['path']}  {row['kind']}  {row['model']}  {row['records']}  {row['status']}",
            markup=False,
            soft_wrap=True,
        )


@app.command()
def info(
    name: Annotated[str | None, typer.Argument(help="A measure or attack; without it, all are listed.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """What a measure means: definition, range, direction, source, and the decision it informs."""
    from rote.measures.catalog import ATTACKS, MEASURES

    known = {**MEASURES, **ATTACKS}
    if name is None:
        if json_:
            print_json({key: vars(item) for key, item in known.items()})
            return
        for key, item in known.items():
            out.print(f"{key:28} {item.title}", markup=False)
        return
    if name not in known:
        from difflib import get_close_matches

        near = get_close_matches(name, known, n=1)
        raise InputError(f"no measure {name!r}; {f'did you mean {near[0]}?' if near else '`rote info` lists them'}")
    if json_:
        print_json(vars(known[name]))
        return
    for key, value in vars(known[name]).items():
        out.print(f"{key + ':':12} {value}", markup=False, soft_wrap=True)


@app.command()
def doctor(json_: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """Check this installation: versions, devices, optional libraries, memory."""
    from rote.cli.listing import health

    found = health()
    if json_:
        print_json(found)
        return
    for key, value in found.items():
        out.print(f"{key + ':':16} {value}", markup=False, soft_wrap=True)


def _mount() -> None:
    """Sub-commands, each in its own file."""
    from rote.cli.audit import audit_app
    from rote.cli.classifier import classifier_app
    from rote.cli.demo import demo
    from rote.cli.memory import memory_app
    from rote.cli.plan import plan_app
    from rote.cli.probe import probe_app
    from rote.cli.study import study_app
    from rote.cli.testbed import testbed_app
    from rote.cli.treat import treat_app

    app.command()(demo)
    app.add_typer(audit_app, name="audit")
    app.add_typer(treat_app, name="treat")
    app.add_typer(probe_app, name="probe")
    app.add_typer(classifier_app, name="classifier")
    app.add_typer(plan_app, name="plan")
    app.add_typer(memory_app, name="memory")
    app.add_typer(testbed_app, name="testbed")
    app.add_typer(study_app, name="study")


_mount()


def main(arguments: list[str] | None = None) -> int:
    """Entry point: runs a command and turns errors into one line and an exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    console.arguments = arguments
    interrupted = "interrupted; the same command continues where this one stopped"
    try:
        # Typer carries click inside some of its versions, so the exceptions are told apart by what they offer.
        status = int(typer.main.get_command(app)(args=arguments, prog_name="rote", standalone_mode=False) or 0)
        if status != 130:  # how Typer itself answers Ctrl-C
            return status
        line = interrupted
    except KeyboardInterrupt:
        status, line = 130, interrupted
    except RoteError as error:
        status, line = error.exit_status, str(error)
        if debug:
            traceback.print_exc()
    except (click.exceptions.Exit, typer.Exit) as leave:
        return int(leave.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        usage = getattr(error, "format_message", None)  # a usage error of click's
        if usage is not None:
            status, line = 2, f"{usage()} (rote -h shows the usage)"
        elif type(error).__name__ == "Abort":
            status, line = 130, interrupted
        else:
            status, line = _fault(error)
        if debug:
            traceback.print_exc()
    err.print(f"rote: {' '.join(line.split())}", markup=False, soft_wrap=True)
    return status


def _fault(error: Exception) -> tuple[int, str]:
    import errno

    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return 2, "the disk is full; free some space and run the same command again, what is finished is kept"
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return 2, f"{error.filename or 'the output'}: cannot be written ({error.strerror})"
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return 3, "out of memory; try a smaller --batch-tokens, --dtype bfloat16, or a larger machine"
    return (
        3,
        f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'} (--debug shows where)",
    )


if __name__ == "__main__":
    sys.exit(main())
