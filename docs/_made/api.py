"""The API reference: which names it has, and docstrings as Markdown shows them."""

from __future__ import annotations

import importlib
import re
from typing import Any

import griffe

PACKAGES = {
    "memo_train": "The door: wrap a model, prove a step, read what it did.",
    "memo_train.errors": "What a user can do wrong ([Troubleshooting](troubleshooting.md)).",
    "memo_train.device.errors": "What the device refuses.",
    "memo_train.kernels": "Fused CUDA kernels, put into a model before `wrap`.",
    "memo_train.testing": "Comparisons for tests of your own.",
    "memo_planner": "The planner, which needs no torch.",
    "memo_planner.schedule": "A plan as a list of operations, and a clock.",
    "memo_planner.strategies": "Plans of a job by name, side by side.",
}
_ENTRY = re.compile(r"^(\w+(?:\*|(?:, \w+\*?)*)): (?=\S)")
_HEADINGS = ("Raises", "Attributes", "Source", "Example", "Levels")


def names_of(package: str) -> list[str]:
    """What a package offers: its `__all__`, or what is defined in it without an underscore."""
    module = importlib.import_module(package)
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return sorted(listed)
    own = (n for n, v in vars(module).items() if getattr(v, "__module__", None) == package)
    return sorted(name for name in own if not name.startswith("_"))


def directives() -> str:
    """A section for every package, an entry for each of its names; a name has one entry."""
    lines: list[str] = []
    told: set[int] = set()
    for package, purpose in PACKAGES.items():
        module = importlib.import_module(package)
        lines += [f"## {package}", "", purpose, ""]
        for name in names_of(package):
            found = getattr(module, name)
            if id(found) not in told:
                told.add(id(found))
                lines += [f"::: {package}.{name}", ""]
    return "\n".join(lines)


class ReadableDocstrings(griffe.Extension):
    """The project's docstrings as Markdown: each `name: what it is` becomes an item of a list."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring: str) -> str:
    """The docstring with a list where its lines explain names one after another."""
    lines: list[str] = []
    in_list = False
    for line in docstring.splitlines():
        text = line.strip() if line.startswith("    ") and in_list else line
        entry = _ENTRY.match(text.removeprefix("    "))
        if entry is None:
            in_list = in_list and bool(line.strip())
            lines.append(f"    {text.strip()}" if in_list else line)
            continue
        if not in_list and lines and lines[-1].strip():
            lines.append("")
        in_list = True
        name, rest = entry[1], text.strip()[entry.end() :]
        shown = f"**{name}**" if name in _HEADINGS else f"`{name}`"
        lines.append(f"* {shown}: {rest}")
    return "\n".join(lines)
