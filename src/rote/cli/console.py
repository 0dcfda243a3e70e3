"""What every command shares: consoles, progress on stderr, JSON on stdout, configuration files.

Knows nothing about: audits, models.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from rote.errors import InputError

err = Console(stderr=True, highlight=False)
out = Console(highlight=False)
arguments: list[str] = []  # what `rote` was called with, for "how to reproduce"


def print_json(value: Any) -> None:
    """One JSON document on stdout, nothing else."""
    json.dump(value, sys.stdout, indent=1, allow_nan=False)
    sys.stdout.write("\n")


def say(text: str, *, quiet: bool = False) -> None:
    """A line for people, on stderr, unless -q."""
    if not quiet:
        err.print(text, markup=False)


@contextmanager
def progress_bars(*, quiet: bool, unit: str = "tokens") -> Iterator[Callable[[str, int, int], None]]:
    """Yields `progress(stage, done, total)`: one bar a stage with its rate and the time left; silent with -q.

    A stage that counts something else than `unit` says so: "shortest prompts [records]"."""
    if quiet:
        yield lambda stage, done, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task) -> Text:
            speed = task.finished_speed or task.speed
            rate = f"{speed:,.0f}" if speed and speed >= 10 else f"{speed or 0:.2g}"
            return Text(f"{rate} {task.fields['unit']}/s" if speed and task.total and task.total > 1 else "")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    tasks: dict[str, Any] = {}
    with Progress(*columns, console=err, transient=not err.is_terminal) as bars:

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                name, _, counted = stage.partition(" [")
                tasks[stage] = bars.add_task(
                    name, total=total or None, completed=done, unit=counted.rstrip("]") or unit
                )
            bars.update(tasks[stage], completed=done, total=total or None)

        yield progress


def config_option(context: typer.Context, parameter, value: Path | None) -> Path | None:
    """`--config FILE`: YAML or JSON whose keys are the flags' names. A flag wins; an unknown key is refused."""
    if value is None or context.resilient_parsing:
        return value
    import yaml

    try:
        content = yaml.safe_load(value.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{value}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        raise InputError(f"{value}{f' line {place.line + 1}' if place else ''}: not valid YAML") from None
    if content is None:
        return value
    if not isinstance(content, dict):
        raise InputError(f"{value}: must hold one setting a line, like 'prefix: 50'")
    names = {_flag(item): item for item in context.command.params if item.name not in ("config", "print_config")}
    defaults = {}
    for key, given in content.items():
        name = str(key).replace("_", "-")
        if name not in names:
            from difflib import get_close_matches

            near = get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(sorted(names))}"
            raise InputError(f"{value}: no setting {key!r}; {hint}")
        item = names[name]
        many = getattr(item, "multiple", False)
        defaults[item.name] = (
            [str(entry) for entry in given] if many and isinstance(given, list) else [str(given)] if many else given
        )
    context.default_map = {**(context.default_map or {}), **defaults}
    return value


def print_config(context: typer.Context) -> None:
    """Print what will run, as a configuration file that would run it again."""
    import yaml

    values = {}
    for item in context.command.params:
        if item.name in ("config", "print_config", "help") or item.name not in context.params:
            continue
        value = context.params[item.name]
        if value is not None and value != () and value != []:
            values[_flag(item)] = _yaml(value)
    out.print(yaml.safe_dump(values, sort_keys=True), end="", markup=False, soft_wrap=True)


def _flag(item) -> str:
    longest = max(getattr(item, "opts", [item.name]), key=len)
    return longest.lstrip("-").replace("_", "-").lower()


def _yaml(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_yaml(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value
