"""Findings that look like an audit's, made from simulated p_z and scores: shapes, intervals and hostile strings, no
model.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import stats

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>document.documentElement.dataset.pwned=1</script>",
    '"><img src=x onerror="document.documentElement.dataset.pwned=1">',
    "{{ 7*7 }}{% raw %}",
    "\u202egnp.exe\u202c \u2067abc\u2069",
    "nul\x00bell\x07esc\x1b[31m",
    "lone \ud800 surrogate",
    "<a href='javascript:document.documentElement.dataset.pwned=1'>x</a>%{y}",
)
SECRET = "hunter2-SECRET"
LEVELS = (1, 4, 16, 64, 256)
SCHEMES = ("top_k=40", "temperature=0.7, top_p=0.95")
PS = (0.1, 0.5, 0.9, 0.99, 0.999)
ATTACKS = {
    "loss": 1.2,
    "min_k": 1.35,
    "min_k_plus_plus": 1.5,
    "zlib": 1.1,
    "reference": 2.1,
    "recall": 0.9,
    "blind_bag_of_words": 0.05,
}


def proportion(k: int, n: int) -> dict[str, Any]:
    low = stats.beta.ppf(0.025, k, n - k + 1) if k else 0.0
    high = stats.beta.ppf(0.975, k + 1, n - k) if k < n else 1.0
    return {"value": k / n, "low": float(low), "high": float(high), "n": n, "interval": "Clopper-Pearson 95%"}


def measure(name: str, title: str, values: list[dict], **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "title": title,
        "definition": "Rate(n, p) = mean over records of 1[1 − (1 − p_z)ⁿ ≥ p], p_z = ∏ q(z_t | z_<t)",
        "range": [0, 1],
        "direction": "higher = more memorized",
        "unit": "share of records",
        "source": "Hayes et al. 2024, arXiv 2410.19482, sec. 3",
        "informs": "query limits, decoding defaults, release or no release",
        "values": values,
    } | more


def simulate(n: int, seed: int, strength: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(duplicates, log p_z of targets, log p_z of controls, greedy of targets)."""
    rng = np.random.default_rng(seed)
    duplicates = rng.choice(LEVELS, size=n, p=(0.4, 0.25, 0.2, 0.1, 0.05))
    target = np.minimum(
        -85 + strength * 13 * np.log2(duplicates) * rng.uniform(0.6, 1.1, n) + rng.normal(0, 5, n), -0.02
    )
    control = -88 + rng.normal(0, 7, n)
    return duplicates, target, control, target > -3


def roc(
    shift: float, n: int, rng: np.random.Generator
) -> tuple[float, float, list[tuple[float, float]], dict[float, float]]:
    """(AUROC, standard error, corners, TPR at FPRs) of two normal samples."""
    member, other = rng.normal(shift, 1, n), rng.normal(0, 1, n)
    u = stats.rankdata(np.concatenate([member, other]))[:n].sum() - n * (n + 1) / 2
    auc = u / n / n
    se = math.sqrt(auc * (1 - auc) / n + 1e-4)
    cuts = np.sort(other)[::-1]
    corners = [(float(i / n), float((member > cuts[i]).mean())) for i in range(n)] + [(1.0, 1.0)]
    return auc, se, corners, {f: float((member > cuts[int(f * n)]).mean()) for f in (0.001, 0.01, 0.1)}


