"""Plotly pictures of the conditions: the floor against N, the census, the records that block a chain of thought.

Knows results, not how they came about. Words are shown as places ("line 3") unless contents are to be revealed.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from rote.theory.cot.check import CotReport
from rote.theory.cot.labelings import CensusRow
from rote.theory.cot.obstruction import Block
from rote.theory.cot.size_floor import fixed_precision_floor

if TYPE_CHECKING:
    import plotly.graph_objects as go


def floor_figure(*, n: int, labels: int, digits: int) -> go.Figure:
    """Parameters needed at least against the number of records, for q = 1..4 and the q asked for; N is marked."""
    import plotly.graph_objects as go

    figure = go.Figure()
    counts = sorted({max(1, round(n * 10 ** (step / 4))) for step in range(-12, 13)} | {n})
    for q in sorted({1, 2, 3, 4, digits}):
        floors = [fixed_precision_floor(n=count, labels=labels, digits=q) for count in counts]
        figure.add_scatter(x=counts, y=floors, mode="lines", name=f"q = {q}", line={"width": 4 if q == digits else 1.5})
    chosen = fixed_precision_floor(n=n, labels=labels, digits=digits)
    figure.add_scatter(
        x=[n], y=[chosen], mode="markers+text", text=[f"{chosen:,}"], textposition="top left", name="asked for"
    )
    figure.update_layout(
        title=f"Parameters below which some labeling of N records with {labels:,} answers is out of reach [derived]",
        template="plotly_white",
    )
    figure.update_xaxes(type="log", title="records N")
    figure.update_yaxes(type="log", title="parameters P, weights of q digits")
    return figure


def census_figure(rows: Sequence[CensusRow]) -> go.Figure:
    """Shares of all labelings that can be memorized both ways, one way, or not at all, by the longest word."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for name, label in (
        ("both", "both"),
        ("no_cot_only", "without chain of thought only"),
        ("cot_only", "with chain of thought only"),
        ("neither", "neither"),
    ):
        figure.add_bar(
            x=[f"L = {row.length} ({row.words} words)" for row in rows],
            y=[getattr(row, name) / row.labelings for row in rows],
            name=label,
        )
    figure.update_layout(
        barmode="stack",
        title=f"All labelings of all words up to length L over {rows[0].symbols} symbols [derived]",
        template="plotly_white",
    )
    figure.update_yaxes(title="share of labelings", range=[0, 1])
    return figure


def block_figure(report: CotReport, block: Block, *, reveal: bool = False, most: int = 200) -> go.Figure:
    """The tree of continuations from a blocked prefix down to the records with another answer (the first `most`)."""
    import plotly.graph_objects as go

    alphabet, answers = report.dataset.alphabet, report.dataset.answers
    leaves = block.cut[:most]
    depth = {word: len(word) - len(block.start) for word in leaves}
    place = {word: float(i) for i, word in enumerate(sorted(leaves))}
    links = set()
    for word in sorted(leaves, key=len, reverse=True):
        while len(word) > len(block.start):
            links.add(word)
            word = word[:-1]
            depth[word] = len(word) - len(block.start)
    for word in sorted((word for word in depth if word not in place), key=len, reverse=True):
        below = [place[child] for child in links if child[:-1] == word]
        place[word] = sum(below) / len(below) if below else 0.0

    def text(word: tuple[int, ...]) -> str:
        name = escape(alphabet.text(word)) if reveal else f"{len(word)} symbols"
        if word in answers:
            answer = f" answers {escape(alphabet.symbols[answers[word]])}" if reveal else ""
            return f"{name}<br>{report.dataset.place(word)}{answer}"
        return name

    figure = go.Figure()
    for word in links:
        figure.add_scatter(
            x=[place[word[:-1]], place[word]],
            y=[-depth[word[:-1]], -depth[word]],
            mode="lines",
            line={"color": "#999", "width": 1},
            hoverinfo="skip",
            showlegend=False,
        )
    wrong = set(leaves)
    for name, chosen in (
        ("record that cannot be answered", [block.start]),
        ("another answer is due here", [word for word in depth if word in wrong]),
        ("on the way", [word for word in depth if word not in wrong and word != block.start]),
    ):
        if chosen:
            figure.add_scatter(
                x=[place[word] for word in chosen],
                y=[-depth[word] for word in chosen],
                mode="markers",
                marker={"size": 12},
                name=name,
                text=[text(word) for word in chosen],
                hoverinfo="text",
            )
    figure.update_layout(
        title="Every chain of thought from here lands on a record with another answer [derived]",
        template="plotly_white",
    )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(title="symbols emitted", tickvals=sorted({-level for level in depth.values()}))
    return figure


def chain_figure(report: CotReport) -> go.Figure:
    """How many records need chains of which length in the shortest plan."""
    import plotly.graph_objects as go

    lengths = sorted(len(cot) for cot in (report.plan or {}).values())
    counts = {length: lengths.count(length) for length in sorted(set(lengths))}
    figure = go.Figure(go.Bar(x=[str(length) for length in counts], y=list(counts.values())))
    figure.update_layout(
        title=f"Chain-of-thought symbols needed, the answer included (n = {len(lengths)}) [derived]",
        template="plotly_white",
    )
    figure.update_xaxes(title="symbols", type="category")
    figure.update_yaxes(title="records")
    return figure
