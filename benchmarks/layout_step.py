"""How long the layout of a recorded step takes, and how near its peak is to the lower bound.

usage: python benchmarks/layout_step.py [TRACE ...] [--blocks 12 48 192] [--seconds 2] [--csv]

A trace is what `Trace.save` or `write_csv` wrote. Without any, real steps of small Llamas are
recorded on the CPU device, by 16 token tiles, x and o swapped; recompute: all tiles recomputed;
swap: half of them swapped; mixed: a quarter kept, a quarter swapped. Swapped tensors are freed
whenever their copy is done, so no two blocks' requests are alike there.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "planner")]

import torch

import memo_train
from benchmarks.job import Job
from benchmarks.llama import build_model, piece_of_text
from benchmarks.results import MIB, ResultRow, append_csv, mib, print_table
from memo_planner import BlockPolicy, Place, Policy
from memo_planner.layout import Placement, faults, lay_out_step
from memo_planner.schedule import CopyBudget
from memo_planner.trace import Requests, read_requests
from memo_train.runtime import StepPolicy, WrappedModel
from memo_train.trace._record import record_step

TOKENS, TILE_TOKENS = 512, 32
POLICIES = {"recompute": (0, 0), "swap": (0, 8), "mixed": (4, 4)}
"""Tiles kept and swapped of a block's 16."""


def record(num_blocks: int, policy: str) -> Requests:
    """The requests of the third step of a Llama with so many blocks."""
    torch.set_num_threads(1)
    model = memo_train.wrap(build_model(Job(mode="memo", layers=num_blocks, hidden=64)))
    planner: Any = model._memo_train
    wrapped: WrappedModel = planner.wrapped
    step_policy = _step_policy(wrapped, num_blocks, policy)
    wrapped.choose_policy = lambda batch, tokens: step_policy
    ids, optimizer = piece_of_text(TOKENS, 0), torch.optim.AdamW(model.parameters())
    for _ in range(3):
        trace = record_step(model, ids, optimizer=optimizer, wrapped=wrapped)
    memo_train.unwrap(model)
    return trace.requests


def _step_policy(wrapped: WrappedModel, num_blocks: int, policy: str) -> StepPolicy:
    keep, swap = POLICIES[policy]
    block = BlockPolicy(
        keep_tiles=keep,
        swap_tiles=swap,
        recompute_tiles=TOKENS // TILE_TOKENS - keep - swap,
        x=Place.SWAP,
        o=Place.SWAP,
    )
    return StepPolicy(
        policy=Policy(tokens=TOKENS, tile_tokens=TILE_TOKENS, blocks=(block,) * num_blocks),
        loss_tile_tokens=wrapped.parts.loss_tile_tokens(TILE_TOKENS),
        copies=CopyBudget.same(num_blocks, in_flight_bytes=MIB, ahead_bytes=MIB),
    )


def steps(options: argparse.Namespace) -> Iterator[tuple[str, Requests]]:
    """Name and requests of every step."""
    for path in options.files:
        yield path.stem, read_requests(path)
    for num_blocks in () if options.files else options.blocks:
        for policy in POLICIES:
            yield f"{policy}, {num_blocks} blocks", record(num_blocks, policy)


def main() -> None:
    """Lay every trace out, print, and append rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="TRACE")
    parser.add_argument("--blocks", nargs="+", type=int, default=[12, 48, 192])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--csv", action="store_true")
    options = parser.parse_args()
    table, rows = [], []
    for name, requests in steps(options):
        seconds, placement = _measure(requests, options)
        table.append([name, f"{len(requests):,}", *_cells(placement, seconds)])
        settings = f"step={name};requests={len(requests)};limit_s={options.seconds:g}"
        rows.append(ResultRow.of(settings, "layout", "seconds", seconds))
        rows.append(ResultRow.of(settings, "layout", "gap", [placement.gap]))
    print_table("layout of a step", ["step", "requests", "peak", "gap", "median s"], table)
    if options.csv:
        append_csv("layout_step", rows)


def _measure(requests: Requests, options: argparse.Namespace) -> tuple[list[float], Placement]:
    seconds = []
    for _ in range(options.repeats):
        begun_s = time.perf_counter()
        placement = lay_out_step(requests, seconds=options.seconds)
        seconds.append(time.perf_counter() - begun_s)
    assert not faults(placement)
    return seconds, placement


def _cells(placement: Placement, seconds: list[float]) -> list[str]:
    middle = sorted(seconds)[len(seconds) // 2]
    return [mib(placement.peak_bytes), f"{placement.gap:.4%}", f"{middle:.3f}"]


if __name__ == "__main__":
    main()
