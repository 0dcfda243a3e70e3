"""ProtoEEG-kNN: this EEG looks like these EEGs (arXiv 2510.20846), on simulated EEG with eight simulated raters.

The body of the paper (tables, user study) could not be read and its EEG is credentialed, so no number of it is claimed
here. What is checked is what a case-based detector must do to deserve trust: be about as accurate as the black box it
explains, show cases of the same place and shape, depend on the cases it shows, and let wrong labels be found. Patients
are disjoint between training, calibration and test; every interval resamples patients. Simulated EEG: directions,
never clinical figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rote.studies.protocol import Claim, Study, StudyContext

K = 10
WEIGHTS = "leave-one-in"
FLIPPED = 0.05
RESAMPLES = 4000
# Arms of the ablation: importance a of (latent, range, var, fft), and channel weights.
FULL = (0.5, 0.125, 0.0625, 0.3125)
ARMS: dict[str, tuple[tuple[float, ...], str]] = {
    "full": (FULL, WEIGHTS),
    "latent only": ((1.0, 0.0, 0.0, 0.0), WEIGHTS),
    "without latent": ((0.0, 0.25, 0.125, 0.625), WEIGHTS),
    "without range": (tuple(a / 0.875 for a in (0.5, 0.0, 0.0625, 0.3125)), WEIGHTS),
    "without var": (tuple(a / 0.9375 for a in (0.5, 0.125, 0.0, 0.3125)), WEIGHTS),
    "without fft": (tuple(a / 0.6875 for a in (0.5, 0.125, 0.0625, 0.0)), WEIGHTS),
    "equal channel weights": (FULL, "equal"),
    "leave-one-in-place": (FULL, "leave-one-in-place"),
    "leave-one-out": (FULL, "leave-one-out"),
}

CLAIMS = (
    Claim(
        "auroc_of_the_black_box",
        "Voting by cases ranks segments of new patients about as well as the black-box detector.",
        "state-of-the-art accuracy (abstract; tables not verified)",
        "AUROC of the kNN >= AUROC of SpikeNet - 0.02",
    ),
    Claim(
        "r2_of_the_black_box",
        "Voting by cases predicts the experts' vote fraction about as well as the black-box detector.",
        "not verified",
        "R2 of the kNN >= R2 of SpikeNet - 0.05",
    ),
    Claim(
        "neighbours_share_the_focus",
        "Cases shown for a detected discharge have their discharge in the same place.",
        "similarity separates where from what",
        "share of neighbours with the query's focus: low end of its interval >= 3 x the largest focus in the cases",
    ),
    Claim(
        "channel_weights_find_the_place",
        "They do so more than with equal channel weights.",
        "channel weights carry the location",
        "difference of the share to equal weights: 95 % interval over patients above 0",
    ),
    Claim(
        "neighbours_share_the_morphology",
        "Cases shown for a detected discharge have its morphology more often than chance.",
        "latent codes carry the shape",
        "share minus the share of that morphology among the cases: 95 % interval over patients above 0",
    ),
    Claim(
        "cases_are_used",
        "Taking a query's neighbours out lowers the similarity of the new ones, and its prediction uses nothing else.",
        "the prediction is the mean vote of the neighbours",
        "mean S of the new top k below the old for every query; taking out k other cases changes no prediction",
    ),
    Claim(
        "wrong_labels_are_found",
        "Of the training votes, 5 % are turned round: the cases that other patients' cases contradict most are these.",
        "reported use: audit of labels",
        "share of turned votes among as many top conflicts >= 5 x the base rate",
    ),
)


@dataclass(frozen=True)
class Size:
    """How much is simulated and trained; a test runs the same study smaller."""

    segments: int = 3000
    patients: int = 300
    test_share: float = 0.27
    detector_epochs: int = 8
    warm_epochs: int = 5
    epochs: int = 4
    width: float = 0.5
    scan_seconds: float = 60.0


def run(context: StudyContext, size: Size | None = None) -> None:
    from rote.memory.cases import ProtoKNN, TrainingSettings
    from rote.records.simulated_eeg import simulate_eeg
    from rote.runtime import derive_seed

    size = size or Size()
    context.progress(f"simulating {size.segments} segments of {size.patients} patients")
    segments = simulate_eeg(size.segments, patients=size.patients, seed=derive_seed(context.seed, "eeg"))
    test = test_patients(segments.groups, size.test_share)
    train, new = segments.take(~test), segments.take(test)
    training = TrainingSettings.small(
        width=size.width, detector_epochs=size.detector_epochs, warm_epochs=size.warm_epochs, epochs=size.epochs
    )
    settings: dict[str, Any] = {"k": K, "weights": WEIGHTS, "training": training, "random_state": context.seed}
    context.progress(f"training on {len(train)} segments (detector, prototypes)")
    model = ProtoKNN(**settings, validation_share=0.15)
    model.fit(train.data, train.votes, groups=train.groups, ids=train.ids)
    context.progress("comparing with the black box, prototypes and ablations")
    encoded = model.encode(new.data)
    rows, neighbours, votes = compare(model, new, encoded)
    context.table("arms", rows)
    accuracy = {row["arm"]: row for row in rows}
    for claim, measure, room in (("auroc_of_the_black_box", "auroc", 0.02), ("r2_of_the_black_box", "r2", 0.05)):
        ours, theirs = accuracy["full"][measure], accuracy["black box (SpikeNet)"][measure]
        context.claim(claim, observed={"kNN": ours, "SpikeNet": theirs}, holds=ours >= theirs - room)
    shares = place_and_shape(context, model, segments, new, neighbours, votes)
    context.table("neighbours", shares)
    context.figure("neighbours", share_figure(shares))
    context.progress("taking cases out")
    deletion(context, model, new, encoded)
    context.table("calibration", [calibration(model, new, votes["full"])])
    context.table("leakage", leakage(model))
    context.progress("scanning continuous recordings")
    context.table("scan", scans(model, context.seed, size.scan_seconds))
    shown = np.flatnonzero((new.kind == "ied") & (new.votes >= 7) & (votes["full"] >= 0.5))
    if len(shown):
        at = int(shown[0])
        context.figure(
            "explanation", model.explain(new.data[at], group=str(new.groups[at]), id=str(new.ids[at])).plot()
        )
    context.progress("training again with 5 % of the votes turned round")
    del encoded, neighbours, votes
    turned, flipped = turn_votes(train.votes, train.raters, FLIPPED, derive_seed(context.seed, "turned"))
    auditor = ProtoKNN(**settings, prototype_phase=False, calibrate=False)
    auditor.fit(train.data, turned, groups=train.groups, ids=train.ids)
    label_audit(context, auditor, flipped)


def test_patients(groups: np.ndarray, share: float) -> np.ndarray:
    """Mask of the last `share` of the patients, by name: the simulator draws them independently."""
    names = np.unique(groups)
    return np.isin(groups, names[len(names) - round(share * len(names)) :])


test_patients.__test__ = False  # type: ignore[attr-defined]  # no test, whatever its name


def compare(model, new, encoded) -> tuple[list[dict[str, Any]], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """AUROC, R2 and accuracy of every arm on new patients; neighbours' rows and predicted votes of the kNN arms."""
    from rote.memory.cases import evaluate_votes, search_exact
    from rote.memory.cases.channel_weights import channel_weights

    base = model.cases_
    truth = new.votes / new.raters
    neighbours, votes, weights = {}, {}, {model.weights: encoded.weights}
    for arm, (importance, mode) in ARMS.items():
        if mode not in weights:
            weights[mode] = channel_weights(model.model_.detector, encoded.channels, mode)
        excluded = base.excluded_for(encoded.signals, new.groups)
        found = search_exact(encoded.codes, weights[mode], base.codes, importance, model.k, excluded=excluded)
        neighbours[arm], votes[arm] = found.index, base.fraction[found.index].mean(1)
    predicted = {
        **votes,
        "black box (SpikeNet)": model.model_.black_box(encoded.channels),
        "prototypes (ProtoPNet style)": model.prototypes_.predict(encoded.codes, encoded.weights).numpy(),
    }
    rows = []
    for arm, values in predicted.items():
        found = evaluate_votes(values, truth, new.groups, resamples=RESAMPLES)
        row: dict[str, Any] = {"arm": arm}
        for name in ("auroc", "r2", "accuracy"):
            interval = getattr(found, name)
            row |= {name: interval.value, f"{name} low": interval.low, f"{name} high": interval.high}
        rows.append(row | {"segments": len(new), "patients": found.auroc.patients})
    return rows, neighbours, votes


