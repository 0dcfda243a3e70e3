"""From score shards to one row a record: the evidence every finding is made of.

Reads one shard at a time; what is kept is a few numbers per record, never per token. Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from rote.measures import extraction, membership
from rote.measures.catalog import ATTACKS
from rote.measures.strings import longest_run
from rote.records.table import RecordTable
from rote.scores.table import TokenScores


@dataclass(frozen=True)
class Evidence:
    """Per scored record, in the order of the record table (all vectors have one entry a record).

    row: row in the record table. control: known to be unseen. duplicates: copies in training, NaN when unknown.
    log_pz: {scheme: log p_z}. attacks: {attack: membership score, larger = more member-like; NaN for records that the
    attack
    cannot judge, such as those it used as shots}. total_logp: sum of log p
    over the suffix under the plain model. loss: -L(x), nats per token.
    """

    ids: np.ndarray
    row: Int[np.ndarray, " records"]
    control: Bool[np.ndarray, " records"]
    duplicates: Float[np.ndarray, " records"]
    group: np.ndarray
    tokens: Int[np.ndarray, " records"]
    prefix: Int[np.ndarray, " records"]
    suffix: Int[np.ndarray, " records"]
    loss: Float[np.ndarray, " records"]
    total_logp: Float[np.ndarray, " records"]
    greedy: Bool[np.ndarray, " records"]
    strength: Float[np.ndarray, " records"]
    longest_run: Int[np.ndarray, " records"]
    accuracy: Float[np.ndarray, " records"]
    log_pz: dict[str, Float[np.ndarray, " records"]]
    attacks: dict[str, Float[np.ndarray, " records"]]

    def __len__(self) -> int:
        return len(self.row)

    @property
    def target(self) -> Bool[np.ndarray, " records"]:
        return ~self.control

    def to_arrow(self) -> pa.Table:
        """The per-record results that a run directory keeps; no record contents among them."""
        columns = {
            "id": pa.array(self.ids.tolist(), pa.string()),
            "population": pa.array(np.where(self.control, "control", "target").tolist()),
            "duplicates": pa.array(self.duplicates, from_pandas=True),
            "group": pa.array(self.group.tolist(), pa.string()),
            "tokens": pa.array(self.tokens),
            "prefix": pa.array(self.prefix),
            "suffix": pa.array(self.suffix),
            "loss": pa.array(self.loss),
            "greedy": pa.array(self.greedy),
            "strength": pa.array(self.strength),
            "longest_run": pa.array(self.longest_run),
            "accuracy": pa.array(self.accuracy),
        }
        columns |= {f"log_pz:{name}": pa.array(values) for name, values in self.log_pz.items()}
        columns |= {f"score:{name}": pa.array(values) for name, values in self.attacks.items()}
        return pa.table(columns)


def collect(
    store: Iterable[TokenScores],
    records: RecordTable,
    *,
    schemes: Iterable[str],
    extra: Mapping[str, Mapping[int, float]] | None = None,
    unigram_counts: Int[np.ndarray, " vocabulary"] | None = None,
) -> Evidence:
    """One row a record from the shards of `store`.

    `extra` holds mean log-probabilities from further passes by membership input name ("logp_reference", ...) and record
    row; `unigram_counts` are token counts of a reference corpus for DC-PDD (None: the audited records themselves,
    targets and controls alike, which favours neither).
    """
    schemes = list(schemes)
    n = len(records)
    seen = np.zeros(n, bool)
    whole = {name: np.full(n, np.nan) for name in ("loss", "total_logp", "strength", "accuracy")}
    counts = {name: np.zeros(n, np.int64) for name in ("tokens", "prefix", "suffix", "longest_run")}
    greedy = np.zeros(n, bool)
    log_pz = {name: np.full(n, np.nan) for name in schemes}
    attacks: dict[str, np.ndarray] = {}
    if unigram_counts is None:
        unigram_counts = _token_counts(store)
    for shard in store:
        rows = shard.index
        seen[rows] = True
        predicted = ~np.isnan(shard.logp)
        part = records.take(rows)
        inputs = {
            "logp": shard.logp,
            "entropy": shard.entropy,
            "std": shard.std,
            "token_ids": shard.token_ids,
            "unigram_counts": unigram_counts,
        }
        texts = part.column("text")
        if all(text is not None for text in texts):
            inputs["zlib_bytes"] = membership.zlib_bytes(texts)
        for name, values in membership.battery(inputs).items():
            attacks.setdefault(name, np.full(n, np.nan))[rows] = values
        whole["loss"][rows] = -membership.loss(shard.logp)
        whole["total_logp"][rows] = extraction.log_pz(shard.logp, shard.prefix, shard.suffix)
        whole["strength"][rows] = extraction.extraction_strength(shard.greedy, predicted)
        whole["accuracy"][rows] = (shard.greedy & predicted).sum(1) / predicted.sum(1)
        counts["longest_run"][rows] = longest_run(shard.greedy & predicted)
        for name in ("prefix", "suffix"):
            counts[name][rows] = getattr(shard, name)
        counts["tokens"][rows] = shard.length
        greedy[rows] = extraction.greedy_extractable(shard.greedy, shard.prefix, shard.suffix)
        for name in schemes:
            log_pz[name][rows] = extraction.log_pz(shard.schemes[name], shard.prefix, shard.suffix)
    rows = np.flatnonzero(seen)
    for name in _attacks_that_use(set(extra or ())):
        assert extra is not None
        used = [extra[need] for need in ATTACKS[name].needs if need in extra]
        have = np.array([row for row in rows if all(int(row) in values for values in used)], int)
        if len(have):
            inputs = {need: _column(extra[need], have) for need in ATTACKS[name].needs if need in extra}
            inputs.setdefault("logp", -whole["loss"][have][:, None])
            attacks[name] = np.full(n, np.nan)
            attacks[name][have] = membership.battery(inputs, attacks=[name])[name]
    duplicates = np.array([np.nan if value is None else value for value in records.column("duplicates")], float)
    return Evidence(
        ids=np.array(records.column("id"), dtype=object)[rows],
        row=rows,
        control=records.is_control[rows],
        duplicates=duplicates[rows],
        group=np.array(records.column("group"), dtype=object)[rows],
        tokens=counts["tokens"][rows],
        prefix=counts["prefix"][rows],
        suffix=counts["suffix"][rows],
        loss=whole["loss"][rows],
        total_logp=whole["total_logp"][rows],
        greedy=greedy[rows],
        strength=whole["strength"][rows],
        longest_run=counts["longest_run"][rows],
        accuracy=whole["accuracy"][rows],
        log_pz={name: values[rows] for name, values in log_pz.items()},
        attacks={name: values[rows] for name, values in attacks.items() if not np.isnan(values[rows]).all()},
    )


def _token_counts(store: Iterable[TokenScores]) -> Int[np.ndarray, " vocabulary"]:
    total = np.zeros(0, np.int64)
    for shard in store:
        found = np.bincount(shard.token_ids[shard.token_ids >= 0])
        if len(found) > len(total):
            total = np.pad(total, (0, len(found) - len(total)))
        total[: len(found)] += found
    return total


def _column(values: Mapping[int, float], rows: np.ndarray) -> np.ndarray:
    found = np.array([values[int(row)] for row in rows], float)
    return found if found.ndim == 2 else found[:, None]


def _attacks_that_use(extra: set[str]) -> list[str]:
    """Membership attacks whose needs are met by `extra` and the pass itself, and that need something of `extra`."""
    return [
        name
        for name, info in ATTACKS.items()
        if info.module == "rote.measures.membership" and set(info.needs) <= extra | {"logp"} and set(info.needs) & extra
    ]
