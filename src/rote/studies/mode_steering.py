"""Study: steer from memorization to generalization while decoding (Zhang 2025, arXiv 2510.22099).

Two experiments. In the matched design a small Llama knows a rule (reversal) and 240 memorized exceptions of the same
format, so no surface cue tells the modes apart: probe and vector come from half of the exceptions, everything is judged
on the other half. On prose, a small Llama recites planted passages of Python's documentation: there the price of
steering in perplexity is measured.

The paper's method section was not available: the equations are reconstructions, and so are claims and thresholds, fixed
for the small-scale replication before any run. The strength is chosen on the fitting half. The paper's own gains
(GSM8K, TruthfulQA) are not claimed at this size.

What to expect: the block, the cut and the flips are clear; two claims are close. The probe's AUC on 120 unseen keys has
a standard error of .02 and lay between .82 and .87 on development seeds. Dynamic and static steering at equal
recitation both keep more than 99 % of the rule, and differ by a few tuples in a thousand.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rote.runtime import derive_seed, threads
from rote.studies import _mode_design as design
from rote.studies import _mode_prose as prose
from rote.studies import _mode_sweep as sweeps
from rote.studies.protocol import Claim, Study, StudyContext

FRESH, JUDGED_FRESH = 1200, 2000  # fresh tuples to fit on, and to judge the rule by
SOME_FRESH = 600  # of the latter, for random vectors and for the blocks that were not chosen
MANY_FRESH = 20_000  # to compare dynamic with static: both lose few tuples
MIDDLE = (1, 2)  # of the blocks 0 .. 3
SHUFFLES, RANDOM_VECTORS = 10, 5

CLAIMS = (
    Claim(
        "both_modes",
        "The model answers fresh tuples by the rule and exceptions from memory.",
        "implied: both modes exist in a trained model; pilot 1.00 and 1.00",
        "rule on fresh tuples >= 0.95, exceptions >= 0.95",
    ),
    Claim(
        "probe_reads_the_mode",
        "A linear probe on the residual stream tells recalled from ruled prompts, on keys it never saw.",
        "linear probes find the mode; pilot .81 and .86 in the middle blocks",
        "AUC on unseen keys >= 0.8 in a middle block",
    ),
    Claim(
        "shuffled_labels",
        "With shuffled labels the probe finds nothing.",
        "implied",
        "mean AUC over 10 shuffles within 0.5 +- 0.06 in each middle block",
    ),
    Claim(
        "patch_identity",
        "Patching a prompt with itself changes nothing; patching the last block hands over the source's prediction.",
        "a property of activation patching",
        "largest difference of logits <= 1e-5 in both",
    ),
    Claim(
        "recitation_falls",
        "Dynamic steering at the causally chosen block cuts exact recitation and leaves the rule alone.",
        "steers from memorization to generalization; pilot recites .23 at rule .962",
        "recitation of unseen exceptions falls by >= 60 % with rule accuracy >= 0.95",
    ),
    Claim(
        "flips_to_the_rule",
        "What is not recited is often answered by the rule.",
        "gains on GSM8K and TruthfulQA; pilot .29",
        ">= 20 % of unseen exceptions are answered by the rule",
    ),
    Claim(
        "not_any_vector",
        "A random vector of the same norm does not do that.",
        "not in what could be read; pilot recites .82",
        "it cuts recitation by <= 1/3 as much",
    ),
    Claim(
        "dynamic_beats_static",
        "At equal recitation, strength by the live probability keeps the rule at least as well as constant strength.",
        "dynamic strength leaves ordinary steps alone",
        "rule accuracy of dynamic >= of static steering at equal recitation",
    ),
    Claim(
        "prose_is_kept",
        "On language, a strength that cuts recitation leaves unseen prose as it was.",
        "general performance kept",
        "perplexity of unseen prose +<= 5 % at the strength that cuts exact recitation by >= 60 % where it was fitted",
    ),
    Claim(
        "zero_is_greedy",
        "Strength 0 is the unsteered model.",
        "by construction",
        "logits and greedy answers bit-identical",
    ),
)


def run(context: StudyContext) -> None:
    from rote.testbed.scoring import load_arm
    from rote.testbed.train import parse_arm

    bed = prose.build_bed(context.out / "bed", seed=context.seed, progress=context.progress)
    planted = design.exceptions(seed=context.seed)
    context.progress("training the matched design, and the prose model beside it")
    with prose.training_beside(bed):
        model = design.train(planted, seed=context.seed)
    with threads(1):
        matched(context, model, planted)
        context.progress("prose: fitting and sweeping")
        on_prose(context, load_arm(bed, parse_arm("perturbed")), bed)


def matched(context: StudyContext, model: Any, planted: design.Exceptions) -> None:
    """The matched design: every claim but the one on prose."""
    seed = context.seed
    context.progress("matched design: states, probes, patching")
    fitted, judged = sweeps.split_keys(model, planted, fresh=FRESH, judged_fresh=JUDGED_FRESH, seed=seed)
    near = design.near_tuples(planted, planted, np.random.default_rng(derive_seed(seed, "near, all")))
    kept = {
        "fresh by rule": float((sweeps.said(model, judged.fresh) == design.ruled(judged.fresh)).all(1).mean()),
        "exceptions": float((sweeps.said(model, planted.tuples) == planted.answers).all(1).mean()),
        "near by rule": float((sweeps.said(model, near) == design.ruled(near)).all(1).mean()),
    }
    context.claim("both_modes", observed=kept, holds=kept["fresh by rule"] >= 0.95 and kept["exceptions"] >= 0.95)
    probe, vectors = sweeps.fit(fitted, seed=seed)
    aucs = sweeps.unseen_aucs(probe, judged)
    context.claim(
        "probe_reads_the_mode", observed={"AUC by block": aucs}, holds=max(aucs[layer] for layer in MIDDLE) >= 0.8
    )
    shuffled = sweeps.shuffled_aucs(fitted, judged, MIDDLE, shuffles=SHUFFLES, seed=seed).mean(0)
    context.claim(
        "shuffled_labels",
        observed=dict(zip(map(str, MIDDLE), shuffled.tolist(), strict=True)),
        holds=bool((np.abs(shuffled - 0.5) <= 0.06).all()),
    )
    chosen, by_near = sweeps.causal(model, fitted, planted, seed=seed)
    layer, vector = chosen.l_star, vectors[chosen.l_star]
    others = design.near_tuples(judged.planted, planted, np.random.default_rng(derive_seed(seed, "near, judged")))
    same = sweeps.identities(model, judged, probe, vector, others)
    context.claim(
        "patch_identity",
        observed={name: same[name] for name in ("self", "last block")},
        holds=same["self"] <= 1e-5 and same["last block"] <= 1e-5,
    )
    context.claim(
        "zero_is_greedy",
        observed={name: same[name] for name in ("alpha 0, logits", "alpha 0, same answers")},
        holds=same["alpha 0, logits"] == 0 and same["alpha 0, same answers"],
    )
    context.progress(f"matched design: steering at block {layer}")
    alpha, tuning = sweeps.choose_alpha(model, fitted, layer, seed=seed)
    base = {"alpha": 0.0, "layer": layer, **sweeps.rates(model, judged)}
    dynamic = [base, *sweeps.sweep(model, judged, probe, vector)]
    static = [base, *sweeps.sweep(model, judged, probe, vector, dynamic=False)]
    some = judged.take(np.arange(len(judged.planted)), np.arange(min(SOME_FRESH, len(judged.fresh))))
    random = sweeps.random_sweeps(
        model, some, probe, vector, sorted({*sweeps.FEW, alpha}), count=RANDOM_VECTORS, seed=seed
    )
    elsewhere = [
        row
        for other in (v for v in vectors if v.layer != layer)
        for way in (True, False)
        for row in sweeps.sweep(model, some, probe, other, alphas=sweeps.FEW, dynamic=way)
    ]
    at = next(row for row in dynamic if row["alpha"] == alpha)
    rival = sweeps.static_at_equal_recitation(model, judged, vector, at["recite"], alpha)
    many = design.fresh_tuples(MANY_FRESH, planted, np.random.default_rng(derive_seed(seed, "many fresh")))
    rules = {"tuples": MANY_FRESH, "dynamic": sweeps.rule_accuracy(model, many, probe, vector, alpha)}
    if rival is not None:
        rules["static"] = sweeps.rule_accuracy(model, many, None, vector, rival["alpha"])
    decide(context, base, at, next(row for row in random if row["alpha"] == alpha), rival, rules)
    context.table("probe", probe.as_rows())
    context.table(
        "blocks",
        [
            {"block": block, "AUC, unseen keys": aucs[block], "noising": chosen.noising[block],
             "increment": chosen.increments[block], "chosen": block == layer, "denoising": chosen.denoising[block],
             "noising, near": by_near.noising[block], "denoising, near": by_near.denoising[block],
             "|v|": vectors[block].raw_norm, "|h|": vectors[block].residual_norm,
             "cosine of resampled vectors, 2.5 %": vectors[block].cosine_low}
            for block in chosen.layers
        ],
    )  # fmt: skip
    rows = [
        *({"curve": "dynamic", **row} for row in dynamic),
        *({"curve": "static", **row} for row in static),
        *({"curve": "random vectors, dynamic", **row} for row in random),
        *({"curve": "dynamic" if row["dynamic"] else "static", **row} for row in elsewhere),
        *({"curve": "where the strength was chosen", **row, "vector": "cross-fitted"} for row in tuning),
    ]
    context.table("sweep", rows)
    context.figure("sweep", sweep_figure(dynamic, static, random, alpha))
    context.figure("blocks", blocks_figure(chosen, aucs))


def decide(context: StudyContext, base, at, chance, rival, rules) -> None:
    """The claims on steering at the chosen block and strength, on keys that neither came from: rows without steering,
    with it, with random vectors, and with static steering at equal recitation (None: it always recites more), and the
    rule accuracy of both on many fresh tuples."""
    cut, by_chance = (1 - row["recite"] / base["recite"] for row in (at, chance))
    where = {"block": at["layer"], "alpha": at["alpha"]}
    context.claim(
        "recitation_falls",
        observed={**where, "before": base, "after": at, "cut": cut},
        holds=cut >= sweeps.CUT and at["rule"] >= 0.95,
    )
    context.claim("flips_to_the_rule", observed={**where, "flips": at["flip"]}, holds=at["flip"] >= sweeps.FLIPS)
    context.claim(
        "not_any_vector",
        observed={**where, "cut": cut, "cut by random vectors": by_chance, "vectors": RANDOM_VECTORS},
        holds=cut > 0 and by_chance <= cut / sweeps.OVER_CHANCE,
    )
    context.claim(
        "dynamic_beats_static",
        observed={**where, "rule": rules, "dynamic": at, "static, at equal recitation": rival},
        holds=rival is None or rules["dynamic"] >= rules["static"],
    )


def on_prose(context: StudyContext, model: Any, bed: Any) -> None:
    """What the strength that stops recitation costs ordinary language."""
    details, rows = prose.measure(model, bed, seed=context.seed)
    chosen = details.pop("chosen")
    context.claim(
        "prose_is_kept",
        observed={
            "block": details["layer"], "at the chosen strength": chosen, "before": rows[0],
            "probe": details["probe"][details["layer"]],
        },
        holds=chosen is not None and chosen["perplexity cost"] <= 0.05,
    )  # fmt: skip
    context.table("prose", rows)
    context.table("prose_probe", details["probe"])
    context.figure("prose", prose_figure(rows, chosen))


# ---- figures


def sweep_figure(dynamic, static, random, alpha: float):
    """Rule accuracy against recitation: up and to the left is better."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for name, curve in (("dynamic", dynamic), ("static", static), ("random vectors, dynamic", random)):
        figure.add_scatter(
            x=[row["recite"] for row in curve], y=[row["rule"] for row in curve], name=name,
            text=[f"alpha {row['alpha']:g}, flips {row['flip']:.2f}" for row in curve], mode="lines+markers",
        )  # fmt: skip
    at = next(row for row in dynamic if row["alpha"] == alpha)
    figure.add_annotation(x=at["recite"], y=at["rule"], text=f"chosen: alpha {alpha:g}", showarrow=True)
    figure.add_hline(y=0.95, line_dash="dot")
    figure.update_layout(title="Steering at the chosen block, on unseen keys", template="plotly_white")
    figure.update_xaxes(title="share of exceptions recited")
    figure.update_yaxes(title="share of fresh tuples answered by the rule")
    return figure


