"""docs/command-line.md: each command of digitserve, from the command line that typer makes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import typer.main
from reference_options import sentences

import export.__main__
import playground.__main__
from digitserve.commands import app
from digitserve.programs import PROGRAMS

if TYPE_CHECKING:
    from collections.abc import Iterator

INTRODUCTION = """\
# Command line

<!-- Written by scripts/reference.py from the commands of digitserve: `make reference`. -->

`pip install .` installs the command `digitserve`. In a clone it is `.venv/bin/digitserve`. Each command has `--help`,
and `digitserve --install-completion` completes commands and options in a shell.

| command | purpose |
|---|---|
"""
ELSEWHERE = {
    "serve": "The options of `digitserve serve` are in [Configuration](configuration.md).",
    "ray": "The options of `digitserve ray` are in [Configuration](configuration.md#ray-cluster).",
    "bench": "`make bench` runs it in a clone; see [Performance](performance.md).",
}
INNER = {"export": export.__main__.app, "play": playground.__main__.app}
"""Programs with their own command line, also of typer."""

USUAL = {"help", "version", "install_completion", "show_completion"}


def commands_page() -> str:
    """Return the page as Markdown."""
    root: Any = typer.main.get_command(app)
    about = {name: PROGRAMS[name].about if name in PROGRAMS else one.help for name, one in root.commands.items()}
    text = INTRODUCTION
    for name, help_ in about.items():
        text += (
            f"| [`digitserve {name}`](#digitserve-{name}) | {_paragraphs(help_)[0].partition('. ')[0].rstrip('.')} |\n"
        )
    text += "\n" + "\n\n".join(_paragraphs(root.help)[-1:]) + "\n"
    for name, command in root.commands.items():
        inner = typer.main.get_command(INNER[name]) if name in INNER else command
        body = f"{about[name]}\n\n{ELSEWHERE[name]}\n" if name in ELSEWHERE else "\n".join(_described(inner))
        text += f"\n## `digitserve {name}`\n\n{body}"
        for subcommand, one in getattr(inner, "commands", {}).items():
            text += f"\n### `digitserve {name} {subcommand}`\n\n" + "\n".join(_described(one))
    return text


def _described(command: Any) -> Iterator[str]:
    """Yield the help of a command and the table of its arguments and options."""
    yield from (f"{paragraph}\n" for paragraph in _paragraphs(command.help))
    rows = [parameter for parameter in command.params if parameter.name not in USUAL and not parameter.hidden]
    if rows:
        yield "| option | values | default | purpose |\n|---|---|---|---|"
        yield from map(_row, rows)
        yield ""


def _row(parameter: Any) -> str:
    is_argument = parameter.param_type_name == "argument"
    names = [parameter.metavar or parameter.name.upper()] if is_argument else parameter.opts + parameter.secondary_opts
    help_ = sentences(_cell(parameter.help or ""))
    return f"| {', '.join(f'`{name}`' for name in names)} | {_values(parameter)} | {_default(parameter)} | {help_} |"


def _values(parameter: Any) -> str:
    kind = parameter.type_descriptor.annotation
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    kinds = [one for one in get_args(kind) or (kind,) if one is not type(None)]
    name = {"bool": "switch", "int": "integer", "float": "number", "str": "text"}.get(kinds[0].__name__, "path")
    bounds = (("from", getattr(parameter, "min", None)), ("to", getattr(parameter, "max", None)))
    return " ".join([name, *(f"{word} {bound:,}" for word, bound in bounds if bound is not None)])


def _default(parameter: Any) -> str:
    shown = getattr(parameter, "show_default", None)
    if isinstance(shown, str):
        return _cell(shown)
    if parameter.required:
        return "required"
    default = getattr(parameter, "default", None)
    if isinstance(default, bool):
        return "on" if default else ""
    return "" if default in (None, "", ()) else f"`{_cell(str(default))}`"


def _paragraphs(help_: str) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", help_.strip())]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")
