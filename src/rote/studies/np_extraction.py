"""Study: probabilistic extraction finds what greedy decoding misses (Hayes et al. 2024, arXiv 2410.19482).

On a Hubble test bed (this Python's documentation with passages planted 0 to 256 times at random), prefix and suffix of
16 tokens. Top-k is scaled to the vocabulary (4 of 1,024), as 40 would be 4 % of it.
"""

from __future__ import annotations

import numpy as np

from rote.measures import extraction
from rote.measures.statistics import clopper_pearson, spearman
from rote.models.causal_lm import CausalLM
from rote.records.table import RecordTable
from rote.runtime import derive_seed, threads
from rote.scores.schemes import DecodingScheme
from rote.scores.sequences import Split
from rote.scores.table import TokenScores
from rote.scores.tokens import score_in_memory
from rote.studies.protocol import Claim, Study, StudyContext

PREFIX = SUFFIX = 16
SCHEME = DecodingScheme(top_k=4)
PLAIN = DecodingScheme()
QUERIES = np.array([1, 3, 10, 30, 100, 300, 1000, 10_000, 1e5, 1e6])
LEVELS = np.array([0.1, 0.5, 0.9, 0.99, 0.999])
# Half of the passages are planted never; the others about equally often 1, 4 and 16 times, so that a rank correlation
# with copies is not decided among the ones and fours alone.
WEIGHTS = {0: 10, 1: 2, 4: 2, 16: 2, 64: 1.4, 256: 0.6}
EXAMPLES, SAMPLES = 60, 1000  # Monte Carlo check; with 30 examples a correct sampler would fail once in 20 runs
MANY_COPIES = 16

CLAIMS = (
    Claim(
        "monotone",
        "rate(n, p) never falls with n and never rises with p, and its ceiling is the same for all p",
        "section 3: by definition",
        "exactly, at every point of the grid",
    ),
    Claim(
        "copies",
        "log p_z rises with the number of copies among planted passages",
        "figure 5: rate rises with repetitions",
        "Spearman correlation > 0.7",
    ),
    Claim(
        "rate_rises",
        "extraction at n = 100, p = 0.5 rises with copies and is about 0 without any",
        "train against unseen: 4.4% against 0.3%",
        "rate at 256 copies above the rate at 16; at 0 copies at most 1%",
    ),
    Claim(
        "more_than_greedy",
        "for a partly memorized number of copies the (n = 1000, p = 0.5) rate is a multiple of the greedy rate",
        "9.04% against 1.3% (Pythia 2.8B)",
        "at least twice the greedy rate, in some group with 16 copies or more",
    ),
    Claim(
        "less_than_greedy",
        "at small n and high p the rate is below greedy: greedy is no lower bound",
        "below n = 169 at p = 0.999 (Pythia 12B)",
        "some (n, p) with a rate below the greedy rate of the same records",
    ),
    Claim(
        "monte_carlo",
        "sampling with transformers' generate finds the rate that one forward pass computes",
        "section 4.1: 250 examples, 1000 samples",
        ">= 90% of p_z inside the 95% Clopper-Pearson interval of 1000 samples, 60 suffixes",
    ),
    Claim(
        "bigger_model",
        "a model with twice the layers, on the same stream, leaks no less",
        "rate rises with model size",
        "at no (n, p) of the grid a lower rate on passages with 16 copies or more",
    ),
    Claim(
        "held_out",
        "the bigger model recites no more of what it never saw",
        "<1% on unseen text",
        "rate(n = 100, p = 0.5) at most 1% at 0 copies",
    ),
)


