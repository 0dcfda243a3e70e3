"""Study: how much an attention-only layer can memorize (Dana, Pydi & Chevaleyre 2024, arXiv 2411.10115).

Builds memories at exactly H d_h + d contexts, one context too many, and for soft targets; trains the formal model on
look-up tasks and sets it beside Corollary 2. That trained models lie above the bound is an observation: the corollary
says that a good model exists, not that training finds one.
"""

from __future__ import annotations

import ast
import codecs
import importlib.util
import re
from itertools import product
from pathlib import Path

import numpy as np

from rote.errors import InputError
from rote.runtime import derive_seed
from rote.studies.protocol import Claim, Study, StudyContext

# (N, S, d, d_h, H): card 5. S = 8 > d = 2 lies outside Mahdavi et al.
EXACT = (
    (10, 2, 2, 2, 20),
    (10, 3, 2, 2, 20),
    (10, 8, 2, 2, 15),
    (10, 2, 4, 4, 10),
    (50, 2, 10, 10, 20),
    (50, 2, 16, 16, 10),
)
REPEATS = 16  # tasks a head count at N = 10; the paper takes 5
HEADS, STEPS = (1, 5, 9, 13, 17), 2000
WIDE_REPEATS, WIDE_HEADS, WIDE_STEPS, WIDE_D = 4, (1, 2, 4, 6), 800, (3, 4, 6, 8)
STARTS = 16  # of the search for the best encoder
SAME = 1e-6  # nats

CLAIMS = (
    Claim(
        "exact",
        "one attention layer stores exactly H d_h + d associations, S > d included",
        "Theorem 1, Corollary 1: T0 = H d_h + d",
        "rank T0, accuracy 1 and a logit error below 1e-6, for all six sizes",
    ),
    Claim(
        "one_too_many",
        "with more contexts than H d_h + d the rank stays, and not all are stored",
        "Corollary 1 is what the construction reaches",
        "N = 10, d = d_h = 2, H = 20, 60 contexts: rank 42, accuracy below 1",
    ),
    Claim(
        "single_token",
        "for S = 1 attention is the identity: heads add no rank, and the builder refuses",
        "not in the paper (inferred)",
        "rank d, and an error, for d + 1 contexts of one token",
    ),
    Claim(
        "last_tokens",
        "H d_h + d needs contexts with d different last tokens and N + S - 1 > d; otherwise the rank is lower",
        "not in the paper, whose Theorem 1 has no such condition (derived)",
        "2 last tokens, d = 4, d_h = 2, H = 3: rank 8, not 10; N = S = 3, d = d_h = 5, H = 3: rank 15, not 20",
    ),
    Claim(
        "parameters",
        "Corollary 1 at N = 10, S = 2, T0 = 42 takes 364 parameters",
        "2 (S + 2N + 4 (T0 - 2))",
        "exactly 364",
    ),
    Claim(
        "distribution",
        "the built layer's KL equals the best sequence encoder's, falls with d and is 0 at d = N - 1",
        "Theorem 1 at eps = 0, Proposition 2",
        "equal within 1e-6 nats for d = 2..5, strictly falling, at most 1e-6 at d = 5 (N = 6, 36 contexts)",
    ),
    Claim(
        "floor",
        "no trained Transformer goes below the best sequence encoder",
        "Proposition 1",
        "every trained KL at least the floor less 1e-6",
    ),
    Claim(
        "partial",
        "with heads for the likelier contexts only, KL stays below Theorem 1's bound",
        "Theorem 1: d_KL(pi, L) + C eps |WE|",
        "measured KL at most the bound, contexts that were kept within 1e-6 of the encoder",
    ),
    Claim(
        "above_bound",
        "trained models memorize at least what Corollary 2 guarantees to exist (an observation)",
        "figure 1: far above",
        "every mean accuracy >= 1/N + (1 - 1/N)(H d_h + d)/T0, all head counts and d",
    ),
    Claim(
        "linear",
        "accuracy is linear in the number of heads before saturation",
        "figure 1a: linear",
        "R^2 > 0.95 below mean accuracy 0.95, N = 10 and d = 2, and each d at N = 20",
    ),
    Claim(
        "slope",
        "associations per trained head exceed the d_h that is guaranteed",
        "1.3 to 1.5 times at N = 10, about 9 times at N = 50, d = 10",
        "slope >= 1.5 d_h, N = 10 and d = 2, and each d at N = 20",
    ),
    Claim(
        "exponent",
        "associations per head grow faster than linearly in d = d_h",
        "figure 2: between quadratic and cubic",
        "log-log exponent of the slope over d = 3, 4, 6, 8 above 1.2",
    ),
    Claim(
        "real_text",
        "the two-word contexts of a real text are stored in full by the planned number of heads",
        "none (Corollary 1 applied)",
        "accuracy 1 on all contexts with one next word, in float64 after reading back",
    ),
)


