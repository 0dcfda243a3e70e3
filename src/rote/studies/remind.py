"""REMIND: the input loss landscape gives away what was unlearned (arXiv 2511.04228).

Fictitious authors (synthetic TOFU): a model that saw 200 retain and 200 forget authors is unlearned by NPO with a
retain term; 200 holdout authors were never seen. Neighbours come from the base model's embeddings. The paper's method
text could not be read, so features and settings are reconstructed; thresholds are those fixed for the small-scale
replication.

Null claims use the mean of ten random halvings against 0.5 +- 2 standard errors of one held-out half, which is
conservative. Whether REMIND beats single losses is reported, never required: at this scale it need not.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from scipy import stats

from rote.studies.protocol import Claim, Study, StudyContext

K, MANY, FEW = 16, 32, 4
TREES = 100  # of each forest: a third of the library's default, for time
SHELLS, RANKS = (0.15,), (1, 5)
NPO = {"steps": 150, "learning_rate": 5e-4, "batch_size": 32, "schedule": "constant"}

CLAIMS = (
    Claim(
        "oracle_null",
        "On a model retrained without the forget set, forgotten and never-seen texts cannot be told apart.",
        "implied: the retrained model is the definition of forgetting",
        "held-out AUROC forgotten / holdout on the oracle within 0.5 +- 2 s.e.",
    ),
    Claim(
        "untouched_null",
        "On the model before unlearning, retained and to-be-forgotten texts cannot be told apart.",
        "implied: both were trained on alike",
        "held-out AUROC retained / forgotten on the full model within 0.5 +- 2 s.e.",
    ),
    Claim(
        "shuffled_null",
        "With shuffled labels the classifier finds nothing.",
        "implied",
        "held-out macro AUROC with shuffled labels within 0.5 +- 2 s.e.",
    ),
    Claim(
        "classes_are_told_apart",
        "After unlearning, retained, forgotten and never-seen texts are told apart.",
        "82.84 macro AUROC on original texts (random forest)",
        "cross-validated macro AUROC >= 0.75",
    ),
    Claim(
        "forgotten_is_flatter",
        "Forgotten texts lie on a flatter landscape than retained ones.",
        "unlearning leaves flat plateaus",
        "Mann-Whitney one-sided p < .01 for the spread and for the mean slope",
    ),
    Claim(
        "shape_beyond_level",
        "Where single losses say nothing, the shape alone is judged and the outcome is said.",
        "separates where plain losses overlap",
        "AUROC of shape features on loss-matched pairs above 0.5 with its interval, or a note that it is not",
    ),
    Claim(
        "more_neighbours_help",
        "More neighbours do not lower the AUROC.",
        "up to K neighbours a text",
        "macro AUROC with K = 32 >= with K = 4, less 2 s.e.",
    ),
    Claim(
        "paraphrase_is_harder",
        "On paraphrases the audit is weaker, but above chance.",
        "74.26 on rephrased texts against 82.84",
        "macro AUROC on the paraphrase template below the original's and above 0.5 + 2 s.e.",
    ),
)


def run(context: StudyContext) -> None:
    from rote.audit.remind import model_loss, remind, scan
    from rote.controls.editing.unlearning import unlearn
    from rote.records.fictitious_authors import author_records
    from rote.scores.embedding_neighbours import EmbeddingNeighbours
    from rote.testbed.authors import AuthorSize, train_author_models

    bed = train_author_models(AuthorSize(), seed=context.seed, progress=context.progress)
    base, full, oracle = (bed.models[name] for name in ("base", "full", "oracle"))
    unlearned = copy.deepcopy(full)
    unlearned.name = "unlearned"
    context.progress("unlearning (NPO)")
    unlearn(
        unlearned, method="npo", forget=author_records(bed.splits.forget), retain=author_records(bed.splits.retain),
        settings={"beta": 0.1}, trainer=NPO, seed=context.seed,
    )  # fmt: skip
    neighbours = EmbeddingNeighbours(base.tokenizer, base.hf.get_input_embeddings().weight.detach().numpy(), top=5)
    authors = (*bed.splits.retain, *bed.splits.forget, *bed.splits.holdout)
    labels = np.repeat([0, 1, 2], [len(getattr(bed.splits, name)) for name in ("retain", "forget", "holdout")])
    names = [author.id for author in authors]
    texts = {template: [author.text(template) for author in authors] for template in ("train", "paraphrase")}

    def scanned(model: Any, template: str = "train", k: int = K) -> Any:
        context.progress(f"scanning: {model.name}, {template}, K = {k}")
        return scan(
            model_loss(model), texts[template], neighbours, k=k, p=SHELLS, ranks=RANKS, names=names, seed=context.seed
        )

    many = scanned(unlearned, k=MANY)
    after, few = many.first(K), many.first(FEW)
    before, never, told_again = scanned(full), scanned(oracle), scanned(unlearned, "paraphrase")
    context.progress("classifying")
    report = remind(
        after, labels, texts["train"], pointwise=pointwise(unlearned, texts["train"]), oracle=never, seed=context.seed,
        trees=TREES,
    )  # fmt: skip
    decide(context, report, labels, after=after, many=many, few=few, before=before, never=never, told_again=told_again)
    medians = {name: median_losses(each, labels) for name, each in (("full", before), ("unlearned", after),
                                                                    ("oracle", never))}  # fmt: skip
    context.table("losses", [{"model": name, **row} for name, row in medians.items()])
    context.table("pairs", [{"pair": name, **vars(pair)} for name, pair in report.pairs.items()])
    context.table("notes", [{"note": note} for note in report.notes])
    context.table(
        "summary",
        [
            {
                "auroc": report.auroc,
                "single losses": report.auroc_pointwise,
                "text only": report.auroc_text_only,
                "partial auroc 1%": report.partial_auroc,
                "partial auroc 1%, single losses": report.partial_auroc_pointwise,
                "queries": report.queries,
            }
        ],
    )
    context.figure("landscape", landscape_figure(after, labels))


def pointwise(model: Any, texts: list[str]) -> np.ndarray:
    """Mean loss and Min-20 % of each text: two numbers of one query."""
    from rote.measures import membership
    from rote.records.table import RecordTable
    from rote.scores.tokens import score_in_memory

    scores = score_in_memory(model, RecordTable.from_rows({"id": str(i), "text": t} for i, t in enumerate(texts)))
    return np.stack([membership.loss(scores.logp), membership.min_k(scores.logp)], axis=1)


def decide(context: StudyContext, report, labels, *, after, many, few, before, never, told_again) -> None:
    """Every claim, from the scans of this run."""
    from rote.measures.landscape import half_split_auroc

    def two(scan, first, second):
        rows = (labels == first) | (labels == second)
        return half_split_auroc(
            scan.features.matrix[rows], (labels[rows] == second).astype(int), seed=context.seed, trees=60
        )

    for claim, (value, error) in (("oracle_null", two(never, 1, 2)), ("untouched_null", two(before, 0, 1))):
        context.claim(claim, observed={"auroc": value, "s.e.": error}, holds=abs(value - 0.5) <= 2 * error)
    shuffled = np.random.default_rng([context.seed, 7]).permutation(labels)
    value, error = half_split_auroc(after.features.matrix, shuffled, seed=context.seed, trees=60)
    context.claim("shuffled_null", observed={"auroc": value, "s.e.": error}, holds=abs(value - 0.5) <= 2 * error)
    context.claim(
        "classes_are_told_apart",
        observed={"landscape": report.auroc, "single losses": report.auroc_pointwise},
        holds=report.auroc >= 0.75,
    )
    tests = {}
    for name in ("std", "slope_mean"):
        column = after.features.column(f"shell1.{name}")
        found = stats.mannwhitneyu(column[labels == 1], column[labels == 0], alternative="less")
        tests[name] = float(found.pvalue)
    context.claim("forgotten_is_flatter", observed=tests, holds=all(p < 0.01 for p in tests.values()))
    pair = report.pairs["forgotten / holdout"]
    said = any("same loss" in note for note in report.notes)
    context.claim(
        "shape_beyond_level",
        observed={"auroc": pair.matched, "low": pair.matched_low, "pairs": pair.matched_pairs},
        holds=pair.matched is not None and (pair.matched_low > 0.5 or said),
    )
    curves = {k: half_split_auroc(scan.features.matrix, labels, seed=context.seed, trees=60) for k, scan in
              ((FEW, few), (K, after), (MANY, many))}  # fmt: skip
    context.claim(
        "more_neighbours_help",
        observed={k: value for k, (value, _) in curves.items()},
        holds=curves[MANY][0] >= curves[FEW][0] - 2 * curves[MANY][1],
    )
    again, error = half_split_auroc(told_again.features.matrix, labels, seed=context.seed, trees=60)
    context.claim(
        "paraphrase_is_harder",
        observed={"original": curves[K][0], "paraphrase": again, "s.e.": error},
        holds=0.5 + 2 * error < again < curves[K][0],
    )


def median_losses(scanned, labels: np.ndarray) -> dict[str, float]:
    loss = scanned.features.column("loss")
    return {name: float(np.median(loss[labels == i])) for i, name in enumerate(("retained", "forgotten", "holdout"))}


def landscape_figure(scanned, labels: np.ndarray):
    """Loss against spread, one point a text: level and flatness of the three classes."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for i, name in enumerate(("retained", "forgotten", "holdout")):
        rows = labels == i
        figure.add_scatter(
            x=scanned.features.column("loss")[rows], y=scanned.features.column("shell1.std")[rows], mode="markers",
            name=f"{name} (n = {rows.sum()})", marker={"size": 5, "opacity": 0.7},
        )  # fmt: skip
    figure.update_layout(
        title="After unlearning: loss of a text, and its spread over neighbouring texts",
        xaxis_title="loss, nats per token",
        yaxis_title="standard deviation over neighbours",
        template="plotly_white",
    )
    return figure


STUDY = Study("remind", "REMIND: residual memorization read from the input loss landscape", "2511.04228", CLAIMS, run)
