"""The documentation is true: its Python runs, its commands use options that exist, its tables match the code."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")


def label(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """(line, code) of the fenced blocks of one language, in order."""
    found, lines, start = [], [], None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if start is None and line.strip() == f"```{language}":
            start, lines = number + 1, []
        elif start is not None and line.strip() == "```":
            found.append((start, "\n".join(lines) + "\n"))
            start = None
        elif start is not None:
            lines.append(line)
    assert start is None, f"{label(page)}:{start} a code block is not closed"
    return found


WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]


@pytest.fixture
def desk(tmp_path, monkeypatch, memorizer, checkpoints):
    """The folder the documentation speaks of: model, reference, people.jsonl, unseen.jsonl and a corpus."""
    model, targets, controls = memorizer
    (tmp_path / "model").symlink_to(model)
    (tmp_path / "reference").symlink_to(checkpoints("gpt2"))
    shutil.copy(targets, tmp_path / "people.jsonl")
    shutil.copy(controls, tmp_path / "unseen.jsonl")
    (tmp_path / "corpus").mkdir()
    shutil.copy(targets, tmp_path / "corpus" / "part-0.jsonl")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", WITH_PYTHON, ids=label)
def test_python_of_a_page_runs_in_order(page, desk):
    names: dict = {}
    for line, code in blocks(page, "python"):
        padded = "\n" * (line - 1) + code  # so that a traceback names the page's own line
        exec(compile(padded, str(page), "exec"), names)


def test_there_is_python_to_run():
    assert {"README.md", "docs/index.md"} <= {label(page) for page in WITH_PYTHON}


def commands(page: Path) -> list[tuple[int, list[str]]]:
    """(line, words) of every `rote ...` command in console blocks; a backslash continues a line."""
    found = []
    for start, code in blocks(page, "console"):
        for match in re.finditer(r"^(?:\$ )?(rote(?: |$).*(?:\\\n.*)*)", code, flags=re.MULTILINE):
            text = match[1]
            while text.endswith("\\"):
                text = text[:-1]
            words = shlex.split(text.replace("\\\n", " "), comments=True)
            found.append((start + code[: match.start()].count("\n"), words[1:]))
    return found


WITH_COMMANDS = [page for page in PAGES if commands(page)]


def root_command():
    import typer

    from rote.cli.main import app

    return typer.main.get_command(app)


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=label)
def test_commands_use_options_that_exist(page):
    for line, words in commands(page):
        command, rest = root_command(), list(words)
        while rest and hasattr(command, "commands") and not rest[0].startswith("-"):
            assert rest[0] in command.commands, f"{label(page)}:{line} there is no command {rest[0]!r}"
            command = command.commands[rest.pop(0)]
        known = {"-h", "--help", "--debug"}
        takes_value = set()
        for item in command.params:
            names = {*getattr(item, "opts", ()), *getattr(item, "secondary_opts", ())}
            known |= {name for name in names if name.startswith("-")}
            if item.param_type_name == "option" and not getattr(item, "is_flag", False):
                takes_value |= names
        positional, skip = 0, False
        for word in rest:
            if skip:
                skip = False
            elif word.startswith("-") and word != "-":
                option = word.partition("=")[0]
                assert option in known, f"{label(page)}:{line} `rote {' '.join(words)}`: no option {option}"
                skip = option in takes_value and "=" not in word
            else:
                positional += 1
        assert not skip, f"{label(page)}:{line} an option has no value"
        needed = sum(item.param_type_name == "argument" and item.required for item in command.params)
        if not {"-h", "--help", "--config"} & set(rest):
            assert positional >= needed, f"{label(page)}:{line} `rote {' '.join(words)}` lacks an argument"


def test_every_command_is_documented():
    """Each command of the tool, and each of its options, stands in the command-line reference."""
    text = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")

    def walk(command, path):
        if hasattr(command, "commands"):
            for name, child in command.commands.items():
                yield from walk(child, [*path, name])
        else:
            yield path, command

    for path, command in walk(root_command(), ["rote"]):
        heading = f"## {' '.join(path)}\n"
        assert heading in text, f"cli.md has no section {heading.strip()!r}"
        section = text.partition(heading)[2].partition("\n## ")[0]
        for item in command.params:
            if item.param_type_name != "option":
                continue
            longest = max(item.opts, key=len)
            assert longest == "--help" or f"`{longest}`" in section, f"cli.md: {' '.join(path)} {longest} is missing"


def test_gates_in_the_documentation_parse():
    from rote.report import parse_gate

    lines = [words for page in PAGES for _, words in commands(page)]
    gates = [words[at + 1] for words in lines for at, word in enumerate(words) if word == "--fail-if"]
    assert gates
    for text in gates:
        assert parse_gate(text).measure


def test_measures_page_is_the_catalogue():
    from rote.measures.catalog import ATTACKS, MEASURES

    text = (ROOT / "docs" / "reference" / "measures.md").read_text(encoding="utf-8")
    for name, info in MEASURES.items():
        section = text.partition(f"### `{name}`\n")[2].partition("\n##")[0]
        for part in (info.title, info.definition, info.direction, info.unit, info.source, info.informs):
            assert part in section, f"measures.md: {name} lacks {part!r}; write the page again from the catalogue"
    for name, attack in ATTACKS.items():
        section = text.partition(f"### `{name}`\n")[2].partition("\n##")[0]
        for part in (attack.title, attack.definition, attack.source):
            assert part in section, f"measures.md: {name} lacks {part!r}; write the page again from the catalogue"


def test_every_dependency_is_explained():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    everything = [*project["dependencies"], *(item for extra in extras for item in extra)]
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    for item in everything:
        name = re.split(r"[\[<>=!~ ]", item)[0]
        assert f"| `{name}` |" in text, f"dependencies.md does not say why {name} is there"


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in target or target.startswith("mailto:"):
            continue
        if target.endswith(".png"):
            continue  # pictures are made by the demo
        assert (page.parent / target).exists(), f"{label(page)} links to {target}"
