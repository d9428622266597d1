"""One process that runs one mode: a job on the command line, then a request a line on stdin.

Each request is a JSON object with "op" (a method of ModeRun named in OPERATIONS) and its arguments;
each reply is one JSON line on stdout.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.attention_share import attention_share
from benchmarks.job import Job
from benchmarks.modes import ModeRun


def answer(run: ModeRun, request: dict[str, Any]) -> dict[str, Any]:
    """The reply to one request."""
    operation = request["op"]
    if operation == "describe":
        return {"state_bytes": run.state_bytes}
    if operation == "step":
        return asdict(run.step(request["tokens"], request["index"]))
    if operation == "try":
        return asdict(run.try_length(request["tokens"]))
    if operation == "attention_share":
        return {"attention_share": attention_share(run.job, request["tokens"])}
    if operation == "gradients":
        run.save_gradients(request["tokens"], Path(request["path"]))
        return {}
    raise ValueError(f"unknown operation {operation!r}")


def main() -> None:
    """Serve until stdin closes."""
    run = ModeRun(Job.from_json(sys.argv[1]))
    replies = sys.stdout
    sys.stdout = sys.stderr
    for line in sys.stdin:
        replies.write(json.dumps(answer(run, json.loads(line))) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
