"""Study: a lifetime of events in a few cached vectors (Chen et al. 2025, arXiv 2510.22049).

On `lifelong-interest` users (256 events; half of what they like shows only in the first half) candidates are scored
from a cached summary, from the whole raw history, and from its tail. Then the claims around the cache: latency,
storage, age, updates, deletion, and whether the summary can tell the history again.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from rote.runtime import derive_seed, threads
from rote.studies.protocol import Claim, Study, StudyContext

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from rote.memory.vista import Histories, RawTargetAttention, SummaryStore, Vista, VistaConfig

# the card's section 5
LENGTH, CATEGORIES, ITEMS_EACH, USERS, TEST_USERS, CANDIDATES = 256, 24, 20, 3000, 1000, 16
TAIL, SEEDS, TOKENS = 32, 8, (2, 8, 32)
STEPS, STALE_STEPS, TAIL_STEPS, FULL_STEPS, RECON_STEPS = 450, 480, 900, 300, 330
STORED_USERS = 16_000  # with 1,000, chance alone moves NE by .15 % when summaries move by what int8 moves them
MISSING = (0, 32, 64, 96, 128)
RAW = 128  # most recent raw events beside the summary: as many as the oldest summary misses
RECON_LENGTH = 64
HISTORIES, SHOWN = (256, 1024, 4096, 16_384, 65_536), 100

CLAIMS = (
    Claim(
        "latency",
        "scoring from the cache costs the same for any length of history; full target attention grows with it",
        "inference GPU -94 % online; history 6,000 -> 16,000 at +5 % QPS",
        "100 candidates: slowest / fastest median over 256 .. 65,536 events at most 3; full attention grows >= 30x",
    ),
    Claim(
        "quality",
        "8 vectors do nearly what the whole history does, and far more than its tail",
        "AUC .884 against HSTU .884 and DIN .873 (Amazon); NE -0.40 % against HSTU (industrial)",
        "AUC of VISTA with 8 seeds >= tail-32 + 0.08 and >= full target attention - 0.02",
    ),
    Claim(
        "tokens",
        "more summary vectors are not worse",
        "64 seeds -0.37 % NE, 128 seeds -0.40 % (C task)",
        "AUC with 2, 8, 32 seeds never falls by more than 0.005",
    ),
    Claim(
        "int8",
        "int8 storage changes nothing that matters",
        "summaries are quantised at export; the loss is not stated",
        "through an LMDB store: AUC changes by < 0.001 and NE by < 0.1 %",
    ),
    Claim(
        "stale",
        "an older summary is worse: AUC falls with the number of most recent events it misses",
        "refreshed every 2 hours at parity with real time",
        "AUC at 0, 32, 64, 96, 128 missing events never rises by more than 0.002 and falls by >= 0.05 in all",
    ),
    Claim(
        "raw_events",
        "the last R raw events beside the summary restore what an old summary misses",
        "not in the paper; the card's section 6",
        "with R = 128 raw events, AUC at every age is within 0.02 of the fresh summary's",
    ),
    Claim(
        "reconstruction",
        "the history is told better from the user's own summary than from another user's",
        "the loss falls faster and further with the summary trained for it; +0.22 % AUC (Amazon)",
        "mean of L_rec(other) - L_rec(own) over users is above 0 with 99.9 % confidence",
    ),
    Claim(
        "incremental",
        "adding events to a one-layer summary equals summarising anew",
        "the state is a sum over events (section 3)",
        "relative difference after 64 of 256 events were added <= 1e-4 (two layers: drift is reported)",
    ),
    Claim(
        "isolation",
        "a candidate's score does not depend on the candidates beside it",
        "candidates never see each other (section 3)",
        "bit-identical alone, among 100 others, and among 100 other others",
    ),
    Claim(
        "forget",
        "a deleted user is gone from the store's files",
        "not in the paper",
        "neither the user's name nor the summary's bytes are in any file; every other user's summary still is",
    ),
)


def run(context: StudyContext) -> None:
    with threads(1):
        _latency(context)
        data = _Data(context.seed)
        models = _train(context, data)
        _quality(context, data, models)
        _cache(context, data, models["vista-8"])
        _age(context, data, models["stale"])
        _reconstruction(context, data, models["recon"])
        _incremental(context, data, models["vista-8"])


# ---- what is trained


class _Data:
    """Training and test users of one seed, as tensors."""

    def __init__(self, seed: int):
        import torch

        from rote.memory.vista import lifelong_interest

        self.seed = seed
        shape = {"categories": CATEGORIES, "items_each": ITEMS_EACH, "candidates": CANDIDATES}
        self.train = lifelong_interest(USERS, length=LENGTH, seed=derive_seed(seed, "train"), **shape)
        self.test = lifelong_interest(TEST_USERS, length=LENGTH, seed=derive_seed(seed, "test"), **shape)
        self.histories, self.test_histories = _histories(self.train), _histories(self.test)
        self.candidates, self.test_candidates = (torch.tensor(d.candidate) for d in (self.train, self.test))
        self.labels = torch.tensor(self.train.label, dtype=torch.float32)
        self.test_labels = torch.tensor(self.test.label, dtype=torch.float32)
        self.category_of = torch.tensor(self.train.category_of)


def _histories(drawn: Any) -> Histories:
    import torch

    from rote.memory.vista import Histories

    item, action, times = (torch.tensor(part) for part in (drawn.item, drawn.action, drawn.time))
    return Histories(item, action, times, torch.ones_like(item, dtype=torch.bool))


def _config(**more: Any) -> VistaConfig:
    from rote.memory.vista import VistaConfig

    settings: dict[str, Any] = {
        "items": CATEGORIES * ITEMS_EACH, "actions": 2, "categories": CATEGORIES, "dim": 32, "heads": 4, "seeds": SEEDS,
        "stage1_layers": 2, "stage2_layers": 2, "order": "none", "recon_weight": 0.0, "mlp": (32,),
    }  # fmt: skip
    return VistaConfig(**(settings | more))


def _train(context: StudyContext, data: _Data) -> dict[str, Any]:
    """All models, two at a time. They are built one after the other: building draws from the global generator."""
    from rote.memory.vista import RawTargetAttention, TrainingSettings, Vista, fit_clicks

    base = TrainingSettings(steps=STEPS, seed=derive_seed(data.seed, "batches"))
    told = replace(base, steps=RECON_STEPS)
    # Old summaries are judged alone and with raw events beside them: each gets half of the requests.
    stale = replace(base, steps=STALE_STEPS, stale=max(MISSING), without_raw=0.5)
    made = {"category_of": data.category_of, "seed": derive_seed(data.seed, "weights")}
    jobs: dict[str, tuple[Any, TrainingSettings, int]] = {
        "stale": (Vista(_config(raw_events=RAW), **made), stale, LENGTH),
        **{f"vista-{k}": (Vista(_config(seeds=k), **made), base, LENGTH) for k in sorted(TOKENS, reverse=True)},
        "recon": (Vista(_config(recon_weight=1.0), **made), told, RECON_LENGTH),
        "no-recon": (Vista(_config(), **made), told, RECON_LENGTH),
        "full": (RawTargetAttention(_config(), **made), replace(base, steps=FULL_STEPS), LENGTH),
        "tail": (RawTargetAttention(_config(), last=TAIL, **made), replace(base, steps=TAIL_STEPS), LENGTH),
    }
    rows: list[dict[str, Any]] = []

    def fit(name: str) -> None:
        model, settings, length = jobs[name]
        began = time.thread_time()
        losses = fit_clicks(model, _last(data.histories, length), data.candidates, data.labels, settings)
        rows.append({"model": name, "steps": len(losses), "last loss": float(np.mean(losses[-20:])),
                     "CPU seconds": time.thread_time() - began})  # fmt: skip
        context.progress(f"trained {name} ({len(rows)} of {len(jobs)})")

    context.progress(f"training {len(jobs)} models")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(fit, jobs))
    context.table("training", sorted(rows, key=lambda row: row["model"]))
    return {name: model for name, (model, _, _) in jobs.items()}


def _last(histories: Histories, length: int) -> Histories:
    """Histories that kept every (M / length)-th event only: shorter, with old and recent interests still in them."""
    step = histories.item.shape[1] // length
    return histories if step == 1 else type(histories)(
        histories.item[:, ::step], histories.action[:, ::step], histories.time[:, ::step], histories.mask[:, ::step]
    )  # fmt: skip


def _logits(model: Vista | RawTargetAttention, data: _Data, length: int = LENGTH) -> np.ndarray:
    import torch

    from rote.memory.vista import Vista, click_logits

    histories = _last(data.test_histories, length)
    if isinstance(model, Vista):
        return click_logits(model, histories, data.test_candidates).numpy()
    with torch.no_grad():
        parts = torch.arange(TEST_USERS).split(256)
        found = [model.logits(histories.rows(rows), data.test_candidates[rows])[..., 0] for rows in parts]
    return torch.cat(found).numpy()


def _quality(context: StudyContext, data: _Data, models: dict[str, Any]) -> None:
    from rote.memory.vista import auc, normalised_entropy

    scores = {}
    for name, model in models.items():
        logit = _logits(model, data, RECON_LENGTH if name.endswith("recon") else LENGTH)
        scores[name] = {"AUC": auc(logit, data.test.label), "NE": normalised_entropy(logit, data.test.label)}
    context.table("quality", [{"model": name} | found for name, found in scores.items()])
    ours, full, tail = (scores[name]["AUC"] for name in (f"vista-{SEEDS}", "full", "tail"))
    context.claim(
        "quality",
        observed={"VISTA, 8 seeds": ours, "full": full, "tail of 32": tail, "candidates": data.test.label.size},
        holds=ours >= tail + 0.08 and ours >= full - 0.02,
    )
    by_tokens = [scores[f"vista-{k}"]["AUC"] for k in TOKENS]
    context.claim(
        "tokens",
        observed=dict(zip(map(str, TOKENS), by_tokens, strict=True)),
        holds=all(b >= a - 0.005 for a, b in pairwise(by_tokens)),
    )


# ---- the cache


@dataclass(frozen=True)
class _Stored:
    """Users drawn for the store alone: summaries as made, candidates, labels."""

    vectors: Float[np.ndarray, "users k d"]
    last_time: Float[np.ndarray, " users"]
    candidate: Int[np.ndarray, "users t"]
    label: Float[np.ndarray, "users t"]

    @classmethod
    def drawn(cls, data: _Data, model: Vista) -> _Stored:
        import torch

        from rote.memory.vista import lifelong_interest

        parts = []
        for part in range(STORED_USERS // 1000):
            users = lifelong_interest(
                1000, length=LENGTH, categories=CATEGORIES, items_each=ITEMS_EACH, candidates=CANDIDATES,
                seed=derive_seed(data.seed, "stored", part),
            )  # fmt: skip
            histories = _histories(users)
            with torch.no_grad():
                z = [model.summarise(histories.rows(rows)) for rows in torch.arange(1000).split(256)]
            parts.append((torch.cat(z).numpy(), users.time[:, -1], users.candidate, users.label))
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def logits(self, model: Vista, vectors: Float[np.ndarray, "users k d"]) -> Float[np.ndarray, "users t"]:
        import torch

        with torch.no_grad():
            return np.concatenate([
                model.logits(torch.tensor(vectors[rows]), torch.tensor(self.candidate[rows]))[..., 0].numpy()
                for rows in np.array_split(np.arange(len(vectors)), len(vectors) // 1000)
            ])  # fmt: skip


def _losses(logit: Float[np.ndarray, "users t"], label: Float[np.ndarray, "users t"]) -> Float[np.ndarray, " users"]:
    """Mean log-loss of every user's candidates."""
    return (np.logaddexp(0, logit.astype(float)) - label * logit).mean(1)


