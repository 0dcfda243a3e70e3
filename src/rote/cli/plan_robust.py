"""`rote plan robust`: how many parameters robust memorization needs, the network that does it, and its certificate.

Thin: parses, calls `rote.theory`, prints. Heavy libraries are imported inside the command.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from rote.cli.console import out, print_json, say
from rote.errors import InputError

SHOWN = 10  # records that are not verified, in the summary


def robust(
    records: Annotated[int | None, typer.Option(help="Number of records N, to plan without data.")] = None,
    dim: Annotated[int | None, typer.Option(help="Coordinates d of a record, to plan without data.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Labelled points: .npz (arrays X, y), .csv or .parquet (a column y).")
    ] = None,
    rho: Annotated[
        str, typer.Option(help="Radius as a share of half the distance of the classes, or auto (the largest built).")
    ] = "auto",
    norm: Annotated[str, typer.Option(help="Norm of the balls: l2, linf, l1 or l<p>.")] = "l2",
    build: Annotated[bool, typer.Option("--build", help="Build the network (exact integers and fractions).")] = False,
    regime: Annotated[str, typer.Option(help="auto, small, moderate (with an error share) or large.")] = "auto",
    error: Annotated[str, typer.Option(help="Share of a ball that may be wrong in the moderate regime.")] = "0.01",
    certify: Annotated[
        bool, typer.Option("--certify", help="Prove every ball; exit 1 when one is not proved.")
    ] = False,
    network: Annotated[
        Path | None, typer.Option(help="Certify this trained Sequential of Linear and ReLU (.safetensors) instead.")
    ] = None,
    time_limit: Annotated[float, typer.Option(help="Seconds a record for mixed-integer programming.")] = 10.0,
    export: Annotated[
        Path | None, typer.Option(help="Folder for exact JSON, ONNX (if float64 holds it) and VNN-LIB files.")
    ] = None,
    export_records: Annotated[int, typer.Option(help="How many records get a VNN-LIB file.")] = 100,
    output: Annotated[Path | None, typer.Option("-o", "--out", help="Folder for robust.json and bounds.html.")] = None,
    reveal: Annotated[
        bool, typer.Option("--reveal", help="With --certify: show the points at which falsified records go wrong.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Another seed is another draw of the random projections.")] = 0,
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no summary.")] = False,
) -> None:
    """Parameters that robust memorization costs: bounds for N, d and rho, or the network for your own points, proved.

    Lower bounds hold for the worst data; curves marked "rate" are drawn with constant 1."""
    from rote.theory.robust.plan import robust_relu_plan

    if (data is None) == (records is None and dim is None):
        raise InputError("give either --data FILE, or --records N and --dim D")
    result: dict[str, Any] = {"schema_version": "1.0", "command": "plan robust"}
    complete = True
    if data is None:
        if records is None or dim is None:
            raise InputError("planning without data needs both --records N and --dim D")
        if build or certify or export or network:
            raise InputError("--build, --certify, --export and --network need --data")
        if rho == "auto":
            raise InputError("planning without data needs --rho, a number between 0 and 1")
        result["plan"] = robust_relu_plan(records, dim, rho, norm=norm).to_dict()
    else:
        complete = _with_data(
            result,
            data=data,
            rho=rho,
            norm=norm,
            build=build or ((certify or export is not None) and network is None),
            regime=regime,
            error=error,
            certify=certify,
            network=network,
            time_limit=time_limit,
            export=export,
            export_records=export_records,
            reveal=reveal,
            seed=seed,
            tell=lambda text: say(f"  {text}", quiet=quiet or json_),
        )
    if output is not None:
        _write(result, output)
    if json_:
        print_json(result)
    elif not quiet:
        _print(result, output)
    if certify and not complete:
        raise typer.Exit(1)


def _with_data(
    result: dict[str, Any],
    *,
    data: Path,
    rho: str,
    norm: str,
    build: bool,
    regime: str,
    error: str,
    certify: bool,
    network: Path | None,
    time_limit: float,
    export: Path | None,
    export_records: int,
    reveal: bool,
    seed: int,
    tell,
) -> bool:
    """Everything that looks at points; fills `result`; True when every record asked about is verified."""
    from rote.theory.certify import certify_balls, collision_bound, load_sequential
    from rote.theory.certify.export import export_memorizer
    from rote.theory.labelled_points import read_labelled_points
    from rote.theory.robust import build_robust_memorizer, robust_relu_plan, separation

    points = read_labelled_points(data)
    n, d = points.X.shape
    apart = separation(points.X, points.y, norm=norm)
    classes = [str(label) for label in points.classes]
    result["data"] = {
        "records": n,
        "coordinates": d,
        "classes": len(classes),
        "repeated_rows_left_out": points.repeated,
    }
    result["data"]["eps"] = float(apart)
    labels = [points.classes[number] for number in points.y.tolist()]
    complete = True
    if network is not None:
        if rho == "auto":
            raise InputError("certifying a trained network needs --rho, a number between 0 and 1")
        exact = load_sequential(network)
        if build or export:
            raise InputError("--network certifies a trained network; leave out --build and --export")
        result["trained"] = {"parameters": exact.parameters, "depth": exact.depth, "width": exact.width}
        if norm == "l2":
            bound = collision_bound(exact, points.X, points.y)
            result["trained"]["collision"] = {"rho_upper": bound.rho_upper, "records": list(bound.pair)}
        if certify:
            tell(f"certifying {n} balls of the trained network")
            kind = "argmax" if exact.outputs > 1 else "sign"
            found = certify_balls(
                exact, points.X, points.y, radius=apart.radius(rho), property=kind, time_limit=time_limit, seed=seed
            )
            result["certificate"] = found.to_dict(witnesses=reveal)
            complete = found.complete
    elif build:
        tell(f"building the memorizer of {n} points")
        made = build_robust_memorizer(
            points.X, labels, rho=rho, norm=norm, regime=regime, error=error, seed=seed  # type: ignore[arg-type]
        )  # fmt: skip
        rho = str(made.rho)
        result["network"] = made.to_dict()
        if certify:
            tell(f"certifying {n} balls")
            found = certify_balls(made, points.X, labels, radius=made.radius, time_limit=time_limit, seed=seed)
            result["certificate"] = found.to_dict(witnesses=reveal)
            complete = found.complete
        if export is not None:
            tell(f"exporting to {export}")
            result["export"] = export_memorizer(
                made.network,
                points.X,
                made.outputs_for(labels).tolist(),
                made.radius,
                export,
                records=export_records,
                about={**made.to_dict(), "outputs": dict(enumerate(classes, 1))},
            )
    if rho != "auto":
        result["plan"] = robust_relu_plan(n, d, rho, norm=norm).to_dict()
    return complete


def _write(result: dict[str, Any], folder: Path) -> None:
    from rote.atomic import write_atomic
    from rote.theory.robust import bounds_figure

    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "robust.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    plan = result.get("plan")
    if plan:
        built = [result["network"]] if "network" in result else []
        figure = bounds_figure(plan["n"], plan["d"], rho=plan["rho"], norm=plan["norm"], built=built)
        write_atomic(folder / "bounds.html", figure.to_html(include_plotlyjs=True, full_html=True))


def _print(result: dict[str, Any], folder: Path | None) -> None:
    for line in _lines(result):
        out.print(line, markup=False, soft_wrap=True)
    if folder is not None:
        page = f", {folder / 'bounds.html'}" if "plan" in result else ""
        out.print(f"written: {folder / 'robust.json'}{page}", markup=False, soft_wrap=True)


def _lines(result: dict[str, Any]) -> Iterator[str]:
    if found := result.get("data"):
        yield (
            f"{found['records']:,} points of R^{found['coordinates']}, {found['classes']} classes, "
            f"eps = {found['eps']:.6g}"
        )
        if repeated := found["repeated_rows_left_out"]:
            yield f"  {repeated} repeated rows left out"
    if plan := result.get("plan"):
        regime = plan["regime"] or "not covered by the theorem"
        yield f"N = {plan['n']:,}, d = {plan['d']:,}, rho = {plan['rho']:.6g} ({plan['norm']}): regime {regime}"
        for bound in plan["bounds"]:
            yield (
                f"  {bound['side']:5} {bound['name']:34} {bound['value']:>16,.6g}  {bound['counts']}; "
                f"{bound['kind']}; {bound['source']}"
            )
        yield from (f"  note: {note}" for note in plan["notes"])
    if made := result.get("network"):
        yield (
            f"built: regime {made['regime']}, rho = {made['rho']:.6g}, mu = {made['mu']:.6g}; "
            f"{made['parameters']:,} parameters ({made['nonzero']:,} nonzero), depth {made['depth']}, "
            f"width {made['width']}, {made['bits']} bits"
        )
        yield f"  {made['provenance']}"
        if made["error"]:
            yield f"  up to a share {made['error']:g} of a ball may be wrong: only balls verified below are free of it"
    if bound := result.get("trained", {}).get("collision"):
        yield f"no network with this first layer is robust above rho = {bound['rho_upper']:.6g} on these points"
    if found := result.get("certificate"):
        yield (
            f"certified: {found['verified']} of {found['records']} balls verified, {found['falsified']} falsified, "
            f"{found['unknown']} unknown"
        )
        yield from (f"  {count} by {method}" for method, count in found["methods"].items())
        for row in found["not_verified"][:SHOWN]:
            why = f"; {row['reason']}" if row["reason"] else ""
            point = f"; wrong at {tuple(row['witness'])}" if row.get("witness") else ""
            yield f"  record {row['record']} (from 0): {row['verdict']}, {row['method']}{why}{point}"
        if (more := len(found["not_verified"]) - SHOWN) > 0:
            yield f"  and {more} more: see --json"
    if found := result.get("export"):
        kinds = "exact JSON, ONNX" if found["onnx"] else "exact JSON"
        yield f"exported: {kinds}, {found['vnnlib']} of {found['records']} VNN-LIB files"
        if found["onnx_reason"]:
            yield f"  no ONNX: {found['onnx_reason']}"
