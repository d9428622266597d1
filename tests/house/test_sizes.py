"""Files and functions stay within the sizes that CONTRIBUTING.md names."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON_DIRS = ("memo_train", "planner", "tests", "examples", "benchmarks", "docs")
MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 60
MAX_NESTING = 3
VAGUE_NAMES = {"utils", "helpers", "common", "manager", "misc"}

PYTHON_FILES = sorted(path for name in PYTHON_DIRS for path in (ROOT / name).rglob("*.py"))
CXX_FILES = sorted(
    path
    for name in ("csrc", "tests")
    for path in (ROOT / name).rglob("*")
    if path.suffix in {".cc", ".cu", ".h"}
)
NESTING = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            yield node


def nesting(node: ast.AST) -> int:
    """The most compound statements around any statement of a function, elif counted as its if."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef | ast.Lambda):
            continue
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and child in node.orelse
        deepest = max(deepest, nesting(child) + (isinstance(child, NESTING) and not is_elif))
    return deepest


def test_there_is_something_to_check() -> None:
    assert len(PYTHON_FILES) > 50
    assert len(CXX_FILES) > 10


@pytest.mark.parametrize("path", [*PYTHON_FILES, *CXX_FILES], ids=name_of)
def test_a_file_is_one_noun_of_at_most_600_lines(path: Path) -> None:
    num_lines = len(path.read_text().splitlines())
    assert num_lines <= MAX_FILE_LINES, f"{name_of(path)} has {num_lines} lines"
    assert VAGUE_NAMES.isdisjoint(path.stem.split("_")), f"{name_of(path)} names nothing"


@pytest.mark.parametrize("path", PYTHON_FILES, ids=name_of)
def test_functions_are_short_and_flat(path: Path) -> None:
    for function in functions(path):
        place = f"{name_of(path)}:{function.lineno} {function.name}"
        num_lines = (function.end_lineno or function.lineno) - function.lineno + 1
        assert num_lines <= MAX_FUNCTION_LINES, f"{place} has {num_lines} lines"
        assert nesting(function) <= MAX_NESTING, f"{place} nests {nesting(function)} deep"
