"""Tables and figures of the study of neuron probes.

Knows what the study measured. Knows nothing about: claims, models.
"""

from __future__ import annotations

import numpy as np

from rote.studies._neuron_bed import PREFIX, SUFFIX, Found, both_halves
from rote.studies._neuron_recitation import WEIGHTED


def recitation_row(found: Found, mode: str) -> dict[str, float | None]:
    """Share of passages recited before and after, at the chosen dose, and what random directions do: at the same dose,
    and (`weighted`) at the dose that costs as much."""
    before = both_halves(found.doses, "none", 0.0, mode)
    after = both_halves(found.doses, "selected", "price", mode)
    random = both_halves(found.doses, "random", "price", mode)
    row = {
        "before": before["extraction"], "after": after["extraction"], "fallen by": fallen(before, after),
        "dose": after["scale"], "cost": after["cost"], "M": after["rise_memorized"], "C": after["rise_certain"],
        "U": after["rise_uncertain"], "after, random": random["extraction"],
        "fallen by, random": fallen(before, random), "cost, random": random["cost"],
    }  # fmt: skip
    if mode == WEIGHTED:
        equal = both_halves(found.doses, "random, equal cost", "price", mode)
        row |= {
            "after, random at equal cost": equal["extraction"],
            "fallen by, random at equal cost": fallen(before, equal),
            "cost, random at equal cost": equal["cost"],
        }  # fmt: skip
    return row


def fallen(before: dict[str, float], after: dict[str, float]) -> float | None:
    return 1 - after["extraction"] / before["extraction"] if before["extraction"] else None


def comparison_rows(found: Found) -> list[dict]:
    """One row per comparison and column, AUROC on held-out passages with its interval."""
    rows = []
    for name, probe in found.probes.items():
        for column in ("probe", "control", "outputs", "logp", "combined"):
            judged = getattr(probe.report, column)
            rows.append({"comparison": name, "column": column, "layer": probe.layer, **judged.auroc.as_dict(),
                         "balanced_accuracy": judged.balanced_accuracy, "f1": judged.f1})  # fmt: skip
    return rows


def probes_figure(rows: list[dict]):
    """The probe always beside the control model, and beside what the output alone tells."""
    import plotly.graph_objects as go

    figure = go.Figure()
    titles = {"probe": "probe", "control": "same probe, model without copies", "outputs": "log p, entropy, max p only",
              "combined": "probe and outputs"}  # fmt: skip
    for column, title in titles.items():
        mine = [row for row in rows if row["column"] == column]
        figure.add_bar(
            x=[row["comparison"] for row in mine],
            y=[row["value"] for row in mine],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [row["high"] - row["value"] for row in mine],
                "arrayminus": [row["value"] - row["low"] for row in mine],
            },
            name=title,
        )
    figure.add_hline(y=0.5, line_dash="dot")
    figure.update_layout(
        title="AUROC on passages the probe never saw (M recited, C certain, U uncertain tokens; 95 % over passages)",
        template="plotly_white", barmode="group",
    )  # fmt: skip
    figure.update_yaxes(title="AUROC", range=[0.3, 1])
    return figure


def doses_figure(rows: list[dict]):
    """What the dose does to each kind of token, and what it costs; the random direction dotted."""
    import plotly.graph_objects as go

    figure = go.Figure()
    doses = sorted(
        {row["scale"] for row in rows if row["dose"] == "fixed" and row["mode"] == "diff-means" and row["scale"]}
    )
    for direction, dash in (("selected", "solid"), ("random", "dot")):
        at = [both_halves(rows, direction, dose) for dose in doses]
        for kind in ("memorized", "certain", "uncertain"):
            figure.add_scatter(
                x=doses, y=[row[f"rise_{kind}"] for row in at], name=f"{kind}, {direction}", line_dash=dash,
                mode="lines+markers",
            )  # fmt: skip
        figure.add_scatter(
            x=doses, y=[np.log1p(row["cost"]) for row in at], name=f"held-out text, {direction}", line_dash=dash,
            line_color="gray", mode="lines+markers",
        )  # fmt: skip
    figure.update_layout(
        title="Subtracting the difference of means: rise in NLL on passages it was not made from",
        template="plotly_white",
    )
    figure.update_xaxes(title="dose c", type="log", tickvals=doses)
    figure.update_yaxes(title="nats per token")
    return figure


def recitation_figure(found: Found):
    """What is still recited: every token's own dose, one dose for all, and random directions."""
    import plotly.graph_objects as go

    names = {WEIGHTED: "each token by its own score", "diff-means": "one dose for all tokens"}
    rows = {title: recitation_row(found, mode) for mode, title in names.items()}
    figure = go.Figure()
    for key, title in (
        ("before", "untouched"),
        ("after", "difference of means"),
        ("after, random", "random direction, same dose"),
        ("after, random at equal cost", "random direction, same cost"),
    ):
        figure.add_bar(
            x=[f"{name} (cost {row['cost']:.1%})" for name, row in rows.items()],
            y=[row.get(key) for row in rows.values()],
            name=title,
        )
    figure.update_layout(
        title="Passages still recited under a direction and dose from other passages",
        template="plotly_white", barmode="group",
    )  # fmt: skip
    figure.update_yaxes(title=f"share recited greedily ({SUFFIX} tokens after {PREFIX})", range=[0, 1])
    return figure


def repetition_figure(found: Found):
    """Repeated segments nobody trained on: the repetition probe, the memorization probe, the output alone."""
    import plotly.graph_objects as go

    titles = {
        "matched": "text, against the same<br>tokens for the first time",
        "first": "text, against its<br>own first occurrence",
        "random tokens": "random tokens, against<br>the same for the first time",
    }
    rows = {title: found.repetition[name] for name, title in titles.items()}
    read = {
        "repetition probe": [row["auroc"]["value"] for row in rows.values()],
        "memorization probe": [row["probe M / C and U"] for row in rows.values()],
        "log p, entropy, max p only": [row["output only"] for row in rows.values()],
    }
    figure = go.Figure()
    for name, values in read.items():
        figure.add_bar(x=list(rows), y=values, name=name)
    figure.add_hline(y=0.5, line_dash="dot")
    row = found.repetition["matched"]
    figure.update_layout(
        title=f"Second occurrences of a segment ({row['site']}, layer {row['layer']}); predicted greedily:"
        f" {row['greedy right, second']:.0%}, first ones {row['greedy right, first']:.0%}",
        template="plotly_white", barmode="group",
    )  # fmt: skip
    figure.update_yaxes(title="AUROC on held-out segments", range=[0, 1])
    return figure


def unit_figure(found: Found):
    """The two histograms of the best single coordinate."""
    import plotly.graph_objects as go

    best, edges = found.units.best, np.array(found.best["edges"])
    figure = go.Figure()
    for side, name in (("positive", "recited"), ("negative", "uncertain")):
        figure.add_scatter(
            x=(edges[1:] + edges[:-1]) / 2, y=found.best[side], name=name, line_shape="hvh", fill="tozeroy"
        )
    figure.update_layout(
        title=f"Best single coordinate: {best.site}, layer {best.layer}, number {best.dimension}"
        f" (AUROC {best.auroc:.2f} where chosen, {best.auroc_held_out:.2f} on held-out passages)",
        template="plotly_white",
    )
    figure.update_xaxes(title="activation")
    figure.update_yaxes(title="density")
    return figure