def findings_dict(
    *,
    n: int = 600,
    seed: int = 0,
    strength: float = 1.0,
    hostile: bool = False,
    failed_guard: bool = True,
    tokens: int = 60,
) -> dict[str, Any]:
    """A whole audit as the dict of findings.json."""
    rng = np.random.default_rng(seed + 1)
    duplicates, target, control, greedy = simulate(n, seed, strength)
    evil = HOSTILE if hostile else ("",)
    schemes = [SCHEMES[0], SCHEMES[1] + (f" {HOSTILE[7]}" if hostile else "")]
    survival, histogram, rates, ceilings = [], [], [], []
    for s, scheme in enumerate(schemes):
        for population, lp in (("target", target + 2 * s), ("control", control)):
            for p in PS:
                for q in np.unique(np.round(np.logspace(0, 6, 31))):
                    tau = math.log(-math.expm1(math.log1p(-p) / q))
                    got = proportion(int((lp >= tau).sum()), n)
                    point = {
                        "population": population,
                        "scheme": scheme,
                        "queries": float(q),
                        "p": p,
                        "rate": got["value"],
                        "low": got["low"],
                        "high": got["high"],
                        "n": n,
                    }
                    survival.append(point)
                    if q in (1, 100, 10000) and p in (0.5, 0.9):
                        rates.append({**got, "population": population, "scheme": scheme, "queries": int(q), "p": p})
            edges = np.linspace(-45, 0, 31)
            counts, _ = np.histogram(lp / math.log(10), edges)
            histogram += [
                {"population": population, "scheme": scheme, "left": float(a), "right": float(b), "count": int(c)}
                for a, b, c in zip(edges[:-1], edges[1:], counts, strict=True)
            ]
            histogram.append(
                {
                    "population": population,
                    "scheme": scheme,
                    "left": None,
                    "right": None,
                    "count": n - int(counts.sum()),
                }
            )
            ceilings.append({**proportion(int((lp > -60).sum()), n), "population": population, "scheme": scheme})
    dose = []
    for name, values, centre in (("dose.log_pz", target, control.mean()), ("dose.greedy", greedy.astype(float), 0.0)):
        for d in LEVELS:
            mine = values[duplicates == d]
            if name == "dose.greedy":
                got = proportion(int(mine.sum()), len(mine))
            else:
                half = 1.96 * mine.std() / math.sqrt(len(mine))
                got = {"value": mine.mean(), "low": mine.mean() - half, "high": mine.mean() + half, "n": len(mine)}
            dose.append({"measure": name, "duplicates": d, **{k: got[k] for k in ("value", "low", "high", "n")}})
        dose.append(
            {
                "measure": name,
                "duplicates": 0,
                "value": float(centre),
                "low": float(centre) - (0 if centre == 0 else 0.6),
                "high": float(centre) + (0.006 if centre == 0 else 0.6),
                "n": n,
                "population": "control",
            }
        )
    curves, auroc, tpr = [], [], []
    for i, (attack, shift) in enumerate(ATTACKS.items()):
        name = attack + (f" {evil[i % len(evil)]}" if hostile and i < 3 else "")
        auc, se, corners, at = roc(shift * strength, n, rng)
        curves += [{"attack": name, "fpr": f, "tpr": t} for f, t in corners]
        auroc.append(
            {
                "value": auc,
                "low": auc - 1.96 * se,
                "high": auc + 1.96 * se,
                "n": 2 * n,
                "interval": "DeLong 95%",
                "attack": name,
            }
        )
        tpr += [{**proportion(round(t * n), n), "attack": name, "fpr": f} for f, t in at.items()]
    k = int((target >= math.log(-math.expm1(math.log1p(-0.5) / 100))).sum())
    head = proportion(k, n)
    exposed = []
    for i in range(20):
        words = [f" {SECRET}" if j == 20 else f" word{j}" for j in range(tokens)]
        if hostile:
            words[3] = evil[i % len(evil)]
        p = np.clip(rng.beta(8 if i < 12 else 2, 0.4 if i < 12 else 1.2, tokens), 1e-6, 1)
        exposed.append(
            {
                "id": f"person-{i:04d}" + (f" {evil[i % len(evil)]}" if hostile else ""),
                "population": "target",
                "duplicates": int(256 // (1 + i)),
                "group": evil[i % len(evil)] or None,
                "log_pz": float(-0.1 - i * 0.8),
                "queries_p50": float(max(1, round(0.69 * math.exp(0.1 + i * 0.8)))),
                "greedy": i < 9,
                "longest_run": max(4, tokens - 2 * i),
                "prefix_tokens": tokens // 3,
                "tokens": [
                    {
                        "t": w,
                        "p": None if j == 0 else float(p[j]),
                        "rank": 0 if j == 0 else int(1 + (p[j] < 0.5) * 3),
                        "n_chars": len(w),
                    }
                    for j, w in enumerate(words)
                ],
                "masked": False,
            }
        )
    if hostile:
        exposed[0]["id"] = "x" * 1_000_000
    return {
        "schema_version": "1.0",
        "kind": "audit-lm",
        "title": "Help-desk assistant, 1.1B" + (f" {HOSTILE[1]}" if hostile else ""),
        "rote_version": "0.1.0",
        "model": {
            "name": "helpdesk-1b" + (HOSTILE[2] if hostile else ""),
            "fingerprint": "sha256:" + "9f" * 32,
            "parameters": 1_100_000_000,
            "architecture": "LlamaForCausalLM",
            "vocab_size": 32000,
            "context_length": 2048,
            "dtype": "bfloat16",
        },
        "records": {
            "name": "customers.jsonl",
            "fingerprint": "sha256:" + "3c" * 32,
            "n": 2 * n,
            "targets": n,
            "controls": n,
            "tokens": 2 * n * tokens,
            "skipped": [
                {"id": "person-0912" + evil[0], "reason": "longer than the context window (2,311 tokens, limit 2,048)"}
            ],
        },
        "settings": {
            "prefix": 50,
            "suffix": 50,
            "schemes": schemes,
            "bos": "as the tokenizer adds it",
            "seed": 0,
            "confidence": 0.95,
        },
        "verdicts": [
            {
                "level": "high",
                "measure": "extraction.rate",
                "dims": {"population": "target", "scheme": schemes[0], "queries": 100, "p": 0.5},
                "text": f"{k} of {n} records come back word for word, more likely than not, within 100 queries.",
            },
            {
                "level": "medium",
                "measure": "membership.auroc",
                "dims": {"attack": auroc[4]["attack"]},
                "text": "With a reference model, trained-on records are told from unseen ones better than by chance.",
            },
            {
                "level": "high",
                "measure": "extraction.greedy_rate",
                "text": "Plain greedy decoding recites records that an ordinary user could hit by accident.",
            },
            {
                "level": "info",
                "text": "Recitation starts at about 16 copies in training: deduplicating would remove most of it.",
            },
        ],
        "guards": [
            {
                "name": "blind_baseline",
                "title": "Blind baseline",
                "status": "fail" if failed_guard else "pass",
                "value": 0.71 if failed_guard else 0.52,
                "low": 0.67 if failed_guard else 0.48,
                "high": 0.75 if failed_guard else 0.56,
                "limit": 0.6,
                "spoils": ["membership"],
                "message": "A bag-of-words classifier that never saw the model separates the groups by style."
                if failed_guard
                else "Bag of words, length and date do not separate members from controls.",
            },
            {
                "name": "overlap",
                "title": "Member and control overlap",
                "status": "pass",
                "value": 0.0,
                "limit": 0.01,
                "spoils": ["membership", "extraction"],
                "message": "No control record repeats a target, exactly or nearly.",
            },
            {
                "name": "token_boundary",
                "title": "Tokenisation boundary",
                "status": "pass",
                "spoils": ["extraction"],
                "message": "Prefix and suffix were cut from one tokenisation.",
            },
            {
                "name": "second_control",
                "title": "Model that never saw the text",
                "status": "not_run",
                "spoils": [],
                "message": "Give --reference MODEL to run it.",
            },
        ],
        "measures": [
            measure(
                "extraction.rate",
                "(n, p)-discoverable extraction",
                [head | {"population": "target", "scheme": schemes[0], "queries": 100, "p": 0.5}]
                + [
                    r
                    for r in rates
                    if not (
                        r["population"] == "target"
                        and r["scheme"] == schemes[0]
                        and r["queries"] == 100
                        and r["p"] == 0.5
                    )
                ],
            ),
            measure(
                "extraction.greedy_rate",
                "Greedy extraction",
                [
                    proportion(int(greedy.sum()), n) | {"population": "target"},
                    proportion(0, n) | {"population": "control"},
                ],
            ),
            measure("extraction.ceiling", "Extraction ceiling", ceilings),
            measure(
                "membership.auroc",
                "Membership AUROC",
                auroc,
                unit="area under the ROC curve",
                direction="0.5 = chance; far below 0.5 leaks as well",
                definition="AUROC = P(score of a member > score of a non-member) + ½ P(equal)",
                source="Yeom et al. 2018, arXiv 1709.01604",
            ),
            measure(
                "membership.tpr",
                "TPR at fixed FPR",
                tpr,
                unit="share of members",
                source="Carlini et al. 2022, arXiv 2112.03570",
            ),
            measure("dose.log_pz", "Log-probability of the suffix", [], unit="nats", range=[None, 0]),
            measure("dose.greedy", "Greedy extraction by copies", [], unit="share of records"),
            measure(
                "compression.acr",
                "Adversarial compression ratio",
                [{"value": 1.31, "low": 1.12, "high": 1.52, "n": 40, "interval": "bootstrap 95%"}],
                unit="ratio",
                range=[0, None],
            ),
        ],
        "series": {"survival": survival, "log_pz_histogram": histogram, "dose": dose, "roc": curves},
        "exposed": exposed,
        "reproduce": "rote audit lm ./helpdesk-1b customers.jsonl --control unseen.jsonl -o runs/helpdesk",
    }


def bare_dict(**more: Any) -> dict[str, Any]:
    """The least that is a findings file; another kind of audit unless told."""
    return {
        "schema_version": "1.0",
        "kind": "audit-diffusion",
        "title": "Diffusion audit",
        "rote_version": "0.1.0",
        "model": {"name": "sd", "fingerprint": "m"},
        "records": {"name": "prompts.csv", "fingerprint": "r", "n": 12},
    } | more
