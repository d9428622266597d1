"""Seconds of training steps that all have another length: plain, checkpointed, wrapped.

usage: python benchmarks/varying_lengths.py --json out.json [--steps 25 --rounds 3]

Lengths are drawn at random, each once, and are the same for all modes: a Hugging Face Llama as it
is, with its own gradient checkpointing, and wrapped without limits, on one thread. The modes take
turns, one step at a time, after one step each of a length that does not come again; the layouts
that this step asks for are waited for. `wrap` itself is not counted. The figure is the seconds of
all steps together, forward and backward.
"""

import argparse
import random
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import memo_train
from benchmarks.job import Job
from benchmarks.llama import build_model
from benchmarks.results import ResultRow, append_csv, print_table, write_json

MODES = ("plain", "checkpoint", "memo")


def make_model(mode: str, layers: int, hidden: int) -> nn.Module:
    """The model of a mode."""
    model = build_model(Job(mode=mode, layers=layers, hidden=hidden))
    if mode == "checkpoint":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return memo_train.wrap(model) if mode == "memo" else model


def step_s(model: nn.Module, tokens: int) -> float:
    """Seconds of forward and backward on random ids."""
    ids = torch.randint(256, (1, tokens), generator=torch.Generator().manual_seed(tokens))
    started_s = time.perf_counter()
    model(input_ids=ids, labels=ids).loss.backward()
    seconds = time.perf_counter() - started_s
    model.zero_grad(set_to_none=False)
    return seconds


def round_seconds(shape: dict[str, int], lengths: list[int]) -> dict[str, list[float]]:
    """Of each mode, the seconds of a step of each length, with new models."""
    seconds: dict[str, list[float]] = {name: [] for name in MODES}
    models = {name: make_model(name, **shape) for name in MODES}
    for tokens in [min(lengths) - 1, *lengths]:
        for name, model in models.items():
            seconds[name].append(step_s(model, tokens))
        if len(seconds["memo"]) == 1:
            memo_train.memory_report(models["memo"])
    memo_train.unwrap(models["memo"])
    return {name: each[1:] for name, each in seconds.items()}


def main() -> None:
    """Measure, print, and write what was asked for."""
    options = _parse()
    shape = {"layers": options.layers, "hidden": options.hidden}
    torch.set_num_threads(1)
    draw = random.Random(options.seed)
    lengths = draw.sample(range(options.shortest, options.longest + 1), options.steps)
    rounds = [round_seconds(shape, lengths) for _ in range(options.rounds)]
    totals = {name: [sum(found[name]) for found in rounds] for name in MODES}
    settings = {
        "steps": options.steps,
        "shortest": options.shortest,
        "longest": options.longest,
        "seed": options.seed,
        **shape,
    }
    _print(settings, totals)
    write_json(options.json, {**settings, "lengths": lengths, "seconds": rounds})
    if options.csv:
        text = ";".join(f"{name}={value}" for name, value in settings.items())
        rows = [ResultRow.of(text, name, "seconds", each) for name, each in totals.items()]
        append_csv("varying_lengths", rows)


def _print(settings: dict[str, int], totals: dict[str, list[float]]) -> None:
    rows = []
    for name, each in totals.items():
        ratios = [
            f"{statistics.median(a / b for a, b in zip(each, totals[peer], strict=True)):.3f}"
            for peer in ("plain", "checkpoint")
        ]
        spread = f"{min(each):.2f} to {max(each):.2f}"
        rows.append([name, f"{statistics.median(each):.2f}", spread, *ratios])
    header = ["mode", "s of all steps", "min to max", "/ plain", "/ checkpoint"]
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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--csv", action="store_true", help="add rows to benchmarks/results/")
    return parser.parse_args()


if __name__ == "__main__":
    main()
