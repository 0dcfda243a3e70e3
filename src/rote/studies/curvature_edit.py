"""Study: memorization lives in low-curvature weight directions (Merullo et al. 2025, arXiv 2510.24256).

Two experiments at CPU scale. A classifier of real digits with a tenth of the labels wrong: the edit must forget the
wrong labels and keep the rest. A small language model that recites planted windows of Python's language reference: at
the same loss of perplexity the edit must leave less recitation than dropping singular values or random eigenpairs, and
what it removes must not depend on having been tuned on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rote.measures import recitation as rec
from rote.measures.extraction import greedy_extractable
from rote.runtime import derive_seed, threads
from rote.studies._curvature_digits import label_noise
from rote.studies.protocol import Claim, Study, StudyContext

if TYPE_CHECKING:
    from jaxtyping import Int

    from rote.models.causal_lm import CausalLM

# (b) the card's section 5b: 4 of every 16 rows planted, and here 2 more rows that hold two quotes each
WINDOW, PREFIX, SUFFIX = 48, 16, 24
QUOTE, QUOTE_SUFFIX = 24, 8
PLANTED, STEPS, BATCH, PLANTED_ROWS, QUOTE_ROWS = 32, 1200, 16, 4, 2
FACTOR_WINDOWS, VALIDATION_WINDOWS = 1200, 300
LAYERS = ("model.layers.{1,2}.mlp.{gate,up,down}_proj",)
STRENGTHS = {
    "curvature": (0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55),
    "random-pairs": (0.9, 0.85, 0.8, 0.75, 0.7, 0.65),
    "svd": (0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35, 0.3),
    "noise": (0.1, 0.2, 0.3, 0.4, 0.5),
}
MATCHED = 1.35  # times the unedited perplexity: the middle of the card's +30 to +40 %
FORGOTTEN = 2 / PLANTED  # strict rate on the first family at which a method counts as tuned; the paper: 3.4 and 6.0 %
SUBNETS, SUBNET_EPOCHS = ((0.05, 0.5), (0.05, 0.6), (0.1, 0.7)), 80  # (ratio, weight of clean text)

CLAIMS = (
    Claim(
        "label_noise",
        "the edit forgets wrong labels, recovers the right ones, and keeps clean and validation accuracy",
        "memorized 81.6 -> 3.5 %, ground truth 10.5 -> 66.5 %, validation 67.0 -> 71.7 % (ViT-Base)",
        "memorized falls by >= 0.35 and ground truth rises by >= 0.3 while clean >= 0.95 and validation within 0.03",
    ),
    Claim(
        "label_noise_svd",
        "at matched memorized accuracy the edit keeps more clean accuracy than dropping singular values",
        "ground truth 66.5 % against 58.9 %, validation 71.7 % against 67.8 %",
        "clean accuracy at least 0.08 above the best SVD truncation that memorizes no more",
    ),
    Claim(
        "label_noise_controls",
        "keeping as many pairs at random, or those of lowest mass, destroys the classifier",
        "not in the paper; the card's control",
        "clean accuracy at most 0.25 for both (chance is 0.1)",
    ),
    Claim(
        "recites",
        "the language model recites what was planted, and nothing it never saw",
        "Dolma and quotes strict 99.9 % before the edit",
        "strict >= 0.95 on both planted families, 0 on held-out windows",
    ),
    Claim(
        "matched_perplexity",
        "at a matched perplexity the edit leaves at most half the recitation of SVD and of random pairs",
        "quotes strict 16.1 % (K-FAC) at perplexity 22.84; 17.5 % (SVD) at 22.49",
        "strict at +35 % perplexity at most half of each control's",
    ),
    Claim(
        "bands",
        "memorized text is weaker than held-out text in high-curvature directions and stronger in low ones",
        "layer 22 input: bottom half 23.1 % stronger on memorized, top 10 % 26 % stronger on clean",
        "strength ratios rise through the four bands for every MLP input of the last two blocks",
    ),
    Claim(
        "transfer",
        "tuned on the first family only, the edit also removes the second (short quotes)",
        "Dolma strict 99.9 -> 3.4 %, quotes 99.9 -> 16.1 %",
        "strict on the second family at most half of the unedited model's",
    ),
    Claim(
        "subnet_does_not_transfer",
        "BalancedSubnet, trained and tuned on the first family, leaves the second in place",
        "Dolma strict 6.0 %, quotes 60.0 %",
        "first family at most 2 of 32; second at least 0.3 and at least twice the curvature edit's",
    ),
)


def run(context: StudyContext) -> None:
    with threads(1):
        label_noise(context)
        _recitation(context)


# ---- (b) a language model that recites


@dataclass(frozen=True)
class Texts:
    """Windows of token ids. `planted` (48 tokens) and `quotes` (24, other source) are trained on many times; `ordinary`
    a few times; `held` and `validation` never."""

    tokenizer: Any
    planted: Int[np.ndarray, "windows tokens"]
    quotes: Int[np.ndarray, "quotes tokens"]
    held: Int[np.ndarray, "windows tokens"]
    validation: Int[np.ndarray, "windows tokens"]
    ordinary: Int[np.ndarray, "windows tokens"]


def _recitation(context: StudyContext) -> None:
    from rote.controls.editing import at_matched, edit_by_curvature, sweep
    from rote.internals.curvature import collect_causal_lm, decompose

    context.progress("language model: training with planted windows and quotes")
    texts = _texts(context.seed)
    model = _train_lm(texts, context.seed)
    meter = Meter(model, texts)
    base = meter()
    held = meter.strict(meter.held, PREFIX, SUFFIX)
    context.claim(
        "recites",
        observed={**base, "held-out strict": held, "n": PLANTED},
        holds=base["strict"] >= 0.95 and base["strict_quotes"] >= 0.95 and held == 0,
    )
    context.progress("curvature factors, and the frontier of every method")
    clean = texts.ordinary[:FACTOR_WINDOWS]
    factors = collect_causal_lm(model, clean, layers=LAYERS, seed=context.seed)
    bases = decompose(factors)
    _bands(context, model, bases, texts)
    unedited = {"method": "none", "strength": None, "share": 1.0, "relative_change": 0.0, **base}
    rows, matched = [unedited], {}
    for method, strengths in STRENGTHS.items():
        found = sweep(
            model, factors, strengths=strengths, metrics=meter.metrics, method=method, bases=bases, seed=context.seed
        )
        rows += found
        matched[method] = at_matched([unedited, *found], value=MATCHED * base["perplexity"], metric="strict")
    ours, rivals = matched["curvature"], [matched["svd"], matched["random-pairs"]]
    context.claim(
        "matched_perplexity",
        observed={"strict at +35% perplexity": matched, "n": PLANTED},
        holds=ours is not None and all(rival is not None and ours <= rival / 2 for rival in rivals),
    )

    tuned = [row for row in rows if row["method"] == "curvature" and row["strict"] <= FORGOTTEN]
    best = max(tuned, key=lambda row: row["strength"]) if tuned else None
    context.claim(
        "transfer",
        observed={"base": base["strict_quotes"], "edited": best},
        holds=best is not None and best["strict_quotes"] <= base["strict_quotes"] / 2,
    )
    context.progress("BalancedSubnet, tuned on the first family")
    subnets = _subnets(context, meter, texts)
    rows += subnets
    tuned = [row for row in subnets if row["strict"] <= FORGOTTEN]
    subnet = min(tuned, key=lambda row: row["perplexity"]) if tuned else None
    context.claim(
        "subnet_does_not_transfer",
        observed={"subnet": subnet, "curvature": None if best is None else best["strict_quotes"]},
        holds=best is not None
        and subnet is not None
        and subnet["strict_quotes"] >= max(0.3, 2 * best["strict_quotes"]),
    )
    context.table("frontier", rows)
    context.figure("frontier", _figure_frontier(rows, base))
    details = [meter.details("none", texts.tokenizer)]
    if best is not None:
        with edit_by_curvature(model, factors, rho=best["strength"], bases=bases) as report:
            details.append(meter.details(f"curvature, rho {best['strength']}", texts.tokenizer))
            context.table("edited_layers", report.as_dict()["layers"])
    context.table("generations", [row for found, _ in details for row in found])
    context.table("edited_model", [row for _, row in details])


def _texts(seed: int) -> Texts:
    """The language reference, cut into windows; quotes are the beginnings of docstrings, a source the rest never
    uses."""
    from rote.models import train_bpe
    from rote.records import stdlib_documents

    documents = list(stdlib_documents())
    topics = [document.text for document in documents if document.id.startswith("topics/")]
    others = [document.text for document in documents if not document.id.startswith("topics/")]
    tokenizer = train_bpe(topics, vocab_size=512)
    rng = np.random.default_rng(derive_seed(seed, "texts"))

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]  # type: ignore[return-value]

    stream = np.concatenate([encode(text) for text in topics])
    windows = stream[: len(stream) // WINDOW * WINDOW].reshape(-1, WINDOW)
    windows = windows[rng.permutation(len(windows))]
    # A window that occurs twice would be held out and trained on at once.
    windows = windows[np.sort(np.unique(windows, axis=0, return_index=True)[1])]
    planted, held, validation, ordinary = np.split(windows, np.cumsum([PLANTED, PLANTED, VALIDATION_WINDOWS]))
    quotes: dict[tuple, tuple] = {}
    for number in rng.permutation(len(others)):
        ids = tuple(encode(others[number][:400])[:QUOTE])
        if len(ids) == QUOTE:
            quotes.setdefault(ids[: QUOTE - QUOTE_SUFFIX], ids)
        if len(quotes) == PLANTED:
            break
    return Texts(tokenizer, planted, np.array(list(quotes.values())), held, validation, ordinary)


def _train_lm(texts: Texts, seed: int) -> CausalLM:
    """A tied Llama of 0.49 M parameters; every planted window and quote is seen 150 times, ordinary ones 3 times."""
    from rote.models import CausalLM, TrainingConfig, small_llama, train_causal_lm

    rng = np.random.default_rng(derive_seed(seed, "stream"))

    def drawn(rows: np.ndarray, count: int) -> np.ndarray:
        epochs = [rng.permutation(len(rows)) for _ in range(-(-count // len(rows)))]
        return rows[np.concatenate(epochs)[:count]]

    stream = np.empty((STEPS, BATCH, WINDOW), np.int64)
    first, last = PLANTED_ROWS, PLANTED_ROWS + QUOTE_ROWS
    stream[:, :first] = drawn(texts.planted, STEPS * first).reshape(STEPS, first, WINDOW)
    stream[:, first:last] = drawn(texts.quotes, STEPS * 2 * QUOTE_ROWS).reshape(STEPS, QUOTE_ROWS, WINDOW)
    stream[:, last:] = drawn(texts.ordinary, STEPS * (BATCH - last)).reshape(STEPS, BATCH - last, WINDOW)
    model = small_llama(
        vocab_size=len(texts.tokenizer),
        context_length=64,
        width=96,
        layers=3,
        heads=4,
        mlp_width=384,
        tied=True,
        seed=derive_seed(seed, "model") % 2**31,
    )
    recipe = TrainingConfig(batch_size=BATCH, learning_rate=2e-3, final_share=0.0)
    train_causal_lm(model, stream.reshape(-1, WINDOW), recipe)
    return CausalLM(model)


class Meter:
    """Strict rates on both families and validation perplexity of the model as it is, each from one pass."""

    def __init__(self, model: CausalLM, texts: Texts):
        from rote.records import RecordTable

        def table(windows: np.ndarray) -> RecordTable:
            return RecordTable.from_rows({"token_ids": row.tolist()} for row in windows)

        self.model, self.texts = model, texts
        self.planted, self.quotes = table(texts.planted[:, : PREFIX + SUFFIX]), table(texts.quotes)
        self.held, self.validation = table(texts.held[:, : PREFIX + SUFFIX]), table(texts.validation)
        self.metrics: Mapping[str, Callable[[], float]] = {
            "strict": lambda: self.strict(self.planted, PREFIX, SUFFIX),
            "strict_quotes": lambda: self.strict(self.quotes, QUOTE - QUOTE_SUFFIX, QUOTE_SUFFIX),
            "perplexity": lambda: self.perplexity().pooled,
        }

    def __call__(self) -> dict[str, float]:
        return {name: measure() for name, measure in self.metrics.items()}

    def strict(self, records: Any, prefix: int, suffix: int) -> float:
        """Share of records whose suffix greedy decoding emits: no token is generated to know it."""
        block = self._scores(records, prefix, suffix)
        return float(greedy_extractable(block.greedy, block.prefix, block.suffix).mean())

    def perplexity(self) -> rec.Perplexity:
        return rec.perplexity(self._scores(self.validation, PREFIX, SUFFIX).logp)

    def details(self, name: str, tokenizer: Any) -> tuple[list[dict], dict]:
        """What needs generation: the near-exact figures of both families, the stress test, and a few texts to read."""
        from rote.scores.continuations import greedy_continuations

        figures: dict[str, Any] = {"model": name}
        shown = []
        for family, windows, prefix, suffix in (
            ("planted", self.texts.planted, PREFIX, SUFFIX),
            ("quotes", self.texts.quotes, QUOTE - QUOTE_SUFFIX, QUOTE_SUFFIX),
        ):
            target = windows[:, prefix : prefix + suffix]
            made = greedy_continuations(self.model, windows[:, :prefix].tolist(), suffix)
            found = rec.recitation(made, target)
            figures |= {f"{family}_{kind}": getattr(found, kind).value for kind in ("strict", "loose", "levenshtein")}
            shown += [
                {"model": name, "family": family, "prompt": tokenizer.decode(row[:prefix]),
                 "true": tokenizer.decode(row[prefix : prefix + suffix]), "generated": tokenizer.decode(said)}
                for row, said in zip(windows[:3], made[:3], strict=True)
            ]  # fmt: skip
        found = self.perplexity()
        figures |= {"perplexity": found.pooled, "perplexity_mean_of_blocks": found.mean_of_blocks}
        figures["stress_longest_match"] = self._stress()
        return shown, figures

    def _stress(self) -> float:
        """Mean over 16 planted items of the longest exact match any moved prompt draws out (Merullo et al. 2025)."""
        from rote.scores.continuations import greedy_continuations

        items = self.texts.planted[:16, : PREFIX + SUFFIX]
        best = np.zeros(len(items), np.int64)
        for start, stop in rec.stress_windows(PREFIX, SUFFIX, t=PREFIX // 3):
            gold = items[:, stop:]
            made = greedy_continuations(self.model, items[:, start:stop].tolist(), gold.shape[1])
            best = np.maximum(best, rec.longest_exact_match(made, gold))
        return float(best.mean())

    def _scores(self, records: Any, prefix: int, suffix: int) -> Any:
        from rote.scores.sequences import Split
        from rote.scores.tokens import score_in_memory

        return score_in_memory(self.model, records, split=Split(prefix, suffix))


def _bands(context: StudyContext, model: CausalLM, bases: Mapping, texts: Texts) -> None:
    from rote.internals.curvature import band_strengths, rises_through_bands

    rows = band_strengths(
        model,
        bases,
        {"clean": texts.held, "memorized": texts.planted},
        positions=slice(PREFIX, PREFIX + SUFFIX),
    )
    context.table("bands", rows)
    ratios = {
        layer: [row["ratio"] for row in rows if row["layer"] == layer and row["text"] == "memorized"]
        for layer in bases
        if not layer.endswith("up_proj")  # it reads what the gate reads
    }
    context.claim(
        "bands",
        observed=ratios,
        holds=all(rises_through_bands(np.array(found)) for found in ratios.values()),
    )


def _subnets(context: StudyContext, meter: Meter, texts: Texts) -> list[dict[str, Any]]:
    """BalancedSubnet over a small grid, on the first family and as many clean windows, each trained until the first
    family is forgotten and no longer; the model is restored."""
    from rote.controls.editing.supermask import SupermaskSettings, train_supermask

    rows = []
    for ratio, weight in SUBNETS:
        with train_supermask(
            meter.model,
            texts.planted,
            texts.ordinary[:PLANTED],
            layers=LAYERS,
            settings=SupermaskSettings(ratio=ratio, clean_weight=weight, epochs=SUBNET_EPOCHS, batch_size=16),
            seed=context.seed,
            stop=lambda epoch: meter.metrics["strict"]() <= FORGOTTEN,
        ) as report:
            rows.append(
                {"method": "balanced-subnet", "strength": ratio, "clean_weight": weight, "share": 1 - ratio, **meter(),
                 "steps": len(report.losses)}
            )  # fmt: skip
    return rows


# ---- figures


def _figure_frontier(rows: Sequence[Mapping], base: Mapping):
    import plotly.graph_objects as go

    figure = go.Figure()
    for method in dict.fromkeys(row["method"] for row in rows if row["method"] != "none"):
        points = sorted((row for row in rows if row["method"] in (method, "none")), key=lambda row: row["perplexity"])
        figure.add_scatter(
            x=[row["perplexity"] for row in points],
            y=[row["strict"] for row in points],
            mode="markers" if method == "balanced-subnet" else "lines+markers",
            name=method,
        )
    figure.add_vline(x=MATCHED * base["perplexity"], line_dash="dot", annotation_text="+35 %")
    figure.update_layout(
        title=f"Recitation against perplexity (strict on {PLANTED} planted windows, {PREFIX} + {SUFFIX} tokens)",
        template="plotly_white",
    )
    figure.update_xaxes(title=f"perplexity on {VALIDATION_WINDOWS} unseen windows", type="log")
    figure.update_yaxes(title="share recited exactly", range=[0, 1])
    return figure


STUDY = Study(slug="curvature-edit", title="Loss-curvature weight edit", arxiv="2510.24256", claims=CLAIMS, run=run)
