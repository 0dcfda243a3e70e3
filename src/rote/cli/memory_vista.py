"""`rote memory vista train | summarize | recommend | audit | serve-bench | forget`: user histories in a cache.

Thin: parses, calls `rote.memory.vista`, prints. Heavy libraries are imported inside the commands.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rote.cli.console import out as console
from rote.cli.console import print_json, progress_bars, say
from rote.errors import InputError

if TYPE_CHECKING:
    from rote.memory.vista import InteractionLog, Vista

vista_app = typer.Typer(
    help="User histories of any length as a few cached vectors: train, fill a store, recommend, audit, forget.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Log = Annotated[list[Path], typer.Argument(help="Interaction log: csv, tsv, parquet, arrow or jsonl files or folders.")]
Model = Annotated[Path, typer.Argument(help="A model that `rote memory vista train` wrote.")]
Store = Annotated[str, typer.Option("--store", help="lmdb:DIR, sqlite:FILE or redis://HOST:PORT/DB.")]
Column = Annotated[
    list[str] | None, typer.Option("--column", help="A column by its name in the file, for example user=customer.")
]
TimeUnit = Annotated[str, typer.Option(help="Unit of numeric timestamps: s, ms or us.")]
Sort = Annotated[
    bool, typer.Option("--sort", help="Put events in order of time instead of refusing a log that is not.")
]
Unknown = Annotated[str, typer.Option(help="Events with items the model does not know: refuse or drop (counted).")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no summary.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]

NO_VERSION = "0" * 16  # for commands that work on every version alike


@vista_app.command(
    "train", epilog="Example: rote memory vista train events.csv --out model --baseline sasrec --baseline target"
)
def train(
    log: Log,
    output: Annotated[Path, typer.Option("-o", "--out", help="Model directory; training.json and .html beside it.")],
    dim: Annotated[int, typer.Option("--dim", help="Width d.")] = 64,
    heads: Annotated[int, typer.Option("--heads", help="Attention heads.")] = 4,
    seeds: Annotated[int, typer.Option("--seeds", help="Vectors in a summary, K (the paper: 128 of width 256).")] = 16,
    stage1_layers: Annotated[int, typer.Option(help="Quasi-linear layers that read the history.")] = 1,
    stage2_layers: Annotated[int, typer.Option(help="Layers in which candidates attend to the summary.")] = 1,
    order: Annotated[
        str, typer.Option(help="What an event tells of its place: recency, gap (updates stay exact), none.")
    ] = "recency",
    raw_events: Annotated[int, typer.Option(help="Most recent raw events kept and read beside the summary, R.")] = 16,
    recon_weight: Annotated[float, typer.Option(help="Weight of the reconstruction loss; 0 leaves it out.")] = 1.0,
    steps: Annotated[int, typer.Option(help="Training steps at most; --patience ends it earlier.")] = 5000,
    batch_users: Annotated[int, typer.Option(help="Users in a batch.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-3,
    negatives: Annotated[int, typer.Option(help="Sampled negatives per positive.")] = 128,
    stale: Annotated[int, typer.Option(help="Most recent events a summary may miss in training (refresh delay).")] = 0,
    longest: Annotated[int, typer.Option(help="Most recent events of a user that are trained on.")] = 200,
    check_every: Annotated[int, typer.Option(help="Steps between validations.")] = 200,
    patience: Annotated[int, typer.Option(help="Validations without a better NDCG@10 before training ends.")] = 5,
    baseline: Annotated[
        list[str] | None, typer.Option(help="Also train and judge: sasrec, hstu, target (full target attention).")
    ] = None,
    column: Column = None,
    time_unit: TimeUnit = "s",
    sort: Sort = False,
    seed: Seed = 0,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train on a log; judge on each user's last event, ranked among all items (HR@k, NDCG@k).

    The same command continues an interrupted run.
    """
    from rote.memory.vista import (
        TrainingSettings,
        VistaConfig,
        against_baselines,
        check_place,
        read_interactions,
        save_model,
        train_recommender,
        training_figure,
        write_figure,
    )

    baselines = list(dict.fromkeys(baseline or ()))
    _check_baselines(baselines)
    check_place(output)
    events = read_interactions(log, columns=_columns(column), time_unit=time_unit, sort=sort)
    names = events.vocabulary
    config = VistaConfig(
        items=len(names.items), actions=len(names.actions), categories=len(names.categories), dim=dim, heads=heads,
        seeds=seeds, stage1_layers=stage1_layers, stage2_layers=stage2_layers, order=order, raw_events=raw_events,
        recon_weight=recon_weight,
    )  # fmt: skip
    settings = TrainingSettings(
        steps=steps, batch_users=batch_users, learning_rate=learning_rate, warmup=min(100, steps // 5),
        negatives=negatives, stale=stale, seed=seed,
    )  # fmt: skip
    say(f"  {events.events:,} events of {len(events):,} users, {len(names.items):,} items", quiet=quiet or json_)
    unfinished = output.parent / f".{output.name}.unfinished"
    with progress_bars(quiet=quiet or json_, unit="steps") as progress:
        split, found = train_recommender(
            events, config, settings, baselines=baselines, longest=longest, check_every=check_every, patience=patience,
            resume=unfinished, progress=progress,
        )  # fmt: skip
    model = found[0].model
    result = {
        "schema_version": "1.0", "version": model.version, "users": len(events), "events": events.events,
        "items": len(names.items), "users judged": len(split.targets), "users too short": split.too_short,
        "models": [one.to_dict() for one in found], "vista NDCG@10 over": against_baselines(found),
    }  # fmt: skip
    save_model(model, output, training=found[0].to_dict())  # type: ignore[arg-type]
    (output / "training.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    write_figure(
        training_figure({one.name: one.losses for one in found}, {one.name: one.checks for one in found}),
        output / "training.html",
    )
    shutil.rmtree(unfinished, ignore_errors=True)
    if json_:
        print_json(result)
    elif not quiet:
        _print_rows(
            [{"model": one.name} | {k: one.test[k] for k in ("HR@1", "HR@10", "NDCG@10", "MRR")} for one in found],
            title=f"last event of {len(split.targets):,} users, ranked among {len(names.items):,} items",
        )
        for name, one in result["vista NDCG@10 over"].items():
            text = f"VISTA has {one['ratio']:.3f} of the NDCG@10 of {name} (95 % {one['low']:.3f} to {one['high']:.3f})"
            console.print(text, markup=False, soft_wrap=True)
        if rising := [one.name for one in found if one.still_improving]:
            text = f"still improving at the last step ({steps:,}): {', '.join(rising)}; try more --steps"
            console.print(text, markup=False, soft_wrap=True)
        console.print(
            f"model {model.version}: {output}, picture: {output / 'training.html'}", markup=False, soft_wrap=True
        )


@vista_app.command("summarize", epilog="Example: rote memory vista summarize model events.csv --store lmdb:summaries")
def summarize(
    model: Model,
    log: Log,
    store: Store,
    dtype: Annotated[str, typer.Option(help="Storage of the vectors: int8, int4, float16, float32.")] = "int8",
    until: Annotated[
        str | None, typer.Option(help="Leave out events after this time (seconds or ISO 8601): the refresh delay.")
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Add later events to summaries that kept their states.")
    ] = False,
    keep_states: Annotated[
        bool, typer.Option("--keep-states", help="Store layer states too, so that --update can add to them.")
    ] = False,
    ttl: Annotated[float | None, typer.Option(help="Seconds after which a summary counts as gone.")] = None,
    unknown: Unknown = "refuse",
    column: Column = None,
    time_unit: TimeUnit = "s",
    sort: Sort = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Summarise every history of a log into a store. Finished batches stay when it is interrupted."""
    from dataclasses import asdict

    from rote.memory.vista import is_exact, load_model, open_store, summarise_log
    from rote.runtime import threads, threads_for_width

    trained = load_model(model, device=device)
    events = _read(trained, log, column, time_unit, sort, unknown)
    with (
        threads(threads_for_width(trained.config.dim)),
        open_store(store, version=trained.version, dtype=dtype, ttl=ttl) as opened,
        progress_bars(quiet=quiet or json_, unit="users") as progress,
    ):
        done = summarise_log(
            trained, events, opened, until=_moment(until, time_unit), incremental=update, keep_states=keep_states,
            progress=progress,
        )  # fmt: skip
        stats = opened.stats()
    result = asdict(done) | {"dropped": events.dropped, "exact updates": is_exact(trained), "store": stats}
    if json_:
        print_json(result)
    elif not quiet:
        dropped = "".join(f", {count:,} events dropped ({what})" for what, count in events.dropped.items())
        console.print(
            f"{stats['place']}: {done.users:,} summarised, {done.updated:,} updated, {done.unchanged:,} unchanged, from"
            f" {done.events:,} events in {done.seconds:.1f} s{dropped}; {stats['bytes'] / 2**20:.1f} MiB",
            markup=False, soft_wrap=True,
        )  # fmt: skip
        if done.updated and not is_exact(trained):
            console.print("updates of this model drift from summaries made anew: run without --update now and then")


@vista_app.command("recommend", epilog="Example: rote memory vista recommend model --store lmdb:summaries --user u42")
def recommend(
    model: Model,
    store: Store,
    user: Annotated[str, typer.Option(help="Who to recommend to.")],
    k: Annotated[int, typer.Option("-k", "--top", help="How many items.")] = 10,
    seen: Annotated[list[Path] | None, typer.Option(help="A log; items the user has in it are left out.")] = None,
    new_users: Annotated[bool, typer.Option(help="Score a user without a summary as one without a history.")] = False,
    column: Column = None,
    time_unit: TimeUnit = "s",
    json_: Json = False,
) -> None:
    """The best items for a user, from the store alone: the history is not read."""
    from rote.memory.vista import load_model, open_store
    from rote.memory.vista import recommend as best
    from rote.runtime import threads, threads_for_width

    trained = load_model(model)
    known: list[str] = []
    if seen:
        events = _read(trained, seen, column, time_unit, True, "drop")
        known = sorted({trained.vocabulary.items[i] for i in events.item[events.rows(user)]})  # type: ignore[union-attr]
    with (
        threads(threads_for_width(trained.config.dim)),
        open_store(store, version=trained.version, create=False) as opened,
    ):
        found = best(trained, opened, user, k=k, seen=known, new_users=new_users)
        summary = opened.get(user)
    made = None if summary is None else {"events": summary.events, "last_time": _finite(summary.last_time),
                                         "written": summary.written}  # fmt: skip
    if json_:
        print_json({"user": user, "version": trained.version, "summary": made,
                    "items": [{"item": name, "score": value} for name, value in found]})  # fmt: skip
        return
    _print_rows([{"item": name, "score": f"{value:.4f}"} for name, value in found], title=f"for {user}")


@vista_app.command("audit", epilog="Example: rote memory vista audit model events.csv --out audit")
def audit(
    model: Model,
    log: Log,
    output: Annotated[Path, typer.Option("-o", "--out", help="Directory of audit.json and audit.html.")],
    missing: Annotated[str, typer.Option(help="Numbers of most recent events a summary misses.")] = "0,1,2,4,8,16,32",
    longest: Annotated[int, typer.Option(help="Most recent events of a user that are read.")] = 200,
    most_users: Annotated[int, typer.Option(help="Users judged, drawn at random.")] = 1000,
    column: Column = None,
    time_unit: TimeUnit = "s",
    sort: Sort = False,
    unknown: Unknown = "refuse",
    seed: Seed = 0,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """What the cache costs and keeps: quality by storage, tokens and age; reconstruction error; bytes a user."""
    from rote.memory.vista import audit_figure, audit_model, load_model, write_figure
    from rote.runtime import threads, threads_for_width

    trained = load_model(model)
    events = _read(trained, log, column, time_unit, sort, unknown)
    with (
        threads(threads_for_width(trained.config.dim)),
        progress_bars(quiet=quiet or json_, unit="users") as progress,
    ):
        found = audit_model(
            trained, events, missing=_numbers(missing, least=0), longest=longest, most_users=most_users, seed=seed,
            progress=progress,
        )  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    (output / "audit.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write_figure(audit_figure(found), output / "audit.html")
    if json_:
        print_json(found)
    elif not quiet:
        for name in ("storage", "tokens", "staleness"):
            _print_rows(found[name], title=name)
        console.print(f"audit: {output / 'audit.html'}", markup=False, soft_wrap=True)


@vista_app.command("serve-bench", epilog="Example: rote memory vista serve-bench --history 1e3,1e4,1e5,1e6 --out bench")
def serve_bench(
    model: Annotated[Path | None, typer.Option(help="A trained model. [default: random weights]")] = None,
    store: Annotated[
        str | None, typer.Option("--store", help="Where summaries go. [default: an LMDB store in --out]")
    ] = None,
    history: Annotated[str, typer.Option(help="Lengths of history.")] = "1e3,1e4,1e5,1e6",
    candidates: Annotated[int, typer.Option(help="Candidates in a request.")] = 100,
    repeats: Annotated[int, typer.Option(help="Requests timed per length.")] = 200,
    dim: Annotated[int, typer.Option("--dim", help="Width, without --model.")] = 64,
    seeds: Annotated[int, typer.Option("--seeds", help="Vectors in a summary, without --model.")] = 128,
    longest_full: Annotated[int, typer.Option(help="Longest history that full attention is timed on.")] = 65_536,
    output: Annotated[Path, typer.Option("-o", "--out", help="Directory of latency.json and latency.html.")] = Path(
        "vista-bench"
    ),
    seed: Seed = 0,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Time requests from the cache against attention to the raw history, and summarising itself."""
    from rote.memory.vista import (
        RawTargetAttention,
        Vista,
        VistaConfig,
        latency_figure,
        latency_rows,
        load_model,
        open_store,
        write_figure,
    )
    from rote.runtime import peak_rss_mb, threads, threads_for_width, versions

    lengths = _numbers(history, least=1)
    used: Vista = (
        load_model(model) if model is not None
        else Vista(VistaConfig(items=10_000, actions=4, dim=dim, seeds=seeds, order="gap")).eval()
    )  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    with (
        threads(threads_for_width(used.config.dim)),
        open_store(store or f"lmdb:{output / 'store'}", version=used.version) as opened,
        progress_bars(quiet=quiet or json_, unit="requests") as progress,
    ):
        full = RawTargetAttention(used.config).eval()
        rows = latency_rows(
            used, full, opened, histories=lengths, candidates=candidates, repeats=repeats, seed=seed,
            longest_full=longest_full, progress=progress,
        )  # fmt: skip
    result = {"schema_version": "1.0", "model": used.config.to_dict(), "candidates": candidates, "repeats": repeats,
              "rows": rows, "peak_rss_mb": round(peak_rss_mb()), "versions": versions()}  # fmt: skip
    (output / "latency.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    write_figure(latency_figure(rows), output / "latency.html")
    if json_:
        print_json(result)
    elif not quiet:
        _print_rows(rows, title=f"{candidates} candidates, {used.config.seeds} vectors of width {used.config.dim}")
        console.print(f"picture: {output / 'latency.html'}", markup=False, soft_wrap=True)


@vista_app.command("forget", epilog="Example: rote memory vista forget --store lmdb:summaries --user u42")
def forget(
    store: Store,
    user: Annotated[list[str] | None, typer.Option(help="Whom to erase; may be repeated.")] = None,
    users_file: Annotated[Path | None, typer.Option(help="A text file with one user a line.")] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Erase users from a store: every model version's summary, and its bytes in the store's files."""
    from rote.memory.vista import open_store

    users = list(user or ())
    if users_file is not None:
        try:
            users += [line for line in users_file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{users_file}: cannot be read ({' '.join(str(error).split())[:80]})") from None
    if not users:
        raise InputError("nobody to forget; give --user NAME or --users-file FILE")
    with open_store(store, version=NO_VERSION, create=False) as opened:
        counts = opened.delete(users)
    absent = [name for name, count in counts.items() if not count]
    if json_:
        print_json({"deleted": sum(counts.values()), "users": len(counts) - len(absent), "not there": absent})
    elif not quiet:
        more = f"; {len(absent)} had none" if absent else ""
        console.print(f"{sum(counts.values())} summaries of {len(counts) - len(absent)} users erased{more}")


# ---- shared


def _columns(given: list[str] | None) -> dict[str, str]:
    pairs = [text.partition("=") for text in given or ()]
    if wrong := [name for name, sign, value in pairs if not sign or not value]:
        raise InputError(f"--column {wrong[0]}: write it as NAME=COLUMN, for example user=customer")
    return {name: value for name, _, value in pairs}


def _check_baselines(names: list[str]) -> None:
    from rote.memory.vista.baselines import KINDS

    if wrong := [name for name in names if name not in KINDS]:
        raise InputError(f"baseline {wrong[0]!r} is not known; use {', '.join(KINDS)}")


def _read(
    trained: Vista, log: list[Path], column: list[str] | None, time_unit: str, sort: bool, unknown: str
) -> InteractionLog:
    from rote.memory.vista import read_interactions

    return read_interactions(
        log, vocabulary=trained.vocabulary, columns=_columns(column), time_unit=time_unit, sort=sort, unknown=unknown
    )


def _moment(text: str | None, time_unit: str) -> float | None:
    from rote.memory.vista.interactions import TIME_UNITS, seconds_of

    if text is None:
        return None
    try:
        return seconds_of(text, TIME_UNITS[time_unit])
    except ValueError as error:
        raise InputError(f"--until: {error}") from None


def _numbers(text: str, *, least: int) -> list[int]:
    try:
        found = [int(float(part)) for part in text.split(",")]
    except (ValueError, OverflowError):
        raise InputError(f"{text!r}: give numbers with commas between them, like 1e3,1e4") from None
    if min(found) < least:
        raise InputError(f"{text!r}: every number must be at least {least}")
    return found


def _finite(value: float) -> float | None:
    return value if value == value else None


def _print_rows(rows: list[dict[str, Any]], *, title: str) -> None:
    from rich.markup import escape
    from rich.table import Table

    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(*names, title=escape(title))
    for row in rows:
        cells = [row.get(name) for name in names]
        table.add_row(*("-" if c is None else f"{c:.4g}" if isinstance(c, float) else escape(str(c)) for c in cells))
    console.print(table)