def run(context: StudyContext) -> None:
    from rote.testbed.build import BedSettings, build
    from rote.testbed.train import train_beds

    beds = {}
    for name, layers in (("small", 2), ("deep", 4)):
        settings = BedSettings(
            seed=context.seed, layers=layers, passages=480, passage_tokens=PREFIX + SUFFIX, weights=WEIGHTS
        )
        beds[name] = build(context.out / f"bed-{name}", settings=settings)
    context.progress("training 2 and 4 layers on the same stream")
    paths = train_beds([(beds["small"], "perturbed"), (beds["deep"], "perturbed")])
    copies = beds["small"].duplicates
    records = RecordTable.from_rows({"id": row["id"], "text": row["text"]} for row in beds["small"].probes)
    with threads(1):
        models = {name: CausalLM.load(path, device="cpu", bos="always") for name, path in zip(beds, paths, strict=True)}
        context.progress("one pass over all passages")
        scores = {
            name: score_in_memory(model, records, schemes=[SCHEME, PLAIN], split=Split(PREFIX, SUFFIX))
            for name, model in models.items()
        }
        _claims(context, scores, copies)
        context.progress("sampling, to check the formula")
        _monte_carlo(context, models["small"], scores["small"])


def _log_pz(block: TokenScores, scheme: DecodingScheme) -> np.ndarray:
    return extraction.log_pz(block.schemes[scheme.name], block.prefix, block.suffix)


def _claims(context: StudyContext, scores: dict[str, TokenScores], copies: np.ndarray) -> None:
    small = scores["small"]
    log_pz, plain = _log_pz(small, SCHEME), _log_pz(small, PLAIN)
    greedy = extraction.greedy_extractable(small.greedy, small.prefix, small.suffix)
    groups = {int(level): copies == level for level in np.unique(copies)}
    surfaces = {level: extraction.rate(log_pz[chosen], QUERIES, LEVELS) for level, chosen in groups.items()}
    limit = {level: extraction.rate(log_pz[chosen], np.array([1e300]), LEVELS)[0] for level, chosen in groups.items()}
    context.claim(
        "monotone",
        observed=f"{len(surfaces)} groups of copies, {QUERIES.size * LEVELS.size} points each",
        holds=all(
            (np.diff(surface, axis=0) >= 0).all()
            and (np.diff(surface, axis=1) <= 0).all()
            and np.ptp(limit[level]) == 0
            and limit[level][0] == extraction.ceiling(log_pz[groups[level]])
            for level, surface in surfaces.items()
        ),
    )

    planted = copies > 0
    correlation = spearman(copies[planted], plain[planted])
    context.claim(
        "copies",
        observed={"spearman": correlation.value, "low": correlation.low, "high": correlation.high},
        holds=correlation.value > 0.7,
    )
    at_100 = {
        level: float(np.mean(extraction.extractable(log_pz[chosen], 100, 0.5))) for level, chosen in groups.items()
    }
    context.claim("rate_rises", observed=at_100, holds=at_100[256] > at_100[16] and at_100[0] <= 0.01)

    greedy_rate = {level: float(greedy[chosen].mean()) for level, chosen in groups.items()}
    at_1000 = {
        level: float(np.mean(extraction.extractable(log_pz[chosen], 1000, 0.5))) for level, chosen in groups.items()
    }
    partly = {level: (at_1000[level], greedy_rate[level]) for level in groups if level >= MANY_COPIES}
    context.claim(
        "more_than_greedy",
        observed={"rate at n = 1000, greedy": partly},
        holds=any(rate > 0 and rate >= 2 * base for rate, base in partly.values()),
    )
    below = {level: float(greedy_rate[level] - surfaces[level].min()) for level in groups if level >= MANY_COPIES}
    context.claim(
        "less_than_greedy",
        observed={"greedy minus the rate at n = 1, p = 0.999": below},
        holds=any(gap > 0 for gap in below.values()),
    )

    deep = _log_pz(scores["deep"], SCHEME)
    often = copies >= MANY_COPIES
    lower = _points_where_lower(log_pz[often], deep[often])
    context.claim(
        "bigger_model", observed={"points with a lower rate": len(lower), "first": lower[:3]}, holds=not lower
    )
    unseen = float(np.mean(extraction.extractable(deep[copies == 0], 100, 0.5)))
    context.claim("held_out", observed=unseen, holds=unseen <= 0.01)

    rows = [
        {
            "model": name,
            "copies": level,
            "queries": float(n),
            "p": float(p),
            "rate": float(np.mean(extraction.extractable(_log_pz(block, SCHEME)[chosen], n, p))),
            "greedy": float(extraction.greedy_extractable(block.greedy, block.prefix, block.suffix)[chosen].mean()),
            "n": int(chosen.sum()),
        }
        for name, block in scores.items()
        for level, chosen in groups.items()
        for n in QUERIES
        for p in LEVELS
    ]
    context.table("rates", rows)
    context.figure("rates", _figure(rows))


