"""examples/launch/train.py, whose last rank is killed once, while it takes a step.

torchrun --nproc-per-node 2 --max-restarts 1 tests/examples/failing_train.py STEP [OPTION...]
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import memo_train
from examples.launch import train


def main(fatal_step: int) -> None:
    steps = 0
    shard_batch = memo_train.shard_batch

    def shard_or_die(*args: Any) -> dict[str, Any]:
        nonlocal steps
        steps += 1
        is_last = os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1)
        if steps == fatal_step and is_last and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        return shard_batch(*args)

    memo_train.shard_batch = shard_or_die
    train.main()


if __name__ == "__main__":
    main(int(sys.argv.pop(1)))
