"""`rote plan cot`: what chain of thought can and cannot memorize, from the command line.

Thin: reads question-answer rows, cuts them into symbols, calls `rote.theory.cot`, prints. Contents of records are shown
only with --reveal; otherwise records are named by their lines. Heavy libraries are imported inside the command.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rote.cli.console import out as console
from rote.cli.console import print_json, say
from rote.errors import InputError

if TYPE_CHECKING:
    from rote.theory.cot.check import CotReport
    from rote.theory.cot.words import QADataset, Word

SCHEMA = "rote-plan-cot-1"
SMALL = 100  # words; above it --build makes the transformer whose size is linear in them
Encode = Callable[[str], list[str]]


def cot(
    data: Annotated[Path | None, typer.Option("--data", help='Rows {"input": .., "answer": ..}, JSON lines.')] = None,
    tokenizer: Annotated[str, typer.Option(help="char, word, or a local Hugging Face tokenizer directory.")] = "char",
    alphabet: Annotated[
        str | None,
        typer.Option(help="Symbols: characters (char) or words apart by spaces; default: those in the data."),
    ] = None,
    positions: Annotated[
        str | None,
        typer.Option(
            help="What the model adds: none (the paper's setting), bos, absolute. Must be said for a directory."
        ),
    ] = None,
    max_cot: Annotated[int | None, typer.Option(help="Longest chain of thought allowed, in symbols.")] = None,
    build: Annotated[
        Path | None, typer.Option(help="Write verified transformers that memorize the data, one for each possible way.")
    ] = None,
    digits: Annotated[int, typer.Option(help="Precision q: weights are q-digit decimals up to 10^q.")] = 4,
    records: Annotated[int | None, typer.Option(help="Number of records N, for the parameter floor alone.")] = None,
    labels: Annotated[int | None, typer.Option(help="Number of possible answers T, for the floor.")] = None,
    census: Annotated[
        int | None, typer.Option(help="Count all labelings of words up to this length over 2 symbols.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--out", help="Directory for cot.json and cot.html.")] = None,
    reveal: Annotated[bool, typer.Option("--reveal", help="Show the contents of records.")] = False,
    seed: Annotated[int, typer.Option(help="Another seed is another random transformer for --build.")] = 0,
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no summary.")] = False,
) -> None:
    """Can a transformer memorize these answers, with and without chain of thought, and how many parameters at least?"""
    from rote.theory.cot.infinite_sets import infinite_statements
    from rote.theory.cot.labelings import label_census
    from rote.theory.cot.size_floor import bits_per_weight, fixed_precision_floor

    if (records is None) != (labels is None):
        raise InputError("--records and --labels go together: N records with one of T answers each")
    if data is None and records is None and census is None:
        raise InputError("nothing to do: give --data FILE, or --records N with --labels T, or --census L")
    if build is not None and data is None:
        raise InputError("--build makes transformers for a dataset: give --data FILE too")
    silent = quiet or json_
    found: dict[str, Any] = {"schema": SCHEMA, "arxiv": "2511.01190", "seed": seed}
    report = None
    if data is not None:
        from rote.theory.cot.check import cot_check

        dataset, source = read_questions(data, tokenizer=tokenizer, alphabet=alphabet, positions=positions)
        say(f"  {len(dataset)} records, {len(dataset.alphabet)} symbols", quiet=silent)
        report = cot_check(dataset, positions=source["positions"], max_cot=max_cot)
        found["dataset"] = source
        found |= describe(report, reveal=reveal)
        if build is not None:
            found["witnesses"] = _build(report, build, digits=digits, seed=seed, quiet=silent)
    if records is not None and labels is not None:
        found["floor"] = {
            "standing": "derived",
            "records": records,
            "labels": labels,
            "digits": digits,
            "bits_per_weight": bits_per_weight(digits),
            "parameters": fixed_precision_floor(n=records, labels=labels, digits=digits),
            "for": "a labeling chosen at will; structured answers can need fewer",
        }
    rows = []
    if census is not None:
        if census < 1:
            raise InputError(f"--census is {census}; give the longest word, 1 or more")
        rows = [label_census(length=length) for length in range(1, census + 1)]
        # Strings: the counts are exact integers far beyond what other readers of JSON keep.
        found["census"] = [
            {"standing": "derived", "length": row.length, "symbols": row.symbols, "words": row.words}
            | {name: str(getattr(row, name)) for name in ("both", "no_cot_only", "cot_only", "neither")}
            for row in rows
        ]
    found["infinite_sets"] = [vars(item) for item in infinite_statements()]
    if output is not None:
        _write(found, output, _figures(found, report, rows, reveal=reveal))
    if json_:
        print_json(found)
    elif not quiet:
        for line in summary(found):
            console.print(line, markup=False, soft_wrap=True)
        if output is not None:
            console.print(f"{output / 'cot.html'}", markup=False, soft_wrap=True)


def read_questions(
    path: Path, *, tokenizer: str = "char", alphabet: str | None = None, positions: str | None = None
) -> tuple[QADataset, dict[str, Any]]:
    """A dataset from JSON lines, and what to say of its source. Errors name file, line and field, never contents."""
    from rote.theory.cot.decision import POSITIONS
    from rote.theory.cot.words import qa_dataset

    encode, symbols, adds_bos = load_encoder(tokenizer)
    if positions is None:
        if symbols is not None:
            raise InputError(
                "a real tokenizer: say what the model adds to its input with --positions none, bos or absolute; most "
                "models have positions or a BOS token, and then part of the conditions does not apply"
            )
        positions = "none"
    if positions not in POSITIONS:
        raise InputError(f"--positions {positions!r}: use one of {', '.join(POSITIONS)}")
    if alphabet is not None:
        if symbols is not None:
            raise InputError("--alphabet goes with --tokenizer char or word; a directory brings its own vocabulary")
        symbols = encode(alphabet)
    pairs, lines = [], []
    try:
        with path.open(encoding="utf-8") as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    question, answer = _row(text, f"{path} line {number}")
                    pairs.append((tuple(encode(question)), tuple(encode(answer))))
                    lines.append(number)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    if not pairs:
        raise InputError(f'{path}: no record in it; give rows like {{"input": "..", "answer": ".."}}')
    try:
        dataset = qa_dataset(pairs, alphabet="infer" if symbols is None else symbols, lines=lines)
    except InputError as error:
        raise InputError(f"{path} {error}") from None
    source = {
        "file": str(path),
        "records": len(dataset),
        "repeats": dataset.repeats,
        "tokenizer": tokenizer,
        "symbols": len(dataset.alphabet),
        "alphabet": "given" if symbols is not None else "inferred",
        "longest": dataset.longest,
        "positions": positions,
        "tokenizer_adds_bos": adds_bos,
    }
    return dataset, source


def _row(text: str, place: str) -> tuple[str, str]:
    try:
        row = json.loads(text)
    except ValueError:
        raise InputError(f"{place}: not valid JSON; one object a line") from None
    if not isinstance(row, dict):
        raise InputError(f'{place}: not an object; give {{"input": "..", "answer": ".."}}')
    for name in ("input", "answer"):
        if not isinstance(row.get(name), str):
            raise InputError(f"{place}: field {name} is {'missing' if name not in row else 'not text'}")
    return row["input"], row["answer"]


def load_encoder(tokenizer: str) -> tuple[Encode, list[str] | None, bool]:
    """(text -> symbols, vocabulary or None, whether the tokenizer puts a token of its own in front)."""
    if tokenizer == "char":
        return list, None, False
    if tokenizer == "word":
        return str.split, None, False
    file = Path(tokenizer) / "tokenizer.json"
    if not file.is_file():
        raise InputError(f"--tokenizer {tokenizer}: use char, word, or a directory with tokenizer.json")
    from tokenizers import Tokenizer

    try:
        loaded = Tokenizer.from_file(str(file))
    except Exception:  # the library raises a bare Exception for any damage
        raise InputError(f"{file}: not a readable tokenizer; save it again with save_pretrained") from None
    special = {token.content for token in loaded.get_added_tokens_decoder().values() if token.special}
    vocabulary = sorted(loaded.get_vocab().items(), key=lambda item: item[1])
    symbols = [token for token, _ in vocabulary if token not in special]  # special ones can be the stop symbol

    def encode(text: str) -> list[str]:
        return loaded.encode(text, add_special_tokens=False).tokens

    front = loaded.encode("a").tokens[:1]
    return encode, symbols, bool(front) and front[0] in special


def describe(report: CotReport, *, reveal: bool = False) -> dict[str, Any]:
    """The report as plain values. Words are lines and lengths, and symbols too with `reveal`."""
    from rote.theory.cot.check import SOURCES

    data = report.dataset

    def word(given: Word) -> dict[str, Any]:
        shown: dict[str, Any] = {"length": len(given)}
        if given in data.lines:
            shown["line"] = data.lines[given]
        if reveal:
            shown["symbols"] = [data.alphabet.symbols[symbol] for symbol in given]
            if given in data.answers:
                shown["answer"] = data.alphabet.symbols[data.answers[given]]
        return shown

    decision, conflict, obstruction = report.decision, report.conflict, report.obstruction
    plan = None
    if report.plan is not None:
        plan = [
            {"record": word(x), "symbols": len(c)}
            | ({"cot": [data.alphabet.symbols[symbol] for symbol in c]} if reveal else {})
            for x, c in report.plan.items()
        ]
    return {
        "verdict": report.verdict,
        "no_cot": {
            "memorizable": report.no_cot,
            "applies": report.no_cot_applies,
            "standing": SOURCES["no_cot"] if report.no_cot_applies else SOURCES["positions"],
            "conflict": [word(conflict.first), word(conflict.second)] if conflict else None,
        },
        "cot": {
            "memorizable": report.cot,
            "standing": SOURCES["cot"],
            "max_cot": decision.max_cot,
            "within_max_cot": decision.within_max_cot,
            "needed_max_cot": decision.needed_max_cot,
            "plan": plan,
            "obstruction": None
            if obstruction is None
            else {
                "kind": obstruction.kind,
                "blocks": [
                    {"record": word(b.record), "prefix": word(b.start), "cut": [word(x) for x in b.cut]}
                    for b in obstruction.blocks
                ],
            },
        },
    }


def summary(found: dict[str, Any]) -> list[str]:
    """The result in plain lines."""
    lines: list[str] = []
    if "verdict" in found:
        lines += _dataset_lines(found)
    for name, item in found.get("witnesses", {}).items():
        lines.append(
            f"transformer ({name}): {item['parameters']:,} weights of {item['digits']} digits, margin "
            f"{item['margin']:.3g} > 10 x error bound {item['error']:.1e}; {item['directory']} (holds the records)"
        )
    if "floor" in found:
        floor = found["floor"]
        lines.append(
            f"at least {floor['parameters']:,} parameters for {floor['records']:,} records with {floor['labels']:,} "
            f"answers at q = {floor['digits']} ({floor['bits_per_weight']:.2f} bits a weight) [derived]"
        )
    if "census" in found:
        lines.append("labelings of all words up to length L over 2 symbols [derived]:")
        for row in found["census"]:
            counts = ", ".join(
                f"{label} {row[name] if len(row[name]) < 30 else f'about 10^{len(row[name]) - 1}'}"
                for name, label in (
                    ("both", "both"),
                    ("no_cot_only", "no-CoT only"),
                    ("cot_only", "CoT only"),
                    ("neither", "neither"),
                )
            )
            lines.append(f"  L = {row['length']} ({row['words']} words): {counts}")
    return lines


def _dataset_lines(found: dict[str, Any]) -> list[str]:
    source, direct, chain = found["dataset"], found["no_cot"], found["cot"]
    lines = [
        f"{source['file']}: {source['records']} records ({source['repeats']} repeated), {source['symbols']} symbols "
        f"({source['alphabet']}), positions {source['positions']}: {found['verdict']}"
    ]
    if source["tokenizer_adds_bos"] and source["positions"] == "none":
        lines.append("note: this tokenizer puts a token in front of every input; --positions bos is its setting")
    if not direct["applies"]:
        lines.append(
            "without chain of thought: the obstruction of Theorem 4.1 is not applicable with "
            f"positions {source['positions']}; memorizable [derived]"
        )
    elif direct["memorizable"]:
        lines.append("without chain of thought: memorizable [Theorem 4.1]")
    else:
        first, second = direct["conflict"]
        lines.append(
            f"without chain of thought: impossible [Theorem 4.1]; {_name(first)} and {_name(second)} repeat one symbol "
            f"{first['length']} and {second['length']} times and have different answers"
        )
    if chain["memorizable"]:
        text = f"with chain of thought: memorizable with chains of up to {chain['needed_max_cot']} symbols [derived]"
        if chain["within_max_cot"] is False:
            text += f"; infeasible within max_cot = {chain['max_cot']}"
        lines.append(text)
    else:
        obstruction = chain["obstruction"]
        text = "with chain of thought: impossible [derived]"
        if obstruction["kind"] == "alphabet":
            text += "; the alphabet has one symbol, and a run that emits it never ends"
        else:
            block = obstruction["blocks"][0]
            near = ", ".join(_name(item) for item in block["cut"][:4]) + (", .." if len(block["cut"]) > 4 else "")
            text += f"; from {_name(block['record'])} every continuation lands on another answer ({near})"
            if obstruction["kind"] == "symbol":
                text += ", and so does every other first symbol for some record that repeats the same symbol"
        lines.append(text)
        lines.append("a symbol that no input contains, in the alphabet, would make it memorizable [derived]")
    return lines


def _name(word: dict[str, Any]) -> str:
    shown = f"line {word['line']}" if "line" in word else f"a prefix of {word['length']} symbols"
    return f"{shown} ({' '.join(word['symbols'])})" if "symbols" in word else shown


def _build(report: CotReport, folder: Path, *, digits: int, seed: int, quiet: bool) -> dict[str, Any]:
    from rote.theory.cot.linear_witness import build_linear_witness
    from rote.theory.cot.witness import build_cot_witness
    from rote.theory.cot.witness_files import save_cot_witness

    if report.positions != "none":
        raise InputError("--build makes transformers without positions; use --positions none")
    ways: dict[str, Any] = {}
    if report.no_cot:
        ways["no-cot"] = None
    if report.plan is not None:
        ways["cot"] = report.plan
    if not ways:
        raise InputError("--build: this dataset cannot be memorized in either way, so there is nothing to build")
    built = {}
    for name, plan in ways.items():
        say(f"  building and verifying: {name}", quiet=quiet)
        words = len(report.dataset) if plan is None else sum(len(chain) + 1 for chain in plan.values())
        build_it = build_cot_witness if words <= SMALL else build_linear_witness
        witness = build_it(report.dataset, plan=plan, digits=digits, seed=seed)
        verified = save_cot_witness(witness, folder / name)
        built[name] = {"standing": "derived", "directory": str(folder / name), **witness.size(), **vars(verified)}
    return built


def _figures(found: dict[str, Any], report: CotReport | None, rows: list[Any], *, reveal: bool) -> list[Any]:
    from rote.theory.cot import pictures

    figures = []
    if report is not None and report.obstruction is not None and report.obstruction.blocks:
        figures.append(pictures.block_figure(report, report.obstruction.blocks[0], reveal=reveal))
    if report is not None and report.plan:
        figures.append(pictures.chain_figure(report))
    if "floor" in found:
        floor = found["floor"]
        figures.append(pictures.floor_figure(n=floor["records"], labels=floor["labels"], digits=floor["digits"]))
    if rows:
        figures.append(pictures.census_figure(rows))
    return figures


def _write(found: dict[str, Any], folder: Path, figures: list[Any]) -> None:
    from html import escape

    from rote.atomic import write_atomic

    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "cot.json", json.dumps(found, indent=1, allow_nan=False) + "\n")
    pictures = [figure.to_html(full_html=False, include_plotlyjs=number == 0) for number, figure in enumerate(figures)]
    text = "".join(f"<p>{escape(line)}</p>" for line in summary(found))
    write_atomic(
        folder / "cot.html",
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>rote plan cot</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<style>body{font:16px system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}</style></head>"
        f"<body><h1>What chain of thought can memorize</h1>{text}{''.join(pictures)}</body></html>\n",
    )
