"""The longest sequence each mode trains in the same device memory.

usage: python benchmarks/longest_sequence.py --activation-mib 256 --json out.json

A length (a multiple of 64) counts if a whole step runs under the cap: forward, backward, AdamW,
zero_grad, and a second forward and backward. The cap is the model's state (parameters, gradients
and AdamW's moments) plus --activation-mib; --host-mib caps the host pool as well.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.job import MIB, MODES, Job
from benchmarks.process import WorkerProcess
from benchmarks.results import ResultRow, append_csv, mib, print_table, write_json
from benchmarks.search import LengthSearch


def longest_of(job: Job, start_tokens: int = 512) -> dict[str, Any]:
    """The longest length of the job's mode, searched in a process of its own."""
    assert job.activation_bytes is not None

    def attempt(tokens: int) -> dict[str, Any]:
        reply = worker.ask("try", tokens=tokens)
        fate = reply["refusal"].split(";")[0] if "refusal" in reply else f"{reply['seconds']:.1f} s"
        print(f"  {job.mode}: {tokens:,} tokens: {fate}"[:120], file=sys.stderr, flush=True)
        return reply

    with WorkerProcess(job) as worker:
        found = LengthSearch(attempt, job.activation_bytes).run(start_tokens)
        return {**worker.ask("describe"), **found}


def main() -> None:
    """Measure, print, and write what was asked for."""
    options = _parse()
    found = {}
    for mode in options.modes:
        job = Job(
            mode=mode,
            layers=options.layers,
            hidden=options.hidden,
            activation_bytes=round(options.activation_mib * MIB),
            host_bytes=None if options.host_mib is None else round(options.host_mib * MIB),
            tile_tokens=options.tile_tokens,
            alpha=options.alpha,
        )
        found[mode] = longest_of(job, options.start_tokens)
    settings = {
        "layers": options.layers,
        "hidden": options.hidden,
        "activation_mib": options.activation_mib,
        "host_mib": options.host_mib,
        "tile_tokens": options.tile_tokens,
        "alpha": options.alpha,
    }
    _print(settings, found)
    write_json(options.json, {**settings, "modes": found})
    if options.csv:
        text = ";".join(f"{name}={value}" for name, value in settings.items())
        rows = [
            ResultRow.of(text, mode, "tokens", [each["tokens"]]) for mode, each in found.items()
        ]
        append_csv("longest_sequence", rows)


def _print(settings: dict[str, Any], found: dict[str, dict[str, Any]]) -> None:
    title = f"{settings['activation_mib']:g} MiB of activations, {settings['layers']} layers, "
    rows = [
        [
            mode,
            f"{each['tokens']:,}",
            mib(each.get("activation_peak_bytes", 0)),
            mib(each.get("host_peak_bytes", 0)),
            f"{each.get('seconds', 0.0):.1f}",
            f"{each.get('num_groups', 1)}",
        ]
        for mode, each in found.items()
    ]
    header = ["mode", "longest tokens", "device peak above state", "host peak", "s/step", "groups"]
    print_table(f"{title}hidden {settings['hidden']}", header, rows)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--activation-mib", type=float, default=256)
    parser.add_argument("--host-mib", type=float, help="of the host pool; default: no cap")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--tile-tokens", type=int, help="default: the planner's choice")
    parser.add_argument("--alpha", type=float, help="mode memo; default: the planner's choice")
    parser.add_argument("--start-tokens", type=int, default=512, help="first length that is tried")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--csv", action="store_true", help="add rows to benchmarks/results/")
    return parser.parse_args()


if __name__ == "__main__":
    main()
