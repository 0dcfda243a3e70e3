"""Build a bed: corpus -> tokenizer -> decontaminated, packed stream + probes with randomized numbers of copies.

    bed/bed.json        settings, counts, fingerprints        bed/probes.jsonl        one row per probe, with its copies
    bed/tokenizer/      byte-level BPE                         bed/biographies.jsonl   the fields of the personal
    records, if any bed/stream.npy      packed clean stream, in training order bed/copies.jsonl        where each copy
    of "perturbed" stands bed/background.npy  the documents, each ending in <|endoftext|>     bed/unseen.npy passages
    that no arm ever sees

Everything is a function of the settings, the corpus and the probe file. The directory appears whole or not at all.
Knows nothing about models. The corpus is held in memory (4 bytes a token).
Source: Wei et al. 2025, "Hubble", arXiv 2510.19811, section 3.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from rote.atomic import whole_directory
from rote.errors import InputError, RunMismatchError
from rote.records.decontaminate import find_overlaps
from rote.records.generators import biographies
from rote.records.planting import assign_duplicates, pack, plant, write_log
from rote.records.stdlib_text import stdlib_documents
from rote.testbed.bed import BED_SCHEMA_VERSION, Bed, BedSettings, encode, with_end

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TEXT_SUFFIXES = (".txt", ".md", ".rst")


def read_corpus(folder: str | Path) -> Iterator[tuple[str, str]]:
    """(id, text) of every document below a folder: a .txt/.md/.rst file is one document, a .jsonl row with `text` is
    one.

    Sorted by path. Raises: InputError for a missing folder, a file that is not UTF-8, or a row without `text` (file and
    line).
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"corpus folder {root} does not exist")
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        try:
            if path.suffix in TEXT_SUFFIXES:
                yield name, path.read_text(encoding="utf-8")
            elif path.suffix == ".jsonl":
                with open(path, encoding="utf-8") as file:
                    for number, line in enumerate(file, 1):
                        if line.strip():
                            yield f"{name}:{number}", _text_of(line, path, number)
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 (byte {error.start}): convert it to UTF-8") from None


def _text_of(line: str, path: Path, number: int) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        raise InputError(f"{path}, line {number}: not JSON") from None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise InputError(f"{path}, line {number}: no field `text` with a string")
    return row["text"]


def cut_passages(
    documents: Sequence[Int[np.ndarray, " length"]],
    tokenizer: PreTrainedTokenizerFast,
    *,
    tokens: int,
    per_document: int | None = None,
) -> list[tuple[int, int, Int[np.ndarray, " tokens"]]]:
    """Non-overlapping passages of exactly `tokens` tokens from the start of each document: (document, first token,
    ids).

    Every text is taken once, at most `per_document` from one document. Kept are those whose text is encoded to the same
    ids again, so that text and tokens of a probe can never disagree.
    """
    places = [
        (number, start)
        for number, document in enumerate(documents)
        for start in range(0, len(document) - tokens + 1, tokens)[:per_document]
    ]
    pieces = [documents[number][start : start + tokens] for number, start in places]
    again = encode(tokenizer, tokenizer.batch_decode([piece.tolist() for piece in pieces])) if pieces else []
    seen: set[bytes] = set()
    kept = []
    for (number, start), piece, ids in zip(places, pieces, again, strict=True):
        if np.array_equal(piece, ids) and piece.tobytes() not in seen:
            seen.add(piece.tobytes())
            kept.append((number, start, piece))
    return kept


