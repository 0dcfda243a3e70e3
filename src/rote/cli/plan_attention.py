"""`rote plan attention`: how many heads N facts need, and the weights that hold them.

Thin: parses, calls `rote.theory.attention`, prints. Heavy libraries are imported inside the command.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rote.cli.console import out as console
from rote.cli.console import print_json, say
from rote.errors import InputError

if TYPE_CHECKING:
    from rote.theory.attention.facts import Facts

FLOOR = 1e-3  # probability mass spread over all tokens where conflicting facts are built as distributions


def attention(
    facts: Annotated[int | None, typer.Option("--facts", help="How many facts to plan for.")] = None,
    vocab: Annotated[int | None, typer.Option("--vocab", help="Tokens in the vocabulary, N.")] = None,
    context: Annotated[int | None, typer.Option("--context", help="Tokens of context per fact, S.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help='Facts instead of numbers: rows {"context": [...], "next": ...}.')
    ] = None,
    d: Annotated[int, typer.Option("--d", help="Dimension of the residual stream.")] = 16,
    d_head: Annotated[int | None, typer.Option("--d-head", help="Dimension of a head, at most d (default: d).")] = None,
    heads: Annotated[
        int | None, typer.Option("--heads", help="Heads to build with; too few keep the most likely facts only.")
    ] = None,
    code: Annotated[
        str, typer.Option("--code", help="Unembedding: circle (2 dimensions) or spread (wide margins).")
    ] = ("circle"),
    build: Annotated[
        Path | None, typer.Option("--build", help="Write the facts into weights there (safetensors + JSON).")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--out", help="Directory for attention.json and attention.html.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no summary.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Another seed is another draw of the weights.")] = 0,
) -> None:
    """Plan an attention-only memory: heads and parameters for N facts; with --data and --build, the weights too.

    The construction stores H * d_head + d facts exactly, whatever the length of the context (arXiv 2411.10115).
    """
    from rote.theory.attention import attention_plan

    width = d if d_head is None else d_head
    if build is not None and data is None:
        raise InputError("--build needs --data: a file with the facts to write into the weights")
    if heads is not None and build is None:
        raise InputError("--heads is for --build; the plan itself says how many heads are needed")
    table = None
    if data is not None:
        from rote.theory.attention import read_facts

        if facts is not None:
            raise InputError("give --facts (a number) or --data (a file), not both")
        table = read_facts(data, vocab=vocab, context=context)
        facts, vocab, context = len(table.contexts), table.vocab, table.contexts.shape[1]
    missing = [
        name for name, value in (("--facts", facts), ("--vocab", vocab), ("--context", context)) if value is None
    ]
    if facts is None or vocab is None or context is None:
        raise InputError(f"{', '.join(missing)} missing: give --facts, --vocab and --context, or --data FILE")
    seen = None if table is None else table.contexts
    plan = attention_plan(n_facts=facts, vocab=vocab, context=context, d=d, d_head=width, contexts=seen)
    result: dict[str, Any] = {"schema_version": "1.0", "plan": plan.to_dict()}
    if table is not None:
        result["data"] = {
            "rows": table.rows,
            "contexts": len(table.contexts),
            "repeated_rows": table.repeated,
            "conflicting_contexts": table.conflicting,
            "kind": "distribution" if table.is_distribution else "association",
        }
    if build is not None and table is not None:
        say(f"  building {plan.n_facts:,} facts into {heads or plan.heads_needed} heads", quiet=quiet or json_)
        used = plan.heads_needed if heads is None else heads
        result["build"] = _build(table, build, d=d, d_head=width, heads=used, code=code, seed=seed)
    if output is not None:
        _write_page(result, plan, output)
    if json_:
        print_json(result)
    elif not quiet:
        _print(result, output)


def _build(table: Facts, directory: Path, *, d: int, d_head: int, heads: int, code: str, seed: int) -> dict[str, Any]:
    """Build, save, read back, and report what the weights that were read do."""
    from rote.atomic import write_atomic
    from rote.theory.attention import (
        AttentionMemory,
        DistributionMemory,
        NumericallyInfeasible,
        build_attention_distribution,
        build_attention_memory,
        floored,
    )

    sizes: Any = {"d": d, "d_head": d_head, "heads": heads, "seed": seed}
    sizes |= {"excess": "most_likely", "prior": table.prior}  # where all fit, all are kept
    if table.is_distribution:
        build_attention_distribution(table.contexts, floored(table.pi, FLOOR), **sizes).save(directory)
        memory = DistributionMemory.load(directory)
        found: dict[str, Any] = {
            "kind": "distribution", "floored_by": FLOOR, "kl": memory.kl, "best_encoder_kl": memory.floor,
            "recalled": float((memory.distribution(table.contexts).argmax(axis=1) == table.labels).mean()),
        }  # fmt: skip
    else:
        build_attention_memory(table.contexts, table.labels, vocab=table.vocab, code=code, **sizes).save(directory)
        memory = AttentionMemory.load(directory)
        try:
            short: float | None = memory.rounded("float32").min_margin
        except NumericallyInfeasible:
            short = None
        found = {
            "kind": "association", "code": code, "recalled": memory.accuracy, "min_margin": memory.min_margin,
            "ideal_margin": memory.ideal_margin, "logit_error": memory.logit_error, "precision": memory.precision,
            "float32_min_margin": short,
        }  # fmt: skip
    if table.tokens is not None:
        write_atomic(directory / "vocabulary.json", json.dumps(table.tokens, ensure_ascii=False) + "\n")
    left = memory.remainder
    return found | {
        "directory": str(directory), "contexts": len(table.contexts), "kept": int(memory.kept.sum()), "heads": heads,
        "parameters": memory.weights.parameters, "rank": memory.rank, "cond": memory.cond, "draws": memory.draws,
        "seed": seed, "remainder": None if left is None else vars(left), "verified_after_reading_back": True,
    }  # fmt: skip


def _write_page(result: dict[str, Any], plan: Any, directory: Path) -> None:
    import plotly.graph_objects as go

    from rote.atomic import write_atomic
    from rote.theory.attention import scaling_figure, scaling_rows

    directory.mkdir(parents=True, exist_ok=True)
    page = go.Figure(scaling_figure(plan)).to_html(include_plotlyjs=True, full_html=True)
    write_atomic(directory / "attention.html", page)
    document = result | {"scaling": scaling_rows(plan)}
    write_atomic(directory / "attention.json", json.dumps(document, indent=1, allow_nan=False) + "\n")


def _print(result: dict[str, Any], output: Path | None) -> None:
    plan, lines = result["plan"], []
    if "data" in result:
        read = result["data"]
        lines.append(f"{read['rows']:,} rows, {read['contexts']:,} different contexts of {plan['context']} tokens")
        if read["kind"] == "distribution":
            lines.append(
                f"{read['conflicting_contexts']:,} of them have several next tokens: this is a distribution, not an"
                f" association; exact storage needs d >= {plan['distribution_dimension']}, below that the best is a"
                " floor above 0"
            )
    lines.append(
        f"{plan['n_facts']:,} facts, N = {plan['vocab']:,}, S = {plan['context']}, d = {plan['d']},"
        f" d_head = {plan['d_head']}: {plan['heads_needed']} heads (they hold {plan['capacity']:,})"
    )
    lines.append(
        f"parameters: {plan['parameters']:,}, or {plan['parameters_rank_one']:,} with rank-1 attention patterns,"
        " which the construction uses"
    )
    if plan["caveat"] is not None:
        lines.append(plan["caveat"])
    earlier = plan["prior_bound_heads"]
    known = (
        f"{earlier} heads" if earlier is not None else f"does not apply (needs S <= d = {plan['d']} and d_head >= 2)"
    )
    lines.append(f"Mahdavi et al. 2024: {known}")
    lines += [
        f"{rate['source']}: {rate['expression']} = {rate['value']:,.0f}; {rate['label']}" for rate in plan["rates"]
    ]
    lines.append(f"smallest logit margin on the circle: {plan['circle_margin']:.2g} at scale 1")
    if "build" in result:
        built = result["build"]
        lines.append(
            f"built: {built['kept']:,} of {built['contexts']:,} contexts exactly, rank {built['rank']}, condition"
            f" number {built['cond']:.1e}; after reading back from {built['directory']}, {built['recalled']:.1%} are"
            " recalled"
        )
        if built["kind"] == "distribution":
            lines.append(
                f"KL {built['kl']:.6f} nats; best sequence encoder found {built['best_encoder_kl']:.6f}"
                f" (targets mixed with {FLOOR:g} of the uniform)"
            )
        else:
            short = built["float32_min_margin"]
            note = f"{short:.2g} as float32" if short is not None else "not recalled as float32: keep float64"
            lines.append(f"smallest margin {built['min_margin']:.2g} as {built['precision']}, {note}")
        if built["remainder"] is not None:
            left = built["remainder"]
            lines.append(
                f"{left['left_out']:,} contexts left out (prior {left['eps']:.3f}): KL {left['kl']:.3f} nats,"
                + (f" Theorem 1 bounds it by {left['bound']:.3f}" if left["bound"] is not None else " no bound applies")
            )
    if output is not None:
        lines.append(f"page: {output / 'attention.html'}")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
