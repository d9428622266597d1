"""How long `wrap` proves a model of 1.1 billion parameters before it is run by tiles.

usage: OMP_NUM_THREADS=1 python benchmarks/probe_time.py [--dtypes fp32 bf16] [--repeats 5]
                                                         [--layers 22] [--csv] [--json out.json]

Each repeat is a process of its own, which probes a model that is just made twice: "first", in
memory that nothing has touched before, and "again". Seconds of the CPU, which on one thread are
those of the wall where nothing else runs, and of them the system kernel's, which hands out memory:
a virtual machine may have to ask its host for it.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import transformers
from torch import nn

from benchmarks.results import ResultRow, append_csv, print_table, write_json
from memo_train.device import get_cpu_device
from memo_train.runtime import find_parts, probe_model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
GEOMETRY: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
}
"""Source: config.json of TinyLlama/TinyLlama-1.1B-Chat-v1.0."""

_FIGURES = ("cpu_s", "kernel_s")
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
    command = [sys.executable, __file__, "--child", dtype, "--layers", str(options.layers)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    repeats = []
    for _ in range(options.repeats):
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, env=environment
        )
        repeats.append(json.loads(done.stdout.splitlines()[-1]))
    return repeats


def _measure(dtype: str, layers: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    parts, device = find_parts(_build(dtype, layers)), get_cpu_device()
    return {mode: _timed(lambda: probe_model(parts, device)) for mode in ("first", "again")}


def _timed(run: Callable[[], object]) -> dict[str, float]:
    before = resource.getrusage(resource.RUSAGE_SELF)
    run()
    after = resource.getrusage(resource.RUSAGE_SELF)
    kernel_s = after.ru_stime - before.ru_stime
    return {"cpu_s": after.ru_utime - before.ru_utime + kernel_s, "kernel_s": kernel_s}


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
    print_table("the probe", ["model", "", "median", "min", "max"], lines)


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
