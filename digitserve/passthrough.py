"""The programs of digitserve as commands of typer: for `digitserve --help`, and for a shell's completion."""

# Annotations are evaluated here: typer could not find the local function that one of them names.
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from digitserve.programs import PROGRAMS, run


def add_program(app: typer.Typer, name: str) -> None:
    """Add a program that takes its arguments, `--help` too, as they are."""

    def complete(context: typer.Context, incomplete: str) -> list[str]:
        return _completions(PROGRAMS[name].module, context.params["arguments"] or [], incomplete)

    def command(arguments: Annotated[list[str] | None, typer.Argument(autocompletion=complete)] = None) -> None:
        raise typer.Exit(run(name, arguments or []))

    settings = {"ignore_unknown_options": True, "help_option_names": []}
    app.command(name, cls=_Program, help=PROGRAMS[name].about, context_settings=settings)(command)


class _Program(TyperCommand):
    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Complete options as arguments are: all are the program's own."""
        return self.params[0].shell_complete(ctx, incomplete)


def _completions(module: str, words: list[str], incomplete: str) -> list[str]:
    """Return the completions of the words."""
    app = getattr(import_module(f"{module}.__main__"), "app", None)
    if app is None:
        return [flag for flag in import_module(f"{module}.config").flags() if flag.startswith(incomplete)]
    command: Any = typer.main.get_command(app)
    context = command.make_context(module, [], resilient_parsing=True)
    for word in words:
        if (inner := getattr(command, "commands", {}).get(word)) is not None:
            command, context = inner, inner.make_context(word, [], parent=context, resilient_parsing=True)
    return [item.value for item in command.shell_complete(context, incomplete)]
