"""`rote plan generalize`: does a network that memorizes these points also generalize, and how many samples would do.

Thin: parses, calls `rote.theory.generalize`, prints. Heavy libraries are imported inside the command.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from rote.cli.console import out, print_json, say
from rote.errors import InputError

COVER_RECORDS = 2000  # the cover of a sample compares all pairs


def generalize(
    data: Annotated[
        Path | None, typer.Option(help="Labelled points in [0,1]^n: .npz (arrays X, y), .csv or .parquet (a column y).")
    ] = None,
    pair: Annotated[
        tuple[str, str] | None, typer.Option(help="The two classes to tell apart, when there are more.")
    ] = None,
    compare: Annotated[
        str, typer.Option(help="Some of voronoi, core, sqrt, 1nn; comma-separated.")
    ] = "voronoi,sqrt,1nn",
    test_share: Annotated[float, typer.Option(help="Share of each class kept for the test.")] = 0.5,
    scale: Annotated[
        bool, typer.Option("--scale", help="First move and scale the points into the unit cube, with one factor.")
    ] = False,
    dim: Annotated[int | None, typer.Option(help="Dimension n for the width bound (default: the data's).")] = None,
    width: Annotated[int | None, typer.Option(help="Units in the first layer, for the width bound.")] = None,
    eps: Annotated[float, typer.Option(help="Error allowed, for sample sizes.")] = 0.1,
    delta: Annotated[float, typer.Option(help="Probability of a larger error, for sample sizes.")] = 0.1,
    cover: Annotated[
        int | None, typer.Option(help="Size S of a nearby set of the law (default: an estimate from the data).")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for generalize.json and generalize.html.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed is another split and another random direction.")] = 0,
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no summary.")] = False,
) -> None:
    """Networks that all memorize the training half, on the other half; the width below which none can generalize; and
    how many samples are enough.

    The data part needs --data, the width bound --width (with --dim or --data), sample sizes --cover or --data."""
    if data is None and cover is None and width is None:
        raise InputError("nothing to plan: give --data FILE, or --dim N --width W, or --cover S")
    if width is not None and dim is None and data is None:
        raise InputError("--width needs --dim, the dimension of the input")
    if data is None and (pair or scale):
        raise InputError("--pair and --scale need --data")
    from rote.runtime import versions

    result: dict[str, Any] = {
        "schema_version": "1.0",
        "command": "plan generalize",
        "source": "Yu, Gao, Zhang, Miao 2024 (arXiv 2411.00372)",
        "seed": seed,
        "versions": versions(),
    }
    if data is not None:
        names = [name.strip() for name in compare.split(",") if name.strip()]
        tell = lambda text: say(f"  {text}", quiet=quiet or json_)  # noqa: E731
        _with_data(result, data, pair, names, test_share, scale, seed, tell)
    if cover is not None or data is not None:
        result["samples"] = _samples(result.get("cover"), cover, eps, delta)
    if width is not None:
        result["width_bound"] = _width_bound(dim or result["data"]["features"], width)
    if output is not None:
        _write(result, output)
    if json_:
        print_json(result)
    elif not quiet:
        for line in _lines(result):
            out.print(line, markup=False, soft_wrap=True)
        if output is not None:
            out.print(
                f"written: {output / 'generalize.json'}, {output / 'generalize.html'}", markup=False, soft_wrap=True
            )


def _with_data(
    result: dict[str, Any],
    data: Path,
    pair: tuple[str, str] | None,
    names: list[str],
    test_share: float,
    scale: bool,
    seed: int,
    tell: Callable[[str], None],
) -> None:
    """Read, split, fit, count; fills `result`."""
    from rote.measures.statistics import wilson
    from rote.theory.generalize import (
        compare_memorizers,
        constant_size_core,
        into_unit_cube,
        nearby_set,
        pick_pair,
        stratified_split,
    )
    from rote.theory.labelled_points import read_labelled_points

    points = read_labelled_points(data, unit_cube=not scale)
    rows, labels = pick_pair(points.y, points.classes, pair)
    X, y = (into_unit_cube(points.X) if scale else points.X)[rows], points.y[rows]
    train, test = stratified_split(y, test_share=test_share, seed=seed)
    found = compare_memorizers(X[train], y[train], X[test], y[test], names=names, seed=seed, progress=tell)
    networks = []
    for entry in found:
        low, high = (float(bound) for bound in wilson(entry.test_correct, entry.test_count))
        networks.append(asdict(entry) | {"test_low": low, "test_high": high})
    tell("the core and the cover of the training half")
    core = constant_size_core(X[train], y[train])
    result["data"] = {
        "file": data.name,
        "classes": [str(label) for label in labels],
        "records": len(rows),
        "train": len(train),
        "test": len(test),
        "features": int(X.shape[1]),
        "scaled_into_the_cube": scale,
        "repeated_rows_left_out": points.repeated,
        "separation_c0": core.c0,
        "certified_radius": 0.49 * core.c0,
    }
    result["networks"] = networks
    result["core"] = {
        "records": len(core.indices),
        "radius": core.radius,
        "ln_Q_as_printed": core.log_Q,
        "ln_proved_bound": core.log_bound,
    }
    sample, _ = (train, None) if len(train) <= COVER_RECORDS else stratified_split(
        y[train], test_share=1 - COVER_RECORDS / len(train), seed=seed
    )  # fmt: skip
    if len(train) > COVER_RECORDS:
        sample = train[sample]
    estimate = nearby_set(X[sample], y[sample], method="greedy")
    result["cover"] = {
        "size": estimate.size,
        "smallest_at_least": estimate.lower,
        "of_records": len(sample),
        "kind": estimate.caveat,
    }


def _samples(estimate: dict[str, Any] | None, cover: int | None, eps: float, delta: float) -> dict[str, Any]:
    from rote.theory.generalize import efficient_sample_size

    size = cover if cover is not None else (estimate or {})["size"]
    return {
        "S": size,
        "eps": eps,
        "delta": delta,
        "N": efficient_sample_size(S=size, eps=eps, delta=delta),
        "meaning": "S ln(S/delta)/eps samples: accuracy at least 1 - eps with probability 1 - delta (theorem 7.3)",
        "kind": "S as given" if cover is not None else f"S is {(estimate or {})['kind']}",
    }


def _width_bound(n: int, width: int) -> dict[str, Any]:
    from rote.theory.generalize import smallest_hopeless_dimension, width_generalization_bound

    return {
        "n": n,
        "width": width,
        "accuracy_at_most": width_generalization_bound(n=n, width=width),
        "hopeless_from_n": smallest_hopeless_dimension(width=width),
        "meaning": "on the shell law of theorem 5.1; other data may need less width",
    }


def _write(result: dict[str, Any], folder: Path) -> None:
    from rote.atomic import write_atomic
    from rote.theory.generalize.figures import accuracy_figure, width_figure

    figures = []
    if "networks" in result:
        data = result["data"]
        title = f"{html.escape(' against '.join(data['classes']))}: {data['train']} points memorized"
        figures.append(accuracy_figure(result["networks"], title=title))
    if "width_bound" in result:
        figures.append(width_figure(n=result["width_bound"]["n"], width=result["width_bound"]["width"]))
    parts = [
        figure.to_html(include_plotlyjs=number == 0, full_html=False, default_height="460px")
        for number, figure in enumerate(figures)
    ]
    text = "".join(f"<li>{html.escape(line)}</li>\n" for line in _lines(result))
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>rote plan generalize</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>'
        "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}</style>\n"
        "</head>"
        f"<body><h1>Memorizing and generalizing</h1>\n<ul>{text}</ul>\n{''.join(parts)}\n</body></html>\n"
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "generalize.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    write_atomic(folder / "generalize.html", page)


def _lines(result: dict[str, Any]) -> Iterator[str]:
    if data := result.get("data"):
        yield (
            f"{data['classes'][0]} against {data['classes'][1]}: {data['train']} points to memorize, {data['test']} to "
            f"test, in [0,1]^{data['features']}; classes at least {data['separation_c0']:.4g} apart"
        )
        for entry in result["networks"]:
            size = f", {entry['parameters']:,} parameters ({entry['nonzero']:,} used)" if entry["parameters"] else ""
            silent = f", {entry['abstained']} in no record's polytope" if entry["abstained"] else ""
            yield (
                f"{entry['name']:8} train {entry['train_accuracy']:.3f}, test {entry['test_accuracy']:.3f} "
                f"({entry['test_low']:.3f} to {entry['test_high']:.3f}){silent}{size}: {entry['meaning']}"
            )
        yield (f"robust: the voronoi sign provably stays within {data['certified_radius']:.4g} of every training point")
        core = result["core"]
        yield f"core: {core['records']} of {data['train']} points, {core['radius']:.4g} apart, memorize all of them"
        cover = result["cover"]
        yield f"cover: {cover['size']} balls cover {cover['of_records']} points; {cover['kind']}"
    if samples := result.get("samples"):
        yield (
            f"samples: {samples['N']:,} are enough for error {samples['eps']:g} with probability "
            f"{1 - samples['delta']:g} when S = {samples['S']:,} (theorem 7.3; {samples['kind']})"
        )
    if bound := result.get("width_bound"):
        yield (
            f"width: with {bound['width']} units in the first layer no network exceeds {bound['accuracy_at_most']:.4f} "
            f"on the shell law in {bound['n']} dimensions; from {bound['hopeless_from_n']} dimensions on, none exceeds "
            "0.51 (theorem 5.1)"
        )
