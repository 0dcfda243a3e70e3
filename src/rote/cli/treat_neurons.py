"""`rote treat neurons`: suppress recitation while decoding, by changing the activation that tells recited tokens apart.

Thin: parses, calls `rote.internals.neurons.suppression`, hands the hook to the treatment. Heavy libraries are imported
inside.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rote.cli import treat_options as shared
from rote.cli.treat_options import read_sets, run_treatment


def neurons(
    model: shared.Model,
    forget: shared.Forget,
    retain: Annotated[
        list[Path], typer.Option(help="Ordinary text of the same kind: the other class, and what must stay as it is.")
    ],
    output: shared.Output,
    reference: Annotated[
        str | None,
        typer.Option(
            help="A model that never saw the forget records: makes labels causal, and is the probe's control."
        ),
    ] = None,
    site: Annotated[
        str | None,
        typer.Option(
            help="resid_post, mlp_hidden, mlp_out, attn_out, attn_heads. [default: mlp_out, or attn_out for weighted"
            " where it does more]"
        ),
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(
            help="Block to change, from 0. [default: one, or the first several, where most recitation is lost for the"
            " price]"
        ),
    ] = None,
    mode: Annotated[
        str,
        typer.Option(help="diff-means, weighted (each token by its own score), projection, or set-to-mean (of units)."),
    ] = "diff-means",
    scale: Annotated[
        float | None,
        typer.Option(
            help="Dose. [default: the largest that costs less than --cost; weighted: below it, the most"
            " effective at which a random direction does little; 1 for other modes]"
        ),
    ] = None,
    cost: Annotated[float, typer.Option(help="Price in perplexity on half of retain, as a share.")] = 0.03,
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
    """Suppress recitation at inference (Slonski 2024; forms inferred). The weights stay as they are.

    The means of recited and other tokens' activations give a direction; subtracting it at every position is the
    control. `control/` holds it: `direction, settings = load_direction("OUT/control")`, then
    `with intervene(model, direction, **settings): ...` (both in `rote.internals.neurons`).
    """
    sets = read_sets(
        forget=forget, retain=retain, control=control, paraphrases=paraphrases, utility=utility, text_column=text_column
    )
    assert sets.retain is not None  # a required option
    kept = sets.retain
    chosen = {"site": site, "layer": layer, "mode": mode, "scale": scale, "cost": cost}

    def apply(adapter: Any, progress: Any) -> Any:
        from rote.audit import Treated
        from rote.internals.neurons.suppression import fit_suppression
        from rote.models import CausalLM

        other = CausalLM.load(reference, device=device, dtype=dtype, bos=bos) if reference else None
        found = fit_suppression(
            adapter, sets.forget, kept, reference=other, seed=seed, progress=progress, **chosen
        )  # fmt: skip
        return Treated(found.details, hook=found.on, save=found.save, notes=found.notes)

    run_treatment(
        "neurons", model, apply, sets, output,
        method_settings={
            **chosen, "seed": seed, "reference": _fingerprint(reference),
            "retain": kept.fingerprint,
        },
        scheme=scheme, prefix=prefix, suffix=suffix, long=long, bos=bos, seed=seed, device=device, dtype=dtype,
        overwrite=overwrite, tasks=tasks, json_=json_, quiet=quiet,
    )  # fmt: skip


def _fingerprint(reference: str | None) -> str | None:
    """The reference checkpoint's own fingerprint, so that another one under the same name is noticed."""
    if reference is None:
        return None
    path = Path(reference)
    if not path.exists():
        return reference
    from rote.models.safe_loading import inspect_checkpoint

    return inspect_checkpoint(path).fingerprint