def mean_by_patient(values: np.ndarray, groups: np.ndarray):
    """Mean of one number a query and its interval over patients."""
    from rote.memory.cases.evaluation import by_patient

    def mean(weight: np.ndarray | None) -> np.ndarray:
        if weight is None:
            return values.mean(keepdims=True)
        total = weight.sum(1)
        return np.where(total > 0, weight @ values / np.where(total > 0, total, 1), np.nan)

    return by_patient(mean, groups, resamples=RESAMPLES, seed=0)


def place_and_shape(context: StudyContext, model, segments, new, neighbours, votes) -> list[dict[str, Any]]:
    """Shares of neighbours with the query's focus and morphology, over detected discharges; decides three claims."""
    row_of = {name: at for at, name in enumerate(segments.ids)}
    rows = np.array([row_of[name] for name in model.cases_.ids])
    focus, morphology = segments.focus[rows], segments.morphology[rows]
    detected = (new.kind == "ied") & (2 * new.votes >= new.raters) & (votes["full"] >= 0.5)
    groups = new.groups[detected]
    same: dict[str, dict[str, np.ndarray]] = {}
    for arm, index in neighbours.items():
        same[arm] = {
            "focus": (focus[index[detected]] == new.focus[detected][:, None]).mean(1),
            "morphology": (morphology[index[detected]] == new.morphology[detected][:, None]).mean(1),
        }
    largest = max(float((focus == name).mean()) for name in set(focus.tolist()) - {""})
    chance = np.array([(morphology == name).mean() for name in new.morphology[detected]])
    found = mean_by_patient(same["full"]["focus"], groups)
    context.claim(
        "neighbours_share_the_focus",
        observed={"share": found.value, "low": found.low, "largest focus": largest, "queries": len(groups)},
        holds=found.low >= 3 * largest,
    )
    gain = mean_by_patient(same["full"]["focus"] - same["equal channel weights"]["focus"], groups)
    context.claim(
        "channel_weights_find_the_place",
        observed={"difference": gain.value, "low": gain.low, "high": gain.high,
                  "equal weights": float(same["equal channel weights"]["focus"].mean())},
        holds=gain.low > 0,
    )  # fmt: skip
    excess = mean_by_patient(same["full"]["morphology"] - chance, groups)
    context.claim(
        "neighbours_share_the_morphology",
        observed={"share": float(same["full"]["morphology"].mean()), "chance": float(chance.mean()),
                  "difference": excess.value, "low": excess.low},
        holds=excess.low > 0,
    )  # fmt: skip
    table = []
    for arm, values in same.items():
        row: dict[str, Any] = {"arm": arm}
        for name, each in values.items():
            interval = mean_by_patient(each, groups)
            row |= {name: interval.value, f"{name} low": interval.low, f"{name} high": interval.high}
        table.append(row | {"largest focus": largest, "morphology by chance": float(chance.mean()),
                            "queries": len(groups)})  # fmt: skip
    return table


