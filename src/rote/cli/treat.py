"""`rote treat METHOD MODEL ...`: change what a model recites, and prove the change with the same audit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from rote.cli import treat_options as shared
from rote.cli.treat_neurons import neurons
from rote.cli.treat_options import Sets, read_sets, run_treatment
from rote.cli.treat_steer import steer
from rote.errors import InputError

treat_app = typer.Typer(
    help="Take memorized records out of a model, and prove it.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@treat_app.command(
    "curvature",
    epilog="Example: rote treat curvature ./model --forget people.jsonl --retain wiki.jsonl --rho 0.7 -o runs/edited",
)
def curvature(
    model: shared.Model,
    forget: shared.Forget,
    retain: Annotated[
        list[Path],
        typer.Option(help="Ordinary text like what the model must stay good at: its curvature is measured on it."),
    ],
    output: shared.Output,
    rho: Annotated[
        float, typer.Option(help="Share of the curvature mass to keep, in (0, 1]; sweep it, it is not portable.")
    ] = 0.7,
    layers: Annotated[
        list[str] | None,
        typer.Option(help="Pattern of layer names, e.g. 'layers.2[345].mlp.*'. [default: late MLP projections]"),
    ] = None,
    labels: Annotated[str, typer.Option(help="sampled (the true Fisher) or gold.")] = "sampled",
    sequence_tokens: Annotated[
        int | None, typer.Option(help="Tokens of a window of text. [default: 512, or the context]")
    ] = None,
    control: shared.Control = None,
    paraphrases: shared.Paraphrases = None,
    utility: shared.Utility = None,
    scheme: shared.Scheme = None,
    prefix: shared.Prefix = None,
    suffix: shared.Suffix = None,
    long: shared.Long = "error",
    bos: shared.Bos = "auto",
    text_column: shared.TextColumn = None,
    tasks: shared.Tasks = None,
    seed: shared.Seed = 0,
    device: shared.Device = "auto",
    dtype: shared.Dtype = "auto",
    overwrite: shared.Overwrite = False,
    json_: shared.Json = False,
    quiet: shared.Quiet = False,
) -> None:
    """Edit the weights: keep the high-curvature directions of ordinary text, drop the rest (Merullo et al. 2025). No
    gradient step, and the forget set is used for judging only."""
    sets = read_sets(
        forget=forget, retain=retain, control=control, paraphrases=paraphrases, utility=utility, text_column=text_column
    )

    clean = sets.retain
    assert clean is not None  # a required option

    def window(adapter: Any) -> int:
        return sequence_tokens or min(512, adapter.context_length or 512)

    def check(adapter: Any) -> object:
        from rote.controls.editing.curvature import check_curvature

        return check_curvature(adapter, layers=layers or (), rho=rho, labels=labels, sequence_tokens=window(adapter))

    def apply(adapter: Any, progress: Any) -> Any:
        from rote.audit import Treated
        from rote.controls.editing.curvature import treat_by_curvature

        report = treat_by_curvature(
            adapter,
            clean,
            layers=tuple(layers or ()),
            rho=rho,
            labels=labels,
            seed=seed,
            sequence_tokens=window(adapter),
            progress=progress,
        )
        report.keep()
        return Treated(report.as_dict(), notes=report.warnings)

    run_treatment(
        "curvature", model, apply, sets, output,
        method_settings={"rho": rho, "layers": layers, "labels": labels, "sequence_tokens": sequence_tokens},
        check=check,
        scheme=scheme, prefix=prefix, suffix=suffix, long=long, bos=bos, seed=seed, device=device, dtype=dtype,
        overwrite=overwrite, tasks=tasks, json_=json_, quiet=quiet,
    )  # fmt: skip


@treat_app.command(
    "unlearn",
    epilog="Example: rote treat unlearn ./model --forget f.jsonl --retain r.jsonl --loss npo --steps 150 "
    "--learning-rate 1e-5 -o runs/npo",
)
def unlearn(
    model: shared.Model,
    forget: shared.Forget,
    output: shared.Output,
    retain: shared.Retain = None,
    loss: Annotated[
        str,
        typer.Option(
            help="grad_ascent, grad_diff, npo, simnpo, idk_dpo, alt_po, rmu, undial, wga, satimp, ce_u, pdu,"
            " task_vector; fine_tune and retrain are baselines."
        ),
    ] = "npo",
    steps: Annotated[int | None, typer.Option(help="Optimiser steps. [default: --epochs passes over forget]")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the forget set. [default: the method's]")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak rate. [default: the method's]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Forget items a step. [default: the method's]")] = None,
    lora: Annotated[
        int | None, typer.Option(help="Train LoRA adapters of this rank and merge them (needs peft).")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting of the method: NAME=VALUE, e.g. beta=0.1.")
    ] = None,
    control: shared.Control = None,
    paraphrases: shared.Paraphrases = None,
    utility: shared.Utility = None,
    scheme: shared.Scheme = None,
    prefix: shared.Prefix = None,
    suffix: shared.Suffix = None,
    long: shared.Long = "error",
    bos: shared.Bos = "auto",
    text_column: shared.TextColumn = None,
    tasks: shared.Tasks = None,
    seed: shared.Seed = 0,
    device: shared.Device = "auto",
    dtype: shared.Dtype = "auto",
    overwrite: shared.Overwrite = False,
    json_: shared.Json = False,
    quiet: shared.Quiet = False,
) -> None:
    """Unlearn by training: lower the forget records' likelihood while the retain text stays."""
    from rote.controls.editing.unlearning.methods import method_settings
    from rote.controls.editing.unlearning.settings import recipe_for

    settings = method_settings(loss, named_values(set_))
    given = {
        "steps": steps, "epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size,
        "long": long if long != "error" else None,
    }  # fmt: skip
    recipe = recipe_for(settings, {key: value for key, value in given.items() if value is not None})
    sets = read_sets(
        forget=forget, retain=retain, control=control, paraphrases=paraphrases, utility=utility, text_column=text_column
    )

    kept = output / "last-good"

    def check(adapter: Any) -> None:
        from rote.controls.editing.unlearning.methods import check_unlearning

        check_unlearning(
            adapter, method=loss, forget=sets.forget, retain=sets.retain, settings=settings, trainer=recipe,
            lora={"rank": lora} if lora else None,
        )  # fmt: skip

    run_treatment(
        "unlearn", model,
        by_unlearning(sets, loss, settings=settings, recipe=recipe, lora=lora, seed=seed, last_good=kept),
        sets, output,
        method_settings=unlearning_identity(sets, loss, settings=settings, recipe=recipe, lora=lora),
        check=check,
        scheme=scheme, prefix=prefix, suffix=suffix, long=long, bos=bos, seed=seed, device=device, dtype=dtype,
        overwrite=overwrite, tasks=tasks, json_=json_, quiet=quiet,
    )  # fmt: skip