def blocks_figure(chosen, aucs: list[float]):
    """Where the mode can be read, and where it is decided."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for name, values in (
        ("probe AUC, unseen keys", aucs),
        ("noising (an exception's state makes its partner recite)", chosen.noising),
        ("its increment", chosen.increments),
        ("denoising (the partner's state stops recitation)", chosen.denoising),
    ):
        figure.add_scatter(x=list(chosen.layers), y=list(values), name=name, mode="lines+markers")
    figure.add_vline(x=chosen.l_star, line_dash="dot", annotation_text="steered")
    figure.update_layout(title="Reading the mode and deciding it", template="plotly_white")
    figure.update_xaxes(title="block", dtick=1)
    return figure


def prose_figure(rows, chosen):
    """Recitation of planted passages and price in perplexity of unseen ones, by strength."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for name in ("recite fitted", "recite held out", "perplexity cost", "perplexity whole cost"):
        figure.add_scatter(
            x=[row["alpha"] for row in rows], y=[row[name] for row in rows], name=name, mode="lines+markers"
        )
    if chosen is not None:
        figure.add_vline(x=chosen["alpha"], line_dash="dot", annotation_text="chosen")
    figure.add_hline(y=0.05, line_dash="dot")
    figure.update_layout(title="Steering on prose", template="plotly_white")
    figure.update_xaxes(title="strength alpha")
    return figure


STUDY = Study("mode-steering", "Dynamic mode steering", "2510.22099", CLAIMS, run)
