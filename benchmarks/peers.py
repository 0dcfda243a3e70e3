"""Rote beside PrivacyGuard's log-probability attack and mimir's scores: the same numbers, and the ratio of time.

Needs a checkout of each peer (github.com/facebookresearch/PrivacyGuard, github.com/iamgroot42/mimir), which this script
imports and never changes. One checkpoint (GPT-2-small-shaped, random weights, byte-level BPE trained on Python's own
documentation), one record file, one process, interleaved repetitions, the least time of each. Every record's suffix
begins at a space, where tokenising prefix and suffix apart, as PrivacyGuard does, gives the same tokens as tokenising
the whole. Run: python benchmarks/peers.py --privacyguard DIR --mimir DIR [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import types
from pathlib import Path

import numpy as np
import torch

from rote.measures import membership
from rote.models import CausalLM, train_bpe
from rote.records import RecordTable
from rote.records.stdlib_text import stdlib_documents
from rote.scores.schemes import DecodingScheme
from rote.scores.sequences import prepare
from rote.scores.tokens import TokenScorer

TOLERANCE = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--privacyguard", type=Path, required=True)
    parser.add_argument("--mimir", type=Path, required=True)
    parser.add_argument("--records", type=int, default=48)
    parser.add_argument("--vocab-size", type=int, default=50_257)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8, help="PrivacyGuard's batch size (its default is 1)")
    parser.add_argument("--out")
    options = parser.parse_args()
    texts = [document.text for document in stdlib_documents(min_chars=400)]
    tokenizer = train_bpe(texts[:500], vocab_size=4_096)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = save_checkpoint(Path(folder), tokenizer, options.vocab_size)
        pairs = passages(texts, options.records)
        model = CausalLM.load(checkpoint, device="cpu", dtype="float32")
        records = RecordTable.from_rows({"prefix": prefix, "suffix": suffix} for prefix, suffix in pairs)
        privacyguard = privacyguard_logprobs(options.privacyguard, checkpoint, pairs, options.batch)
        mimir = mimir_scores(options.mimir, checkpoint, [prefix + suffix for prefix, suffix in pairs])
        runs = {"rote": lambda: rote_scores(model, records), "privacyguard": privacyguard, "mimir": mimir}
        seconds = {name: [] for name in runs}
        found = {}
        for _ in range(options.repeat):
            for name, run in runs.items():
                begin = time.perf_counter()
                found[name] = run()
                seconds[name].append(time.perf_counter() - begin)
    best = {name: min(times) for name, times in seconds.items()}
    result = {
        "records": len(records),
        "vocab_size": options.vocab_size,
        "threads": torch.get_num_threads(),
        "seconds": best,
        "ratio": {
            "privacyguard": best["privacyguard"] / best["rote"],
            "mimir": best["mimir"] / best["rote"],
            "both": (best["privacyguard"] + best["mimir"]) / best["rote"],
        },
        "largest_difference": differences(found),
    }
    for name, value in result["largest_difference"].items():
        print(f"{name:28} largest difference {value:.2e} {'ok' if value <= TOLERANCE else 'TOO LARGE'}")
    for name, ratio in result["ratio"].items():
        theirs = sum(best[tool] for tool in best if tool != "rote") if name == "both" else best[name]
        print(f"{name}: {theirs:.2f} s; rote, which gives both tools' numbers: {best['rote']:.2f} s; {ratio:.1f} x")
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(max(result["largest_difference"].values()) > TOLERANCE)


def save_checkpoint(folder: Path, tokenizer, vocab_size: int) -> Path:
    from audit_pass import gpt2_small

    gpt2_small(vocab_size, "cpu", torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def passages(texts: list[str], count: int) -> list[tuple[str, str]]:
    """(prefix, suffix) of 60 words each way from the documentation, cut before a space."""
    rng = np.random.default_rng(0)
    words = [word for text in texts for word in text.split()]
    starts = rng.integers(0, len(words) - 120, count)
    return [(" ".join(words[s : s + 60]), " " + " ".join(words[s + 60 : s + 120])) for s in starts]


def rote_scores(model: CausalLM, records: RecordTable) -> dict:
    """One pass: every number either peer gives."""
    prepared = prepare(model, records)
    scheme = DecodingScheme.parse("top_k=40")
    block = TokenScorer(model, [scheme])(prepared, np.arange(len(records)))
    texts = records.column("text")
    suffixes = [
        row[a : a + k] for row, a, k in zip(block.schemes[scheme.name], block.prefix, block.suffix, strict=True)
    ]
    return {
        "top_k=40": suffixes,
        "loss": membership.loss(block.logp),
        "zlib": membership.zlib(block.logp, membership.zlib_bytes(texts)),
        "min_k": membership.min_k(block.logp, k=0.2),
        "min_k_plus_plus": membership.min_k_plus_plus(block.logp, block.entropy, block.std, k=0.2),
    }


def privacyguard_logprobs(checkout: Path, checkpoint: Path, pairs: list[tuple[str, str]], batch: int):
    """PrivacyGuard's predictor on the checkpoint: log-probabilities of the suffix tokens under top-k 40."""
    sys.path.insert(0, str(checkout))
    from privacy_guard.attacks.extraction.predictors.huggingface_predictor import HuggingFacePredictor

    predictor = HuggingFacePredictor(str(checkpoint), device="cpu")
    prompts, targets = map(list, zip(*pairs, strict=True))
    return lambda: [row.numpy() for row in predictor.get_logprobs(prompts, targets, batch_size=batch, top_k=40)]


