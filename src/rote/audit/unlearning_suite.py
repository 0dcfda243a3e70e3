"""Is it forgotten? The field's figures for an unlearned language model, each with direction, target and interval.

    plain   any two or three record tables: ES, EM, probability, ROUGE-L, loss; membership and PrivLeak with a holdout
    tofu    the same, and truth ratio, forget quality against the oracle, model utility
    muse    VerbMem, KnowMem (forget, retain), PrivLeak

The target of every forget-set figure is the *oracle's* value, a model retrained without the forget set; lower is not
better. Everything comes from one teacher-forced pass a set and model, and greedy generation where ROUGE needs text.
Low forget figures of a broken model mean nothing: utility and fluency are always among the figures.
Knows nothing about: how the model was unlearned, files, terminals. Contents of records never reach the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from rote.errors import InputError
from rote.measures import membership, unlearning
from rote.measures.roc import delong
from rote.measures.statistics import Estimate, bootstrap
from rote.records.table import RecordTable
from rote.records.unlearning_layouts import MuseData, QuestionTable, TofuData
from rote.scores.sequences import Split
from rote.scores.table import TokenScores
from rote.scores.tokens import score_in_memory

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM

SUITES = ("plain", "tofu", "muse")
MORE, LESS = "higher = more memorized", "lower = more memorized"
ORACLE = "equal to a model retrained without the forget set"
KEPT = "as before unlearning"
MIN_K = 0.4  # MUSE's PrivLeak uses Min-40 %
ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus")
NO_ORACLE = (
    "NO ORACLE: without a model retrained without the forget set there is no forget quality, PrivLeak is measured "
    "against .5, and no figure below has a known target; train one (method retrain or fine_tune) and give it as oracle"
)


@dataclass(frozen=True)
class Figure:
    """One number: `target` says in words what to aim at, `oracle` is the oracle's value where one was given."""

    name: str
    estimate: Estimate
    direction: str
    target: str
    definition: str
    oracle: float | None = None
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name, **self.estimate.as_dict(), "direction": self.direction, "target": self.target,
            "oracle": _finite(self.oracle), "definition": self.definition, "note": self.note,
        }  # fmt: skip


@dataclass(frozen=True)
class UnlearningEvaluation:
    """Figures in order, what must be said before them (`notes`), and the numbers per record: no contents."""

    suite: str
    figures: tuple[Figure, ...]
    notes: tuple[str, ...]
    per_record: Mapping[str, Mapping[str, Float[np.ndarray, " records"]]] = field(repr=False)

    def __getitem__(self, name: str) -> Figure:
        for figure in self.figures:
            if figure.name == name:
                return figure
        raise KeyError(f"no figure {name!r}; there are {', '.join(figure.name for figure in self.figures)}")

    def as_dict(self) -> dict[str, Any]:
        return {"suite": self.suite, "notes": list(self.notes), "figures": [f.as_dict() for f in self.figures]}


@dataclass(frozen=True)
class AnswerScores:
    """One pass over the answers of a table: `answer` marks the scored tokens (the suffix of a record that came with a
    prefix, all predicted tokens of any other)."""

    scores: TokenScores
    answer: Bool[np.ndarray, "records tokens"]
    texts: list

    @property
    def logp(self) -> Float[np.ndarray, "records tokens"]:
        return np.where(self.answer, self.scores.logp, np.nan)

    @property
    def nll(self) -> Float[np.ndarray, " records"]:
        """Mean negative log-likelihood of the answer, float64."""
        return -membership.loss(self.logp)

    def per_record(self) -> dict[str, Float[np.ndarray, " records"]]:
        greedy = self.scores.greedy
        return {
            "extraction_strength": unlearning.extraction_strength(greedy, self.answer),
            "exact_memorization": unlearning.exact_memorization(greedy, self.answer),
            "probability": unlearning.probability(self.nll),
            "loss": self.nll,
        }

    def attacks(self) -> dict[str, Float[np.ndarray, " records"]]:
        """Membership scores over the answer, higher = more like training data."""
        logp, scores = self.logp, self.scores
        found = {
            "loss": membership.loss(logp),
            "min_k": membership.min_k(logp, k=MIN_K),
            "min_k_plus_plus": membership.min_k_plus_plus(logp, scores.entropy, scores.std, k=MIN_K),
        }
        if all(text is not None for text in self.texts):
            found["zlib"] = membership.zlib(logp, membership.zlib_bytes(self.texts))
        return found


