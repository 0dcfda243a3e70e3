"""`rote probe fit | score | label`: which tokens does a model recite, read from its activations.

Thin: parses, calls `rote.internals.neurons`, prints. Heavy libraries are imported inside the commands.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from rote.cli.console import out as console
from rote.cli.console import print_json, progress_bars
from rote.errors import InputError

probe_app = typer.Typer(
    help="Find recited tokens from a model's activations: fit a probe, score text, label a corpus.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Bos = Annotated[str, typer.Option(help="Beginning-of-sequence token: auto (as the tokenizer does), always, never.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")]
TextColumn = Annotated[str | None, typer.Option(help="Field that holds the text. [default: text]")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no summary.")]
ProbeFile = Annotated[Path, typer.Option("--probe", help="A probe that `rote probe fit` wrote (.safetensors).")]
ProbeModel = Annotated[str | None, typer.Option(help="The probe's model. [default: what `rote probe fit` was given]")]
AnyModel = Annotated[
    bool, typer.Option(help="Score a model that the probe was not fitted on (a control): numbers are not comparable.")
]


@probe_app.command(
    "fit",
    epilog="Example: rote probe fit --model ./model --control ./never-saw-it --memorized a.jsonl --other b.jsonl"
    " --site mlp_hidden -o probe.safetensors",
)
def fit(
    model: Annotated[str, typer.Option(help="The model to look into: a local checkpoint directory or a hub name.")],
    memorized: Annotated[list[Path], typer.Option(help="Texts the model recites, at least in part.")],
    other: Annotated[list[Path], typer.Option(help="Texts of the same kind that it never saw.")],
    output: Annotated[Path, typer.Option("-o", "--out", help="The probe: NAME.safetensors, with NAME.json beside it.")],
    control: Annotated[
        str | None, typer.Option(help="A model that saw neither: causal labels, and the figure to subtract.")
    ] = None,
    site: Annotated[str, typer.Option(help="resid_post, mlp_hidden, mlp_out, attn_out or attn_heads.")] = "resid_post",
    layer: Annotated[int | None, typer.Option(help="Block, from 0. [default: the best inside training folds]")] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(help="Kinds of tokens to compare with: uncertain, certain (with --control). [default: all]"),
    ] = None,
    p_hi: Annotated[float, typer.Option(help="A token counts as recited from this probability on (inferred).")] = 0.5,
    min_run: Annotated[int, typer.Option(help="Shortest recited run, without --control (inferred).")] = 4,
    cap: Annotated[int, typer.Option(help="Most labelled tokens of one text.")] = 100,
    folds: Annotated[int, typer.Option(help="Folds over texts; a text is never split.")] = 5,
    long: Annotated[str, typer.Option(help="Texts beyond the context window: error, or truncate.")] = "error",
    text_column: TextColumn = None,
    bos: Bos = "auto",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fit a linear probe for recited tokens; its accuracy always stands beside the same probe on the control model."""
    from rote.internals.neurons import ActivationStore, TokenLabels, save_probe, train_probe
    from rote.internals.neurons.probe_files import read_meta, tensors_path
    from rote.models import CausalLM
    from rote.records import read_records

    tensors_path(output)
    columns = {"text": text_column} if text_column else None
    known, unknown = read_records(memorized, columns=columns), read_records(other, columns=columns)
    target = CausalLM.load(model, device=device, dtype=dtype, bos=bos)
    twin = CausalLM.load(control, device=device, dtype=dtype, bos=bos) if control else None
    if twin is not None:
        labels = TokenLabels.from_contrast(target, twin, known, other=unknown, p_hi=p_hi, cap=cap, long=long, seed=seed)
    else:
        labels = TokenLabels.from_samples(
            target, memorized=known, other=unknown, p_hi=p_hi, min_run=min_run, cap=cap, long=long, seed=seed
        )
    with progress_bars(quiet=quiet or json_, unit="texts") as progress:
        acts = ActivationStore.capture(
            target, labels, sites=site, layers="all" if layer is None else layer,
            progress=lambda done, total: progress("activations", done, total),
        )  # fmt: skip
    probe = train_probe(
        acts, labels, site=site, layer=None if layer is None else acts.layers(site)[0], against=against, control=twin,
        folds=folds, seed=seed,
    )  # fmt: skip
    source = {"model": model, "control": control, "bos": bos, "dtype": dtype}
    path = save_probe(probe, output, extra={"source": source})
    if json_:
        print_json(read_meta(path))
    elif not quiet:
        _print_fit(probe, path)