def by_unlearning(
    sets: Sets, loss: str, *, settings: Any, recipe: Any, lora: int | None, seed: int, last_good: Path
) -> Callable[[Any, Any], Any]:
    """What `rote.audit.treat` calls to unlearn the forget set; weights before a divergence go to `last_good`."""

    def apply(adapter: Any, progress: Any) -> Any:
        from rote.audit import Treated
        from rote.controls.editing.unlearning.methods import unlearn as run_unlearning

        report = run_unlearning(
            adapter,
            method=loss,
            forget=sets.forget,
            retain=sets.retain,
            settings=settings,
            trainer=recipe,
            lora={"rank": lora} if lora else None,
            seed=seed,
            progress=lambda step, total, value: progress(f"unlearning ({loss})", step, total),
            last_good=last_good,
        )
        details = report.as_dict()
        details.pop("seconds")  # what a rerun gives must be the same, byte for byte
        return Treated(details, notes=report.notes)

    return apply


def unlearning_identity(sets: Sets, loss: str, *, settings: Any, recipe: Any, lora: int | None) -> dict[str, Any]:
    """What makes two unlearning runs the same."""
    from rote.controls.editing.unlearning.methods import canonical_name

    return {
        "loss": canonical_name(loss), "settings": settings.as_dict(), "trainer": vars(recipe), "lora": lora,
        "retain": sets.retain.fingerprint if sets.retain is not None else None,
    }  # fmt: skip


def named_values(pairs: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE pairs; a value that reads as a JSON number, boolean or null is one."""
    import json

    values: dict[str, Any] = {}
    for pair in pairs or ():
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise InputError(f"--set {pair!r}: write NAME=VALUE, e.g. beta=0.1")
        try:
            values[name.strip()] = json.loads(text)
        except ValueError:
            values[name.strip()] = text
    return values


treat_app.command("steer")(steer)
treat_app.command("neurons")(neurons)
