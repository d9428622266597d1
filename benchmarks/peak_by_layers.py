"""Device memory for activations against the number of layers and the length.

usage: python benchmarks/peak_by_layers.py [--json out.json]

With nothing kept (alpha = 0: recomputed, alpha = 1: swapped) the peak grows with the length and not
with the number of layers; checkpointing's grows with both.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.job import Job
from benchmarks.process import WorkerProcess
from benchmarks.results import ResultRow, append_csv, mib, print_table, write_json

ALPHA_OF = {"checkpoint": None, "memo_recompute": 0.0, "memo_swap": 1.0}


def peaks_of(job: Job, lengths: list[int]) -> list[dict[str, Any]]:
    """One step at each length in one process; what each reported."""
    with WorkerProcess(job) as worker:
        return [
            {"tokens": tokens, **worker.ask("step", tokens=tokens, index=0)} for tokens in lengths
        ]


def main() -> None:
    """Measure, print, and write what was asked for."""
    options = _parse()
    measured = []
    for name, alpha in ALPHA_OF.items():
        for layers in options.layers:
            job = Job(
                mode="checkpoint" if alpha is None else "memo",
                layers=layers,
                hidden=options.hidden,
                tile_tokens=options.tile_tokens,
                alpha=alpha,
            )
            replies = peaks_of(job, options.tokens)
            measured += [{"mode": name, "layers": layers, **reply} for reply in replies]
    _print(measured, options)
    settings = {"hidden": options.hidden, "tile_tokens": options.tile_tokens}
    write_json(options.json, {**settings, "steps": measured})
    if options.csv:
        append_csv("peak_by_layers", [_row(settings, step) for step in measured])


def _row(settings: dict[str, Any], step: dict[str, Any]) -> ResultRow:
    shape = {**settings, "layers": step["layers"], "tokens": step["tokens"]}
    text = ";".join(f"{name}={value}" for name, value in shape.items())
    peak = [step["activation_peak_bytes"]]
    return ResultRow.of(text, step["mode"], "activation_peak_bytes", peak)


def _print(measured: list[dict[str, Any]], options: argparse.Namespace) -> None:
    rows = []
    for step in measured:
        peak = step["activation_peak_bytes"]
        per_token = peak / step["tokens"] / options.hidden / 4
        shape = [step["mode"], str(step["layers"]), f"{step['tokens']:,}"]
        rows.append([*shape, mib(peak), f"{per_token:.1f}", mib(step["host_peak_bytes"])])
    header = ["mode", "layers", "tokens", "device peak", "in hidden a token", "host peak"]
    print_table(f"hidden {options.hidden}, tile {options.tile_tokens}", header, rows)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--tile-tokens", type=int, default=256)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--csv", action="store_true", help="add rows to benchmarks/results/")
    return parser.parse_args()


if __name__ == "__main__":
    main()