@probe_app.command("score")
def score(
    probe: ProbeFile,
    text: Annotated[list[Path], typer.Option(help="Text or record files to score.")],
    model: ProbeModel = None,
    html: Annotated[Path | None, typer.Option(help="Write a page of per-token scores here.")] = None,
    reveal: Annotated[bool, typer.Option(help="Show the texts on the page and in the JSON.")] = False,
    threshold: Annotated[float, typer.Option(help="A token is called recited from this probability on.")] = 0.5,
    txt_unit: Annotated[str, typer.Option(help="A record in a text file: paragraph or file.")] = "paragraph",
    text_column: TextColumn = None,
    any_model: AnyModel = False,
    device: Device = "auto",
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score every token of some texts by one forward pass: how much does it look recited?"""
    import math

    from rote.internals.neurons import load_probe, score_texts, sequence_score
    from rote.records import read_records

    fitted, target = load_probe(probe), _model_of(probe, model, device)
    records = read_records(text, columns={"text": text_column} if text_column else None, txt_unit=txt_unit)
    contents = _texts(records)
    scored = score_texts(fitted, target, contents, any_model=any_model)
    rows: list[dict[str, Any]] = []
    for name, content, found in zip(records.column("id"), contents, scored, strict=True):
        row = {"id": name, **sequence_score(found.score, threshold=threshold)}
        values = [float(f"{value:.6g}") if math.isfinite(value) else None for value in found.score.tolist()]
        rows.append(row | {"scores": values, "ends": found.ends.tolist()} | ({"text": content} if reveal else {}))
    if html is not None:
        from rote.atomic import write_atomic

        write_atomic(html, token_page(rows, contents, fitted, threshold=threshold, reveal=reveal))
    if json_:
        print_json({"probe": probe.name, "site": fitted.site, "layer": fitted.layer, "threshold": threshold,
                    "records": rows})  # fmt: skip
    elif not quiet:
        from rich.table import Table

        table = Table("id", "tokens", "mean", "called recited", title=f"{fitted.site}, layer {fitted.layer}")
        for row in rows:
            mean, fraction = ("-" if row[name] is None else f"{row[name]:.3f}" for name in ("mean", "fraction"))
            table.add_row(str(row["id"])[:60], str(row["tokens"]), mean, fraction)
        console.print(table)


@probe_app.command("label")
def label(
    records: Annotated[list[Path], typer.Argument(help="Text or record files of any size.")],
    probe: ProbeFile,
    output: Annotated[Path, typer.Option("-o", "--out", help="Directory of the Parquet shards.")],
    model: ProbeModel = None,
    lower: Annotated[float, typer.Option(help="Label 0 up to this probability.")] = 0.5,
    upper: Annotated[float, typer.Option(help="Label 1 from this probability on; -1 between.")] = 0.5,
    shard_documents: Annotated[int, typer.Option(help="Documents in a shard: what a crash can lose.")] = 256,
    txt_unit: Annotated[str, typer.Option(help="A record in a text file: paragraph or file.")] = "paragraph",
    text_column: TextColumn = None,
    device: Device = "auto",
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Label every token of a corpus with a probe. The same command goes on where an interrupted one stopped."""
    from rote.internals.neurons import ProbeLabeller, label_stream, load_probe
    from rote.internals.neurons.scoring import check_model
    from rote.records import read_records

    fitted, target = load_probe(probe), _model_of(probe, model, device)
    check_model(fitted, target)
    table = read_records(records, columns={"text": text_column} if text_column else None, txt_unit=txt_unit)
    documents = zip(table.column("id"), _texts(table), strict=True)
    with progress_bars(quiet=quiet or json_, unit="documents") as progress:
        summary = label_stream(
            target, ProbeLabeller(fitted, lower, upper), documents, output, shard_documents=shard_documents,
            progress=lambda done, tokens: progress("labelling", done, len(table)),
        )  # fmt: skip
    if json_:
        print_json(summary)
    elif not quiet:
        console.print(
            f"{output}: {summary['tokens']:,} tokens of {summary['documents']:,} documents, {summary['memorized']:,}"
            f" called recited, {summary['other']:,} not, {summary['dropped']:,} between, {summary['unscored']:,}"
            f" without a score; {len(summary['skipped'])} documents had nothing to predict",
            markup=False,
            soft_wrap=True,
        )


def _model_of(probe: Path, model: str | None, device: str) -> Any:
    """The model to score, loaded as it was for the fit; the probe's fingerprint is checked later."""
    from rote.internals.neurons.probe_files import read_meta
    from rote.models import CausalLM

    source = read_meta(probe)["extra"].get("source", {})
    name = model or source.get("model")
    if not name:
        raise InputError(f"{probe}: does not say which model it was fitted on; give --model")
    return CausalLM.load(name, device=device, dtype=source.get("dtype", "auto"), bos=source.get("bos", "auto"))


def _texts(records: Any) -> list[str]:
    texts = records.column("text")
    if missing := [name for name, text in zip(records.column("id"), texts, strict=True) if text is None]:
        raise InputError(f"record {missing[0][:60]!r} has token ids and no text: scoring needs text")
    return texts


def _print_fit(probe: Any, path: Path) -> None:
    from rich.table import Table

    report = probe.report
    table = Table("held-out passages", "AUROC (95 %)", "accuracy", "F1", title=f"{probe.site}, layer {probe.layer}")
    names = {"probe": "probe", "control": "same probe, control model", "outputs": "log p, entropy, max p only",
             "logp": "log p only", "combined": "probe and outputs"}  # fmt: skip
    for name, title in names.items():
        judged = getattr(report, name)
        if judged is not None:
            auroc = judged.auroc
            table.add_row(title, f"{auroc.value:.3f} ({auroc.low:.3f} to {auroc.high:.3f})",
                          f"{judged.balanced_accuracy:.3f}", f"{judged.f1:.3f}")  # fmt: skip
    console.print(table)
    if report.gap is not None:
        gap = report.gap
        console.print(
            f"what memory adds to text difficulty: AUROC {gap.value:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})"
        )
    for note in report.notes:
        console.print(f" - {note}", markup=False)
    console.print(f"probe: {path}", markup=False, soft_wrap=True)


_STYLE = """body{font:15px/1.6 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}
section{border-top:1px solid #ccc;padding:.6rem 0}.t{white-space:pre-wrap;overflow-wrap:anywhere;
font-family:ui-monospace,monospace}.t span{border-radius:2px}.n{border-bottom:1px dotted #999}h2{font-size:1rem}"""


def token_page(
    rows: Sequence[dict[str, Any]], texts: Sequence[str], probe: Any, *, threshold: float, reveal: bool
) -> str:
    """One self-contained page: every token on a ground as dark as its score. Contents are masked unless `reveal`: each
    character but white space becomes a block. Everything is escaped, there is no script."""
    from html import escape

    from rote.report.text import shown_html

    def shown(piece: str) -> str:
        if reveal:
            return str(shown_html(piece, limit=max(1, len(piece))))
        return escape("".join(char if char in " \n" else "\u2592" for char in piece))

    report = probe.report
    control = "no control model" if report.control is None else f"control model {report.control.auroc.value:.3f}"
    parts = []
    for row, text in zip(rows, texts, strict=True):
        start, spans = 0, []
        for end, value in zip(row["ends"], row["scores"], strict=True):
            piece, start = text[start:end], end
            if value is None:
                spans.append(f'<span class="n" title="no score">{shown(piece)}</span>')
            else:
                ground = f"background:rgba(200,60,20,{0.75 * value:.3f})"
                spans.append(f'<span title="{value:.3f}" style="{ground}">{shown(piece)}</span>')
        figures = "no scored token" if row["mean"] is None else (
            f"mean {row['mean']:.3f}, {row['fraction']:.1%} of {row['tokens']} tokens at or above {threshold:g}"
        )  # fmt: skip
        parts.append(
            f"<section><h2>{shown_html(row['id'])}</h2><p>{figures}</p><div class=t>{''.join(spans)}</div></section>"
        )
    masked = "" if reveal else " Contents are masked."
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy"'
        " content=\"default-src 'none'; style-src 'unsafe-inline'\"><title>Recited tokens</title>"
        f"<style>{_STYLE}</style></head><body><h1>Recited tokens</h1><p>Probability, from activations of"
        f" {escape(probe.site)}, layer {probe.layer}, that a token is recited; hover for the number. The probe's AUROC"
        f" on passages it was not trained on: {report.probe.auroc.value:.3f}, {control}.{masked}</p>{''.join(parts)}"
        "</body></html>\n"
    )
