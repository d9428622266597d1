"""Seconds of training steps that all have another length: plain, checkpointed, wrapped.

usage: python benchmarks/varying_lengths.py --json out.json [--steps 25 --rounds 1]

Lengths are drawn at random, each once, and are the same for all modes: a Hugging Face Llama as it
is, with its own gradient checkpointing, wrapped without limits, and wrapped under the limit at
which checkpointing just fits: what its longest step takes above the model's state. On one thread.
The modes take turns, one step at a time, after one step each of a length that does not come again;
the layouts that this step asks for are waited for. `wrap` itself is not counted. The figures are
the seconds of all steps together, forward and backward, and the CPU's, which other programs hardly
change. The modes share the arena, so the limit binds the plan, and its peak is shown beside it.
"""

import argparse
import random
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import memo_train
from benchmarks.job import Job
from benchmarks.llama import build_model
from benchmarks.results import ResultRow, append_csv, print_table, write_json
from memo_train.device import get_cpu_device
from memo_train.trace._profile import state_bytes

MODES = ("plain", "checkpoint", "memo", "memo_limited")
GIB = 2**30
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Step:
    """Wall and CPU seconds of forward and backward, and device bytes above those before it."""

    seconds: float
    cpu_s: float
    peak_bytes: int


def make_model(mode: str, layers: int, hidden: int, limit_bytes: int) -> nn.Module:
    """The model of a mode. limit_bytes: beside the model's state, for the wrapped one under it."""
    kind = "checkpoint" if mode == "checkpoint" else "memo" if "memo" in mode else "plain"
    model = build_model(Job(mode=kind, layers=layers, hidden=hidden))
    if mode == "checkpoint":
        model.activation_checkpointing_enable({"use_reentrant": False})
    if mode == "memo":
        memo_train.wrap(model)
    if mode == "memo_limited":
        memo_train.wrap(model, device_gib=(state_bytes(model) + limit_bytes) / GIB)
        get_cpu_device().set_device_cap(None)  # the other modes' models are in the same memory
    return model


def run_step(model: nn.Module, tokens: int) -> Step:
    """Forward and backward on random ids."""
    ids = torch.randint(256, (1, tokens), generator=torch.Generator().manual_seed(tokens))
    device = get_cpu_device()
    device.reset_peak()
    before_bytes = device.counters().device_used_bytes
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    model(input_ids=ids, labels=ids).loss.backward()
    seconds, cpu_s = time.perf_counter() - started_s, time.process_time() - started_cpu_s
    peak_bytes = device.counters().device_peak_bytes - before_bytes
    model.zero_grad(set_to_none=False)
    return Step(seconds=seconds, cpu_s=cpu_s, peak_bytes=peak_bytes)


def checkpointed_bytes(shape: dict[str, int], longest: int) -> int:
    """What checkpointing's longest step takes above the model's state."""
    model = make_model("checkpoint", **shape, limit_bytes=0)
    run_step(model, 8)  # the gradients are part of the state
    return run_step(model, longest).peak_bytes


def run_round(shape: dict[str, int], lengths: list[int], limit_bytes: int) -> dict[str, list[Step]]:
    """Of each mode, a step of each length, with new models."""
    steps: dict[str, list[Step]] = {name: [] for name in MODES}
    models = {name: make_model(name, **shape, limit_bytes=limit_bytes) for name in MODES}
    for tokens in [min(lengths) - 1, *lengths]:
        for name, model in models.items():
            steps[name].append(run_step(model, tokens))
            if "memo" in name and len(steps[name]) == 1:
                memo_train.memory_report(model)
    for name, model in models.items():
        if "memo" in name:
            memo_train.unwrap(model)
    return {name: each[1:] for name, each in steps.items()}


def main() -> None:
    """Measure, print, and write what was asked for."""
    options = _parse()
    shape = {"layers": options.layers, "hidden": options.hidden}
    torch.set_num_threads(1)
    draw = random.Random(options.seed)
    lengths = draw.sample(range(options.shortest, options.longest + 1), options.steps)
    limit_bytes = checkpointed_bytes(shape, max(lengths))
    rounds = [run_round(shape, lengths, limit_bytes) for _ in range(options.rounds)]
    totals, cpu, peaks = (
        {
            name: [reduce(getattr(s, figure) for s in found[name]) for found in rounds]
            for name in MODES
        }
        for figure, reduce in (("seconds", sum), ("cpu_s", sum), ("peak_bytes", max))
    )
    settings = {
        "steps": options.steps,
        "shortest": options.shortest,
        "longest": options.longest,
        "seed": options.seed,
        **shape,
    }
    print_totals(settings, {"s of all steps": totals, "CPU s": cpu})
    print(f"limit beside the state {limit_bytes / MIB:.1f} MiB; most bytes of a step: ", end="")
    print(", ".join(f"{name} {max(each) / MIB:.1f} MiB" for name, each in peaks.items()))
    steps = [{name: [asdict(s) for s in found[name]] for name in MODES} for found in rounds]
    write_json(options.json, {**settings, "lengths": lengths, "steps_of_rounds": steps})
    if options.csv:
        text = ";".join(f"{name}={value}" for name, value in settings.items())
        rows = [ResultRow.of(text, name, "seconds", each) for name, each in totals.items()]
        rows += [ResultRow.of(text, name, "peak_bytes", each) for name, each in peaks.items()]
        append_csv("varying_lengths", [*rows, *ratio_rows(text, totals)])


def ratio_rows(settings: str, totals: dict[str, list[float]]) -> list[ResultRow]:
    """Of every wrapped mode its seconds over those of plain and of checkpointing, by rounds."""
    return [
        ResultRow.of(settings, name, f"seconds / {peer}", _ratios(each, totals[peer]))
        for name, each in totals.items()
        for peer in ("plain", "checkpoint")
        if "memo" in name
    ]


def _ratios(these: list[float], those: list[float]) -> list[float]:
    return [a / b for a, b in zip(these, those, strict=True)]


def print_totals(settings: dict[str, Any], figures: dict[str, dict[str, list[float]]]) -> None:
    """A table of every figure: by mode the seconds of all rounds."""
    for figure, totals in figures.items():
        rows = []
        for name, each in totals.items():
            ratios = [
                f"{statistics.median(_ratios(each, totals[peer])):.3f}"
                for peer in ("plain", "checkpoint")
            ]
            spread = f"{min(each):.2f} to {max(each):.2f}"
            rows.append([name, f"{statistics.median(each):.2f}", spread, *ratios])
        header = ["mode", figure, "min to max", "/ plain", "/ checkpoint"]
        text = ", ".join(f"{name} {value}" for name, value in settings.items())
        print_table(text, header, rows)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--shortest", type=int, default=300)
    parser.add_argument("--longest", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--csv", action="store_true", help="add rows to benchmarks/results/")
    return parser.parse_args()


if __name__ == "__main__":
    main()
