"""`rote classifier train | proxies | rum | eval`: which training examples are memorized, and unlearning by that.

Thin: parses, calls `rote.audit.classifier`, prints. Heavy libraries are imported inside the commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rote.cli.console import out as console
from rote.cli.console import print_json, progress_bars, say
from rote.errors import InputError

classifier_app = typer.Typer(
    help="Classifiers: memorization scores and their cheap proxies, refined unlearning, distance to a retraining.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[Path, typer.Argument(help="A folder of `rote classifier train`, or a .safetensors file (ReLU MLP).")]
Train = Annotated[Path, typer.Argument(help="The training data: .npz (X, y), .csv or .parquet with a label column.")]
Forget = Annotated[Path, typer.Option(help="Ids to forget, one a line (row numbers from 0 where the data has no ids).")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is already there.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no summary.")]


@classifier_app.command("train", epilog="Example: rote classifier train digits.npz --epochs 80 -o runs/digits")
def train(
    data: Train,
    output: Annotated[Path, typer.Option("-o", "--out", help="Folder of the classifier.")],
    architecture: Annotated[str, typer.Option(help="mlp, or cnn for images [channels, height, width].")] = "mlp",
    hidden: Annotated[
        list[int] | None, typer.Option(help="Width of a layer (channels of a block). [default: 128]")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 80,
    learning_rate: Annotated[float, typer.Option(help="Peak of the cosine.")] = 0.1,
    batch_size: Annotated[int, typer.Option(help="Examples a step.")] = 50,
    weight_decay: Annotated[float, typer.Option(help="L2 decay of the weights.")] = 5e-4,
    without: Annotated[Path | None, typer.Option(help="Ids to leave out: the result is an oracle for them.")] = None,
    test: Annotated[Path | None, typer.Option(help="Unseen data, for its accuracy.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a small classifier by SGD and record its learning events; with --without, retrain as an oracle."""
    from dataclasses import asdict

    from rote.audit.classifier import tensors_of, train_classifier
    from rote.audit.classifier_scores import EVENTS, write_scores
    from rote.models.classifier_files import save_classifier
    from rote.models.classifiers import ClassifierSpec, SgdRecipe
    from rote.records.labelled_examples import classes_of, read_examples, read_ids
    from rote.runtime import pick_device, threads, threads_for_width

    _free(output, overwrite)
    recipe = SgdRecipe(learning_rate, epochs, batch_size, weight_decay=weight_decay)
    examples = read_examples(data)
    classes = classes_of(examples)
    left_out = read_ids(without) if without else []
    rows = examples.rows_of(left_out, where=str(without))
    spec = ClassifierSpec(architecture, examples.x.shape[1:], len(classes), tuple(hidden or (128,)))
    place = str(pick_device(device))
    tensors = tensors_of(examples, classes, device=place)
    unseen = tensors_of(read_examples(test), classes, device=place) if test else None
    with threads(threads_for_width(max(spec.hidden))), progress_bars(quiet=quiet or json_, unit="epochs") as progress:
        found = train_classifier(
            lambda chosen: spec.build(chosen).to(place), tensors, recipe, without=rows, test=unseen, seed=seed,
            progress=progress,
        )  # fmt: skip
    made = {"data": examples.fingerprint, "recipe": asdict(recipe), "seed": seed, "without": sorted(left_out)}
    save_classifier(output, found.model, spec, classes, made)
    (output / EVENTS).unlink(missing_ok=True)
    if found.events is not None:
        write_scores(output / EVENTS, examples, found.events)
    result = {"classifier": str(output), "examples": len(examples) - len(left_out), "left_out": len(left_out),
              "classes": len(classes), "accuracy": found.accuracy, "learning_events": found.events is not None,
              "seconds": round(found.seconds, 2)}  # fmt: skip
    if json_:
        print_json(result)
    elif not quiet:
        accuracy = ", ".join(f"{name} {value:.3f}" for name, value in found.accuracy.items())
        console.print(f"{output}: {result['examples']} examples, accuracy {accuracy}", markup=False, soft_wrap=True)