def _cache(context: StudyContext, data: _Data, model: Vista) -> None:
    from rote.memory.vista import Summary, auc, normalised_entropy, open_store, score

    context.progress(f"summaries of {STORED_USERS:,} users through stores")
    drawn = _Stored.drawn(data, model)
    made = {
        f"user-{number:05}": Summary(z, model.version, LENGTH, float(drawn.last_time[number]))
        for number, z in enumerate(drawn.vectors)
    }
    exact = drawn.logits(model, drawn.vectors)
    before = {"AUC": auc(exact, drawn.label), "NE": normalised_entropy(exact, drawn.label)}
    where = context.out / "store"
    rows = [{"dtype": "not stored", "largest error": 0.0, "users": len(made)} | before]
    for dtype in ("float16", "int8", "int4"):
        with open_store(f"lmdb:{where / dtype}", version=model.version, dtype=dtype) as store:
            store.put_many(made)
            vectors = np.stack([found.vectors for found in store.get_many(made) if found is not None])
            logit = drawn.logits(model, vectors)
            found = {"AUC": auc(logit, drawn.label), "NE": normalised_entropy(logit, drawn.label)}
            size = len(store._read(model.version, ["user-00000"])[0] or b"")
            error = float(np.abs(vectors - drawn.vectors).max())
            rows.append({"dtype": dtype, "largest error": error, "users": len(made)} | found | {"bytes a user": size})
            if dtype == "int8":
                moved = _losses(logit, drawn.label) - _losses(exact, drawn.label)
                change = {"AUC": found["AUC"] - before["AUC"], "NE": found["NE"] / before["NE"] - 1}
                error = moved.std() / len(moved) ** 0.5 / _losses(exact, drawn.label).mean()
                context.claim(
                    "int8",
                    observed={"AUC change": change["AUC"], "NE change": change["NE"], "standard error of it": error,
                              "users": len(made), "bytes a user": size},
                    holds=abs(change["AUC"]) < 1e-3 and abs(change["NE"]) < 1e-3,
                )  # fmt: skip
                _isolation(context, data, model, store)
                _forget(context, store, where / dtype, score)
    context.table("storage", rows)


