"""Few, deep rooms: how many files and public names the code is spread over."""

from __future__ import annotations

import ast
import re
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


def without_text(code: str) -> str:
    """C++ without comments, strings and lines of the preprocessor."""
    code = re.sub(r"//.*|/\*[\s\S]*?\*/", "", code)
    return re.sub(r"^\s*#(.*\\\n)*.*$", "", re.sub(r'"(\\.|[^"\\])*"', '""', code), flags=re.M)


def declarations(code: str) -> list[str]:
    """What a header says outside of every brace but those of namespaces, one string each."""
    found, depth, namespaces, start = [], 0, 0, 0
    for match in re.finditer(r"[{};]", code):
        said = " ".join(code[start : match.start()].split())
        start = match.end()
        if match[0] == "}":
            depth, namespaces = depth - (depth > 0), namespaces - (depth == 0)
            continue
        if depth == 0 and not re.match(r"(inline )?namespace\b", said):
            found.append(said)
        if match[0] == "{":
            is_namespace = depth == 0 and re.match(r"(inline )?namespace\b", said)
            depth, namespaces = depth + (not is_namespace), namespaces + bool(is_namespace)
    return [said for said in found if said]


def declared_name(said: str) -> str | None:
    """A declaration's name: of a class, an alias, a function or else a constant."""
    said = re.sub(r"^(template\s*<([^<>]|<[^<>]*>)*>\s*)+", "", said)
    said = re.sub(r"\balignas\([^()]*(\([^()]*\))?[^()]*\) ", "", said)
    patterns = (
        r"(?:class|struct|union|enum class|enum) (\w+)",
        r"using (\w+) =",
        r"[^(=]*?(\w+)\s*\(",
        r".*?(\w+)\s*(?:\[.*\])?\s*(?:=.*)?$",
    )
    matches = (re.match(pattern, said) for pattern in patterns)
    return next((match[1] for match in matches if match), None)


def header_names(folder: str) -> set[str]:
    """What C++ headers name for others: types, functions, constants and macros."""
    names: set[str | None] = set()
    for path in sources(folder):
        if path.suffix == ".h":
            code = path.read_text()
            macros = re.findall(r"^\s*#define (\w+)", code, re.M)
            names |= {macro for macro in macros if not macro.endswith("_H_")}
            names |= {declared_name(said) for said in declarations(without_text(code))}
    return {name for name in names if name}


@pytest.mark.parametrize("folder", [*PACKAGES, "csrc"])
def test_files_are_rooms(folder: str) -> None:
    paths = sources(folder)
    share = 10_000 * len(paths) / num_lines(paths)
    assert share <= MAX_FILES_PER_10_000_LINES, f"{len(paths)} files, {share:.0f} per 10,000 lines"


@pytest.mark.parametrize("folder", PACKAGES)
def test_there_is_much_behind_a_small_door(folder: str) -> None:
    lines, names = num_lines(sources(folder)), len(public_names(folder))
    assert lines >= MIN_LINES_PER_PUBLIC_NAME * names, f"{lines} lines behind {names} names"


def test_there_is_much_behind_a_small_header() -> None:
    lines, names = num_lines(sources("csrc")), len(header_names("csrc"))
    assert lines >= MIN_LINES_PER_PUBLIC_NAME * names, f"{lines} lines behind {names} names"


@pytest.mark.parametrize("folder", PACKAGES)
def test_every_room_has_its_own_door(folder: str) -> None:
    packages = {path.parent for path in sources(folder) if path.suffix == ".py"}
    without = [p for p in packages if not (p / "__init__.py").is_file()]
    assert not without, f"no __init__ in {without}"