@classifier_app.command(
    "proxies", epilog="Example: rote classifier proxies runs/digits digits.npz --holdout held.npz -o proxies.parquet"
)
def proxies(
    model: Model,
    data: Train,
    output: Annotated[Path, typer.Option("-o", "--out", help="Scores by example: a .parquet file, .json beside it.")],
    kinds: Annotated[
        str | None,
        typer.Option(
            help="confidence, max_confidence, negative_entropy, binary_accuracy (recorded in training),"
            " holdout_retraining, curvature, memorization; comma-separated. [default: all but memorization that can"
            " be had]"
        ),
    ] = None,
    holdout: Annotated[
        Path | None, typer.Option(help="Labelled unseen data for holdout_retraining; never what you test with.")
    ] = None,
    models: Annotated[int, typer.Option(help="memorization: networks trained on random subsets, at once.")] = 80,
    subset: Annotated[float, typer.Option(help="memorization: share of the data in each subset.")] = 0.7,
    picture: Annotated[Path | None, typer.Option(help="With memorization: a page of every proxy against it.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score every training example's memorization by proxies, and by Feldman's estimator if asked."""
    import json

    from rote.atomic import write_atomic
    from rote.audit.classifier import score_proxies, tensors_of
    from rote.audit.classifier_scores import EVENTS, read_scores, write_scores
    from rote.models.classifiers import SgdRecipe
    from rote.records.labelled_examples import read_examples
    from rote.runtime import threads, threads_for_width

    if output.suffix != ".parquet":
        raise InputError(f"{output}: scores are written to a .parquet file")
    saved, place = _load(model, device)
    examples = read_examples(data)
    _same_data(saved, examples)
    tensors = tensors_of(examples, saved.classes, device=place)
    record = model / EVENTS
    events = read_scores(record, examples) if record.is_file() else None
    unseen = tensors_of(read_examples(holdout), saved.classes, device=place) if holdout else None
    wanted = [kind.strip() for kind in kinds.split(",")] if kinds else [
        *(events or ()), *(["holdout_retraining"] if unseen else []), "curvature"
    ]  # fmt: skip
    if picture is not None and (len(wanted) < 2 or "memorization" not in wanted):
        raise InputError("--picture shows proxies against the score: add memorization and a proxy to --kinds")
    recipe = SgdRecipe(**saved.made["recipe"]) if "recipe" in saved.made else None
    with (
        threads(threads_for_width(max(saved.spec.hidden))),
        progress_bars(quiet=quiet or json_, unit="steps") as progress,
    ):
        found = score_proxies(
            saved.model, tensors, wanted, holdout=unseen, events=events, recipe=recipe, models=models, share=subset,
            make_model=lambda chosen: saved.spec.build(chosen).to(place), seed=seed, progress=progress,
        )  # fmt: skip
    write_scores(output, examples, found.values)
    result = {"classifier": str(model), "fingerprint": saved.fingerprint, "data": examples.fingerprint,
              "seed": seed, **found.as_dict()}  # fmt: skip
    write_atomic(output.with_suffix(".json"), json.dumps(result, indent=1, allow_nan=False) + "\n")
    if picture is not None and found.memorization is not None:
        from rote.report.proxy_plot import proxy_figure

        others = {name: values for name, values in found.values.items() if name != "memorization"}
        figure = proxy_figure(found.memorization.scores, others, found.agreement)
        write_atomic(picture, figure.to_html(include_plotlyjs=True, full_html=True))
    if json_:
        print_json(result)
    elif not quiet:
        _print_proxies(result, output)


@classifier_app.command(
    "rum",
    epilog="Example: rote classifier rum runs/digits digits.npz --forget ids.txt --score proxies.parquet:confidence"
    " --plan nothing,neggrad+,neggrad+ --set high.alpha=0.9 -o runs/unlearned",
)
def rum(
    model: Model,
    data: Train,
    forget: Forget,
    score: Annotated[str, typer.Option(help="FILE.parquet:NAME, scores of `rote classifier proxies`.")],
    output: Annotated[Path, typer.Option("-o", "--out", help="Folder of the unlearned classifier.")],
    plan: Annotated[
        str,
        typer.Option(
            help="A method for each stratum, least memorized first: nothing, ft, l1, neggrad, neggrad+, scrub,"
            " random-label, salun, influence, retrain."
        ),
    ] = "nothing,ft,salun",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="STRATUM.SETTING=VALUE, e.g. high.alpha=0.9 or medium.learning_rate=0.01."),
    ] = None,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="Control: deal the strata out at random.")] = False,
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Unlearn a forget set stratum by stratum, from least to most memorized, each with its own method."""
    import json

    from rote.atomic import write_atomic
    from rote.audit.classifier import tensors_of, unlearn_refined
    from rote.audit.classifier_scores import read_scores
    from rote.cli.treat import named_values
    from rote.controls.editing.classifier_unlearning import make_unlearner
    from rote.measures.proxies import direction_of, stratum_names
    from rote.models.classifier_files import save_classifier
    from rote.records.labelled_examples import read_examples, read_ids
    from rote.runtime import threads, threads_for_width

    _free(output, overwrite)
    file, _, name = score.rpartition(":")
    if not file:
        raise InputError(f"--score {score!r}: write FILE.parquet:NAME, e.g. proxies.parquet:confidence")
    direction_of(name)
    methods = [method.strip() for method in plan.split(",")]
    names = stratum_names(len(methods))
    settings: dict[str, dict[str, Any]] = {stratum: {} for stratum in names}
    for key, value in named_values(set_).items():
        stratum, _, setting = key.partition(".")
        if stratum not in settings or not setting:
            raise InputError(f"--set {key}: write STRATUM.SETTING=VALUE with a stratum of {', '.join(names)}")
        settings[stratum][setting] = value
    steps = [make_unlearner(method, settings[stratum]) for stratum, method in zip(names, methods, strict=True)]
    saved, place = _load(model, device)
    examples = read_examples(data)
    _same_data(saved, examples)
    scores = read_scores(file, examples)
    if name not in scores:
        raise InputError(f"{file}: has no score {name!r}; there are: {', '.join(scores)}")
    rows = examples.rows_of(read_ids(forget), where=str(forget))
    tensors = tensors_of(examples, saved.classes, device=place)
    with (
        threads(threads_for_width(max(saved.spec.hidden))),
        progress_bars(quiet=quiet or json_, unit="strata") as progress,
    ):
        found, strata = unlearn_refined(
            saved.model, tensors, rows, scores[name], steps, proxy=name, shuffle=shuffle, seed=seed, progress=progress
        )
    treatment = {
        "method": "rum", "from": saved.fingerprint, "data": examples.fingerprint, "score": name, "shuffle": shuffle,
        "seed": seed, "steps": [step.as_dict() for step in found.steps],
    }  # fmt: skip
    save_classifier(output, found.model, saved.spec, saved.classes, {"treatment": treatment})
    listed = {stratum: [examples.ids[row] for row in part] for stratum, part in strata.items()}
    result = {**treatment, "classifier": str(output), "strata": listed, "notes": list(found.notes)}
    write_atomic(output / "rum.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    if json_:
        print_json(result)
        return
    for note in found.notes:
        say(f"note: {note}", quiet=quiet)
    if not quiet:
        from rich.table import Table

        table = Table("stratum", "method", "forget", "retain", "seconds", title=f"{output} (strata by {name})")
        for step in found.steps:
            table.add_row(step.stratum, step.unlearner["method"], str(step.forget), str(step.retain),
                          f"{step.seconds:.2f}")  # fmt: skip
        console.print(table)


@classifier_app.command(
    "eval",
    epilog="Example: rote classifier eval runs/unlearned digits.npz --forget ids.txt --test test.npz --oracle runs/o1"
    " --oracle runs/o2 --original runs/digits",
)
def evaluate(
    model: Model,
    data: Train,
    forget: Forget,
    test: Annotated[Path, typer.Option(help="Labelled unseen data that no proxy and no choice of settings has used.")],
    oracle: Annotated[list[Path], typer.Option(help="A classifier retrained without the forget set; two or more.")],
    original: Annotated[Path | None, typer.Option(help="The model before unlearning, for comparison.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--out", help="Write the result as JSON here too.")] = None,
    device: Device = "auto",
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure how close an unlearned classifier is to networks retrained without the forget set: ToW, ToW-MIA."""
    import json

    from rote.atomic import write_atomic
    from rote.audit.classifier import judge_unlearning, tensors_of
    from rote.records.labelled_examples import read_examples, read_ids

    saved, place = _load(model, device)
    examples, unseen = read_examples(data), read_examples(test)
    _same_data(saved, examples)
    if examples.fingerprint == unseen.fingerprint:
        raise InputError(f"{test}: is the training data itself; test with data the model never saw")
    ids = read_ids(forget)
    rows = set(examples.rows_of(ids, where=str(forget)).tolist())
    notes, oracles = [], []
    for path in oracle:
        loaded, _ = _load(path, device)
        _same_classes(loaded, saved)
        _same_data(loaded, examples)
        if "without" not in loaded.made:
            notes.append(f"{path} does not say what it was trained without; that it never saw the forget set is yours")
        elif seen := set(ids) - set(loaded.made["without"]):
            raise InputError(
                f"{path}: was trained with {len(seen)} of the examples to forget; train --without {forget}"
            )
        oracles.append(loaded.model)
    if len(oracles) < 2:
        notes.append("one oracle has no spread: give two or more for an interval and a ceiling")
    models = {"unlearned": saved.model}
    if original is not None:
        before, _ = _load(original, device)
        _same_classes(before, saved)
        models["original"] = before.model
    tensors = tensors_of(examples, saved.classes, device=place)
    kept = [row for row in range(len(examples)) if row not in rows]
    if not kept:
        raise InputError(f"{forget}: names every example; nothing is retained to compare on")
    forgotten, retained = tensors.rows(sorted(rows)), tensors.rows(kept)
    lost = set(forgotten.y.tolist()) - set(retained.y.tolist())
    if lost:
        names = ", ".join(str(saved.classes[number]) for number in sorted(lost))
        notes.append(f"the forget set holds every example of class {names}: an oracle does not know it at all")
    found = judge_unlearning(
        models, oracles, forget=forgotten, retain=retained, test=tensors_of(unseen, saved.classes, device=place)
    )
    result = {"forget": len(rows), "retain": len(kept), "test": len(unseen), "oracles": len(oracles),
              "models": {name: quality.as_dict() for name, quality in found.items()}, "notes": notes}  # fmt: skip
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(output, json.dumps(result, indent=1, allow_nan=False) + "\n")
    if json_:
        print_json(result)
        return
    for note in notes:
        say(f"note: {note}", quiet=quiet)
    if not quiet:
        _print_quality(found)


