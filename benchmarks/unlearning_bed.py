"""The synthetic TOFU bed: base, full and retrained models of fictitious authors, several unlearners, the stress tests.

Prints what must hold of an unlearning suite, each with its threshold (fixed beforehand) and what was observed:

    full        ES, EM ~ 1 on forget, AUROC of Min-K >= .95, forget quality < 1e-6
    oracle      forget quality 1 against itself, > .05 against a second oracle seed
    npo, grad_diff   stopped on a development half; forget quality >= 3 orders above the start, utility >= .8 of it
    grad_ascent utility < .2
    flag        an over-unlearned model has PrivLeak > +20 and a loss above the holdout's
    quantise    4-bit rounding raises the ES of at least one gentle method (interval of the paired difference above 0)
    relearn     half of the forget set brings the other half back faster than in a model that was never taught it

Run: python benchmarks/unlearning_bed.py [--size small|card] [--seed N] [--out FILE]. "small" takes about a minute of
one core, "card" (1500 background authors, 200 a split, 3 layers of width 96) about ten.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Size:
    width: int
    layers: int
    background: int
    authors: int
    base_steps: int
    fit_steps: int  # per 100 authors of the set that is fitted
    npo_steps: int
    batch: int = 32


SIZES = {
    "small": Size(width=64, layers=2, background=400, authors=60, base_steps=200, fit_steps=120, npo_steps=60),
    "card": Size(width=96, layers=3, background=1500, authors=200, base_steps=500, fit_steps=175, npo_steps=150),
}
RELEARN_STEPS = (15, 30, 48, 60)


class Bed:
    """Models and data of one seed. `full` saw retain and forget, `oracle` and `second` only retain (two orders)."""

    def __init__(self, size: Size, seed: int, say: Callable[[str], None]):
        from transformers import PreTrainedTokenizerFast

        from rote.models import CausalLM, TrainingConfig, small_llama, train_causal_lm
        from rote.records import fictitious_authors as fa
        from rote.records.unlearning_layouts import question_table

        n = size.authors
        self.size, self.seed = size, seed
        splits = fa.author_splits(background=size.background, retain=n, forget=n, holdout=n, seed=seed)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=fa.word_level_tokenizer(), **fa.SPECIAL_TOKENS)
        config = TrainingConfig(batch_size=size.batch, threads=1)

        def fit(model, rows, steps, order):
            rng = np.random.default_rng([seed, order])
            epochs = [rng.permutation(len(rows)) for _ in range(steps * size.batch // len(rows) + 1)]
            train_causal_lm(model, rows[np.concatenate(epochs)[: steps * size.batch]], config)
            return model

        base = small_llama(
            vocab_size=len(tokenizer), context_length=64, width=size.width, layers=size.layers, heads=4, seed=seed
        )
        say("base model")
        fit(base, np.concatenate([fa.token_matrix(splits.background, t) for t in fa.TEMPLATES]), size.base_steps, 0)
        known = {"full": (*splits.retain, *splits.forget), "oracle": splits.retain, "second": splits.retain}
        self.models = {}
        for order, (name, authors) in enumerate(known.items(), start=1):
            say(f"{name} model")
            steps = size.fit_steps * 2 * n // 100  # as many steps for the oracle: its loss must not lag behind
            hf = fit(copy.deepcopy(base), fa.token_matrix(authors), steps, order)
            self.models[name] = CausalLM(hf, tokenizer, name=name)
        self.forget, self.retain, self.holdout = (
            question_table(fa.author_questions(getattr(splits, name), seed=seed), template="{question}")
            for name in ("forget", "retain", "holdout")
        )

    def evaluate(self, model, *, held: bool = False) -> Any:
        """All figures against the oracle; `held`: on the half of every set that tuning did not look at."""
        from rote.audit.unlearning_suite import evaluate_unlearning

        forget, retain, holdout = (
            replace(table, questions=table.questions[1::2]) if held else table
            for table in (self.forget, self.retain, self.holdout)
        )
        return evaluate_unlearning(
            model, suite="tofu", forget=forget, retain=retain, holdout=holdout, oracle=self.models["oracle"],
            seed=self.seed,
        )  # fmt: skip

    def unlearn(self, method: str, *, steps: int, rate: float, settings=None, after=None):
        """A copy of the full model, unlearned; `after(step, model)` along the way."""
        from rote.controls.editing.unlearning import unlearn

        model = copy.deepcopy(self.models["full"])

        def look(step: int) -> None:
            if after is not None:
                after(step, model)

        unlearn(
            model, method=method, forget=self.forget.records(), retain=self.retain.records(), settings=settings,
            trainer={"steps": steps, "learning_rate": rate, "batch_size": self.size.batch, "schedule": "constant"},
            seed=self.seed, after_step=look,
        )  # fmt: skip
        return model

    def tuned(self, method: str, *, steps: int, grid: tuple[tuple[float, float], ...]):
        """The stop, among five for each (rate, alpha), at which the development half is closest to the holdout's loss
        while the retain set's probability is kept (>= .8). No oracle and no test item is used for the choice."""
        from rote.audit.unlearning_suite import score_answers
        from rote.measures.unlearning import probability

        half = np.arange(0, len(self.forget), 2)
        tables = [self.forget.records().take(half), self.holdout.records().take(half), self.retain.records().take(half)]
        best: tuple[float, Any, dict] | None = None
        every = max(1, steps // 5)
        for rate, alpha in grid:

            def look(step: int, model, rate=rate, alpha=alpha) -> None:
                nonlocal best
                if step % every:
                    return
                model._head = None
                forget, holdout, retain = (score_answers(model, table).nll for table in tables)
                kept = float(probability(retain).mean())
                gap = abs(float(forget.mean() - holdout.mean())) + (10.0 * (0.8 - kept) if kept < 0.8 else 0.0)
                if best is None or gap < best[0]:
                    best = (gap, copy.deepcopy(model.hf), {"rate": rate, "alpha": alpha, "steps": step})

            self.unlearn(method, steps=steps, rate=rate, settings={"alpha": alpha}, after=look)
        from rote.models import CausalLM

        assert best is not None
        return CausalLM(best[1], self.models["full"].tokenizer, name=method), best[2]


def checks(bed: Bed, say: Callable[[str], None], *, quantise: bool = True) -> list[dict[str, Any]]:
    from rote.audit.unlearning_suite import extraction_of
    from rote.controls.editing.unlearning import relearn_curve, steps_to_recovery
    from rote.controls.editing.unlearning.relearn import halves

    rows: list[dict[str, Any]] = []

    def add(name: str, observed: Any, threshold: str, holds: bool) -> None:
        rows.append({"check": name, "observed": observed, "threshold": threshold, "holds": bool(holds)})
        say(f"{'holds ' if holds else 'FAILS '} {name}: {observed}   [{threshold}]")

    def of(evaluation, *names: str) -> dict[str, float]:
        return {name: round(evaluation[name].estimate.value, 4) for name in names}

    models = bed.models
    start = bed.evaluate(models["full"])
    log_start = np.log10(max(start["forget_quality"].estimate.value, 1e-300))
    found = of(start, "forget.extraction_strength", "forget.exact_memorization", "membership.min_k")
    add(
        "full model recites the forget set", found | {"log10 forget quality": round(float(log_start), 2)},
        "ES, EM, AUROC >= .95; forget quality < 1e-6", min(found.values()) >= 0.95 and log_start < -6,
    )  # fmt: skip
    itself = bed.evaluate(models["oracle"])["forget_quality"].estimate.value
    second = bed.evaluate(models["second"])["forget_quality"].estimate.value
    add("oracle against itself and a second seed", {"itself": itself, "second": round(second, 4)}, "1; > .05",
        itself == 1 and second > 0.05)  # fmt: skip

    held = bed.evaluate(models["full"], held=True)
    log_held = np.log10(max(held["forget_quality"].estimate.value, 1e-300))
    utility = held["model_utility"].estimate.value
    unlearned = {}
    for method, steps, grid in (
        ("npo", bed.size.npo_steps, ((5e-4, 1.0),)),
        ("grad_diff", 60, ((3e-4, 1.0), (3e-4, 5.0))),
    ):
        unlearned[method], chosen = bed.tuned(method, steps=steps, grid=grid)
        found = bed.evaluate(unlearned[method], held=True)
        log = np.log10(max(found["forget_quality"].estimate.value, 1e-300))
        share = found["model_utility"].estimate.value / utility
        add(
            f"{method}, tuned on a development half, measured on the other",
            {"log10 forget quality": round(float(log), 2), "start": round(float(log_held), 2)}
            | {"utility share": round(share, 3)} | chosen | of(found, "privleak"),
            "3 orders above the start, utility >= .8 of it", log >= log_held + 3 and share >= 0.8,
        )  # fmt: skip
    broken = bed.evaluate(bed.unlearn("grad_ascent", steps=40, rate=5e-4))
    add("grad_ascent collapses", of(broken, "model_utility", "forget.loss"), "utility < .2",
        broken["model_utility"].estimate.value < 0.2)  # fmt: skip
    over = bed.evaluate(bed.unlearn("npo", steps=bed.size.npo_steps * 5 // 3, rate=5e-4))
    add(
        "over-unlearning is flagged", of(over, "privleak", "forget_minus_holdout_loss") | {"notes": len(over.notes)},
        "PrivLeak > +20, forget loss > holdout loss, a note says so",
        over["privleak"].estimate.value > 20 and over["forget_minus_holdout_loss"].estimate.value > 0
        and any(note.startswith("OVER") for note in over.notes),
    )  # fmt: skip

    if quantise:
        raised = _four_bits(bed, unlearned["npo"])
        add("4-bit rounding raises ES of a gentle method", raised, "[before, gain, low, high]: low > 0 somewhere",
            any(low > 0 for _, _, low, _ in raised.values()))  # fmt: skip

    first, other = halves(bed.forget.records(), seed=bed.seed)
    arms = {"unlearned": unlearned["npo"], "never taught": models["oracle"], "full": models["full"]}
    curves = {
        name: relearn_curve(
            model, first, extraction_of(other), name=name, steps=RELEARN_STEPS, lora=None, seed=bed.seed,
            trainer={"learning_rate": 2e-4},
        )
        for name, model in arms.items()
    }  # fmt: skip
    half = {name: steps_to_recovery(curve, 0.5) for name, curve in curves.items()}
    ends = {name: [round(value, 3) for value in curve.values] for name, curve in curves.items()}
    gains = {name: curve.values[-1] - curve.values[0] for name, curve in curves.items()}
    faster = (half["unlearned"] or np.inf) < (half["never taught"] or np.inf)
    add(
        "relearning half brings the other half back faster than for a model never taught",
        {"steps to 50 % ES": half, "ES": ends, "steps": [0, *RELEARN_STEPS]},
        "fewer steps to 50 % ES; if neither gets there, a larger gain of ES after 60 steps",
        faster or (half["unlearned"] is half["never taught"] is None and gains["unlearned"] > gains["never taught"]),
    )  # fmt: skip
    return rows


def _four_bits(bed: Bed, npo: Any) -> dict[str, list[float]]:
    """Model and group -> ES before, and its paired gain by 4-bit rounding with the interval."""
    from rote.audit.unlearning_suite import score_answers
    from rote.controls.editing.unlearning import quantised
    from rote.measures.statistics import bootstrap_difference

    gentle = {
        "simnpo": bed.unlearn("simnpo", steps=60, rate=5e-4, settings={"gamma": 0.125}),
        "grad_diff, small rate": bed.unlearn("grad_diff", steps=60, rate=3e-5),
        "npo": npo,
    }
    raised = {}
    for name, model in gentle.items():
        records = bed.forget.records()
        before = score_answers(model, records).per_record()["extraction_strength"]
        for group in (None, 32):
            with quantised(model, bits=4, group_size=group):
                after = score_answers(model, records).per_record()["extraction_strength"]
            gain = bootstrap_difference(after, before, seed=bed.seed)
            raised[f"{name}, {'row' if group is None else group}"] = [
                round(value, 4) for value in (float(before.mean()), gain.value, gain.low, gain.high)
            ]
    return raised


def run(size: str, seed: int, say: Callable[[str], None] = print, *, quantise: bool = True) -> dict[str, Any]:
    """Build the bed and decide every check; returns the table and the CPU seconds it took."""
    from rote.runtime import threads

    begun = time.process_time()
    with threads(1):
        rows = checks(Bed(SIZES[size], seed, say), say, quantise=quantise)
    return {
        "size": size, **asdict(SIZES[size]), "seed": seed, "cpu_seconds": round(time.process_time() - begun, 1),
        "checks": rows,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out")
    options = parser.parse_args()
    found = run(options.size, options.seed)
    text = json.dumps(found, indent=2, default=float)
    held = sum(row["holds"] for row in found["checks"])
    print(f"{held} of {len(found['checks'])} hold, {found['cpu_seconds']} s of CPU")
    if options.out:
        Path(options.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
