"""`rote study list` and `rote study run`: reproduce a paper's headline claims, honestly."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rote.cli.console import err, out, print_json, say

study_app = typer.Typer(
    help="Reproduce published systems at CPU scale.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@study_app.command("list")
def list_studies(json_: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """List the studies: slug, paper, claims."""
    from rote.studies import load_study, study_slugs

    studies = [load_study(slug) for slug in study_slugs()]
    if json_:
        print_json(
            [
                {
                    "slug": study.slug,
                    "title": study.title,
                    "arxiv": study.arxiv,
                    "claims": [vars(claim) for claim in study.claims],
                }
                for study in studies
            ]
        )
        return
    for study in studies:
        out.print(
            f"{study.slug:24} arXiv {study.arxiv:12} {len(study.claims):2} claims  {study.title}",
            markup=False,
            soft_wrap=True,
        )


@study_app.command("run")
def run(
    slug: Annotated[str, typer.Argument(help="The system's name; `rote study list` shows them.")],
    seed: Annotated[int, typer.Option(help="Another seed is another draw of everything random.")] = 0,
    output: Annotated[Path | None, typer.Option("-o", "--out", help="Directory for study.json and figures.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print study.json.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no summary.")] = False,
) -> None:
    """Run one study. Exit status 0 when every claim holds, 1 when one does not."""
    from rote.studies import run_study

    found = run_study(slug, seed=seed, out=output, progress=lambda text: say(f"  {text}", quiet=quiet or json_))
    if json_:
        print_json(found)
    elif quiet:
        for claim in found["claims"]:
            if not claim["holds"]:
                err.print(f"claim failed: {claim['statement']}", markup=False, soft_wrap=True)
    else:
        from rich.table import Table

        table = Table(title=f"{found['title']} (arXiv {found['arxiv']}), seed {seed}", show_lines=True)
        for column in ("claim", "paper", "threshold", "observed", "holds"):
            table.add_column(column, overflow="fold")
        for claim in found["claims"]:
            table.add_row(
                claim["statement"],
                claim["paper"],
                claim["threshold"],
                str(claim["observed"]),
                "yes" if claim["holds"] else "NO",
            )
        out.print(table)
        held = sum(claim["holds"] for claim in found["claims"])
        out.print(
            f"{held} of {len(found['claims'])} claims held; {found['seconds']} s, {found['peak_rss_mb']} MiB",
            markup=False,
        )
    raise typer.Exit(0 if found["holds"] else 1)