def _free(output: Path, overwrite: bool) -> None:
    from rote.models.classifier_files import CARD

    if output.is_file():
        raise InputError(f"{output}: is a file; a classifier is a folder")
    if (output / CARD).exists() and not overwrite:
        raise InputError(f"{output}: already holds a classifier; choose another folder or add --overwrite")


def _load(path: Path, device: str) -> tuple[Any, str]:
    from rote.models.classifier_files import load_classifier
    from rote.runtime import pick_device

    place = str(pick_device(device))
    return load_classifier(path, device=place), place


def _same_data(saved: Any, examples: Any) -> None:
    """The model's own word on what it was trained on, where it has one, against the data that was given."""
    known = saved.made.get("data") or saved.made.get("treatment", {}).get("data")
    if known is not None and known != examples.fingerprint:
        from rote.errors import RunMismatchError

        raise RunMismatchError(f"{saved.path}: was trained on other data than {examples.name}; give its training data")


def _same_classes(one: Any, other: Any) -> None:
    if one.classes != other.classes or one.spec.input_shape != other.spec.input_shape:
        raise InputError(
            f"{one.path} and {other.path} do not have the same classes and inputs; they cannot be compared"
        )


def _print_proxies(result: dict, output: Path) -> None:
    from rich.table import Table

    table = Table("score", "direction", "mean", "seconds", "Spearman with memorization", title=str(output))
    agreement = {row["proxy"]: row for row in result["agreement"]}
    for name, row in result["scores"].items():
        seconds = "in training" if row["seconds"] is None else f"{row['seconds']:.2f}"
        shown = "-"
        if name in agreement and agreement[name]["spearman"]["value"] is not None:
            rho = agreement[name]["spearman"]
            sign = "" if agreement[name]["sign_as_expected"] else " (unexpected sign)"
            shown = f"{rho['value']:+.2f} [{rho['low']:+.2f}, {rho['high']:+.2f}]{sign}"
        elif name == "memorization" and result["split_half"] is not None:
            shown = f"split-half {result['split_half']['value']:+.2f}"
        table.add_row(name, row["direction"], f"{row['mean']:.4g}", seconds, shown)
    console.print(table)
    for note in result["notes"]:
        console.print(f"note: {note}", markup=False, soft_wrap=True)


