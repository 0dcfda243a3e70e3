"""The most exposed records token by token, and what a reader must know to read an audit's numbers rightly.

Reads score shards; knows nothing about models. Record text goes into the result only when it is asked for.
"""

from __future__ import annotations

import numpy as np

from rote.audit import findings as build
from rote.audit.evidence import Evidence
from rote.audit.settings import AuditSettings
from rote.measures.extraction import queries_needed
from rote.records.table import RecordTable
from rote.scores.store import ScoreStore
from rote.scores.table import TokenScores


def exposed(
    evidence: Evidence, records: RecordTable, settings: AuditSettings, store: ScoreStore, *, reveal: bool
) -> list[dict]:
    """The most exposed targets, token by token: probability, rank and length always, the text only when revealed."""
    chosen = build.exposed_rows(evidence, settings)
    wanted = {int(evidence.row[at]): at for at in chosen}
    blocks: dict[int, tuple[TokenScores, int]] = {}
    for shard in store:
        for place in np.flatnonzero(np.isin(shard.index, list(wanted))):
            blocks[int(shard.index[place])] = (shard, int(place))
    scheme = settings.schemes[0]
    found = []
    for at in chosen:
        row = int(evidence.row[at])
        shard, place = blocks[row]
        text = records.table.column("text")[row].as_py()
        needed = float(queries_needed(evidence.log_pz[scheme][at : at + 1], 0.5)[0])
        length = int(shard.length[place])
        ends = [0, *shard.ends[place, :length].tolist()]
        tokens = []
        for t in range(length):
            piece = f"#{shard.token_ids[place, t]}" if text is None else text[ends[t] : ends[t + 1]]
            logp = float(shard.logp[place, t])
            tokens.append(
                {
                    "t": piece if reveal else None,
                    "p": None if np.isnan(logp) else float(np.exp(logp)),
                    "rank": int(shard.rank[place, t]) or None,
                    "n_chars": len(piece),
                }
            )
        log_pz = float(evidence.log_pz[scheme][at])
        found.append(
            {
                "id": str(evidence.ids[at]),
                "population": "target",
                "group": evidence.group[at],
                "duplicates": None if np.isnan(evidence.duplicates[at]) else float(evidence.duplicates[at]),
                "log_pz": log_pz if np.isfinite(log_pz) else None,
                "queries_p50": needed if np.isfinite(needed) else None,
                "greedy": bool(evidence.greedy[at]),
                "longest_run": int(evidence.longest_run[at]),
                "prefix_tokens": int(evidence.prefix[at]),
                "tokens": tokens,
                "masked": not reveal,
            }
        )
    return found


def caveats(evidence: Evidence, settings: AuditSettings) -> list[str]:
    """What a reader must know to read these numbers rightly."""
    found = [
        f"p_z is the probability of the exact suffix under {settings.schemes[0]}; another scheme, prompt or"
        f" length gives"
        " another number. It assumes that the attacker knows the prefix."
    ]
    spans = [span(evidence.prefix), span(evidence.suffix)]
    if any("to" in span for span in spans):
        found.append(
            f"Records differ in length: prefixes of {spans[0]} and suffixes of {spans[1]} tokens. Shorter suffixes are"
            " easier to recite."
        )
    if not settings.randomized and build.has_controls(evidence):
        found.append(
            "No privacy bound (epsilon) is given: it needs records whose membership was decided by coin flips"
            " (--randomized)."
        )
    return found


def span(values: np.ndarray) -> str:
    """The one value, or "low to high"."""
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low} to {high}"
