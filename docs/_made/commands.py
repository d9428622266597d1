"""Command lines in the docs' pages: run where they are `memo-plan`'s, and its reference.

A fence of the kind `console` holds lines that begin with `$ `. Where such a line runs `memo-plan`,
the built page shows what it printed; files that it writes are there for the page's later lines.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from typer.main import get_command
from typer.testing import CliRunner

from docs._made.fences import Fence, replaced
from memo_planner.cli import app

PROMPT = "$ "
_COLUMNS = "100"


class CommandFailed(Exception):
    """A command line of a page ended with another exit code than it should."""


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Commands and code run in an empty folder while this is active."""
    before = Path.cwd()
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)


def command_lines(text: str) -> list[str]:
    """The command lines of a block, without their prompts."""
    lines = text.splitlines()
    return [line.removeprefix(PROMPT) for line in lines if line.startswith(PROMPT)]


def output_of(line: str) -> str | None:
    """What a command line prints; None if it is not `memo-plan`'s. Raises: CommandFailed.

    A line that ends with `# exit 3` must end with that code.
    """
    words = shlex.split(line, comments=True)
    if words[:1] != ["memo-plan"]:
        return None
    wanted = re.search(r"# exit (\d+)$", line)
    done = CliRunner().invoke(app, words[1:], env={"COLUMNS": _COLUMNS, "NO_COLOR": "1"})
    if done.exit_code != (int(wanted[1]) if wanted else 0):
        raise CommandFailed(f"`{line}` ended with {done.exit_code}: {done.output}")
    return done.output


def with_outputs(page: str) -> str:
    """A page with what its commands print below them. Raises: CommandFailed."""
    with scratch_folder():
        return replaced(page, _told)


def _told(fence: Fence) -> str:
    if fence.kind != "console" or not fence.is_shown_with_output:
        return fence.text
    told = []
    for line in fence.text.splitlines():
        output = output_of(line.removeprefix(PROMPT)) if line.startswith(PROMPT) else None
        told += [line, *([] if output is None else [*output.splitlines(), ""])]
    return "\n".join(told).rstrip() + "\n"


def reference() -> str:
    """A section for every command of `memo-plan`, from its own help."""
    group: Any = get_command(app)
    return "\n".join(_section(name, command) for name, command in group.commands.items())


def _section(name: str, command: Any) -> str:
    context = command.context_class(command, info_name=f"memo-plan {name}")
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [f"## memo-plan {name}", "", command.help or "", "", "```text"]
    lines += [f"memo-plan {name} {usage}", "```", "", "| option | what it is |", "|---|---|"]
    records = [parameter.get_help_record(context) for parameter in command.params]
    lines += [f"| `{_cell(spelled)}` | {_cell(told)} |" for spelled, told in filter(None, records)]
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("  [", " [")