def run(context: StudyContext) -> None:
    context.progress("building exact memories")
    _constructions(context)
    context.progress("distributions: floor, built, trained")
    _distributions(context)
    context.progress("a real text")
    _real_text(context)
    context.progress(f"training {len(HEADS) * REPEATS} models, N = 10")
    _trained(context)


def _constructions(context: StudyContext) -> None:
    from rote.theory.attention import build_attention_memory, parameter_count

    rows = []
    for n, s, d, d_head, heads in EXACT:
        stored = heads * d_head + d
        contexts, labels = _random_facts(context.seed, n, s, stored)
        memory = build_attention_memory(contexts, labels, d=d, d_head=d_head, heads=heads, vocab=n, seed=context.seed)
        rows.append(
            {
                "N": n,
                "S": s,
                "d": d,
                "d_head": d_head,
                "heads": heads,
                "contexts": stored,
                "rank": memory.rank,
                "cond": memory.cond,
                "accuracy": memory.accuracy,
                "min_margin": memory.min_margin,
                "ideal_margin": memory.ideal_margin,
                "logit_error": memory.logit_error,
            }
        )
    context.table("constructions", rows)
    good = [row["rank"] == row["contexts"] and row["accuracy"] == 1 and row["logit_error"] < 1e-6 for row in rows]
    context.claim(
        "exact",
        observed={"exact": sum(good), "of": len(rows), "largest logit error": max(row["logit_error"] for row in rows)},
        holds=all(good),
    )
    contexts, labels = _random_facts(context.seed, 10, 2, 60)
    sizes = {"d": 2, "d_head": 2, "heads": 20, "vocab": 10, "seed": context.seed}
    crowded = build_attention_memory(contexts, labels, excess="least_squares", **sizes)
    context.claim(
        "one_too_many",
        observed={"rank": crowded.rank, "accuracy": crowded.accuracy},
        holds=crowded.rank == 42 and crowded.accuracy < 1,
    )
    contexts, labels = _random_facts(context.seed, 10, 1, 3)
    single = build_attention_memory(contexts, labels, excess="least_squares", **sizes)
    try:
        build_attention_memory(contexts, labels, **sizes)
        refused = False
    except InputError:
        refused = True
    context.claim(
        "single_token", observed={"rank": single.rank, "refused": refused}, holds=single.rank == 2 and refused
    )
    ranks = []
    for n, s, d, d_head, last in ((6, 3, 4, 2, 2), (3, 3, 5, 5, 3)):
        every = np.array(list(product(range(n), repeat=s)))
        chosen = every[every[:, -1] < last]
        labels = np.random.default_rng(derive_seed(context.seed, "last", n)).integers(0, n, len(chosen))
        poor = build_attention_memory(
            chosen, labels, d=d, d_head=d_head, heads=3, vocab=n, seed=context.seed, excess="least_squares"
        )
        ranks.append(poor.rank)
    context.claim("last_tokens", observed=ranks, holds=ranks == [8, 15])
    count = parameter_count(vocab=10, context=2, d=2, d_head=2, heads=20)
    context.claim("parameters", observed=count, holds=count == 364)


