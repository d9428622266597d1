"""The API reference: which names it has, and docstrings as Markdown shows them."""

from __future__ import annotations

import importlib
import re
from typing import Any

import griffe

PACKAGES = {
    "memo_train": "The door: wrap a model, prove a step, read what it did.",
    "memo_train.trainer": "Trainers with the model wrapped ([Trainers](trainers.md)).",
    "memo_train.trl": "TRL's trainers by their own names, with `memo=MemoConfig(...)` besides.",
    "memo_train.errors": "What a user can do wrong ([Troubleshooting](troubleshooting.md)).",
    "memo_train.device.errors": "What the device refuses.",
    "memo_train.kernels": "Fused CUDA kernels, put into a model before `wrap`.",
    "memo_train.testing": "Comparisons for tests of your own.",
    "memo_planner": "The planner, which needs no torch.",
    "memo_planner.schedule": "A plan as a list of operations, and a clock.",
    "memo_planner.strategies": "Plans of a job by name, side by side.",
}
_HEADINGS = ("Raises", "Source")
_NAMES = rf"(?:{'|'.join(_HEADINGS)}|[a-z]\w*\*?(?:, [a-z]\w*\*?)*)"
_ENTRY = re.compile(rf"{_NAMES}: \S")
_NEXT = re.compile(rf"(?<=[.;\]]) (?={_NAMES}: )")
"""Between one entry and the next, which may begin in the middle of a line."""


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
                lines += [f"::: {_path(package, name, found)}", ""]
    return "\n".join(lines)


def _path(package: str, name: str, found: object) -> str:
    """Where it is defined: `memo_train.wrap` is a module, too."""
    module, own_name = (getattr(found, key, None) for key in ("__module__", "__qualname__"))
    return f"{package}.{name}" if own_name is None else f"{module}.{own_name}"


class ReadableDocstrings(griffe.Extension):
    """The project's docstrings as Markdown: each `name: what it is` becomes an item of a list."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring: str) -> str:
    """The docstring with lists where it explains names one after another."""
    return "\n\n".join(map(_paragraph, re.split(r"\n\s*\n", docstring.strip("\n"))))


def _paragraph(text: str) -> str:
    lines = text.splitlines()
    first = next((i for i, line in enumerate(lines) if _ENTRY.match(line.strip())), None)
    # Examples are indented, and stay as they are.
    if first is None or (first == 0 and lines[0].startswith("    ") and "= " in text):
        return text
    said = " ".join(line.strip() for line in lines[first:])
    items = [_item(entry) for entry in _NEXT.split(said)]
    return "\n".join([*lines[:first], *([""] if first else []), *items])


def _item(entry: str) -> str:
    names, _, rest = entry.partition(": ")
    return f"* **{names}**: {rest}" if names in _HEADINGS else f"* `{names}`: {rest}"
