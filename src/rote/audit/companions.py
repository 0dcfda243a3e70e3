"""What an audit measures beside its records: text the model must still know, and the same secrets asked differently.

    utility     ordinary text; its perplexity says what the model is still good for
    variant     the records asked in other words: paraphrases, or prefixes with a few tokens exchanged

Each companion is a record table with a pass of its own in the same run directory (`companion-N/`), reduced to one row a
record in `companions.parquet`, which holds no contents. The same companions before and after a treatment give paired
differences. Knows nothing about treatments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from jaxtyping import Float

from rote.audit.run_directory import RunDirectory
from rote.audit.settings import AuditSettings
from rote.errors import InputError
from rote.measures import extraction
from rote.measures.catalog import MEASURES
from rote.measures.statistics import percent_label, proportion
from rote.models.causal_lm import CausalLM
from rote.records.table import RecordTable
from rote.runtime import derive_seed
from rote.scores.neighbours import make_neighbours
from rote.scores.schemes import DecodingScheme
from rote.scores.sequences import Split, prepare
from rote.scores.tokens import score_tokens

ROLES = ("utility", "variant")
FILE = "companions.parquet"
RESAMPLES = 2_000


@dataclass(frozen=True)
class Companion:
    """A record table measured beside the audited records; `name` is a word like "retain" or "paraphrases"."""

    name: str
    role: str
    records: RecordTable

    def __post_init__(self):
        if self.role not in ROLES:
            raise InputError(f"companion {self.name!r}: the role is {' or '.join(ROLES)}, not {self.role!r}")


def identity(companions: tuple[Companion, ...]) -> dict[str, str]:
    """What a run depends on."""
    names = [companion.name for companion in companions]
    if len(set(names)) != len(names):
        raise InputError(f"two companions of the audit have the same name: {', '.join(sorted(names))}")
    return {f"{each.role}:{each.name}": each.records.fingerprint for each in companions}


def score_companions(
    model: CausalLM,
    companions: tuple[Companion, ...],
    run: RunDirectory,
    settings: AuditSettings,
    progress: Callable[[str, int, int], None],
) -> None:
    """One resumable pass a companion; then one row a record in `companions.parquet`."""
    if (run.path / FILE).exists():
        return
    tables = []
    for number, companion in enumerate(companions, 1):
        utility = companion.role == "utility"
        schemes = [] if utility else [DecodingScheme.parse(text) for text in settings.schemes]
        store = score_tokens(
            model,
            companion.records,
            run.path / f"companion-{number}",
            schemes=schemes,
            split=Split(None, None, "truncate") if utility else Split(settings.prefix, settings.suffix, settings.long),
            batch_tokens=settings.batch_tokens,
            engine=settings.engine,
            progress=lambda done, total, name=companion.name: progress(name, done, total),
        )
        ids = companion.records.column("id")
        for shard in store:
            predicted = ~np.isnan(shard.logp)
            columns = {
                "name": pa.array([companion.name] * len(shard.index)),
                "role": pa.array([companion.role] * len(shard.index)),
                "id": pa.array([ids[row] for row in shard.index], pa.string()),
                "tokens": pa.array(predicted.sum(1)),
                "nll": pa.array(-np.nansum(shard.logp.astype(np.float64), axis=1)),
                "greedy": pa.array(extraction.greedy_extractable(shard.greedy, shard.prefix, shard.suffix)),
            }
            for scheme in settings.schemes:
                log_pz = np.full(len(shard.index), np.nan)
                if not utility:
                    log_pz = extraction.log_pz(shard.schemes[scheme], shard.prefix, shard.suffix)
                columns[f"log_pz:{scheme}"] = pa.array(log_pz)
            tables.append(pa.table(columns))
    if tables:
        run.write_table(FILE, pa.concat_tables(tables).sort_by([("role", "ascending"), ("name", "ascending"),
                                                                ("id", "ascending")]))  # fmt: skip


def companion_measures(run: RunDirectory, settings: AuditSettings) -> list[dict]:
    """The measures of a run's companions as findings hold them (none without companions)."""
    file = run.path / FILE
    if not file.exists():
        return []
    table = pq.read_table(file)
    found: dict[str, list[dict]] = {}
    for role, name in dict.fromkeys(
        zip(table.column("role").to_pylist(), table.column("name").to_pylist(), strict=True)
    ):
        rows = table.filter((ds.field("role") == role) & (ds.field("name") == name))
        if role == "utility":
            nll, tokens = rows.column("nll").to_numpy(), rows.column("tokens").to_numpy()
            value, low, high = perplexity(nll, tokens, seed=settings.seed, confidence=settings.confidence)
            found.setdefault("utility.perplexity", []).append(
                {
                    "value": value,
                    "low": low,
                    "high": high,
                    "n": len(rows),
                    "interval": percent_label("bootstrap over records", settings.confidence),
                    "text": name,
                }
            )
            continue
        greedy = rows.column("greedy").to_numpy(zero_copy_only=False)
        found.setdefault("variants.greedy_rate", []).append(_share(greedy, settings) | {"variant": name})
        for scheme in settings.schemes:
            hit = extraction.extractable(rows.column(f"log_pz:{scheme}").to_numpy(), settings.headline_queries, 0.5)
            dims = {"variant": name, "scheme": scheme, "queries": settings.headline_queries, "p": 0.5}
            found.setdefault("variants.rate", []).append(_share(np.asarray(hit), settings) | dims)
    fields = ("name", "title", "definition", "range", "direction", "unit", "source", "informs")
    return [
        {field: getattr(MEASURES[name], field) for field in fields} | {"values": found[name]}
        for name in MEASURES
        if name in found
    ]


