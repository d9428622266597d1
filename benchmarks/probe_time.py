"""How long `wrap` takes on a model of 1.1 billion parameters, and how much of it is the probe.

usage: OMP_NUM_THREADS=1 python benchmarks/probe_time.py [--dtypes fp32 bf16] [--repeats 5]
                                                         [--layers 22] [--csv] [--json out.json]

Each repeat is a process of its own: it wraps a model that is just made ("first", on memory that
nothing has touched before), unwraps it and wraps it again ("again"). The profile is there already,
from a process before; so `wrap` proves the model and plans, and measures nothing. Seconds on the
wall, and of the CPU.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import transformers
from torch import nn

import memo_train
from benchmarks.results import ResultRow, append_csv, print_table, write_json
from memo_train.device import get_cpu_device

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
GEOMETRY: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
}
"""Source: config.json of TinyLlama/TinyLlama-1.1B-Chat-v1.0."""

SEQ_LEN = 4096
_FIGURES = ("wrap_s", "wrap_cpu_s", "probe_s", "probe_cpu_s", "probe_cpu_share")
_INIT_STD = 0.02


def main() -> None:
    """Measure every dtype, print, and write what was asked for."""
    options = _parse()
    if options.child is not None:
        print(json.dumps(_measure(options.child, options.layers)))
        return
    found = {dtype: _repeated(dtype, options) for dtype in options.dtypes}
    rows = [
        ResultRow.of(
            f"model=llama-1.1b;layers={options.layers};dtype={dtype};threads=1",
            mode,
            figure,
            [repeat[mode][figure] for repeat in repeats],
        )
        for dtype, repeats in found.items()
        for mode in ("first", "again")
        for figure in _FIGURES
    ]
    _print(rows)
    write_json(options.json, {"repeats": found})
    if options.csv:
        append_csv("probe_time", rows)


def _repeated(dtype: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as cache:
        _in_process(dtype, options.layers, cache)  # for the profile
        return [_in_process(dtype, options.layers, cache) for _ in range(options.repeats)]


def _in_process(dtype: str, layers: int, cache: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", dtype, "--layers", str(layers)]
    environment = os.environ | {"MEMO_TRAIN_CACHE": cache, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _measure(dtype: str, layers: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    model, probe = _build(dtype, layers), _TimedProbe()
    found: dict[str, Any] = {}
    for mode in ("first", "again"):
        probe.reset()
        seconds, cpu_s = _timed(lambda: memo_train.wrap(model, seq_len=SEQ_LEN))
        memo_train.unwrap(model)
        found[mode] = {
            "wrap_s": seconds,
            "wrap_cpu_s": cpu_s,
            "probe_s": probe.seconds,
            "probe_cpu_s": probe.cpu_s,
            "probe_cpu_share": probe.cpu_s / cpu_s,
        }
    return found


class _TimedProbe:
    """Takes the time of the probe inside `wrap`."""

    def __init__(self) -> None:
        module: Any = sys.modules["memo_train.wrap"]
        self._probe, module.probe_model = module.probe_model, self
        self.reset()

    def reset(self) -> None:
        self.seconds = self.cpu_s = 0.0

    def __call__(self, *args: Any) -> Any:
        found: list[Any] = []
        seconds, cpu_s = _timed(lambda: found.append(self._probe(*args)))
        self.seconds, self.cpu_s = self.seconds + seconds, self.cpu_s + cpu_s
        return found[0]


def _timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the wall and of the process's CPU time."""
    start, start_cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - start, time.process_time() - start_cpu


def _build(dtype: str, layers: int) -> nn.Module:
    """A Llama with normal weights; Transformers' own initialisation takes a minute."""
    config = transformers.LlamaConfig(**GEOMETRY, num_hidden_layers=layers, use_cache=False)
    torch.manual_seed(0)
    get_cpu_device()  # before the weights, which shall lie in its memory
    with torch.device("meta"):
        empty: Any = transformers.LlamaForCausalLM(config)
    model: Any = empty.to(DTYPES[dtype]).to_empty(device="cpu")
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(std=_INIT_STD)
    trained: nn.Module = model.train()
    return trained


def _print(rows: list[ResultRow]) -> None:
    lines = [
        [f"{row.settings} {row.mode}", row.figure, *(f"{v:.2f}" for v in _spread(row))]
        for row in rows
    ]
    print_table("wrap with its profile at hand", ["model", "", "median", "min", "max"], lines)


def _spread(row: ResultRow) -> tuple[float, float, float]:
    return row.median, row.min, row.max


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=5, help="processes that are timed")
    parser.add_argument("--layers", type=int, default=22, help="fewer for a trial")
    parser.add_argument("--child", choices=DTYPES, help="measure one dtype in this process")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--csv", action="store_true", help="add rows to benchmarks/results/")
    return parser.parse_args()


if __name__ == "__main__":
    main()
