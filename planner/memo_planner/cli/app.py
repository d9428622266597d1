"""The `memo-plan` command line, to which each command's module adds itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from memo_planner.errors import MemoError, PlanInfeasible

BAD_INPUT = 2
WILL_NOT_FIT = 3
_PLAIN_WIDTH = 100

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Plan a training step, and see what its plan does with memory.",
)


@app.callback()
def _commands() -> None:
    """Keep every command a command of its own."""


@contextmanager
def clear_errors(code: int = BAD_INPUT) -> Iterator[None]:
    """Print an error of the project's own on one line of stderr and exit with `code`.

    What will not fit exits with `WILL_NOT_FIT` whatever the code.
    """
    try:
        yield
    except MemoError as error:
        line = " ".join(str(error).split())
        typer.echo(f"memo-plan: {line}", err=True)
        will_not_fit = isinstance(error, PlanInfeasible)
        raise typer.Exit(WILL_NOT_FIT if will_not_fit else code) from error


def plain_console() -> Console:
    """A console for tables; text of a fixed width without colours where stdout is no terminal."""
    console = Console(highlight=False, soft_wrap=True)
    if console.is_terminal:
        return console
    return Console(highlight=False, soft_wrap=True, width=_PLAIN_WIDTH, color_system=None)
