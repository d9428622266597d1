"""The parent's end of a worker process."""

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.job import Job

WORKER = Path(__file__).with_name("worker.py")


class WorkerProcess:
    """A running benchmarks/worker.py; use as a context manager.

    Raises:
        RuntimeError: the process ended instead of answering; its own message is on stderr.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), job.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "WorkerProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        self._process.communicate()

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Send one request and wait for its answer."""
        requests, replies = self._process.stdin, self._process.stdout
        assert requests is not None
        assert replies is not None
        requests.write(json.dumps({"op": operation, **arguments}) + "\n")
        requests.flush()
        line = replies.readline()
        if not line:
            raise RuntimeError(f"the {self.job.mode} worker ended during {operation} {arguments}")
        reply: dict[str, Any] = json.loads(line)
        return reply
