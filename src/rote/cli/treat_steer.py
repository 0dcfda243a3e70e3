"""`rote treat steer`: a decode-time control that pushes a model off recitation as strongly as it recites.

Thin: parses, calls `rote.controls.decoding`, hands the hook to the treatment. Heavy libraries are imported inside.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rote.cli import treat_options as shared
from rote.cli.treat_options import read_sets, run_treatment
from rote.errors import InputError


def steer(
    model: shared.Model,
    forget: shared.Forget,
    retain: Annotated[
        list[Path],
        typer.Option(help="Ordinary text of the same kind: the other mode, towards which the model is steered."),
    ],
    output: shared.Output,
    alpha: Annotated[float, typer.Option(help="Strength; 0 does nothing. Sweep it, it is not portable.")] = 1.4,
    layer: Annotated[
        int | None, typer.Option(help="Block to steer at, from 0. [default: chosen by activation patching]")
    ] = None,
    static: Annotated[
        bool, typer.Option("--static", help="Always push in full (m_t = 1), whatever the probe says.")
    ] = False,
    threshold: Annotated[
        float | None, typer.Option(help="Push only where the probability of reciting exceeds this, in [0, 1).")
    ] = None,
    scale: Annotated[
        str, typer.Option(help="What alpha = 1 adds: residual (the mean norm at the block), raw, unit.")
    ] = "residual",
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
    """Steer while decoding (dynamic mode steering, Zhang 2025; reconstructed). The weights stay as they are.

    Probe and vector are fitted on half of the forget records against retain. The audit afterwards reads whole texts:
    every position from the prefix's last token on is steered, with m_t from that position's own unsteered state; text
    that is no record is steered from its first token. What `generate` shows is in the details: exact greedy recitation
    before and after, on fitted and held-out records. `control/` can be loaded with
    `rote.controls.decoding.load_steering`.
    """
    sets = read_sets(
        forget=forget, retain=retain, control=control, paraphrases=paraphrases, utility=utility, text_column=text_column
    )
    ordinary = sets.retain
    if ordinary is None:
        raise InputError("steering needs --retain: ordinary text is the mode it steers towards")
    chosen = {"alpha": alpha, "dynamic": not static, "threshold": threshold}

    def check(adapter: Any) -> None:
        from rote.controls.decoding.steering import SteeringSettings
        from rote.controls.decoding.treat import check_steerable
        from rote.scores.sequences import Split

        SteeringSettings(**chosen)
        check_steerable(
            adapter, sets.forget, ordinary, split=Split(prefix, suffix, long), layer=layer, scale=scale, seed=seed
        )

    def apply(adapter: Any, progress: Any) -> Any:
        from rote.audit import Treated
        from rote.controls.decoding.files import USE, save_steering
        from rote.controls.decoding.steering import SteeringSettings
        from rote.controls.decoding.teacher_forced import starts_from_records
        from rote.controls.decoding.treat import fit_steering, recitation_before_after
        from rote.scores.sequences import Split

        split = Split(prefix, suffix, long)
        fitted = fit_steering(
            adapter, sets.forget, ordinary, split=split, settings=SteeringSettings(**chosen), layer=layer,
            scale=scale, seed=seed, progress=progress,
        )  # fmt: skip
        seen = recitation_before_after(adapter, sets.forget, fitted, split=split, progress=progress)
        asked = [table for table in (sets.forget, sets.control, sets.paraphrases) if table is not None]
        starts = starts_from_records(adapter, asked, split)
        details = {**fitted.details, "greedy_recitation": seen}
        return Treated(
            details,
            hook=lambda subject: fitted.on(subject, starts=starts),
            save=lambda folder: save_steering(
                folder, adapter, fitted.probe, fitted.vector, fitted.settings, details=details
            ),
            notes=(*fitted.notes, USE.replace("FOLDER", f"{str(output / 'control')!r}")),
        )

    run_treatment(
        "steer", model, apply, sets, output,
        method_settings={
            **chosen, "layer": layer, "scale": scale, "seed": seed,
            "retain": ordinary.fingerprint,
        },
        check=check, scheme=scheme, prefix=prefix, suffix=suffix, long=long, bos=bos, seed=seed, device=device,
        dtype=dtype,
        overwrite=overwrite, tasks=tasks, json_=json_, quiet=quiet,
    )  # fmt: skip
