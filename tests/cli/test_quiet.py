"""-q means the same everywhere: nothing but failures."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from rote.cli.main import app, main
from rote.cli.treat_options import Sets, run_treatment


def commands(group: Any, path: str = "rote") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def test_every_command_says_the_same_of_it():
    found = {
        name: option.help
        for name, command in commands(typer.main.get_command(app))
        for option in command.params
        if option.name == "quiet"
    }
    assert set(found.values()) == {"No progress, no summary."}
    silent = {name for name, _ in commands(typer.main.get_command(app))} - set(found)
    assert silent == {"rote view", "rote ls", "rote info", "rote doctor", "rote study list",
                      "rote memory vista recommend"}  # fmt: skip


@pytest.mark.parametrize("checkpoint", [Path("out/checkpoint"), None])
def test_treatments_of_either_kind_print_nothing(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr("rote.audit.treat", lambda *_, **__: SimpleNamespace(checkpoint=checkpoint))
    sets = Sets(*(None,) * 4, {})  # type: ignore[arg-type]
    run_treatment("any", "model", lambda *_: None, sets, Path("out"), method_settings={}, quiet=True)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("holds", [True, False])
def test_a_study_names_the_claims_that_failed(holds, monkeypatch, capsys):
    claims = [{"statement": "one [a]", "holds": True}, {"statement": "two [b]", "holds": holds}]
    monkeypatch.setattr("rote.studies.run_study", lambda *_, **__: {"claims": claims, "holds": holds})
    assert main(["study", "run", "any", "-q"]) == (0 if holds else 1)
    assert capsys.readouterr() == ("", "" if holds else "claim failed: two [b]\n")
