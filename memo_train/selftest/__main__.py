"""python -m memo_train.selftest [--json PATH]: exit code 0 if nothing failed, else 1."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

import memo_train.selftest
from memo_train.selftest.ranks import Ranks
from memo_train.selftest.report import run_selftest
from memo_train.selftest.summary import print_summary


def main() -> int:
    """Run, print and write the result."""
    parser = argparse.ArgumentParser(
        prog="python -m memo_train.selftest",
        description=memo_train.selftest.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, default=Path("memo-selftest.json"), metavar="PATH")
    path: Path = parser.parse_args().json
    if not path.parent.is_dir():
        parser.error(f"--json {path}: there is no directory {path.parent}; make it first")
    # cuBLAS gives the same bits each time only with a work space of a set size.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    ranks = Ranks.join()
    is_first = ranks.rank == 0
    with Progress(console=Console(stderr=True), transient=True, disable=not is_first) as progress:
        task = progress.add_task("", total=1.0)
        result = run_selftest(
            ranks,
            started=lambda what, share: progress.update(task, description=what, completed=share),
        )
    if is_first:
        path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
        print_summary(result, path)
    ranks.leave()
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
