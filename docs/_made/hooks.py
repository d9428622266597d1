"""What the site has that no page says by hand: pictures, what commands print, the references.

A page's line `<!-- made: NAME -->` becomes what is made under that name.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "planner")]

from mkdocs.structure.files import File, Files

from docs._made.api import directives
from docs._made.commands import reference, with_outputs
from docs._made.lora import lora_plan, shown
from docs._made.pictures import README_PICTURE, pictures, policy_picture

LAUNCHERS = "examples/launch"


def _launchers() -> str:
    """Where scripts for many GPUs are, if there are any."""
    if not (ROOT / LAUNCHERS / "train.py").exists():
        return ""
    found = sorted(path.name for path in (ROOT / LAUNCHERS).iterdir() if path.is_file())
    return f"Scripts that do this are in `{LAUNCHERS}`: {', '.join(f'`{n}`' for n in found)}."


MADE: dict[str, Callable[[], str]] = {
    "cli": reference,
    "api": directives,
    "lora": shown,
    "launchers": _launchers,
}
_MARK = re.compile(r"^<!-- made: (\w+) -->$", re.MULTILINE)


def on_startup(**_: Any) -> None:
    """Put the checkout on the path again: mkdocs takes it off when it has read this file."""
    sys.path[:0] = [str(ROOT), str(ROOT / "planner")]


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pictures. The README's is drawn anew, too, so that it is never an old one."""
    committed = files.get_file_from_path(README_PICTURE.name)
    if committed is not None:
        files.remove(committed)
    drawn = {name: draw() for name, draw in pictures().items()}
    drawn["lora.svg"] = policy_picture(lora_plan())
    for name, text in drawn.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Add what is made for the page. Raises: CommandFailed, which ends the build."""
    return with_outputs(_MARK.sub(lambda mark: MADE[mark[1]](), markdown))
