"""`rote plan ...`: how much memory a network needs, and networks that provably have it."""

from __future__ import annotations

import typer

from rote.cli.plan_attention import attention
from rote.cli.plan_cot import cot
from rote.cli.plan_generalize import generalize
from rote.cli.plan_robust import robust

plan_app = typer.Typer(
    help="Capacity: parameters needed to memorize N records, robustly, with attention, or with chain of thought.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
plan_app.command("robust")(robust)
plan_app.command("generalize")(generalize)
plan_app.command("attention")(attention)
plan_app.command("cot")(cot)