def _points_where_lower(small: np.ndarray, deep: np.ndarray) -> list[dict]:
    """The grid points (n, p) at which the deeper model's rate on the same passages is the lower one."""
    a, b = extraction.rate(small, QUERIES, LEVELS), extraction.rate(deep, QUERIES, LEVELS)
    return [
        {"n": float(QUERIES[i]), "p": float(LEVELS[j]), "small": float(a[i, j]), "deep": float(b[i, j])}
        for i, j in np.argwhere(b < a)
    ]


def _monte_carlo(context: StudyContext, model: CausalLM, block: TokenScores) -> None:
    """Sample suffixes with transformers itself and compare the share that is right with p_z.

    Suffixes are shortened to the length at which p_z lies between 0.01 and 0.9, so that 1,000 samples can resolve it.
    """
    import torch

    logq = block.schemes[SCHEME.name]
    rng = np.random.default_rng(derive_seed(context.seed, "monte carlo"))
    cases = []
    for row in rng.permutation(len(block)):
        sums = np.cumsum(logq[row, PREFIX : PREFIX + SUFFIX], dtype=float)
        lengths = np.flatnonzero((sums > np.log(0.01)) & (sums < np.log(0.9))) + 1
        if len(lengths):
            cases.append((int(row), int(lengths[-1]), float(np.exp(sums[lengths[-1] - 1]))))
        if len(cases) == EXAMPLES:
            break
    model.hf.generation_config.eos_token_id = None  # an end-of-text token is a token like any other here
    inside, rows = 0, []
    for number, (row, length, pz) in enumerate(cases):
        torch.manual_seed(derive_seed(context.seed, "sample", number))
        prompt = torch.tensor([[model.bos_id, *block.token_ids[row, :PREFIX].tolist()]])
        with torch.inference_mode():
            made = model.hf.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                num_return_sequences=SAMPLES,
                max_new_tokens=length,
                pad_token_id=0,
                **SCHEME.generation_kwargs(),
            )
        target = torch.tensor(block.token_ids[row, PREFIX : PREFIX + length])
        hits = int((made[:, prompt.shape[1] :] == target).all(1).sum())
        low, high = clopper_pearson(hits, SAMPLES)
        inside += bool(low <= pz <= high)
        rows.append(
            {"row": row, "length": length, "p_z": pz, "sampled": hits / SAMPLES, "low": float(low), "high": float(high)}
        )
    context.table("monte_carlo", rows)
    context.claim(
        "monte_carlo",
        observed={"inside": inside, "examples": len(cases)},
        holds=len(cases) == EXAMPLES and inside >= 0.9 * EXAMPLES,
    )


def _figure(rows: list[dict]):
    import plotly.graph_objects as go

    figure = go.Figure()
    for level in sorted({row["copies"] for row in rows}):
        chosen = [row for row in rows if row["copies"] == level and row["p"] == 0.5 and row["model"] == "small"]
        figure.add_scatter(
            x=[row["queries"] for row in chosen],
            y=[row["rate"] for row in chosen],
            mode="lines+markers",
            name=f"{level} copies (n = {chosen[0]['n']}; greedy {chosen[0]['greedy']:.0%})",
        )
    figure.update_layout(
        title="Share of passages recited with probability 0.5 within n queries (top-k 4, 16 + 16 tokens)",
        template="plotly_white",
    )
    figure.update_xaxes(type="log", title="queries n")
    figure.update_yaxes(title="share of passages", range=[0, 1])
    return figure


STUDY = Study(
    slug="np-extraction", title="Probabilistic discoverable extraction", arxiv="2410.19482", claims=CLAIMS, run=run
)
