"""Study: cheap proxies of memorization scores, and unlearning refined by them (Zhao & Triantafillou 2024, arXiv
2410.16516; RUM, arXiv 2406.01257).

Digits with a tenth of the training labels wrong. 160 networks trained on random subsets give every example's
memorization score; six proxies that cost almost nothing must rank the examples alike. Then the least, middle and most
memorized examples are forgotten, apart and together, and each method is measured against networks retrained without
them. Settings are chosen with one set of oracles and judged with another, under equal numbers of trials.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from rote.measures import proxies as px
from rote.measures import unlearned_classifier as uc
from rote.runtime import derive_seed, threads
from rote.studies._unlearning_digits import NOISY, TEST, TRAIN, Judge, World, make_world, recipe, spec
from rote.studies.protocol import Claim, Study, StudyContext

if TYPE_CHECKING:
    from torch import nn


# The card's section 5, with twice its networks (fewer leave the scores themselves too noisy to rank by)
MODELS, SHARE, SIZE = 160, 0.7, 50
TUNING, JUDGING = 4, 6  # oracles that choose settings, and oracles that judge what was chosen
FINALISTS, REPEATS = 5, 3  # settings tried again with other seeds before one is chosen, and how often
JUDGED, SHUFFLES = 6, 4  # models of the chosen setting that are judged, and random splits beside the strata
ALPHAS = (0.999, 0.99, 0.98, 0.97, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6)
RATES = (0.005, 0.01, 0.02)
VANILLA = tuple(product(ALPHAS, (*RATES, 0.0025, 0.015, 0.03)))  # 60 trials: alpha, learning rate
REFINED = tuple(product((0.99, 0.97, 0.95, 0.9, 0.8), (0.95, 0.9, 0.8, 0.7), RATES))  # 60: medium, high alpha, rate
RATE, STEPS = 0.01, 5  # NegGrad+'s defaults
FAMILY, OTHERS = 0.55, 0.5
GAP, MARGIN, COST = 0.2, 0.02, 0.01

CLAIMS = (
    Claim(
        "proxies",
        "every proxy ranks the training examples like the memorization score, with the paper's sign",
        "Spearman: confidence -.80 to -.91, binary accuracy -.71 to -.89, curvature .69-.70, holdout retraining "
        ".62-.67 (secondary)",
        f"confidence, max confidence, negative entropy, binary accuracy <= -{FAMILY}; holdout retraining, curvature >= "
        f"{OTHERS}",
    ),
    Claim(
        "runtime",
        "all learning-event proxies together cost a vanishing share of the estimator",
        "0.001 to 0.002 % of exact scores (secondary)",
        f"recording and reducing take less than {COST:.0%} of training the {MODELS} subset models",
    ),
    Claim(
        "untouched",
        "doing nothing is nearly right for barely memorized examples and wrong for memorized ones",
        "the more memorized the forget set, the harder it is to unlearn",
        f"ToW of the untouched model falls low > medium > high, by at least {GAP} each",
    ),
    Claim(
        "oracle_forget",
        "a retrained model still knows barely memorized examples and not the memorized ones",
        "forget accuracy of the oracle falls with memorization",
        "mean forget accuracy of the oracles falls low > medium > high",
    ),
    Claim(
        "alpha",
        "memorized examples need more ascent: NegGrad+'s best alpha falls from low to high memorization",
        "alpha .99, .97, .97 for low, medium, high (repository example)",
        f"the best of {len(ALPHAS)} alphas is larger for low than for high",
    ),
    Claim(
        "rum",
        "refined unlearning is at least as close to a retraining as the same method unrefined",
        "RUM improves every unlearner it is combined with",
        f"ToW of RUM >= ToW of NegGrad+ on the whole set - {MARGIN}, {len(REFINED)} trials each",
    ),
    Claim(
        "refinement_not_sequence",
        "the gain comes from refinement, not from unlearning in three steps",
        "shuffled strata lose RUM's advantage",
        f"ToW of RUM >= ToW of RUM with shuffled strata, mean of {SHUFFLES} splits, the same trials each",
    ),
    Claim(
        "proxy_rum",
        "strata made by a proxy serve as well as strata made by the memorization score",
        "proxy RUM's ToW matches exact-memorization RUM's",
        f"ToW refined by confidence, and by holdout retraining, >= ToW refined by the score - {MARGIN}, same trials",
    ),
)


def run(context: StudyContext) -> None:
    with threads(1):
        _run(context)


def _run(context: StudyContext) -> None:
    context.progress("one training, with learning events")
    world = make_world(context.seed)
    memorization, seconds = _memorization(context, world)
    proxies = _proxies(context, world, memorization, seconds)
    strata = px.extreme_strata(memorization, SIZE)
    _groups(context, world, strata)
    _together(context, world, strata, memorization, proxies)


# ---- data, model, scores


def _memorization(context: StudyContext, world: World) -> tuple[np.ndarray, float]:
    from rote.internals.classifier import draw_subsets, train_subset_ensemble

    context.progress(f"memorization scores: {MODELS} subset models at once")
    start = time.perf_counter()
    found = train_subset_ensemble(
        spec().build, world.train, recipe(), member=draw_subsets(MODELS, TRAIN, SHARE, seed=context.seed),
        test=world.test, seed=derive_seed(context.seed, "subsets"),
    )  # fmt: skip
    seconds = time.perf_counter() - start
    scores = px.feldman_scores(found.correct, found.member, seed=context.seed)
    assert scores.split_half is not None
    assert found.test_correct is not None
    values, wrong = scores.scores, world.noisy
    context.table("memorization", [
        {"quantity": "mean", "value": values.mean(), "n": TRAIN},
        {"quantity": "mean of wrong labels", "value": values[wrong].mean(), "n": NOISY},
        {"quantity": "mean of right labels", "value": values[~wrong].mean(), "n": TRAIN - NOISY},
        {"quantity": "share above 0.5", "value": (values > 0.5).mean(), "n": TRAIN},
        {"quantity": "mean standard error", "value": np.nanmean(scores.se), "n": TRAIN},
        {"quantity": "split-half Spearman (bounds every proxy)", "value": scores.split_half.value, "n": TRAIN},
        {"quantity": "subset models' training accuracy on their own subset",
         "value": found.correct[found.member].mean(), "n": int(found.member.sum())},
        {"quantity": "subset models' test accuracy", "value": found.test_correct.mean(), "n": TEST},
        {"quantity": "seconds", "value": seconds, "n": MODELS},
    ])  # fmt: skip
    return values, seconds


def _proxies(context: StudyContext, world: World, memorization: np.ndarray, seconds: float) -> dict[str, np.ndarray]:
    from rote.internals.classifier import holdout_retraining, loss_curvature

    values = world.recorder.scores()
    cost = {name: float(world.recorder.seconds / len(values)) for name in values}
    start = time.perf_counter()
    values["holdout_retraining"] = holdout_retraining(
        world.model, world.train.x, world.holdout, seed=derive_seed(context.seed, "holdout")
    )
    cost["holdout_retraining"] = time.perf_counter() - start
    values["curvature"], cost["curvature"] = world.curvature.scores(), world.curvature.seconds
    report = px.proxy_report(memorization, values, cost)
    final = loss_curvature(world.model, world.train.x, world.train.y)
    extra = px.proxy_report(memorization, {"curvature": final})[0]
    rows = [
        {"proxy": name, "spearman": row.spearman.value, "low": row.spearman.low, "high": row.spearman.high,
         "p_value": row.p_value, "seconds": row.seconds, "share_of_estimator": (row.seconds or 0) / seconds}
        for name, row in [*((row.proxy, row) for row in report), ("curvature, final model only", extra)]
    ]  # fmt: skip
    context.table("proxies", rows)
    context.figure("proxies", _proxy_figure(memorization, values, report, world.noisy))
    rho = {row.proxy: row.spearman.value for row in report}
    context.claim(
        "proxies",
        observed={row.proxy: [row.spearman.value, row.spearman.low, row.spearman.high] for row in report},
        holds=all(
            rho[name] * px.DIRECTIONS[name] >= (FAMILY if name in px.LEARNING_EVENTS else OTHERS) for name in rho
        ),
    )
    events = world.recorder.seconds
    context.claim(
        "runtime",
        observed={"learning events, s": events, "estimator, s": seconds, "share": events / seconds},
        holds=events < COST * seconds,
    )
    return values


# ---- unlearning


def _neggrad_plus(alpha: float, rate: float = RATE):
    from rote.controls.editing.classifier_unlearning import make_unlearner

    return make_unlearner("neggrad+", {"alpha": alpha, "learning_rate": rate, "epochs": STEPS})


def _groups(context: StudyContext, world: World, strata: Mapping[str, np.ndarray]) -> None:
    """Each stratum forgotten on its own: what retraining does, what doing nothing does, what each method does."""
    from rote.controls.editing.classifier_unlearning import UNLEARNERS, make_unlearner
    from rote.models.classifiers import penultimate

    rows, untouched, known, best = [], {}, {}, {}
    every = slice(None)
    features = penultimate(world.model, world.train.x)
    for name, forget in strata.items():
        context.progress(f"forgetting the {name} stratum")
        judge = Judge(world, forget, TUNING, derive_seed(context.seed, name))
        known[name] = float(np.mean([oracle.forget for oracle in judge.oracles]))
        untouched[name] = float(np.mean(judge.tow([world.model], every)))
        mixed = uc.entanglement(features[judge.retain], features[judge.forget])
        common = {"stratum": name, "entanglement": mixed, "oracle forget accuracy": known[name]}
        rows.append({**common, "method": "nothing", "tow": untouched[name]})
        for method in UNLEARNERS:
            if method != "retrain":
                made = judge.unlearn(make_unlearner(method), derive_seed(context.seed, name, method))
                rows.append({**common, "method": f"{method}, defaults", "tow": np.mean(judge.tow([made], every))})
        seeds = [derive_seed(context.seed, name, "alpha", k) for k in range(3)]
        tows = {
            alpha: float(np.mean(judge.tow([judge.unlearn(_neggrad_plus(alpha), seed) for seed in seeds], every)))
            for alpha in ALPHAS
        }
        best[name] = max(tows, key=tows.__getitem__)
        rows += [{**common, "method": "neggrad+", "alpha": alpha, "tow": tow} for alpha, tow in tows.items()]
        ceiling = uc.against_oracles(judge.oracles[0], judge.oracles).ceiling
        rows.append({**common, "method": "oracle against oracle", "tow": ceiling.value if ceiling else None})
    context.table("strata", rows)
    context.figure("alpha", _alpha_figure(rows))
    low, medium, high = (untouched[name] for name in px.NAMES)
    context.claim("untouched", observed=untouched, holds=low - medium >= GAP and medium - high >= GAP)
    context.claim("oracle_forget", observed=known, holds=known["low"] > known["medium"] > known["high"])
    context.claim("alpha", observed=best, holds=best["low"] > best["high"])


def _together(
    context: StudyContext,
    world: World,
    strata: Mapping[str, np.ndarray],
    memorization: np.ndarray,
    proxies: Mapping[str, np.ndarray],
) -> None:
    """All three strata as one request: NegGrad+ unrefined, refined by the score and by proxies, and shuffled."""
    from rote.controls.editing.classifier_unlearning import make_unlearner, rum, shuffled

    forget = np.concatenate(list(strata.values()))
    judge = Judge(world, forget, TUNING + JUDGING, derive_seed(context.seed, "together"))
    tuning, judging = slice(TUNING), slice(TUNING, None)

    def refined_by(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
        return px.refine(forget, values, proxy=name)

    exact = refined_by(px.MEMORIZATION, memorization)
    arms: dict[str, Mapping[str, np.ndarray] | None] = {
        "neggrad+": None,
        "rum": exact,
        **{f"rum, shuffled {k}": shuffled(exact, seed=derive_seed(context.seed, "split", k)) for k in range(SHUFFLES)},
        **{f"rum by {name}": refined_by(name, values) for name, values in proxies.items()},
    }

    def made(groups: Mapping[str, np.ndarray] | None, trial: tuple[float, ...], seed: int) -> nn.Module:
        if groups is None:
            alpha, rate = trial
            return judge.unlearn(_neggrad_plus(alpha, rate), seed)
        medium, high, rate = trial
        plan = {"low": None, "medium": _neggrad_plus(medium, rate), "high": _neggrad_plus(high, rate)}
        return rum(world.model, world.train, groups, plan, seed=seed).model

    rows, judged, models = [], {}, {"untouched": world.model}
    for name, groups in arms.items():
        context.progress(f"the whole set, {name}: {len(REFINED)} trials")
        trials = VANILLA if groups is None else REFINED

        def tuned(trial: tuple[float, ...], repeats: range, groups: Mapping[str, np.ndarray] | None = groups) -> float:
            tries = [made(groups, trial, derive_seed(context.seed, "trial", k)) for k in repeats]
            return float(np.mean(judge.tow(tries, tuning)))

        first = {trial: tuned(trial, range(1)) for trial in trials}
        finalists = sorted(first, key=first.__getitem__, reverse=True)[:FINALISTS]
        chosen_by = {trial: tuned(trial, range(1, 1 + REPEATS)) for trial in finalists}
        chosen = max(chosen_by, key=chosen_by.__getitem__)
        again = [made(groups, chosen, derive_seed(context.seed, "judged", k)) for k in range(JUDGED)]
        judged[name] = float(np.mean(judge.tow(again, judging)))
        models[name] = again[0]
        rows.append({"method": name, "trials": len(trials), "setting": chosen, "tow when chosen": chosen_by[chosen],
                     "tow": judged[name]})  # fmt: skip
    plan = {"low": None, "medium": make_unlearner("ft"), "high": make_unlearner("salun")}
    models["rum (nothing, ft, salun)"] = rum(world.model, world.train, exact, plan, seed=context.seed).model
    _compared(context, judge, models, rows, judging)
    context.claim(
        "rum",
        observed={"rum": judged["rum"], "neggrad+": judged["neggrad+"]},
        holds=judged["rum"] >= judged["neggrad+"] - MARGIN,
    )
    apart = [judged[f"rum, shuffled {k}"] for k in range(SHUFFLES)]
    context.claim(
        "refinement_not_sequence",
        observed={"rum": judged["rum"], "shuffled": apart},
        holds=judged["rum"] >= float(np.mean(apart)),
    )
    by = {name: judged[f"rum by {name}"] for name in ("confidence", "holdout_retraining")}
    context.claim(
        "proxy_rum",
        observed={"rum": judged["rum"], **by},
        holds=min(by.values()) >= judged["rum"] - MARGIN,
    )


def _compared(context: StudyContext, judge: Judge, models: Mapping, rows: list[dict], judging: slice) -> None:
    """One model of each arm beside the fresh oracles: accuracies, population attacks, a per-example attack."""
    oracles = [judge.figures(model, attack=True) for model in judge.models[judging]]
    trials = {row["method"]: row for row in rows}
    table = []
    for name, model in models.items():
        found = uc.against_oracles(judge.figures(model, attack=True), oracles)
        table.append({
            **trials.get(name, {"method": name}), "tow of one model": found.tow.value, "tow low": found.tow.low,
            "tow high": found.tow.high, "tow_mia": None if found.tow_mia is None else found.tow_mia.value,
            "forget": found.figures.forget, "retain": found.figures.retain, "test": found.figures.test,
            **{f"mia {key}": value for key, value in found.figures.mia.items()},
            "lira auroc": found.lira.value if found.lira else None,
        })  # fmt: skip
    between = uc.against_oracles(oracles[0], oracles)
    ceiling = between.ceiling
    mean = {part: float(np.mean([getattr(oracle, part) for oracle in oracles])) for part in uc.SETS}
    attacks = {f"mia {key}": np.mean([oracle.mia[key] for oracle in oracles]) for key in uc.FEATURES}
    table.append({"method": "oracles", "tow": ceiling.value if ceiling else None, **mean, **attacks,
                  "lira auroc": between.lira_oracle})  # fmt: skip
    context.table("together", table)


# ---- figures


def _proxy_figure(memorization, values, report, noisy):
    from rote.report.proxy_plot import proxy_figure

    return proxy_figure(memorization, values, report, marked=noisy)


def _alpha_figure(rows: Sequence[Mapping]):
    import plotly.graph_objects as go

    figure = go.Figure()
    for name in px.NAMES:
        points = [row for row in rows if row["stratum"] == name and row.get("alpha") is not None]
        figure.add_scatter(
            x=[1 - row["alpha"] for row in points], y=[row["tow"] for row in points], mode="lines+markers", name=name
        )
    figure.update_xaxes(title="1 - alpha: weight of the ascent on the forget set", type="log")
    figure.update_yaxes(title="ToW (1 = like a retraining)", range=[0, 1])
    figure.update_layout(template="plotly_white", title=f"NegGrad+ by memorization, {SIZE} examples a stratum")
    return figure


STUDY = Study(
    slug="unlearning-proxies",
    title="Memorization proxies and refined unlearning",
    arxiv="2410.16516",
    claims=CLAIMS,
    run=run,
)
