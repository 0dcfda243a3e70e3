"""`rote memory tnt train | eval | sweep | surprise`: models that learn while they read.

Thin: parses, calls `rote.memory.tnt`, prints. Heavy libraries are imported inside the commands.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from rote.cli.console import config_option, print_json, progress_bars, say
from rote.cli.console import out as console
from rote.errors import InputError

tnt_app = typer.Typer(
    help="Models that learn while they read (TNT, Titans, TTT): train in two stages, evaluate, sweep chunks, surprise.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[Path, typer.Option("--model", help="A checkpoint that `rote memory tnt train` wrote.")]
Text = Annotated[
    list[Path] | None, typer.Option("--text", help="Text or record files. [default: this Python's documentation]")
]
Context = Annotated[int, typer.Option(help="Tokens a row.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no summary.")]


@tnt_app.command(
    "train",
    epilog="Example: rote memory tnt train --local-chunks 8,16 --shard 128 --global-chunk 256 --out stage1 &&"
    " rote memory tnt train --stage 2 --from stage1 --local-chunks 1,2 --out stage2",
)
def train(
    output: Annotated[Path, typer.Option("-o", "--out", help="Directory of the checkpoint; must not be there yet.")],
    text: Text = None,
    stage: Annotated[int, typer.Option(help="1: from scratch, large chunks. 2: briefly, smaller local chunks.")] = 1,
    start: Annotated[Path | None, typer.Option("--from", help="Stage 2: the checkpoint of stage 1.")] = None,
    architecture: Annotated[str, typer.Option(help="tnt, titans or ttt.")] = "tnt",
    memory: Annotated[str, typer.Option(help="The network that remembers: linear or mlp.")] = "mlp",
    depth: Annotated[int, typer.Option(help="Layers of an mlp memory.")] = 2,
    global_chunk: Annotated[int, typer.Option(help="TNT: chunk of the global memory; 0 for none.")] = 256,
    local_chunks: Annotated[
        str | None, typer.Option(help="TNT: one size a local memory, e.g. 8,16. [default: 8]")
    ] = None,
    shard: Annotated[int, typer.Option(help="TNT: tokens between two resets of the local memories.")] = 128,
    projection: Annotated[
        bool, typer.Option("--projection/--no-projection", help="TNT: project local queries.")
    ] = True,
    chunk: Annotated[int | None, typer.Option(help="Titans, TTT: chunk size. [default: 16]")] = None,
    width: Annotated[int, typer.Option(help="Width of the model.")] = 64,
    layers: Annotated[int, typer.Option(help="Blocks.")] = 2,
    heads: Annotated[int, typer.Option(help="Memories side by side in a block.")] = 1,
    context: Context = 512,
    vocab_size: Annotated[int, typer.Option(help="Ids of the byte-level BPE; 257 is bytes alone.")] = 257,
    epochs: Annotated[float, typer.Option(help="Passes over the text; stage 2 by default 5 % of one.")] = 1.0,
    batch_size: Annotated[int, typer.Option(help="Rows a step.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 3e-3,
    trainable: Annotated[
        str, typer.Option(help="Stage 2: all parameters, or those of the local memories: all, local.")
    ] = "all",
    resume: Annotated[
        Path | None, typer.Option(help="Folder for resuming an interrupted run. [default: hidden, beside --out]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    config: Annotated[
        Path | None,
        typer.Option(callback=config_option, is_eager=True, help="YAML or JSON with the flags' names as keys."),
    ] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a memory model on text; the checkpoint is an ordinary Hugging Face directory for `rote audit lm`.

    The same command continues an interrupted run.
    """
    if stage not in (1, 2):
        raise InputError(f"stage is {stage}: it must be 1 or 2")
    if (stage == 2) != (start is not None):
        raise InputError("--stage 2 goes on --from a checkpoint of stage 1; stage 1 begins without one")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output}: is there already; give another directory, or remove it first")
    if epochs <= 0:
        raise InputError(f"epochs is {epochs}: it must be positive")
    from rote.memory.tnt import TNTConfig, evaluate, finetune
    from rote.memory.tnt import train as fit
    from rote.memory.tnt.checkpoints import load_checkpoint, make, pack, save_checkpoint, split
    from rote.memory.tnt.training import repeated
    from rote.models import TrainingConfig, train_bpe

    texts = _texts(text)
    recipe = TrainingConfig(batch_size=batch_size, learning_rate=learning_rate)
    sizes = _sizes(local_chunks, "--local-chunks") if local_chunks is not None else None
    unfinished = resume or output.parent / f".{output.name}.unfinished{_of_start(start, trainable)}"
    kept: dict[str, Any] = {"checkpoint": unfinished, "checkpoint_every": 50}
    with progress_bars(quiet=quiet or json_, unit="steps") as progress:
        tell = _steps(progress)
        if start is not None:
            model, tokenizer = load_checkpoint(start)
            rows, held = split(pack(tokenizer, texts, context), 0.1, seed)
            short = repeated(rows, 0.05 * epochs, batch_size)
            before = evaluate(model, held)
            model = finetune(
                model, short, local_chunks=sizes, chunk=chunk, trainable=trainable, config=recipe, progress=tell, **kept
            )  # fmt: skip
        else:
            tokenizer = train_bpe(texts, vocab_size=vocab_size)
            rows, held = split(pack(tokenizer, texts, context), 0.1, seed)
            settings = TNTConfig(
                vocab_size=len(tokenizer), hidden_size=width, num_hidden_layers=layers, num_heads=heads,
                architecture=architecture, memory=memory, memory_depth=depth, global_chunk=global_chunk or None,
                local_chunks=sizes if sizes is not None else [8], shard=shard, qk_projection=projection,
                chunk=chunk or 16, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
            model, before = make(settings, seed), None
            fit(model, repeated(rows, epochs, batch_size), recipe, progress=tell, **kept)
    after = evaluate(model, held)
    save_checkpoint(model, tokenizer, output)
    shutil.rmtree(unfinished, ignore_errors=True)
    result = {
        "schema_version": "1.0", "command": "memory tnt train", "stage": stage, "model": str(output), "seed": seed,
        "architecture": model.config.architecture, "chunks": model.config.chunks, "parameters": model.num_parameters(),
        "held_out": asdict(after), "before": None if before is None else asdict(before),
    }  # fmt: skip
    if json_:
        print_json(result)
    elif not quiet:
        was = "" if before is None else f" (before, at its own chunks: {before.perplexity:.2f})"
        console.print(
            f"{output}: {model.num_parameters():,} parameters, chunks {model.config.chunks}, perplexity"
            f" {after.perplexity:.2f} on {after.tokens:,} held-out tokens{was}", markup=False, soft_wrap=True,
        )  # fmt: skip


def _of_start(start: Path | None, trainable: str) -> str:
    """What tells stage 2 from one checkpoint from stage 2 from another, in the name of what is kept of it."""
    weights = None if start is None else start / "model.safetensors"
    if weights is None or not weights.is_file():
        return ""
    return "-" + hashlib.sha256(trainable.encode() + weights.read_bytes()).hexdigest()[:12]


@tnt_app.command("eval")
def evaluate_(
    model: Model,
    text: Text = None,
    contexts: Annotated[
        str, typer.Option(help="Tokens a row, several lengths: beyond the training length too.")
    ] = "512",
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Perplexity and speed by context length. All of the text is read; its chunks are those of the training."""
    from rote.memory.tnt import evaluate
    from rote.memory.tnt.checkpoints import load_checkpoint, pack

    lengths = _sizes(contexts, "--contexts")
    loaded, tokenizer = load_checkpoint(model)
    texts, rows = _texts(text), []
    with progress_bars(quiet=quiet or json_, unit="lengths") as progress:
        for done, length in enumerate(lengths):
            rows.append({"context": length, **asdict(evaluate(loaded, pack(tokenizer, texts, length)))})
            progress("contexts", done + 1, len(lengths))
    result = {"schema_version": "1.0", "command": "memory tnt eval", "model": str(model), "rows": rows}
    if json_:
        print_json(result)
    elif not quiet:
        _table(rows, ("context", "perplexity", "tokens", "tokens_per_second"))


@tnt_app.command("sweep")
def sweep(
    model: Model,
    text: Text = None,
    chunks: Annotated[str, typer.Option(help="Chunk sizes to evaluate at.")] = "1,2,4,8,16,32",
    context: Context = 512,
    rows: Annotated[int, typer.Option(help="Rows of text read at each size.")] = 32,
    output: Annotated[Path | None, typer.Option("-o", "--out", help="Folder for sweep.json and sweep.html.")] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Perplexity and speed of one checkpoint at several chunk sizes: may it be served at another one?"""
    from rote.atomic import write_atomic
    from rote.memory.tnt import chunk_sweep, sweep_figure
    from rote.memory.tnt.checkpoints import load_checkpoint, pack

    sizes = _sizes(chunks, "--chunks")
    loaded, tokenizer = load_checkpoint(model)
    stream = pack(tokenizer, _texts(text), context)[:rows]
    with progress_bars(quiet=quiet or json_, unit="sizes") as progress:
        found = chunk_sweep(loaded, stream, sizes, progress=lambda done, total: progress("chunks", done, total))
    result = {
        "schema_version": "1.0", "command": "memory tnt sweep", "model": str(model), "context": context,
        "trained": loaded.config.trained_chunks, "rows": found,
    }  # fmt: skip
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        write_atomic(output / "sweep.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
        write_atomic(output / "sweep.html", sweep_figure(found).to_html(include_plotlyjs=True, full_html=True))
    if json_:
        print_json(result)
    elif not quiet:
        _table(found, ("chunk", "perplexity", "tokens_per_second", "trained"))


@tnt_app.command("surprise")
def surprise(
    model: Model,
    text: Annotated[Path, typer.Option("--text", help="One text file.")],
    top: Annotated[int, typer.Option(help="How many tokens to list.")] = 50,
    memory: Annotated[
        int | None, typer.Option(help="Which memory of a block, from 0. [default: the first local]")
    ] = None,
    reveal: Annotated[bool, typer.Option("--reveal", help="Show the tokens; masked otherwise.")] = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Tokens of a text by surprise: where the memory was told to change most, with shard and chunk."""
    from rote.memory.tnt import most_surprising
    from rote.memory.tnt.checkpoints import load_checkpoint
    from rote.memory.tnt.surprise import path_names

    if top < 1:
        raise InputError(f"--top is {top}: it must be 1 or more")
    loaded, tokenizer = load_checkpoint(model)
    content = "\n".join(_texts([text]))
    ids = tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"]
    found = most_surprising(loaded, ids, top=top, path=memory)
    for row in found:
        token = row.pop("token")
        if reveal:
            row["token"] = tokenizer.decode([token])
    result = {
        "schema_version": "1.0", "command": "memory tnt surprise", "model": str(model), "memories": path_names(loaded),
        "tokens": len(ids), "rows": found,
    }  # fmt: skip
    if json_:
        print_json(result)
    elif not quiet:
        _table(found, ("position", *(("token",) if reveal else ()), "surprise", "shard", "chunk"))


def _texts(paths: list[Path] | None) -> list[str]:
    if not paths:
        from rote.records import stdlib_documents

        documents = [document.text for document in stdlib_documents() if document.id.startswith("topics/")]
        return documents or [document.text for document in stdlib_documents()]
    from rote.records.corpus import iter_documents

    texts = [document.text for document in iter_documents([str(path) for path in paths]) if document.text]
    if not texts:
        raise InputError(f"{', '.join(map(str, paths))}: there is no text in it")
    return texts


def _sizes(value: str, flag: str) -> list[int]:
    try:
        sizes = [int(part) for part in value.split(",") if part.strip()]
    except ValueError:
        raise InputError(f"{flag} {value!r}: give whole numbers with commas between, like 8,16") from None
    if not sizes or min(sizes) < 1:
        raise InputError(f"{flag} {value!r}: give one number or more, each 1 or larger")
    return sizes


def _steps(progress: Callable[[str, int, int], None]) -> Callable[[int, int, float], None]:
    return lambda step, steps, loss: progress("training", step, steps)


def _table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    from rich.table import Table

    if not rows:
        say("nothing to show")
        return
    table = Table(*columns)
    for row in rows:
        table.add_row(*(f"{row[name]:,.3f}" if isinstance(row[name], float) else repr(row[name]) if name == "token"
                        else "-" if row[name] is None else str(row[name]) for name in columns))  # fmt: skip
    console.print(table)