def score_answers(model: CausalLM, records: RecordTable, *, long: str = "error") -> AnswerScores:
    """Score a table with one pass. Errors: `InputError`, as `prepare` says; a record that cannot be scored is one."""
    scores = score_in_memory(model, records, split=Split(long=long))
    if len(scores) < len(records):
        raise InputError(f"{len(records) - len(scores)} records have a single token and cannot be scored; remove them")
    own = [
        chars is not None or tokens is not None
        for chars, tokens in zip(records.column("prefix_chars"), records.column("prefix_tokens"), strict=True)
    ]
    predicted = ~np.isnan(scores.logp)
    return AnswerScores(
        scores, np.where(np.array(own)[:, None], scores.in_suffix, True) & predicted, records.column("text")
    )


def extraction_of(records: RecordTable, *, long: str = "error") -> Callable[[CausalLM], float]:
    """model -> mean extraction strength over `records`: what quantisation and relearning are measured by.

    As in `relearn_curve(model, half, extraction_of(other_half))`, or inside `with quantised(model, bits=4):`.
    """

    def measure(model: CausalLM) -> float:
        found = score_answers(model, records, long=long)
        return float(unlearning.extraction_strength(found.scores.greedy, found.answer).mean())

    return measure


def greedy_answers(model: CausalLM, scored: AnswerScores, *, new_tokens: int | None = None) -> list[list[int]]:
    """Greedy continuations of every record's prompt, `new_tokens` long (None: as long as the record's answer), as far
    as the context window goes; cut at end-of-text. A record without a prompt gives nothing, unless there is a BOS."""
    from rote.scores.continuations import greedy_continuations

    scores = scored.scores
    start = scored.answer.argmax(1)
    lengths = scored.answer.sum(1) if new_tokens is None else np.full(len(scores), new_tokens)
    if model.context_length is not None:
        lengths = np.minimum(lengths, model.context_length - start - (model.bos_id is not None))
    out: list[list[int]] = [[] for _ in range(len(scores))]
    rows = [row for row in range(len(scores)) if start[row] > 0 or model.bos_id is not None]
    prefixes = [scores.token_ids[row, : start[row]].tolist() for row in rows]
    made = greedy_continuations(model, prefixes, [int(lengths[row]) for row in rows]) if rows else np.zeros((0, 0))
    end = None if model.tokenizer is None else model.tokenizer.eos_token_id
    for row, ids in zip(rows, made, strict=True):
        tokens = [int(token) for token in ids if token >= 0]
        out[row] = tokens[: tokens.index(end)] if end in tokens else tokens
    return out


def evaluate_unlearning(
    model: CausalLM,
    *,
    suite: str = "plain",
    forget: RecordTable | QuestionTable | None = None,
    retain: RecordTable | QuestionTable | None = None,
    holdout: RecordTable | QuestionTable | None = None,
    data: TofuData | MuseData | None = None,
    oracle: CausalLM | None = None,
    generate: bool = True,
    stem: bool = False,
    long: str = "error",
    seed: int = 0,
) -> UnlearningEvaluation:
    """Measure one model; give `oracle` to know what to aim at.

    Args: suite "plain" takes record tables; "tofu" question tables or `data` from `read_tofu`; "muse" takes `data` from
    `read_muse`. generate False leaves out every figure that needs generated text. stem: Porter-stemmed ROUGE, as TOFU's
    own numbers (needs nltk). Errors: `InputError` for an unknown suite or missing data.
    """
    if suite not in SUITES:
        raise InputError(f"no suite {suite!r}; there are {', '.join(SUITES)}")
    run = _Run(model, oracle, generate, stem, long, seed)
    if suite == "muse":
        if not isinstance(data, MuseData):
            raise InputError("suite muse needs data read by read_muse")
        return run.muse(data)
    if isinstance(data, TofuData):
        forget, retain, holdout = data.forget, data.retain, data.holdout or holdout
    if forget is None:
        raise InputError(f"suite {suite} needs a forget set")
    if suite == "tofu":
        if not isinstance(forget, QuestionTable) or not isinstance(retain, QuestionTable):
            raise InputError("suite tofu needs forget and retain questions (read_tofu, or question_table)")
        sets = {"retain": retain}
        if isinstance(data, TofuData):
            sets |= {n: t for n, t in (("real_authors", data.real_authors), ("world_facts", data.world_facts)) if t}
        return run.tofu(forget, sets, holdout)
    return run.plain(forget, retain, holdout)