def _random_facts(seed: int, n: int, s: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` different contexts of S tokens, each with a random next token."""
    rng = np.random.default_rng(derive_seed(seed, "facts", n, s, count))
    ranks = rng.choice(n**s, size=count, replace=False)
    return np.stack([(ranks // n**position) % n for position in range(s)], axis=1), rng.integers(0, n, count)


def _distributions(context: StudyContext) -> None:
    import plotly.graph_objects as go

    from rote.theory.attention import (
        Run,
        build_attention_distribution,
        floor_figure,
        floored,
        kl_by_context,
        logits,
        sequence_encoder_floor,
        train_runs,
    )

    n = 6
    contexts = np.array(list(product(range(n), repeat=2)))
    rng = np.random.default_rng(derive_seed(context.seed, "dirichlet"))
    pi = floored(rng.dirichlet(np.ones(n), len(contexts)), 1e-3)
    prior = rng.dirichlet(np.full(len(contexts), 0.3))
    rows = []
    for d in (2, 3, 4, 5):
        floor = sequence_encoder_floor(pi, d=d, seed=context.seed, starts=STARTS)
        heads = -(-(len(contexts) - d) // d)
        built = build_attention_distribution(contexts, pi, d=d, d_head=d, heads=heads, seed=context.seed, floor=floor)
        runs = [Run(count, 0, derive_seed(context.seed, "floor", d, count)) for count in (heads, 2 * heads)]
        trained = train_runs(contexts, np.stack([pi] * len(runs)), runs, d=d, d_head=d, steps=STEPS)
        rows.append(
            {"d": d, "heads": heads, "floor": floor.kl, "built": built.kl, "trained": float(trained.kl.min())}
            | {"starts at the floor": floor.agreement, "cond": built.cond}
        )
    context.table("distributions", rows)
    context.figure("distributions", go.Figure(floor_figure(rows, "36 distributions over N = 6 tokens, S = 2")))
    gaps = [abs(row["built"] - row["floor"]) for row in rows]
    floors = [row["floor"] for row in rows]
    context.claim(
        "distribution",
        observed={"floor": floors, "largest gap": max(gaps)},
        holds=max(gaps) <= SAME and all(np.diff(floors) < 0) and floors[-1] <= SAME,
    )
    context.claim(
        "floor",
        observed={"trained": [row["trained"] for row in rows], "floor": floors},
        holds=all(row["trained"] >= row["floor"] - SAME for row in rows),
    )
    d, heads = 3, 6
    part = build_attention_distribution(
        contexts, pi, d=d, d_head=d, heads=heads, seed=context.seed, prior=prior, excess="most_likely"
    )
    left = part.remainder
    best = sequence_encoder_floor(pi, d=d, prior=prior, seed=context.seed)
    real = kl_by_context(pi, logits(part.weights, contexts))
    ideal = kl_by_context(pi, best.logits)
    kept_gap = float(np.abs(prior[part.kept] * (real - ideal)[part.kept]).sum())
    context.claim(
        "partial",
        observed={"eps": left and left.eps, "KL": left and left.kl, "bound": left and left.bound, "kept gap": kept_gap},
        holds=left is not None and left.bound is not None and left.kl <= left.bound and kept_gap <= SAME,
    )


def _real_text(context: StudyContext) -> None:
    """The Zen of Python, read from the standard library's module without importing it."""
    from rote.theory.attention import AttentionMemory, attention_plan, build_attention_memory, facts_from_text

    facts = facts_from_text(_zen_words(), context=2)
    unique = (facts.counts > 0).sum(axis=1) == 1
    d = 16
    plan = attention_plan(n_facts=int(unique.sum()), vocab=facts.vocab, context=2, d=d, d_head=d)
    memory = build_attention_memory(
        facts.contexts[unique],
        facts.labels[unique],
        d=d,
        d_head=d,
        heads=plan.heads_needed,
        vocab=facts.vocab,
        seed=context.seed,
    )
    memory.save(context.out / "zen")
    again = AttentionMemory.load(context.out / "zen")
    observed = {
        "contexts": plan.n_facts, "with several next words": int((~unique).sum()), "vocabulary": facts.vocab,
        "heads": plan.heads_needed, "parameters": again.weights.parameters, "accuracy": again.accuracy,
        "smallest margin": again.min_margin,
    }  # fmt: skip
    context.claim("real_text", observed=observed, holds=again.accuracy == 1)


def _zen_words() -> list[str]:
    place = importlib.util.find_spec("this")
    if place is None or place.origin is None:
        raise InputError("this Python has no module `this`; the study reads its text from the standard library")
    tree = ast.parse(Path(place.origin).read_text(encoding="utf-8"))
    longest = max((node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)), key=lambda v: len(str(v)))
    return re.findall(r"[a-z']+|[.,!*-]+", codecs.decode(str(longest), "rot13").lower())


def _trained(context: StudyContext) -> None:
    import plotly.graph_objects as go

    from rote.theory.attention import log_log_exponent, measure_attention, slope_figure, trained_figure

    seeds = [derive_seed(context.seed, "narrow", i) for i in range(REPEATS)]
    narrow = measure_attention(N=10, d=2, d_head=2, heads=HEADS, seeds=seeds, steps=STEPS)
    mlp = measure_attention(N=10, d=2, d_head=2, heads=HEADS, seeds=seeds[:4], steps=STEPS, mlp=True)
    seeds = [derive_seed(context.seed, "wide", i) for i in range(WIDE_REPEATS)]
    wide = []
    for d in WIDE_D:
        context.progress(f"training {len(WIDE_HEADS) * WIDE_REPEATS} models, N = 20, d = {d}")
        wide.append(measure_attention(N=20, d=d, d_head=d, heads=WIDE_HEADS, seeds=seeds, steps=WIDE_STEPS))
    curves = [narrow, *wide]
    context.table("trained", [row for curve in [*curves, mlp] for row in curve.rows()])
    context.figure("trained_d2", go.Figure(trained_figure([narrow, mlp], "Look-up of 100 contexts, N = 10, S = 2")))
    context.figure("trained_d", go.Figure(trained_figure(wide, "Look-up of 400 contexts, N = 20, S = 2")))
    context.figure("slopes", go.Figure(slope_figure(wide, "What a trained head stores, N = 20, S = 2")))
    margin = min(float((curve.mean_accuracy - curve.bound).min()) for curve in curves)
    context.claim(
        "above_bound",
        observed={"smallest mean accuracy minus bound": margin, "N = 10": narrow.mean_accuracy, "bound": narrow.bound},
        holds=margin >= 0,
    )
    fits = {f"N = {curve.vocab}, d = {curve.d}": curve.r2 for curve in curves}
    context.claim("linear", observed=fits, holds=all(r2 is not None and r2 > 0.95 for r2 in fits.values()))
    slopes = {f"N = {curve.vocab}, d = {curve.d}": curve.slope for curve in curves}
    context.claim(
        "slope",
        observed=slopes,
        holds=all(curve.slope_ratio is not None and curve.slope_ratio >= 1.5 for curve in curves),
    )
    found = [curve.slope for curve in wide if curve.slope is not None and curve.slope > 0]
    exponent = log_log_exponent(WIDE_D, found) if len(found) == len(WIDE_D) else None
    context.claim("exponent", observed=exponent, holds=exponent is not None and exponent > 1.2)


STUDY = Study(
    slug="attention-memorization",
    title="How much an attention-only layer can memorize",
    arxiv="2411.10115",
    claims=CLAIMS,
    run=run,
)