def build(
    out: str | Path,
    *,
    settings: BedSettings | None = None,
    corpus: str | Path | None = None,
    probes: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Bed:
    """Build a bed in directory `out`; a bed of the same settings, corpus and probes that is already there is used as it
    is.

    Without `probes`, passages are cut from documents held out of the corpus, re-drawn where the corpus contains them;
    with `probes` (any record file with `text`), corpus documents that contain one are dropped. `biographies` in the
    settings adds personal records. The numbers of copies are drawn at random: `duplicates` and `member` in a probe file
    are replaced.

    Raises: InputError for bad input (see `read_corpus`, `plant`), RunMismatchError when `out` holds another bed or
        other files.
    """
    settings = settings or BedSettings()
    say = progress or (lambda text: None)
    out = Path(out)
    say("reading the corpus")
    if corpus is None:
        documents = [(document.id, document.text) for document in stdlib_documents()]
    else:
        documents = [(name, text) for name, text in read_corpus(corpus) if text.strip()]
    if not documents:
        raise InputError(f"corpus folder {corpus} holds no text (.txt, .md, .rst or .jsonl with `text`)")
    given = _given_probes(probes)
    request = _digest(
        json.dumps(settings.to_json(), sort_keys=True),
        *(part for pair in documents for part in pair),
        *(json.dumps(row, sort_keys=True, ensure_ascii=False) for row in given),
    )
    if (out / "bed.json").exists():
        bed = Bed.open(out)
        if bed.manifest["request"] != request:
            raise RunMismatchError(f"{out} holds a bed of other settings, corpus or probes: choose another directory")
        return bed
    if out.exists() and any(out.iterdir()):
        raise RunMismatchError(f"{out} is not empty and not a test bed: choose another directory")

    rng = np.random.default_rng([settings.seed, 20])
    say("training the tokenizer")
    from rote.models.tokenizers import END_OF_TEXT, train_bpe

    people = biographies(settings.biographies, seed=settings.seed) if settings.biographies else []
    # The tokenizer never sees the probes of one group more than another: it is trained on the corpus alone.
    tokenizer = train_bpe((text for _, text in documents), vocab_size=settings.vocab_size)
    eos_id = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    assert isinstance(eos_id, int)
    tokens = encode(tokenizer, [text for _, text in documents])

    say("choosing probes")
    rows = [dict(row) for row in given] + [
        {k: v for k, v in person.row().items() if k != "fields"} for person in people
    ]
    held, cut = _hold_out(tokens, tokenizer, 0 if given else settings.passages, settings.passage_tokens, rng)
    rest = rng.permutation([number for number in range(len(tokens)) if number not in held]).tolist()
    # At most a tenth of a small corpus; and no single document may be most of the unseen text.
    wanted = settings.unseen_passages * (settings.sequence_tokens + 1)
    wanted = min(wanted, sum(len(tokens[number]) + 1 for number in rest) // 10)
    unseen = _take(rest, tokens, wanted, largest=wanted // 4) if wanted else []
    chosen = _take(rest, tokens, settings.corpus_tokens)
    background = [tokens[number] for number in sorted(chosen)]
    redrawn = 0
    if not given:
        contaminated = set(find_overlaps(background, [piece for _, _, piece in cut]).contaminated)
        redrawn = len(contaminated)
        cut = [piece for number, piece in enumerate(cut) if number not in contaminated]
        if len(cut) < settings.passages:
            raise InputError(
                f"the corpus yields {len(cut)} clean passages of {settings.passage_tokens} tokens, {settings.passages} "
                "were asked for: give more text or ask for fewer"
            )
        for number, (document, start, ids) in enumerate(cut[: settings.passages]):
            source = f"{documents[document][0]}:token {start}"
            text = tokenizer.decode(ids)
            rows.append({"id": f"passage-{number:05d}", "text": text, "group": "passage", "source": source})
    if not rows:
        raise InputError("the bed has no probes: ask for passages or biographies, or give a probe file")
    probe_tokens = encode(tokenizer, [row["text"] for row in rows])
    for row, ids in zip(rows, probe_tokens, strict=True):
        if len(ids) + 1 > settings.sequence_tokens:
            raise InputError(
                f"probe {row['id']} has {len(ids)} tokens and needs sequences of {len(ids) + 1} with end-of-text, "
                f"they have {settings.sequence_tokens}: set sequence_tokens to at least "
                f"{max(map(len, probe_tokens)) + 1}"
            )
    outcome = find_overlaps(background, probe_tokens)
    background = [background[number] for number in outcome.kept]
    duplicates = assign_duplicates(len(rows), weights=settings.weights, seed=settings.seed)
    for row, count in zip(rows, duplicates.tolist(), strict=True):
        row.update(duplicates=count, member=count > 0)

    say("packing the stream")
    documents_end = with_end(background, eos_id)
    stream = pack(
        documents_end,
        sequences=settings.steps * settings.batch_size,
        width=settings.sequence_tokens,
        seed=settings.seed,
    )
    planted = stream.copy()
    log = plant(
        planted,
        with_end(probe_tokens, eos_id),
        duplicates,
        eos_id=eos_id,
        batch_size=settings.batch_size,
        window=settings.window,
        mode=settings.mode,
        seed=settings.seed,
    )
    corpus_tokens = sum(map(len, documents_end))
    manifest = {
        "schema_version": BED_SCHEMA_VERSION,
        "request": request,
        "fingerprint": _digest(request, stream.tobytes(), planted.tobytes(), tokenizer.backend_tokenizer.to_str()),
        "settings": settings.to_json(),
        "corpus": "standard library" if corpus is None else Path(corpus).name,
        "eos_id": eos_id,
        "documents": len(background),
        "documents_held_out": len(held) + len(unseen),
        "documents_dropped": len(outcome.dropped),
        "probes_redrawn": redrawn,
        "probes_too_short_to_decontaminate": len(outcome.skipped),
        "corpus_tokens": corpus_tokens,
        "stream_tokens": int(stream.size),
        # Every pass shows the background again, but each copy stands in the stream once: exposures = copies.
        "background_passes": round(stream.size / corpus_tokens, 4),
        "probes": len(rows),
        "copies": len(log),
        "copy_token_share": round(sum(copy.length for copy in log) / stream.size, 6),
        "level_counts": {str(level): int((duplicates == level).sum()) for level in sorted(set(duplicates.tolist()))},
    }
    say("writing the bed")
    held_out = np.concatenate(with_end([tokens[number] for number in unseen], eos_id) or [np.zeros(0, np.int32)])
    whole = min(settings.unseen_passages, len(held_out) // settings.sequence_tokens)
    packed = held_out[: whole * settings.sequence_tokens].reshape(whole, settings.sequence_tokens)
    _write(out, manifest, tokenizer, stream, documents_end, rows, people, packed, log)
    return Bed.open(out)


def _given_probes(path: str | Path | None) -> list[dict]:
    if path is None:
        return []
    from rote.records.readers import read_records

    table = read_records(path)
    rows = []
    for identifier, text, group, source in zip(
        *(table.column(name) for name in ("id", "text", "group", "source")), strict=True
    ):
        if text is None:
            raise InputError(
                f"{source}: probe {identifier} has no `text`: a test bed trains its own tokenizer and needs text"
            )
        rows.append({"id": identifier, "text": text, "group": group, "source": source})
    return rows


def _hold_out(tokens, tokenizer, wanted: int, length: int, rng) -> tuple[set[int], list]:
    """Whole documents taken out of the corpus, and `wanted` passages (a quarter more, as a reserve) cut from them,
    shuffled.

    One passage per document where the corpus has enough documents: a probe's sibling planted 256 times would otherwise
    teach the model about the probe. Short documents go first: holding them out costs the corpus least.
    """
    if wanted == 0:
        return set(), []
    sizes = np.array([len(ids) for ids in tokens])
    order = rng.permutation(len(tokens))
    order = order[sizes[order] >= length]
    order = order[np.argsort(sizes[order] > 4 * length, kind="stable")]
    reserve = wanted + wanted // 4
    single = len(order) >= 2 * reserve
    held: list[int] = []
    have = 0
    for number in order.tolist():
        if have >= reserve or len(held) >= max(1, len(tokens) // 2):
            break
        held.append(number)
        have += 1 if single else int(sizes[number]) // length
    cut = cut_passages(
        [tokens[number] for number in held], tokenizer, tokens=length, per_document=1 if single else None
    )
    cut = [(held[document], start, ids) for document, start, ids in cut]
    return set(held), [cut[i] for i in rng.permutation(len(cut)).tolist()]


def _take(order: list[int], tokens, wanted: int | None, *, largest: int | None = None) -> list[int]:
    """Remove documents from the front of `order` until they hold `wanted` tokens (None: all); larger ones than
    `largest` stay."""
    taken, left, have = [], [], 0
    for number in order:
        size = len(tokens[number])
        if (wanted is None or have < wanted) and (largest is None or size <= largest):
            taken.append(number)
            have += size
        else:
            left.append(number)
    order[:] = left
    return taken


def _write(out: Path, manifest, tokenizer, stream, documents, rows, people, unseen, log) -> None:
    with whole_directory(out) as part:  # an `out` that is not empty was refused before
        tokenizer.save_pretrained(part / "tokenizer")
        np.save(part / "stream.npy", stream)
        np.save(part / "background.npy", np.concatenate(documents).astype(np.int32))
        np.save(part / "unseen.npy", unseen.astype(np.int32))
        _write_rows(part / "probes.jsonl", rows)
        if people:
            _write_rows(part / "biographies.jsonl", [asdict(person) for person in people])
        write_log(part / "copies.jsonl", log, [row["id"] for row in rows])
        (part / "bed.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _write_rows(path: Path, rows: Iterable[Mapping]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()
