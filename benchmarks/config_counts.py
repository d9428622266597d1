"""Parameters that memo-plan reads from config.json files, beside those that are expected.

usage: python benchmarks/config_counts.py FOLDER [--expected counts.json] [--no-torch]

FOLDER holds config.json files under any names. counts.json: {"file name": billions} or
{"file name": [billions, billions active]}. A file is within 1 %, off, or refused with its reason;
active counts are published with and without the table of tokens and rounded or cut, so either may
be the one, to its last digit. `plan` says whether a plan of 1,024 tokens on one device would be
made. Exits 1 if a file is off.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from memo_planner.errors import InvalidInput
from memo_planner.workload import ModelDims, Parallel, Workload, model_named

CLOSE = 0.01
_BILLION = 1e9


def main() -> None:
    """Print a line for each file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--expected", type=Path, help="JSON: file name -> billions")
    parser.add_argument("--no-torch", action="store_true", help="read files by their fields")
    options = parser.parse_args()
    counts = {} if options.expected is None else json.loads(options.expected.read_text())
    paths = [p for p in sorted(options.folder.glob("*.json")) if p != options.expected]
    results = [_row(path, counts.get(path.name), options.no_torch) for path in paths]
    for verdict in ("within 1 %", "off", "refused", "read"):
        num = sum(found == verdict for found in results)
        print(f"{verdict}: {num} of {len(results)}")
    sys.exit(int("off" in results))


def _row(path: Path, expected: Any, by_fields: bool) -> str:
    """Print the file's line and give its verdict."""
    try:
        model = model_named(str(path), by_fields=by_fields)
    except InvalidInput as error:
        print(f"{path.name:<42} refused: {str(error).removeprefix(f'{path}: ')}")
        return "refused"
    wanted = expected if isinstance(expected, list) else [expected]
    verdict = "read" if expected is None else _verdict(model, wanted)
    active = "" if model.active_parameters == model.parameters else _billions(model)
    said = "-" if expected is None else " / ".join(f"{each:g}" for each in wanted)
    print(
        f"{path.name:<42} {verdict:<10} {model.parameters / _BILLION:9.3f} B{active}, "
        f"expected {said}; plan: {_planned(model)}"
    )
    return verdict


def _billions(model: ModelDims) -> str:
    with_table, without = model.active_parameters, model.multiplying_parameters
    return f" ({with_table / _BILLION:.2f} active, {without / _BILLION:.2f} without the table)"


def _verdict(model: ModelDims, wanted: list[float]) -> str:
    total, *active = wanted
    is_close = abs(model.parameters / _BILLION - total) <= CLOSE * total
    for each in active:
        either = (model.active_parameters, model.multiplying_parameters)
        is_close = is_close and any(_is_rounded(found, each) for found in either)
    return "within 1 %" if is_close else "off"


def _is_rounded(found: int, billions: float) -> bool:
    """Within one of the last digit: active counts are published rounded, or cut, to two digits."""
    digits = len(f"{billions:g}".partition(".")[2])
    return bool(abs(found / _BILLION - billions) < 10**-digits)


def _planned(model: ModelDims) -> str:
    try:
        Workload(model=model, tokens=1024, batch=1, parallel=Parallel(gpus=1))
    except InvalidInput as error:
        return f"refused: {error}"
    return "yes"


if __name__ == "__main__":
    main()
