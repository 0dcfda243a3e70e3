"""TNT: chunk size is part of the function of a test-time memory; a hierarchy makes training fast (arXiv 2511.07343).

Speed: forward and backward of one block, CPU time, Titans at chunk 8 against TNT, at two context lengths. Mismatch and
its cure: associative recall (MQAR, 14 pairs in 64 tokens), a plain-descent memory trained at chunk 32, served at
others, fine-tuned for a tenth of the steps at chunk 4 beside a control that goes on at 32.
Parts: recall beyond the shard with and without the global memory, text with and without it. Surprise: a random string
told twice.

What a larger chunk breaks shows where a memory must replace: gradients taken at the start of one large chunk cannot
know what that chunk has already written. So the model trained at 32 goes on at 32 with half of the keys told again,
with new values, in the next chunk; then it is read at 64. (Pairs that are told once, all in one chunk, a larger chunk
reads as well: the table says so.)

The inner step of the recall model is bold (theta up to 2, rows clipped at 8, W_init large): with timid steps a chunk
hardly differs from a loop, and the mismatch is hidden. Whether the query-key projection helps is reported only.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from rote.studies.protocol import Claim, Study, StudyContext

SHORT, LONG = 512, 4096  # tokens of the two timed contexts
STEPS, CURE = 450, 45  # outer steps at chunk 32; a tenth of them at chunk 4
CHUNKS = (1, 2, 4, 8, 16, 32, 64)
TEXT_STEPS, TEXT_CONTEXT = 100, 256
RETOLD, RETOLD_STEPS = {"pairs": 16, "queries": 16, "retold": 8, "length": 96}, 200  # 16 pairs fill a chunk of 32
LENGTHS = (64, 128, 256, 512)  # recall beyond the trained length
STRINGS = 40  # random strings told once or twice

CLAIMS = (
    Claim(
        "speed",
        "TNT trains faster than Titans at its small chunk, and more so the longer the context.",
        "5.1 times at equal chunk and 32K tokens; 17.4 times to the same loss",
        "CPU time of a step, Titans C = 8 over TNT: >= 3 at 4,096 tokens, and larger there than at 512",
    ),
    Claim(
        "mismatch_smaller",
        "A memory trained at one chunk size breaks at smaller ones.",
        "perplexity 13.78 at the trained chunk 64, 36.45 at 8",
        "recall of the model trained at 32: at 8 at most half of it, and at no smaller chunk above it",
    ),
    Claim(
        "mismatch_larger",
        "It breaks at larger ones too: what one chunk should replace, a larger one only adds to.",
        "perplexity 13.78 at the trained chunk 64, 22.4 at 512",
        "recall of a model trained at 32, half of the keys told again in the next chunk: lower at 64 than at 32",
    ),
    Claim(
        "cure",
        "A short second stage at the smaller chunk makes the memory usable there; training on at the old one does not.",
        "stage 2 of 5 % of the compute",
        "recall at chunk 4 after 10 % more steps at 4: >= 5 times the untuned; control, 10 % more at 32: < 2 times",
    ),
    Claim(
        "global_memory",
        "Without the global memory, what lies more than a shard back is lost.",
        "perplexity 25.60 without the global memory, 23.53 for Titans, 20.15 to 21.04 with it",
        "recall with shard 16 and global chunk 32: with it >= 3 times without it, and without it <= 2 times chance",
    ),
    Claim(
        "surprise",
        "A random string is surprising when it is first told, and less when told again.",
        "implied: the gradient is the surprise",
        "median of 40 strings: mean surprise where never told before over that where told before: >= 1.2",
    ),
)


def run(context: StudyContext) -> None:
    from rote.runtime import threads

    with threads(1):
        context.progress("timing a step of Titans and of TNT")
        speed(context)
        chunk_claims(context)
        parts(context)
        text(context)
        surprise_claim(context)


def model(seed: int, **settings: Any):
    from rote.memory.tnt import TNTConfig
    from rote.memory.tnt.checkpoints import make

    return make(TNTConfig(**settings), seed)


def speed(context: StudyContext) -> None:
    """CPU seconds of forward and backward, least of interleaved repetitions."""
    import torch

    common = {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 256}
    models = {
        "titans 8": model(context.seed, architecture="titans", chunk=8, **common),
        "titans 8, no momentum": model(
            context.seed, architecture="titans", chunk=8, momentum=False, forget=False, **common
        ),
        "tnt 8": model(context.seed, global_chunk=512, local_chunks=[8], shard=128, **common),
        "tnt 32": model(context.seed, global_chunk=512, local_chunks=[32], shard=128, **common),
    }
    rows = []
    for length in (SHORT, LONG):
        generator = torch.Generator().manual_seed(context.seed)
        ids = torch.randint(0, 256, (1, length), generator=generator)
        best = dict.fromkeys(models, float("inf"))
        for _ in range(3):
            for name, each in models.items():
                begin = time.process_time()
                each(input_ids=ids, labels=ids, use_cache=False).loss.backward()
                best[name] = min(best[name], time.process_time() - begin)
                each.zero_grad()
        rows += [{"tokens": length, "model": name, "seconds": seconds} for name, seconds in best.items()]
    context.table("speed", rows)
    ratio = {
        length: {
            name: seconds["titans 8"] / seconds[name] for name in models if name != "titans 8"
        }
        for length in (SHORT, LONG)
        if (seconds := {row["model"]: row["seconds"] for row in rows if row["tokens"] == length})
    }  # fmt: skip
    context.claim(
        "speed",
        observed=ratio,
        holds=ratio[LONG]["tnt 32"] >= 3 and ratio[LONG]["tnt 32"] > ratio[SHORT]["tnt 32"],
    )


def surprise_claim(context: StudyContext) -> None:
    """A linear memory that recalls everything, and what it is surprised by."""
    from rote.memory.tnt import RecallTask, recall_accuracy, train_recall

    context.progress("surprise of a linear memory")
    task = RecallTask(pairs=14, queries=14)
    linear = model(
        context.seed, architecture="titans", memory="linear", chunk=4, momentum=False, forget=False, clip=None,
        **recall_settings(task),
    )  # fmt: skip
    train_recall(linear, task, steps=120, batch_size=8, learning_rate=6e-3, seed=context.seed)
    found = surprise(linear, task, context.seed)
    found["observed"]["recall"] = recall_accuracy(linear, task, seed=context.seed + 1)
    context.claim("surprise", **found)


def recall_settings(task) -> dict[str, Any]:
    return {"vocab_size": task.vocab_size, "hidden_size": 48, "num_hidden_layers": 1, "intermediate_size": 96}


def chunk_claims(context: StudyContext) -> None:
    """What smaller chunks break, what larger ones break once keys are told again, and the cure of the former."""
    from rote.memory.tnt import RecallTask, recall_accuracy, rechunked, train_recall

    task, seed = RecallTask(pairs=14, queries=14), context.seed

    def by_chunk(each, asked=task) -> dict[int, float]:
        return {c: recall_accuracy(rechunked(each, chunk=c), asked, seed=seed + 1) for c in CHUNKS}

    context.progress("training a memory at chunk 32")
    plain = model(
        seed, architecture="titans", chunk=32, momentum=False, forget=False, rate_max=2.0, clip=8.0,
        **recall_settings(task),
    )  # fmt: skip
    bold(plain)
    losses = train_recall(plain, task, steps=STEPS, batch_size=16, learning_rate=4e-3, seed=seed)
    found = {"trained at 32": by_chunk(plain)}
    own = found["trained at 32"]
    context.claim(
        "mismatch_smaller",
        observed=own | {"loss": losses[-1]},
        holds=own[8] <= 0.5 * own[32] and own[32] >= max(own[c] for c in CHUNKS if c <= 32),
    )
    context.progress("training on at chunk 32 with keys told again")
    told_again, replacing = RecallTask(**RETOLD), rechunked(plain, chunk=32)
    train_recall(replacing, told_again, steps=RETOLD_STEPS, batch_size=16, learning_rate=2e-3, seed=seed + 3)
    replaced = found["keys told again, at 32"] = by_chunk(replacing, told_again)
    context.claim(
        "mismatch_larger",
        observed=replaced | {"told once, 32": own[32], "told once, 64": own[64]},
        holds=replaced[64] < replaced[32],
    )
    context.progress("fine-tuning at chunk 4, and the control at 32")
    more: dict[str, Any] = {"steps": CURE, "batch_size": 16, "learning_rate": 6e-3, "warmup": 3, "decay": False}
    tuned, control = rechunked(plain, chunk=4), rechunked(plain, chunk=32)
    train_recall(tuned, task, seed=seed + 2, **more)
    train_recall(control, task, seed=seed + 2, **more)
    found |= {"tuned at 4": by_chunk(tuned), "control, on at 32": by_chunk(control)}
    before, after, same = own[4], found["tuned at 4"][4], found["control, on at 32"][4]
    context.claim(
        "cure",
        observed={"untuned": before, "tuned": after, "control": same, "chance": task.chance},
        holds=after >= 5 * max(before, task.chance) and same < 2 * max(before, task.chance),
    )
    rows = [{"model": name, **{f"chunk {c}": value for c, value in one.items()}} for name, one in found.items()]
    context.table("recall_by_chunk", rows)
    context.figure("recall_by_chunk", recall_figure(found))


def bold(memory: Any) -> None:
    """First layers of W_init three times as large: a write then moves the memory by as much as it holds."""
    import torch

    with torch.no_grad():
        for block in memory.model.blocks:
            block.memory.paths[0].initial[0].mul_(3)


def parts(context: StudyContext) -> None:
    """Recall beyond the shard, with and without the global memory."""
    from rote.memory.tnt import RecallTask, recall_accuracy, train_recall

    task, found, beyond = RecallTask(), {}, []
    for name, chunk in (("with", 32), ("without", None)):
        context.progress(f"recall {name} the global memory")
        each = model(
            context.seed, global_chunk=chunk, local_chunks=[8], shard=16, global_rate=0.25, local_rates=[0.25],
            qk_projection=False, **recall_settings(task),
        )  # fmt: skip
        train_recall(each, task, steps=150, batch_size=16, learning_rate=4e-3, seed=context.seed)
        found[name] = recall_accuracy(each, task, seed=context.seed + 1)
        for length in LENGTHS:  # trained at 64 tokens
            longer = RecallTask(length=length)
            value = recall_accuracy(each, longer, sequences=64, seed=context.seed + 1)
            beyond.append({"global memory": name, "tokens": length, "recall": value, "chance": task.chance})
    context.table("recall_beyond_training", beyond)
    context.claim(
        "global_memory",
        observed=found | {"chance": task.chance},
        holds=found["with"] >= 3 * found["without"] and found["without"] <= 2 * task.chance,
    )


def text(context: StudyContext) -> None:
    """Perplexity of this Python's documentation by parts: reported, with no claim on the query-key projection."""
    from rote.memory.tnt import evaluate, train
    from rote.memory.tnt.checkpoints import split
    from rote.models import TrainingConfig
    from rote.records import stdlib_documents

    topics = (document.text for document in stdlib_documents() if document.id.startswith("topics/"))
    content = np.frombuffer("\n\n".join(topics).encode(), dtype=np.uint8).astype(np.int64)
    width = TEXT_CONTEXT + 1
    rows, held = split(content[: len(content) // width * width].reshape(-1, width), 0.1, context.seed)
    stream = np.resize(rows, (4 * TEXT_STEPS, width))
    common = {"vocab_size": 256, "hidden_size": 48, "num_hidden_layers": 1, "global_chunk": 64, "shard": 64}
    arms = {
        "tnt, projection": common | {"local_chunks": [8]},
        "tnt, no projection": common | {"local_chunks": [8], "qk_projection": False},
        "tnt, no projection, no global memory": common
        | {"local_chunks": [8], "qk_projection": False, "global_chunk": None},
        "titans 8": {
            "vocab_size": 256,
            "hidden_size": 48,
            "num_hidden_layers": 1,
            "architecture": "titans",
            "chunk": 8,
        },
    }
    found = []
    for name, settings in arms.items():
        context.progress(f"text: {name}")
        each = model(context.seed, **settings)
        train(each, stream, TrainingConfig(batch_size=4))
        found.append({"model": name, "perplexity": evaluate(each, held[:64]).perplexity, "bytes": 64 * TEXT_CONTEXT})
    context.table("text_perplexity", found)


def surprise(trained: Any, task: Any, seed: int) -> dict[str, Any]:
    """Mean surprise of random pairs that were never told, over that of the same pairs when they were told before.

    Both sequences end alike, so place, chunk and text are the same on either side: only the memory differs.
    """
    import torch

    from rote.memory.tnt import token_surprise

    ids, _ = task.batch(2 * STRINGS, np.random.default_rng([seed, 5]))
    told, size = 2 * task.pairs, 32
    ratios = []
    for one, other in zip(ids[:STRINGS], ids[STRINGS:], strict=True):
        again = token_surprise(trained, torch.cat([one[:size], one[:told]]))[size + 1 :: 2]
        first = token_surprise(trained, torch.cat([other[:size], one[:told]]))[size + 1 :: 2]
        ratios.append(float(first.mean() / again.mean()))
    middle = float(np.median(ratios))
    return {"observed": {"median": middle, "strings": len(ratios)}, "holds": middle >= 1.2}


def recall_figure(named: dict[str, dict[int, float]]):
    """Recall by chunk size, of the model as trained, tuned, its control, and trained on with keys told again."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for name, found in named.items():
        figure.add_scatter(x=list(found), y=list(found.values()), mode="lines+markers", name=name)
    figure.update_layout(title="Recall by chunk size (n = 3,584 queries a point or more)", template="plotly_white")
    figure.update_xaxes(type="log", title="chunk size at evaluation")
    figure.update_yaxes(title="recall", range=[0, 1])
    return figure


STUDY = Study("tnt", "TNT: hierarchical training of memories that learn while they read", "2511.07343", CLAIMS, run)
