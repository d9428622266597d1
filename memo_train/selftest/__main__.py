"""python -m memo_train.selftest [--json PATH]: exit code 0 if everything is as it must be."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from memo_train.selftest import run_selftest


def main() -> int:
    """Run, print and write the result."""
    parser = argparse.ArgumentParser(prog="python -m memo_train.selftest", description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("memo-selftest.json"))
    path = parser.parse_args().json
    result = run_selftest()
    text = json.dumps(result, indent=2)
    path.write_text(text + "\n")
    print(text)
    print("passed" if result["passed"] else "FAILED", "- written to", path)
    cuda = result["machine"]["cuda"]
    if "why" in cuda:
        print("no part of this ran on a GPU:", cuda["why"])
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
