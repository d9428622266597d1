"""The troubleshooting page has every public error, and quotes what the code says."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import memo_planner
import memo_train
from memo_planner.errors import MemoError

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
GAP = "…"
"""What stands in a quoted message for a value."""

_SECTION = re.compile(r"^### (\w+)\n(.*?)(?=^#|\Z)", re.DOTALL | re.MULTILINE)
_QUOTED = re.compile(r"^\| `(.+?)` \|", re.MULTILINE)


def sections() -> dict[str, list[str]]:
    """The messages that the page quotes, by the error's name."""
    return {name: _QUOTED.findall(text) for name, text in _SECTION.findall(PAGE.read_text())}


def doors() -> Iterator[ModuleType]:
    """Packages, and modules of errors, whose names are for others."""
    for package in (memo_train, memo_planner):
        for each in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if each.ispkg or each.name.endswith(".errors"):
                yield importlib.import_module(each.name)


def offered_errors() -> set[str]:
    """The errors that some door offers."""
    found = {
        (name, getattr(door, name))
        for door in doors()
        for name in getattr(door, "__all__", None) or vars(door)
        if isinstance(getattr(door, name), type)
    }
    return {name for name, value in found if issubclass(value, MemoError)}


def text_of(node: ast.expr) -> str | None:
    """A literal's text, with `GAP` for every value in it."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        parts = (v.value if isinstance(v, ast.Constant) else GAP for v in node.values)
        return "".join(str(part) for part in parts)
    return None


def literals(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """The literals in a tree, outer before inner, with their texts."""
    for inner in ast.walk(node):
        text = text_of(inner) if isinstance(inner, ast.expr) else None
        if text:
            yield inner, text


def messages_in(path: Path) -> Iterator[tuple[str | None, str]]:
    """(class that is raised with it or None, text) of every literal of a Python file."""
    tree = ast.parse(path.read_text())
    raises = [n.exc for n in ast.walk(tree) if isinstance(n, ast.Raise)]
    raised: set[ast.AST] = set()
    for call in (exc for exc in raises if isinstance(exc, ast.Call)):
        for node, text in literals(call):
            raised.add(node)
            yield ast.unparse(call.func).rpartition(".")[2], text
    yield from ((None, text) for node, text in literals(tree) if node not in raised)


def cxx_messages() -> Iterator[tuple[str | None, str]]:
    """Every run of C++ literals that `<<` puts together."""
    run = re.compile(r'"(?:\\.|[^"\\])*"(?:\s*(?:<<[^";]*)*<<\s*"(?:\\.|[^"\\])*"|\s*"[^"]*")*')
    for path in sorted((ROOT / "csrc").rglob("*.cc")):
        for found in run.finditer(path.read_text()):
            joined = re.sub(r'"\s*"', "", found[0])
            yield None, re.sub(r'"\s*<<[^"]*<<\s*"', GAP, joined).strip('"')


@pytest.fixture(scope="module")
def messages() -> list[tuple[str | None, str]]:
    paths = [p for folder in ("memo_train", "planner") for p in (ROOT / folder).rglob("*.py")]
    return [*(m for path in sorted(paths) for m in messages_in(path)), *cxx_messages()]


def says(text: str, quoted: str) -> bool:
    """Whether a literal holds the quoted parts one after another, values between them."""
    if quoted.endswith(GAP):
        quoted = quoted.removesuffix(GAP).rstrip()
    pattern = re.escape(GAP).join(re.escape(part) for part in quoted.split(GAP))
    return re.search(pattern, text) is not None


def test_every_error_that_is_offered_is_on_the_page() -> None:
    known = sections()
    offered = offered_errors() - {"MemoError"}
    assert len(offered) > 25
    assert offered - known.keys() == set()


def test_every_error_on_the_page_is_offered() -> None:
    assert sections().keys() - offered_errors() == set()


@pytest.mark.parametrize("name", sections())
def test_quoted_messages_are_what_the_code_says(
    name: str, messages: list[tuple[str | None, str]]
) -> None:
    for quoted in sections()[name]:
        saying = [cls for cls, text in messages if says(text, quoted)]
        assert saying, f"nothing says {quoted!r}"
        assert {name, None} & set(saying), f"{quoted!r} is {sorted(set(map(str, saying)))}'s"


def test_quoted_warnings_are_what_the_code_says(messages: list[tuple[str | None, str]]) -> None:
    quoted = _QUOTED.findall(PAGE.read_text().partition("## Warnings and log lines")[2])
    assert quoted
    for each in quoted:
        assert any(says(text, each) for _, text in messages), f"nothing says {each!r}"


def test_a_message_that_nothing_says_is_found(messages: list[tuple[str | None, str]]) -> None:
    assert not any(says(text, "the moon is not tiled") for _, text in messages)
    assert any(says(text, "device memory exceeded: asked …, used …") for _, text in messages)
