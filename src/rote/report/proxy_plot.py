"""The picture of a proxy report: each proxy against the memorization score, with its rank correlation.

Knows nothing about: models, how scores were made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from rote.measures.proxies import ProxyAgreement

if TYPE_CHECKING:
    import plotly.graph_objects as go

MOST_POINTS = 4000  # a panel; more are thinned evenly by score


def proxy_figure(
    memorization: Float[np.ndarray, " examples"],
    proxies: Mapping[str, Float[np.ndarray, " examples"]],
    rows: Sequence[ProxyAgreement],
    *,
    marked: Any = None,
    marked_name: str = "wrong label",
) -> go.Figure:
    """One scatter panel a proxy; `marked` (boolean) colours examples known to be unusual, e.g. planted label noise."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    by_name = {row.proxy: row for row in rows}
    names = [name for name in proxies if name in by_name]
    columns = min(3, len(names))
    titles = [f"{name} (rho {by_name[name].spearman.value:+.2f})" for name in names]
    figure = make_subplots(rows=-(-len(names) // columns), cols=columns, subplot_titles=titles)
    order = np.argsort(memorization, kind="stable")
    shown = order[np.unique(np.linspace(0, len(order) - 1, min(len(order), MOST_POINTS)).round().astype(int))]
    flags = np.zeros(len(memorization), bool) if marked is None else np.asarray(marked, bool)
    for number, name in enumerate(names):
        row, column = number // columns + 1, number % columns + 1
        for group, label, color in ((False, "example", "#4477aa"), (True, marked_name, "#cc6677")):
            chosen = shown[flags[shown] == group]
            if len(chosen):
                figure.add_trace(
                    go.Scattergl(
                        x=np.asarray(memorization)[chosen],
                        y=np.asarray(proxies[name])[chosen],
                        mode="markers",
                        marker={"size": 4, "opacity": 0.6, "color": color},
                        name=label,
                        legendgroup=label,
                        showlegend=number == 0 and marked is not None,
                    ),
                    row=row,
                    col=column,
                )
        figure.update_xaxes(title_text="memorization score", row=row, col=column)
    figure.update_layout(
        template="plotly_white", title=f"Proxies against the memorization score, n = {len(memorization)} examples"
    )
    return figure