def deletion(context: StudyContext, model, new, encoded) -> None:
    """Take each query's k neighbours out, search again; take k cases out that are no neighbours, predict again."""
    cases = model.cases_
    before = model._search(encoded, new.groups)
    vote = cases.fraction[before.index].mean(1)
    order = model._search(encoded, new.groups, 2 * model.k)
    lower = order.similarity[:, model.k :].mean(1) < before.similarity.mean(1)
    moved = np.abs(cases.fraction[order.index[:, model.k :]].mean(1) - vote)
    same, exact = 0, 0
    rng = np.random.default_rng(context.seed)
    checked = rng.choice(len(new), min(20, len(new)), replace=False)
    try:
        for at in checked:
            query, group = new.data[at : at + 1], new.groups[at : at + 1]
            model.cases_ = cases
            model.forget(ids=cases.ids[before.index[at]])
            again = model.kneighbors(query, groups=group)
            exact += bool(np.allclose(again.similarity[0], order.similarity[at, model.k :], atol=1e-5))
            model.cases_ = cases
            others = np.setdiff1d(np.arange(len(cases)), before.index[at])
            model.forget(ids=cases.ids[rng.choice(others, model.k, replace=False)])
            same += bool(model.predict_vote(query, groups=group)[0] == vote[at])
    finally:
        model.cases_ = cases
    context.claim(
        "cases_are_used",
        observed={
            "queries": len(new), "S lower": int(lower.sum()), "mean fall of S":
            float((before.similarity.mean(1) - order.similarity[:, model.k :].mean(1)).mean()),
            "mean move of the prediction": float(moved.mean()), "taken out and searched again": len(checked),
            "as the order foretold": exact, "unmoved by taking out others": same,
        },
        holds=bool(lower.all() and exact == len(checked) and same == len(checked)),
    )  # fmt: skip


