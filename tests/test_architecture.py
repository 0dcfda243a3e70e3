"""The map of the rooms holds: who may import whom, what stays light, what is never called."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "rote"
FILES = sorted(SOURCE.rglob("*.py"))
LONGEST_FILE = 450

COMMON = {"_lazy", "errors", "atomic"}
ROOMS_BELOW = {"runtime", "records", "models", "scores", "measures", "internals", "controls"}
# What each room may import of Rote, besides itself. A room that is not here fails the test: put it on the map.
ALLOWED: dict[str, set[str]] = {
    "_lazy": set(),
    "errors": set(),
    "atomic": {"errors"},
    "runtime": {"errors"},
    "rote": COMMON,
    "measures": {"_lazy", "errors"},
    "records": COMMON | {"runtime"},
    "models": COMMON | {"runtime"},
    "scores": COMMON | {"runtime", "models", "records"},
    "report": COMMON | {"measures"},
    "internals": COMMON | {"runtime", "models", "records", "scores", "measures"},
    "controls": COMMON | {"runtime", "models", "records", "scores", "internals"},
    "theory": COMMON | {"runtime"},
    "memory": COMMON | {"runtime", "models", "records"},
    "audit": COMMON | ROOMS_BELOW | {"report", "rote"},
    "testbed": COMMON | ROOMS_BELOW | {"report"},
    "studies": COMMON | ROOMS_BELOW | {"report", "audit", "testbed", "theory", "memory"},
}
ALLOWED["cli"] = ALLOWED["studies"] | {"studies", "rote"}
# Single files that may know one thing more, and why.
EXCEPTIONS: dict[str, dict[str, str]] = {
    "models/safe_loading.py": {"memory.tnt.modeling": "a checkpoint of that type is loaded by its own classes"},
    "scores/approximate.py": {"measures.approximate": "asks a model for the samples, branches and beams"},
    "scores/prompt_search.py": {"measures.compression": "finds MiniPrompt's prompt of one length"},
}
UNSAFE_MODULES = {"pickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "pickle.load", "yaml.load", "os.system"}
HEAVY = ("torch", "transformers", "plotly", "sklearn")
SLUGS = (
    "np-extraction", "hubble", "books", "neuron-probes", "curvature-edit", "mode-steering", "remind",
    "unlearning-proxies", "gapt", "ib-ft", "remix", "term-normalization", "knights-knaves", "dori", "cfg-basin",
    "diffusion-separation",
    "diffusion-transition", "manifold-memorization", "tnt", "vista", "proto-eeg-knn", "ehr-audit", "federated",
    "dejavu-vlm", "phonetic-attack", "robust-relu", "generalizable-memorization", "attention-memorization",
    "cot-memorization",
)  # fmt: skip


def name_of(file: Path) -> str:
    return file.relative_to(SOURCE).as_posix()


def room_of(file: Path) -> str:
    """measures/roc.py -> measures; errors.py -> errors; the package's own __init__.py -> rote."""
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return "rote" if parts == ("__init__",) else parts[0]


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