class _Run:
    """Collects figures of one model (and its oracle)."""

    def __init__(self, model, oracle, generate, stem, long, seed):
        self.models = {"model": model} | ({} if oracle is None else {"oracle": oracle})
        self.generate, self.stem, self.long, self.seed = generate, stem, long, seed
        self.figures: list[Figure] = []
        self.notes = [] if oracle is not None else [NO_ORACLE]
        self.rows: dict[str, dict[str, np.ndarray]] = {}

    def done(self, suite: str) -> UnlearningEvaluation:
        return UnlearningEvaluation(suite, tuple(self.figures), tuple(self.notes), self.rows)

    def plain(self, forget, retain, holdout) -> UnlearningEvaluation:
        self._common(_records(forget), None if retain is None else _records(retain))
        if holdout is not None:
            self._privacy(_records(forget), _records(holdout))
        return self.done("plain")

    def tofu(self, forget: QuestionTable, sets: dict[str, QuestionTable], holdout) -> UnlearningEvaluation:
        self._common(forget.records(), sets["retain"].records())
        ratios = {who: _truth_ratio(model, forget, self.long) for who, model in self.models.items()}
        scores = {who: unlearning.truth_ratio_score(ratio, forget=True) for who, ratio in ratios.items()}
        self.rows["forget"] |= {"truth_ratio": ratios["model"]}
        self._mean(
            "forget.truth_ratio", scores, "no direction", ORACLE, "mean min(R, 1/R), R = P(wrong) / P(paraphrase)"
        )
        if "oracle" in ratios:
            quality = unlearning.forget_quality(ratios["model"], ratios["oracle"])
            self.figures.append(
                Figure(
                    "forget_quality", Estimate(quality.p_value, math.nan, math.nan, quality.n, "a p-value: none"),
                    "higher = closer to the oracle", "above 0.05 (cannot be told from the oracle)",
                    "p of the KS test between the truth ratios of model and oracle on the forget set", 1.0,
                    f"log10 p = {quality.log10_p:.4g}, D = {quality.statistic:.4g}",
                )
            )  # fmt: skip
        parts = {who: self._utility_parts(model, sets) for who, model in self.models.items()}
        utility = {who: unlearning.model_utility(found, seed=self.seed) for who, found in parts.items()}
        count = sum(len(part) for part in parts["model"].values())
        if count < 9:
            self.notes.append(f"model utility is made of {count} of TOFU's 9 parts: not comparable with published ones")
        self.figures.append(
            Figure(
                "model_utility", utility["model"], "higher = more useful", KEPT,
                f"harmonic mean of {count} means: probability, ROUGE-L recall, truth ratio of {', '.join(sets)}",
                utility["oracle"].value if "oracle" in utility else None,
            )
        )  # fmt: skip
        if holdout is not None:
            self._privacy(forget.records(), _records(holdout))
        return self.done("tofu")

    def muse(self, data: MuseData) -> UnlearningEvaluation:
        if self.generate and data.verbatim is not None:
            self._rouge("verbmem_forget", data.verbatim, "f1", 128, ORACLE, MORE)
        if self.generate:
            for name, questions, target in (
                ("knowmem_forget", data.forget_questions, ORACLE),
                ("knowmem_retain", data.retain_questions, KEPT),
            ):
                if questions is not None:
                    self._rouge(name, questions.records(), "f1", 32, target, MORE)
        self._common(data.forget, data.retain, text=False)
        self._privacy(data.forget, data.holdout)
        return self.done("muse")

    # ---- parts

    def _common(self, forget: RecordTable, retain: RecordTable | None, *, text: bool = True) -> None:
        for name, records, target in (("forget", forget, ORACLE), ("retain", retain, KEPT)):
            if records is None:
                continue
            scored = {who: score_answers(model, records, long=self.long) for who, model in self.models.items()}
            found = {who: one.per_record() for who, one in scored.items()}
            self.rows[name] = found["model"]
            for measure, direction, definition in (
                ("extraction_strength", MORE, "1 - k*/T, k* the fewest given answer tokens after which all are right"),
                ("exact_memorization", MORE, "share of answer tokens that are the argmax given the true ones before"),
                ("probability", MORE, "exp(-mean nll of the answer)"),
                ("loss", LESS, "mean nll of the answer, nats per token"),
            ):
                values = {who: one[measure] for who, one in found.items()}
                self._mean(f"{name}.{measure}", values, direction, target, definition)
            if text and self.generate:
                self._rouge(f"{name}.rouge_l_recall", records, "recall", None, target, MORE, scored=scored)

    def _rouge(self, name, records, part, tokens, target, direction, *, scored=None) -> dict:
        """ROUGE-L of greedy text against the answer; fluency (distinct bigrams) of the same text beside it."""
        model = self.models["model"]
        if model.tokenizer is None:
            self.notes.append(f"{name}: the model has no tokenizer, so there is no text to compare")
            return {}
        scored = scored or {who: score_answers(m, records, long=self.long) for who, m in self.models.items()}
        values, made = {}, []
        for who, one in scored.items():
            generated = greedy_answers(self.models[who], one, new_tokens=tokens)
            made = generated if who == "model" else made
            values[who] = np.array(_rouge_values(self.models[who], one, generated, part, self.stem))
        self.rows.setdefault(name.partition(".")[0], {})["rouge_l"] = values["model"]
        definition = (
            f"ROUGE-L {part} of greedy text against the true answer, {'Porter stems' if self.stem else 'words'}"
        )
        self._mean(name, values, direction, target, definition)
        fluency = unlearning.distinct_n(made, n=2)
        if math.isfinite(fluency):
            none = Estimate(fluency, math.nan, math.nan, len(made), "none")
            self.figures.append(
                Figure(f"{name.partition('.')[0]}.distinct_2", none, "near 0 = the model babbles", "far from 0",
                       "share of different bigrams among the generated ones")
            )  # fmt: skip
        return values

    def _privacy(self, forget: RecordTable, holdout: RecordTable) -> None:
        inside = {who: score_answers(model, forget, long=self.long) for who, model in self.models.items()}
        outside = {who: score_answers(model, holdout, long=self.long) for who, model in self.models.items()}
        f, h = {w: s.attacks() for w, s in inside.items()}, {w: s.attacks() for w, s in outside.items()}
        self.rows["holdout"] = outside["model"].per_record()
        for attack in ATTACKS:
            if attack in f["model"] and attack in h["model"]:
                estimates = {who: delong(f[who][attack], h[who][attack]) for who in self.models}
                oracle = estimates["oracle"].value if "oracle" in estimates else None
                self.figures.append(
                    Figure(f"membership.{attack}", estimates["model"], MORE + "; far below .5 is leakage too", ORACLE,
                           "AUROC of forget against holdout", 0.5 if oracle is None else oracle)
                )  # fmt: skip
        never = (f["oracle"]["min_k"], h["oracle"]["min_k"]) if "oracle" in f else (None, None)
        if never[0] is not None and never[0].min() > never[1].max():  # MUSE's AUC is 0: nothing to divide by
            self.notes.append(
                "NOT AN ORACLE: it tells forget from holdout without error; PrivLeak is against .5 instead"
            )
            never = (None, None)
        leak = unlearning.privleak_of_scores(f["model"]["min_k"], h["model"]["min_k"], *never, seed=self.seed)
        note = f"by membership AUROC instead (sign reversed): {leak.member:.4g} %"
        self.figures.append(
            Figure("privleak", leak.muse, "below 0 = leaks, above 0 = over-unlearned", "0 %",
                   "100 (AUC - AUC_oracle) / AUC_oracle, Min-40 %, MUSE's direction", 0.0 if leak.has_oracle else None,
                   note)
        )  # fmt: skip
        gap = _gap(inside["model"].nll, outside["model"].nll)
        self.figures.append(
            Figure("forget_minus_holdout_loss", gap, "above 0 = over-unlearned, below 0 = still known", ORACLE,
                   "mean nll of forget minus that of holdout, nats per token",
                   None if "oracle" not in inside else _gap(inside["oracle"].nll, outside["oracle"].nll).value)
        )  # fmt: skip
        if leak.over_unlearned:
            self.notes.append(
                f"OVER-UNLEARNED: PrivLeak {leak.muse.value:+.3g} % is above +{unlearning.OVER_UNLEARNED:g} %: the "
                "forget set looks less like training data than text the model never saw, which is a trace too"
            )
        elif leak.leaks:
            self.notes.append(
                f"LEAKS: PrivLeak {leak.muse.value:+.3g} %: the forget set still looks like training data"
            )
        if gap.low > 0 and not leak.over_unlearned:
            self.notes.append("OVER-UNLEARNED: the loss on the forget set is above the loss on unseen text of its kind")

    def _utility_parts(self, model, sets: dict[str, QuestionTable]) -> dict[str, dict[str, np.ndarray]]:
        parts = {}
        for name, questions in sets.items():
            scored = score_answers(model, questions.records(), long=self.long)
            complete = all(item.paraphrase is not None and item.wrong for item in questions.questions)
            wrong = all(item.wrong for item in questions.questions)
            part = {"probability": unlearning.probability(scored.nll)}
            if name != "retain" and wrong:
                part["probability"] = unlearning.choice_probability(scored.nll, _wrong_nll(model, questions, self.long))
            if self.generate and model.tokenizer is not None:
                made = greedy_answers(model, scored)
                part["rouge_l_recall"] = np.array(_rouge_values(model, scored, made, "recall", self.stem))
            if complete or (name != "retain" and wrong):
                # Real authors and world facts have no paraphrase: TOFU takes the answer itself.
                ratio = _truth_ratio(model, questions, self.long)
                part["truth_ratio"] = unlearning.truth_ratio_score(ratio, forget=False)
            parts[name] = part
        return parts

    def _mean(self, name: str, values: Mapping[str, np.ndarray], direction: str, target: str, definition: str) -> None:
        oracle = float(values["oracle"].mean()) if "oracle" in values else None
        estimate = bootstrap(values["model"], seed=self.seed)
        self.figures.append(Figure(name, estimate, direction, target, definition, oracle))