def mimir_scores(checkout: Path, checkpoint: Path, texts: list[str]):
    """mimir's LOSS, zlib, Min-K% and Min-K%++ on the checkpoint, from one call of its model per text."""
    sys.path.insert(0, str(checkout))
    for name in ("openai", "hf_olmo", "simple_parsing", "simple_parsing.helpers", "nltk", "nltk.tokenize"):
        if name not in sys.modules:  # imported by mimir at its top, not used by these four attacks
            sys.modules[name] = types.ModuleType(name)
    sys.modules["hf_olmo"].__all__ = []
    sys.modules["simple_parsing.helpers"].Serializable = object
    sys.modules["simple_parsing.helpers"].field = lambda default=None, **_: default
    sys.modules["nltk.tokenize"].WhitespaceTokenizer = object
    sys.modules["mimir.config"] = types.ModuleType("mimir.config")
    sys.modules["mimir.config"].ExperimentConfig = object
    from mimir.attacks.loss import LOSSAttack
    from mimir.attacks.min_k import MinKProbAttack
    from mimir.attacks.min_k_plus_plus import MinKPlusPlusAttack
    from mimir.attacks.zlib import ZLIBAttack
    from mimir.models import Model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = types.SimpleNamespace(env_config=types.SimpleNamespace(cache_dir=None), openai_config=None)
    model = Model(config)
    model.name, model.device = "checkpoint", "cpu"
    model.model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    model.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model.load_model_properties()
    attacks = {
        "loss": LOSSAttack(config, model),
        "zlib": ZLIBAttack(config, model),
        "min_k": MinKProbAttack(config, model),
        "min_k_plus_plus": MinKPlusPlusAttack(config, model),
    }

    def run() -> dict:
        found = {name: [] for name in attacks}
        for text in texts:
            probs, everything = model.get_probabilities(text, return_all_probs=True)
            loss = attacks["loss"]._attack(text, probs=probs)
            for name, attack in attacks.items():
                found[name].append(float(attack._attack(text, probs=probs, loss=loss, all_probs=everything)))
        return {name: -np.array(values) for name, values in found.items()}  # mimir's are smaller for members

    return run


def differences(found: dict) -> dict[str, float]:
    ours, guard, mimir = found["rote"], found["privacyguard"], found["mimir"]
    if any(len(mine) != len(theirs) for mine, theirs in zip(ours["top_k=40"], guard, strict=True)):
        sys.exit("PrivacyGuard cut some suffix into other tokens: these records cannot be compared")
    mine, theirs = (np.concatenate(rows).astype(float) for rows in (ours["top_k=40"], guard))
    seen = np.isfinite(theirs)
    return {
        "privacyguard top_k=40 impossible": float((np.isfinite(mine) != seen).any()),
        "privacyguard top_k=40": relative(mine[seen], theirs[seen]),
    } | {f"mimir {name}": relative(ours[name], mimir[name]) for name in mimir}


def relative(mine: np.ndarray, theirs: np.ndarray) -> float:
    """Largest |a - b| / max(1, |b|). mimir sums over the vocabulary in float32: at a Min-K%++ of -40 it is 3e-4 from
    the float64 value, Rote 1e-5."""
    return float((np.abs(mine - theirs) / np.maximum(1.0, np.abs(theirs))).max(initial=0.0))


if __name__ == "__main__":
    main()