def perplexity(
    nll: Float[np.ndarray, " records"], tokens: Float[np.ndarray, " records"], *, seed: int, confidence: float = 0.95
) -> tuple[float, float | None, float | None]:
    """exp(sum_i nll_i / sum_i tokens_i) with a percentile bootstrap over records (no interval for one record).

    nll: negative log-likelihood of each record in nats; tokens: predicted tokens of each. The order does not matter."""
    order = np.lexsort((nll, tokens))
    nll, tokens = np.asarray(nll, float)[order], np.asarray(tokens, float)[order]
    value = math.exp(min(700.0, nll.sum() / tokens.sum()))
    if len(nll) < 2:
        return value, None, None
    draws = np.random.default_rng(derive_seed(seed, "perplexity")).integers(0, len(nll), (RESAMPLES, len(nll)))
    spread = np.exp(np.minimum(700.0, nll[draws].sum(1) / tokens[draws].sum(1)))
    low, high = np.quantile(spread, [(1 - confidence) / 2, (1 + confidence) / 2])
    return value, float(low), float(high)


def prefix_neighbours(
    model: CausalLM, records: RecordTable, *, rate: float = 0.1, seed: int = 0, split: Split | None = None
) -> RecordTable:
    """The records with a share `rate` of their prefix tokens exchanged for the model's own proposals, suffix unchanged.

    What a slightly different question gets back. One variant a record, with the record's id, as token ids."""
    prepared = prepare(model, records, split)
    found = make_neighbours(model, records, count=1, rate=rate, method="self", seed=seed, split=split)
    ids = records.column("id")
    rows = []
    for sequence, items in zip(prepared.sequences(found.index), found.items, strict=True):
        changed = list(items[0]) if items else list(sequence.ids)
        a = sequence.prefix
        kept = [int(token) for token in changed[:a]] + list(sequence.ids[a : a + sequence.suffix])
        rows.append({"id": ids[sequence.index], "token_ids": kept, "prefix_tokens": a})
    return RecordTable.from_rows(rows)


def companions_of(
    utility: Mapping[str, RecordTable] | None, variants: Mapping[str, RecordTable] | None
) -> tuple[Companion, ...]:
    """Companions in a fixed order, from the two arguments of an audit."""
    given = [("utility", utility or {}), ("variant", variants or {})]
    return tuple(Companion(name, role, table[name]) for role, table in given for name in sorted(table))


def _share(hits: np.ndarray, settings: AuditSettings) -> dict:
    estimate = proportion(int(hits.sum()), len(hits), confidence=settings.confidence)
    return {
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "n": int(estimate.n),
        "interval": estimate.interval,
    }