def _records(table: RecordTable | QuestionTable) -> RecordTable:
    return table.records() if isinstance(table, QuestionTable) else table


def _wrong_nll(model: CausalLM, questions: QuestionTable, long: str) -> Float[np.ndarray, "items wrong"]:
    """nll of each wrong answer, NaN-padded."""
    nll = score_answers(model, questions.wrong_answers(), long=long).nll
    counts = [len(item.wrong) for item in questions.questions]
    out = np.full((len(counts), max(counts)), np.nan)
    out[np.arange(max(counts))[None] < np.array(counts)[:, None]] = nll
    return out


def _truth_ratio(model: CausalLM, questions: QuestionTable, long: str) -> Float[np.ndarray, " items"]:
    paraphrased = all(item.paraphrase is not None for item in questions.questions)
    told = questions.paraphrases() if paraphrased else questions.records()
    return unlearning.truth_ratio(score_answers(model, told, long=long).nll, _wrong_nll(model, questions, long))


def _rouge_values(model: CausalLM, scored: AnswerScores, made: list[list[int]], part: str, stem: bool) -> list[float]:
    found = []
    for row, ids in enumerate(made):
        truth = model.decode(scored.scores.token_ids[row, scored.answer[row]].tolist())
        text = model.decode(ids) if ids else ""
        text = text.split("\n\n")[0].split("Question:")[0] if part == "f1" else text  # MUSE cuts its answers there
        found.append(getattr(unlearning.rouge_l_scores(text, truth, stem=stem), part))
    return found


def _gap(forget: np.ndarray, holdout: np.ndarray) -> Estimate:
    """Difference of two means of different records, with Welch's interval."""
    from scipy import stats

    value, n = float(forget.mean() - holdout.mean()), len(forget) + len(holdout)
    a, b = (np.var(x, ddof=1) / len(x) if len(x) > 1 else math.nan for x in (forget, holdout))
    if not a + b > 0:  # one record on a side, or no spread at all
        return Estimate(value, math.nan, math.nan, n, "Welch 95%")
    freedom = (a + b) ** 2 / (a**2 / (len(forget) - 1) + b**2 / (len(holdout) - 1))
    half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(a + b)
    return Estimate(value, value - half, value + half, n, "Welch 95%")


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
