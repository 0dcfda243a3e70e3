"""`rote memory ...`: models in which memorizing is the point."""

from __future__ import annotations

import typer

from rote.cli.memory_cases import cases_app
from rote.cli.memory_tnt import tnt_app
from rote.cli.memory_vista import vista_app

memory_app = typer.Typer(
    help="Models that memorize on purpose: at test time (tnt), in a cache (vista), as cases (cases).",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
memory_app.add_typer(tnt_app, name="tnt")
memory_app.add_typer(vista_app, name="vista")
memory_app.add_typer(cases_app, name="cases")
