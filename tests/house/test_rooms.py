"""Few, deep rooms: how many files and public names the code is spread over."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_FILES_PER_10_000_LINES = 80
MIN_LINES_PER_PUBLIC_NAME = 70
PACKAGES = ("memo_train", "planner/memo_planner")


def sources(folder: str) -> list[Path]:
    kinds = {".py", ".pyi", ".cc", ".cu", ".h"}
    return [path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in kinds]


def num_lines(paths: list[Path]) -> int:
    return sum(len(path.read_text().splitlines()) for path in paths)


def exported(path: Path) -> set[str]:
    """The names in a module's `__all__`."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def defined(path: Path) -> set[str]:
    """The functions and classes of a module without an underscore."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    found = {n.name for n in ast.parse(path.read_text()).body if isinstance(n, kinds)}
    return {name for name in found if not name.startswith("_")}


def public_names(folder: str) -> set[str]:
    """What a package's doors name, and what its modules without an underscore define."""
    names: set[str] = set()
    for path in sources(folder):
        if path.suffix != ".py" or (path.name.startswith("_") and path.name != "__init__.py"):
            continue
        names |= exported(path) if path.name == "__init__.py" else defined(path)
    return names


@pytest.mark.parametrize("folder", [*PACKAGES, "csrc"])
def test_files_are_rooms(folder: str) -> None:
    paths = sources(folder)
    share = 10_000 * len(paths) / num_lines(paths)
    assert share <= MAX_FILES_PER_10_000_LINES, f"{len(paths)} files, {share:.0f} per 10,000 lines"


@pytest.mark.parametrize("folder", PACKAGES)
def test_there_is_much_behind_a_small_door(folder: str) -> None:
    lines, names = num_lines(sources(folder)), len(public_names(folder))
    assert lines >= MIN_LINES_PER_PUBLIC_NAME * names, f"{lines} lines behind {names} names"


@pytest.mark.parametrize("folder", PACKAGES)
def test_every_room_has_its_own_door(folder: str) -> None:
    packages = {path.parent for path in sources(folder) if path.suffix == ".py"}
    without = [p for p in packages if not (p / "__init__.py").is_file()]
    assert not without, f"no __init__ in {without}"
