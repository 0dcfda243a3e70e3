"""Add to docs/reference/cli.md a section for every command that has none, and rewrite those named on the command line.

Run: python tools/write_cli_reference.py ["rote treat curvature" ...]. A section is made of the command's own help
texts; prose added by hand to a section stays until the section is named here.
"""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from rote.cli.main import app

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "cli.md"


def commands(command, path):
    if hasattr(command, "commands"):
        for name, child in command.commands.items():
            yield from commands(child, [*path, name])
    else:
        yield " ".join(path), command


def section(name: str, command) -> str:
    usage, rows = [name], []
    for item in command.params:
        if item.param_type_name == "argument":
            label = item.name.upper()
            usage.append(label if item.required else f"[{label}]")
            shown = f"`{label}`"
        else:
            if "--help" in item.opts:
                continue
            shown = ", ".join(f"`{word}`" for word in sorted((*item.opts, *item.secondary_opts)))
        default = "required" if item.required else ""
        if not item.required and item.default not in (None, (), []):
            default = (
                "" if callable(item.default) else {True: "on", False: "off"}.get(item.default, f"`{item.default}`")
            )
        again = " May be repeated." if getattr(item, "multiple", False) else ""
        rows.append(f"| {shown} | {(item.help or '').replace('|', '&#124;')}{again} | {default} |")
    text = " ".join((command.help or "").split())
    example = f"\n```console\n{command.epilog.removeprefix('Example: ')}\n```\n" if command.epilog else ""
    table = "\n".join(["| argument or option | meaning | default |", "|---|---|---|", *rows])
    return f"## {name}\n\n`{' '.join(usage)}`\n\n{text}\n{example}\n{table}\n\n"


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, command in commands(typer.main.get_command(app), ["rote"]):
        heading = f"## {name}\n"
        if heading in text and name not in sys.argv[1:]:
            continue
        if heading in text:
            before, rest = text.split(heading, 1)
            text = before + section(name, command) + ("## " + rest.split("\n## ", 1)[1] if "\n## " in rest else "")
        else:
            text = text.rstrip() + "\n\n" + section(name, command)
        print(name)
    PAGE.write_text(text.rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
