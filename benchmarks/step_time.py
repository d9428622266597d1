"""Seconds per training step of each mode at one length, interleaved, without a memory cap.

usage: python benchmarks/step_time.py --tokens 4096 --json out.json [--hidden 256 --layers 4]

Without a cap the planner keeps everything in mode "memo". "memo_recompute" (alpha = 0) and
"memo_swap" (alpha = 1) keep nothing, so they are to be compared with checkpointing; "memo" is to be
compared with plain. "memo_by_size" is "memo" without a layout, and "memo_torch_allocator" leaves
tensors to torch's own allocator; both only if asked for. Each mode has a process of its own; they
take turns, one step at a time, after one step each to warm up.
"""

import argparse
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.job import MODES, Job
from benchmarks.process import WorkerProcess
from benchmarks.results import ResultRow, append_csv, mib, print_table, write_json

ALPHA_OF = {"memo_recompute": 0.0, "memo_swap": 1.0}
ALLOCATOR_OF = {"memo_by_size": "by size", "memo_torch_allocator": "torch"}


def interleaved_steps(
    jobs: dict[str, Job], tokens: int, repeats: int
) -> tuple[dict[str, list[dict[str, Any]]], float]:
    """Every job's replies to `repeats` steps, and attention's share of a block's forward."""
    with ExitStack() as stack:
        workers = {name: stack.enter_context(WorkerProcess(job)) for name, job in jobs.items()}
        first = next(iter(workers.values()))
        share = first.ask("attention_share", tokens=tokens)["attention_share"]
        replies: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
        for index in range(repeats + 1):
            for name, worker in workers.items():
                replies[name].append(worker.ask("step", tokens=tokens, index=index))
    return {name: each[1:] for name, each in replies.items()}, share


def main() -> None:
    """Measure, print, and write what was asked for."""
    options = _parse()
    shape = {"layers": options.layers, "hidden": options.hidden, "tile_tokens": options.tile_tokens}
    jobs = {
        name: Job(
            mode=name if name in MODES else "memo",
            alpha=ALPHA_OF.get(name),
            allocator=ALLOCATOR_OF.get(name, "layout"),
            **shape,
        )
        for name in options.modes
    }
    replies, share = interleaved_steps(jobs, options.tokens, options.repeats)
    settings = {"tokens": options.tokens, **shape}
    modes = {name: _summary(each) for name, each in replies.items()}
    _print(settings, modes, share)
    write_json(options.json, {**settings, "attention_share": share, "modes": modes})
    if options.csv:
        text = ";".join(f"{name}={value}" for name, value in settings.items())
        rows = [
            ResultRow.of(text, name, "seconds", [reply["seconds"] for reply in each])
            for name, each in replies.items()
        ]
        append_csv("step_time", rows)


def _summary(replies: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [reply["seconds"] for reply in replies]
    return {
        "seconds": statistics.median(seconds),
        "min_seconds": min(seconds),
        "max_seconds": max(seconds),
        "repeats": len(seconds),
        "losses": [reply["loss"] for reply in replies],
        "activation_peak_bytes": max(reply["activation_peak_bytes"] for reply in replies),
        "host_peak_bytes": max(reply["host_peak_bytes"] for reply in replies),
        "stalls": replies[-1]["stalls"],
    }


def _print(settings: dict[str, Any], modes: dict[str, dict[str, Any]], share: float) -> None:
    rows = []
    for name, each in modes.items():
        against = [
            f"{each['seconds'] / modes[peer]['seconds']:.3f}" if peer in modes else "-"
            for peer in ("plain", "checkpoint")
        ]
        spread = f"{each['min_seconds']:.3f} to {each['max_seconds']:.3f}"
        peaks = [mib(each["activation_peak_bytes"]), mib(each["host_peak_bytes"])]
        rows.append([name, f"{each['seconds']:.3f}", spread, *against, *peaks])
    header = ["mode", "s/step", "min to max", "/ plain", "/ checkpoint", "device peak", "host peak"]
    text = ", ".join(f"{name} {value}" for name, value in settings.items())
    print_table(f"{text}; attention is {share:.0%} of a block's forward", header, rows)


def _parse() -> argparse.Namespace:
    names = [*MODES, *ALPHA_OF]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--tile-tokens", type=int, help="default: the planner's choice")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--modes", nargs="+", choices=[*names, *ALLOCATOR_OF], default=names)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--csv", action="store_true", help="add rows to benchmarks/results/")
    return parser.parse_args()


if __name__ == "__main__":
    main()