def turn_votes(votes: np.ndarray, raters: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(votes with a share of them turned to raters - votes, mask of these). A tie cannot be turned and never is."""
    movable = np.flatnonzero(2 * votes != raters)
    chosen = np.random.default_rng(seed).choice(movable, round(share * len(votes)), replace=False)
    flipped = np.zeros(len(votes), bool)
    flipped[chosen] = True
    return np.where(flipped, raters - votes, votes), flipped


def label_audit(context: StudyContext, auditor, flipped: np.ndarray) -> None:
    """Rank cases by what other patients' cases say against them; decides the claim on wrong labels."""
    from rote.memory.cases import leave_one_patient_out

    loo, _ = leave_one_patient_out(auditor)
    gap = np.abs(auditor.cases_.fraction - loo)
    top = np.argsort(-gap, kind="stable")[: int(flipped.sum())]
    precision, base = float(flipped[top].mean()), float(flipped.mean())
    context.claim(
        "wrong_labels_are_found",
        observed={"among top conflicts": precision, "base rate": base, "times": precision / base,
                  "turned": int(flipped.sum())},
        holds=precision >= 5 * base,
    )  # fmt: skip


def calibration(model, new, vote: np.ndarray) -> dict[str, Any]:
    """Brier score of the raw and the calibrated vote against the majority, on new patients."""
    positive = (2 * new.votes >= new.raters).astype(float)
    chance = model.calibrated(vote)
    return {
        "Brier, vote": float(((vote - positive) ** 2).mean()),
        "Brier, calibrated": float(((chance - positive) ** 2).mean()),
        "mean probability": float(chance.mean()), "positive share": float(positive.mean()),
    }  # fmt: skip


def leakage(model) -> list[dict[str, Any]]:
    """What a split by segment would report: training cases with and without their own patient among the neighbours."""
    from rote.memory.cases import evaluate_votes, search_exact

    base, rows = model.cases_, []
    for name, groups in (("own patient excluded", base.groups), ("own patient allowed", None)):
        excluded = base.excluded_for(base.signals, groups)
        found = search_exact(base.codes, base.weights, base.codes, model.importance_, model.k, excluded=excluded)
        score = evaluate_votes(base.fraction[found.index].mean(1), base.fraction, base.groups, resamples=500)
        own = float((base.groups[found.index] == base.groups[:, None]).mean())
        rows.append({"neighbours": name, "auroc": score.auroc.value, "r2": score.r2.value, "of the own patient": own})
    return rows


def scans(model, seed: int, seconds: float) -> list[dict[str, Any]]:
    """Sensitivity and false events a minute on continuous simulated EEG of six more patients: at probability one half,
    and at the threshold that two quiet recordings ask for (at most one false event a minute there)."""
    from rote.errors import InputError
    from rote.memory.cases import quiet_threshold, scan_recording
    from rote.records.simulated_eeg import simulate_recording
    from rote.runtime import derive_seed

    def scanned(name: str, per_minute: float):
        made = simulate_recording(seconds, per_minute=per_minute, seed=derive_seed(seed, "scan", name))
        return made, scan_recording(model, made.data, made.names, made.sfreq)

    calm = [scanned(f"quiet {number}", 0.0)[1] for number in range(2)]
    try:
        asked = quiet_threshold(calm, per_minute=1.0)
    except InputError:  # too many quiet windows of the highest probability: no threshold will do
        asked = None
    rows = []
    for name, per_minute in (("discharges 0", 12.0), ("discharges 1", 12.0), ("none 0", 0.0), ("none 1", 0.0)):
        made, found = scanned(name, per_minute)
        for threshold in (0.5, asked):
            if threshold is None:
                continue
            peaks = [found.times[run[len(run) // 2]] for run in found.runs(threshold)]
            near = np.abs(np.array(peaks)[:, None] - made.onsets[None]) <= 0.5
            rows.append({
                "recording": name, "threshold": threshold, "from quiet recordings": threshold != 0.5,
                "seconds": seconds, "discharges": len(made.onsets), "found": int(near.any(0).sum()),
                "false": int((~near.any(1)).sum()), "focus": made.patient.focus,
            })  # fmt: skip
    return rows


def share_figure(rows: list[dict[str, Any]]):
    """Shares of neighbours with the query's focus and morphology, by arm, with intervals over patients."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for name, colour in (("focus", "#1f5fa8"), ("morphology", "#d98f2b")):
        values = np.array([[row[name], row[f"{name} low"], row[f"{name} high"]] for row in rows])
        figure.add_bar(
            x=[row["arm"] for row in rows], y=values[:, 0], name=f"same {name}", marker_color=colour,
            error_y={"type": "data", "symmetric": False, "array": values[:, 2] - values[:, 0],
                     "arrayminus": values[:, 0] - values[:, 1]},
        )  # fmt: skip
    for key, title in (("largest focus", "largest focus of the cases"), ("morphology by chance", "morphology, chance")):
        figure.add_hline(y=rows[0][key], line={"dash": "dot", "color": "#777"}, annotation_text=title)
    figure.update_layout(
        title=f"Do the shown cases share place and shape? {rows[0]['queries']} detected discharges of new patients",
        yaxis_title=f"share of the {K} neighbours",
        barmode="group",
        template="plotly_white",
    )
    return figure


STUDY = Study("proto-eeg-knn", "This EEG looks like these EEGs: ProtoEEG-kNN", "2510.20846", CLAIMS, run)