@cache
def rote_modules() -> frozenset[str]:
    """Dotted names inside the package, without the leading `rote.`."""
    names = (file.relative_to(SOURCE).with_suffix("").parts for file in FILES)
    return frozenset(".".join(part for part in parts if part != "__init__") for parts in names)


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import of Rote in a file, inside functions too; module without `rote.`, "" for Rote.

    Strings that name a module of Rote count as well: packages that load lazily list the homes of their names so.
    """
    package = ("rote", *file.relative_to(SOURCE).parent.parts)
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            home = ".".join([*base, *([node.module] if node.module else [])])
            # `from rote.measures import blind` imports the module rote.measures.blind
            found = [
                f"{home}.{alias.name}" if f"{home}.{alias.name}".removeprefix("rote.") in rote_modules() else home
                for alias in node.names
            ]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("rote."):
            found = [node.value] if node.value.removeprefix("rote.") in rote_modules() else []
        else:
            continue
        for name in found:
            if name == "rote" or name.startswith("rote."):
                yield getattr(node, "lineno", 0), name.removeprefix("rote").lstrip(".")


def breaches(file: Path) -> list[str]:
    """Imports that the map forbids, as `file:line imports module`."""
    room = room_of(file)
    if room not in ALLOWED:
        return [f"{name_of(file)} is in no room of the map"]
    found = []
    for line, module in imports(file):
        other = module.partition(".")[0] or "rote"
        excused = module in EXCEPTIONS.get(name_of(file), {})
        # The package's front page and the catalogue of attacks name modules as text, to be loaded when asked for.
        named_only = room == "rote" or (name_of(file) == "measures/catalog.py" and other == "measures")
        if other != room and other not in ALLOWED[room] and not excused and not named_only:
            found.append(f"{name_of(file)}:{line} imports rote.{module}")
    return found


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_follow_the_map(file):
    assert breaches(file) == []


def test_every_exception_is_still_used():
    for name, modules in EXCEPTIONS.items():
        assert set(modules) <= {module for _, module in imports(SOURCE / name)}, f"{name} needs its exception no more"


def test_the_reader_of_imports_sees_what_it_must(tmp_path, monkeypatch):
    """The check itself: a measure that imports a model inside a function, relatively or by name, is found."""
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    (tmp_path / "measures").mkdir()
    forbidden = ("from rote.models import CausalLM", "import rote.scores.tokens", "from ..models import x")
    for number, line in enumerate(forbidden):
        file = tmp_path / "measures" / f"probe{number}.py"
        file.write_text(f"def f():\n    {line}\n")
        assert len(breaches(file)) == 1, line
    clean = tmp_path / "measures" / "clean.py"
    clean.write_text("import numpy\nfrom rote.errors import InputError\nfrom rote.measures.roc import delong\n")
    assert breaches(clean) == []


@pytest.mark.parametrize(("room", "libraries"), [
    ("measures", {"torch", "transformers", "pyarrow", "typer", "rich", "plotly", "jinja2"}),
    ("report", {"torch", "transformers", "tokenizers"}),
    ("records", {"torch", "transformers"}),
    ("cli", {"torch", "transformers", "numpy"}),
])  # fmt: skip
def test_rooms_do_not_touch_other_rooms_libraries(room, libraries):
    found = []
    for file in FILES:
        if room_of(file) != room:
            continue
        for node in ast.walk(tree(file)):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom) and not node.level
                else []
            )
            found += [
                f"{name_of(file)}:{node.lineno} {name}"
                for name in names
                if name.partition(".")[0] in libraries and not excused_library(file, name)
            ]
    assert found == []


def excused_library(file: Path, library: str) -> bool:
    """`rote doctor` asks PyTorch which devices there are."""
    return (name_of(file), library) == ("cli/listing.py", "torch")


@pytest.mark.parametrize("program", [
    "import rote",
    "from rote.cli.main import main; assert main(['-h']) == 0",
    "from rote.cli.main import main; assert main(['audit', 'lm', '-h']) == 0",
    "from rote.cli.main import main; assert main(['testbed', 'build', '-h']) == 0",
    "from rote.cli.main import main; assert main(['info', 'min_k']) == 0",
])  # fmt: skip
def test_starting_loads_nothing_heavy(program):
    check = f"{program}\nimport sys\nprint('LOADED', *[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().splitlines()[-1] == "LOADED"


PACKAGES = [
    "rote",
    *sorted(
        f"rote.{file.parent.relative_to(SOURCE).as_posix().replace('/', '.')}"
        for file in SOURCE.rglob("__init__.py")
        if file.parent != SOURCE
    ),
]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_resolves(package):
    module = import_module(package)
    names = list(getattr(module, "__all__", ()))
    assert names or package == "rote.cli"
    assert [name for name in names if not hasattr(module, name)] == []
    assert len(names) == len(set(names))
    with pytest.raises(AttributeError):
        _ = module.no_such_name


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_files_are_short_and_say_what_they_know(file):
    lines = file.read_text(encoding="utf-8").count("\n")
    assert lines <= LONGEST_FILE, f"{name_of(file)} has {lines} lines: it has more than one reason to exist"
    assert ast.get_docstring(tree(file)), f"{name_of(file)} does not say what it knows"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_nothing_dangerous_is_called(file):
    """No pickle, no eval or exec, no remote code, no torch.load: records and checkpoints are hostile."""
    found = []
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] if (node.module or "").partition(".")[0] in UNSAFE_MODULES else []
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in UNSAFE_CALLS:
                found.append(called)
            found += [
                f"{keyword.arg}=..."
                for keyword in node.keywords
                if keyword.arg in ("trust_remote_code", "shell", "allow_pickle")
                and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
            ]
    assert found == []
    assert "trust_remote_code=True" not in file.read_text(encoding="utf-8")


def system_rows() -> dict[str, list[str]]:
    """The README's table of systems: slug -> cells."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("## The systems")[2].partition("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("| `")]
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): row for row in rows}


def test_readme_has_a_row_for_every_system():
    rows = system_rows()
    assert tuple(rows) == SLUGS
    for slug, row in rows.items():
        assert len(row) == 6, slug
        assert re.fullmatch(r"\d{4}\.\d{4,5}", row[2]), slug


def test_readme_is_honest_about_what_exists():
    """A row says "not yet" exactly when there is no study for it; the arXiv number is the study's own."""
    from rote.studies import load_study, study_slugs

    there = set(study_slugs())
    assert there <= set(SLUGS)
    for slug, row in system_rows().items():
        assert ("not yet" in row[5]) == (slug not in there), f"{slug}: README says {row[5]!r}"
        if slug in there:
            assert load_study(slug).arxiv == row[2]