def _isolation(context: StudyContext, data: _Data, model: Vista, store: SummaryStore) -> None:
    from rote.memory.vista import score

    rng = np.random.default_rng(data.seed)
    same = 0
    for user in list(store.scan())[:20]:
        first, second = (rng.permutation(model.config.items)[:100] for _ in range(2))
        alone = score(model, store, user, [int(first[7])])[0]
        among = score(model, store, user, first.tolist())[7]
        others = score(model, store, user, [*second.tolist(), int(first[7])])[-1]
        same += bool(alone == among == others)
    context.claim("isolation", observed={"bit-identical": same, "users": 20}, holds=same == 20)


def _forget(context: StudyContext, store: SummaryStore, home: Any, score: Any) -> None:
    users = list(store.scan())
    gone, kept = users[17], users[18]
    value, other = (store._read(store.version, [user])[0] or b"" for user in (gone, kept))
    before = b"".join(file.read_bytes() for file in home.iterdir())
    began = time.perf_counter()
    store.delete([gone])
    seconds = time.perf_counter() - began
    after = b"".join(file.read_bytes() for file in home.iterdir())
    body = slice(-len(value) // 2, None)  # the second half: vectors alone, no header
    observed = {
        "found before": gone.encode() in before and value[body] in before,
        "found after": gone.encode() in after or value[body] in after,
        "others kept": len(list(store.scan())) == len(users) - 1 and other in after,
        "seconds": seconds,
    }
    holds = observed["found before"] and not observed["found after"] and observed["others kept"]
    context.claim("forget", observed=observed, holds=bool(holds and store.get(gone) is None))


# ---- age, reconstruction, updates


def _age(context: StudyContext, data: _Data, model: Vista) -> None:
    from rote.memory.vista import staleness_curve, staleness_figure

    rows = staleness_curve(model, data.test_histories, data.test_candidates, data.test_labels, missing=MISSING)
    context.table("staleness", rows)
    context.figure("staleness", staleness_figure(rows, raw=RAW))
    alone, beside = ([row[f"AUC, {name}"] for row in rows] for name in ("summary", "with raw events"))
    context.claim(
        "stale",
        observed=dict(zip(map(str, MISSING), alone, strict=True)),
        holds=all(b <= a + 0.002 for a, b in pairwise(alone)) and alone[0] - alone[-1] >= 0.05,
    )
    context.claim(
        "raw_events",
        observed=dict(zip(map(str, MISSING), beside, strict=True)) | {"fresh summary": alone[0]},
        holds=all(found >= alone[0] - 0.02 for found in beside),
    )


def _reconstruction(context: StudyContext, data: _Data, model: Vista) -> None:
    import torch

    from rote.memory.vista import shuffled_gap

    histories = _last(data.test_histories, RECON_LENGTH)
    with torch.no_grad():
        summary = model.summarise(histories)
        events = model.embedding.content(histories.item, histories.action)
    generator = torch.Generator().manual_seed(data.seed)
    own, other = shuffled_gap(model.decoder, model.restored(summary), events, histories.mask, generator)
    gap = (other - own).double()
    error = float(gap.std() / len(gap) ** 0.5)
    observed = {
        "L_rec own": float(own.mean()), "L_rec other": float(other.mean()), "gap": float(gap.mean()),
        "standard error": error, "users better with their own": float((gap > 0).double().mean()),
        "variance of the targets": float(events.flatten(0, 1).var(0).sum()),
    }  # fmt: skip
    context.claim("reconstruction", observed=observed, holds=float(gap.mean()) > 3.29 * error)


def _incremental(context: StudyContext, data: _Data, trained: Vista) -> None:
    from rote.memory.vista import Vista, drift, summarise_user, update

    one_layer = Vista(_config(stage1_layers=1), category_of=data.category_of, seed=derive_seed(data.seed, "one layer"))
    rows: list[dict[str, Any]] = []
    for name, model in (("1 layer", one_layer.eval()), ("2 layers, trained", trained)):
        for added in (1, 16, 64, 128):
            cut, found = LENGTH - added, []
            for user in range(20):
                parts = (data.test.item[user], data.test.action[user], data.test.time[user])
                early = summarise_user(model, *(part[:cut] for part in parts), keep_states=True)
                anew = summarise_user(model, *parts)
                found.append(drift(update(model, early, *(part[cut:] for part in parts)).vectors, anew.vectors))
            rows.append({"model": name, "events added": added, "drift": float(np.mean(found)), "worst": max(found)})
    context.table("incremental", rows)
    worst = {f"{row['model']}, {row['events added']} added": row["worst"] for row in rows}
    exact = [row["worst"] for row in rows if row["model"] == "1 layer"]
    context.claim("incremental", observed=worst, holds=max(exact) <= 1e-4)


# ---- latency


def _latency(context: StudyContext) -> None:
    from rote.memory.vista import RawTargetAttention, Vista, latency_figure, latency_rows, open_store

    context.progress("latency from the cache and over raw histories")
    model, full = Vista(_config(seeds=16)).eval(), RawTargetAttention(_config()).eval()
    with open_store(f"lmdb:{context.out / 'store' / 'latency'}", version=model.version) as store:
        rows = latency_rows(model, full, store, histories=HISTORIES, candidates=SHOWN, repeats=200, seed=context.seed)
    context.table("latency", rows)
    context.figure("latency", latency_figure(rows))
    cached = [row["cached p50 ms"] for row in rows]
    grown = rows[-1]["full attention p50 ms"] / rows[0]["full attention p50 ms"]
    ratio = max(cached) / min(cached)
    context.claim(
        "latency",
        observed={"cached p50 ms": cached, "slowest / fastest": ratio, "full attention grew": grown},
        holds=ratio <= 3 and grown >= 30,
    )


STUDY = Study(
    slug="vista",
    title="A lifetime of events in a few cached vectors",
    arxiv="2510.22049",
    claims=CLAIMS,
    run=run,
)
