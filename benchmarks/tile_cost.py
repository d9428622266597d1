"""Milliseconds that a tile costs beyond its computation, for each fate of its saved tensors.

usage: OMP_NUM_THREADS=1 python benchmarks/tile_cost.py [--repeats 15] [--csv] [--json out.json]
                                                        [--quick]

The decoder of a small Llama, so narrow that its arithmetic takes no time, on the same tokens in few
and in many tiles; forward and backward, without a head or a loss. What more tiles add is divided by
their number: the cost of a tile of a block in a step, computation and all. The computation alone is
that of the blocks' own forwards and backwards on tiles of as many tokens, called one after another
with no runtime around them: forward with a graph and backward, for a recomputed tile a forward
without a graph besides. The difference is what the runtime takes. Steps of all variants take turns;
seconds are of the process's CPU, in which a waiting process does not count.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import transformers
from torch import Tensor

import memo_train
from benchmarks.results import ResultRow, append_csv, print_table, write_json
from memo_train.device import get_cpu_device

PLACES = {"keep": None, "recompute": 0.0, "swap": 1.0}
"""Fate of a tile's saved tensors -> alpha; without a limit the planner keeps everything."""

TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "use_cache": False,
}
MS = 1e3


def main() -> None:
    """Measure, print, and write what was asked for."""
    options = _parse()
    torch.set_num_threads(1)
    get_cpu_device()
    runs = _runs(options)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():
            seconds[name].append(_cpu_seconds(run))
    costs = _costs(seconds, options)
    _print(costs)
    write_json(options.json, {"settings": _settings(options), "costs_ms": costs})
    if options.csv:
        settings = _settings(options)
        rows = [_row(settings, key, each) for key, each in costs.items()]
        append_csv("tile_cost", rows)


def _runs(options: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """A step of every fate and a computation alone, in few and in many tiles; each has run."""
    runs: dict[str, Callable[[], None]] = {}
    for tile_tokens in options.tile_tokens:
        for place, alpha in PLACES.items():
            model = _decoder_model(options.layers)
            memo_train.wrap(model, seq_len=options.tokens, alpha=alpha, tile_tokens=tile_tokens)
            runs[f"{place}/{tile_tokens}"] = _step_of(model, options.tokens)
        model = _decoder_model(options.layers)
        for recomputes in (False, True):
            name = "forward twice" if recomputes else "forward once"
            runs[f"{name}/{tile_tokens}"] = _computation_of(
                model, options.tokens, tile_tokens, recomputes=recomputes
            )
    for run in runs.values():
        run()
    return runs


def _decoder_model(layers: int) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**TINY, num_hidden_layers=layers)
    return transformers.LlamaForCausalLM(config).train()


def _step_of(model: Any, tokens: int) -> Callable[[], None]:
    """A step of the wrapped decoder, its first steps done and its addresses planned."""
    ids = torch.randint(0, TINY["vocab_size"], (1, tokens))
    dy = torch.randn(1, tokens, TINY["hidden_size"])

    def run() -> None:
        model.zero_grad(set_to_none=True)
        model.model(input_ids=ids).last_hidden_state.backward(dy)

    for _ in range(2):
        run()
        memo_train.memory_report(model)  # waits for the addresses that later steps are served by
    return run


def _computation_of(
    model: Any, tokens: int, tile_tokens: int, *, recomputes: bool
) -> Callable[[], None]:
    """Every block's forward and backward on every tile, attention among a tile's own tokens."""
    x = torch.randn(1, tile_tokens, TINY["hidden_size"], requires_grad=True)
    dy = torch.randn_like(x)
    positions = torch.arange(tile_tokens)[None]
    kwargs = {"position_embeddings": model.model.rotary_emb(x, positions), "attention_mask": None}

    def compute(block: torch.nn.Module) -> None:
        if recomputes:
            with torch.no_grad():
                block(x, **kwargs)
        torch.autograd.grad(_first(block(x, **kwargs)), [x, *block.parameters()], dy)

    def run() -> None:
        for block in model.model.layers:
            for _ in range(tokens // tile_tokens):
                compute(block)

    return run


def _first(output: Any) -> Tensor:
    y: Tensor = output[0] if isinstance(output, tuple) else output
    return y


def _cpu_seconds(run: Callable[[], None]) -> float:
    # Not `thread_time`: autograd's and the copies' threads work for the step, too.
    started_s = time.process_time()
    run()
    return time.process_time() - started_s


def _costs(seconds: dict[str, list[float]], options: argparse.Namespace) -> dict[str, list[float]]:
    """fate/figure -> milliseconds a tile, block and step, one of each round of repeats."""
    few, many = max(options.tile_tokens), min(options.tile_tokens)
    more_tiles = (options.tokens // many - options.tokens // few) * options.layers

    def added(name: str) -> list[float]:
        pairs = zip(seconds[f"{name}/{many}"], seconds[f"{name}/{few}"], strict=True)
        return [MS * (in_many - in_few) / more_tiles for in_many, in_few in pairs]

    costs: dict[str, list[float]] = {}
    for place in PLACES:
        alone = added("forward twice" if place == "recompute" else "forward once")
        costs[f"{place}/tile_ms"] = added(place)
        costs[f"{place}/computation_ms"] = alone
        costs[f"{place}/beyond_ms"] = [
            whole - part for whole, part in zip(costs[f"{place}/tile_ms"], alone, strict=True)
        ]
    return costs


def _row(settings: str, key: str, costs: list[float]) -> ResultRow:
    fate, figure = key.split("/")
    return ResultRow.of(settings, fate, figure, costs)


def _print(costs: dict[str, list[float]]) -> None:
    figures = ("tile_ms", "computation_ms", "beyond_ms")
    rows = [
        [place, *(f"{statistics.median(costs[f'{place}/{figure}']):.3f}" for figure in figures)]
        for place in PLACES
    ]
    title = "ms a tile, block and step; medians of rounds in turn"
    print_table(title, ["fate", "tile", "its computation", "beyond it"], rows)


def _settings(options: argparse.Namespace) -> str:
    few, many = max(options.tile_tokens), min(options.tile_tokens)
    tokens = f"tokens={options.tokens};tile_tokens={many},{few}"
    return f"{tokens};layers={options.layers};hidden={TINY['hidden_size']};threads=1"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tile-tokens", type=int, nargs=2, default=[16, 128])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="a look at whether it runs")
    parser.add_argument("--csv", action="store_true", help="add rows to benchmarks/results")
    parser.add_argument("--json", type=Path, help="write all figures to a file")
    options = parser.parse_args()
    if options.quick:
        options.tokens, options.layers, options.repeats = 64, 1, 2
        options.tile_tokens = [16, 32]
    return options


if __name__ == "__main__":
    main()