def _print_quality(found: dict) -> None:
    from rich.table import Table

    def shown(estimate: Any) -> str:
        if estimate is None:
            return "-"
        interval = "" if estimate.low != estimate.low else f" [{estimate.low:.3f}, {estimate.high:.3f}]"
        return f"{estimate.value:.3f}{interval}"

    title = "accuracy by set; attacks: population MIA, LiRA AUROC (target: the oracles' 0.5); distance to the oracles"
    table = Table("model", "forget", "retain", "test", "MIA", "LiRA", "ToW", "ToW-MIA", title=title)
    first = next(iter(found.values()))
    for name, quality in found.items():
        figures = quality.figures
        accuracies = [f"{value:.3f}" for value in (figures.forget, figures.retain, figures.test)]
        attacks = f"{figures.mia['confidence']:.3f}", "-" if quality.lira is None else f"{quality.lira.value:.3f}"
        table.add_row(name, *accuracies, *attacks, shown(quality.tow), shown(quality.tow_mia))
    for number, figures in enumerate(first.oracles, 1):
        accuracies = [f"{value:.3f}" for value in (figures.forget, figures.retain, figures.test)]
        table.add_row(f"oracle {number}", *accuracies, f"{figures.mia['confidence']:.3f}", "", "", "")
    of_oracles = "-" if first.lira_oracle is None else f"{first.lira_oracle:.3f}"
    table.add_row("among oracles", "", "", "", "", of_oracles, shown(first.ceiling), "")
    console.print(table)
