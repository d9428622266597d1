"""How long it takes to follow a step that is never computed, and how much memory.

usage: python benchmarks/fake_trace.py [--config config.json] [--tokens 65536 1048576]
                                       [--trace out.json] [--profile out.json] [--json out.json]

Each row is a process of its own. plain: the model as Transformers runs it. tiled: by token tiles,
x, o and one tile in two swapped, the rest recomputed. profile: what `memo_train.wrap` measures of
one block. The peaks are what the step asked of device memory; resident is what the process took.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import transformers
from torch import nn

from benchmarks.results import MIB, ResultRow, append_csv, print_table, write_json
from memo_planner import BlockPolicy, Place, Policy
from memo_planner.schedule import CopyBudget
from memo_train.runtime import StepPolicy
from memo_train.trace._fake_device import A800
from memo_train.trace._fake_step import FakeModel

GIB = 2**30
MODES = ("plain", "tiled", "profile")
LLAMA_2_7B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}
"""Source: config.json of meta-llama/Llama-2-7b-hf."""


def main() -> None:
    """Measure every mode at every length, print, and write what was asked for."""
    options = _parse()
    if options.mode is not None:
        print(json.dumps(_measure(options, options.mode, options.tokens[0])))
        return
    rows = [
        {"mode": mode, "tokens": tokens, **_in_process(options, mode, tokens)}
        for tokens in options.tokens
        for mode in MODES
    ]
    _print(rows)
    write_json(options.json, {"config": str(options.config), "rows": rows})
    if options.csv:
        append_csv("fake_trace", [_result(options, row, name) for row in rows for name in _FIGURES])


_FIGURES = ("seconds", "cpu_seconds", "resident_bytes", "device_peak_bytes")


def _in_process(options: argparse.Namespace, mode: str, tokens: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--mode", mode, "--tokens", str(tokens)]
    command += ["--tiles", str(options.tiles)]
    for name in ("config", "trace", "profile"):
        value = getattr(options, name)
        command += [] if value is None else [f"--{name}", str(value)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _measure(options: argparse.Namespace, mode: str, tokens: int) -> dict[str, Any]:
    """Seconds from a configuration to the result, and the memory this process took for it."""
    torch.set_num_threads(1)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, start_cpu = time.perf_counter(), time.process_time()
    fake = FakeModel(lambda: _model(options.config, tokens), A800)
    found = _profile(fake, tokens, options) if mode == "profile" else None
    if found is None:
        policy = tiled_policy(fake, tokens, options.tiles) if mode == "tiled" else None
        found = _step(fake, tokens, policy, options.trace)
    seconds = {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - start_cpu,
    }
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    return {**seconds, "resident_bytes": grown_kib * 1024, **found}


def _step(
    fake: FakeModel, tokens: int, policy: StepPolicy | None, path: Path | None
) -> dict[str, Any]:
    step = fake.step(batch=1, tokens=tokens, policy=policy)
    if path is not None:
        step.trace.save(path)
    return {
        "requests": len(step.trace.requests),
        "device_peak_bytes": step.device_peak_bytes,
        "host_peak_bytes": step.host_peak_bytes,
    }


def _profile(fake: FakeModel, tokens: int, options: argparse.Namespace) -> dict[str, Any]:
    found = fake.profile_file(batch=1, tokens=tokens)
    if options.profile is not None:
        found.save(options.profile)
    peak = max(found.profile.peak_bytes(line.name, tokens, 1) for line in found.profile.peaks)
    peak += found.profile.state_bytes
    return {"requests": 0, "device_peak_bytes": peak, "host_peak_bytes": 0}


def _model(path: Path | None, tokens: int) -> nn.Module:
    if path is None:
        config: Any = transformers.LlamaConfig(**LLAMA_2_7B)  # type: ignore[arg-type]
    else:
        config = transformers.AutoConfig.from_pretrained(path)
    config.max_position_embeddings = max(config.max_position_embeddings, tokens)
    make = transformers.AutoModelForCausalLM.from_config
    model: nn.Module = make(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    return model


def tiled_policy(fake: FakeModel, tokens: int, tiles: int) -> StepPolicy:
    """x, o and one tile in two of every block swapped, the rest recomputed."""
    tile_tokens = -(-tokens // tiles)
    num_tiles = -(-tokens // tile_tokens)
    block = BlockPolicy(
        keep_tiles=0,
        swap_tiles=num_tiles // 2,
        recompute_tiles=num_tiles - num_tiles // 2,
        x=Place.SWAP,
        o=Place.SWAP,
    )
    blocks = (block,) * len(fake.parts.blocks)
    return StepPolicy(
        policy=Policy(tokens=tokens, tile_tokens=tile_tokens, blocks=blocks),
        loss_tile_tokens=fake.parts.loss_tile_tokens(tile_tokens),
        copies=CopyBudget.same(len(blocks), in_flight_bytes=2 * GIB, ahead_bytes=2 * GIB),
    )


def _print(rows: list[dict[str, Any]]) -> None:
    header = [
        "mode",
        "tokens",
        "requests",
        "seconds",
        "of CPU",
        "resident MiB",
        "device GiB",
        "host GiB",
    ]
    lines = [
        [
            row["mode"],
            f"{row['tokens']:,}",
            f"{row['requests']:,}",
            f"{row['seconds']:.1f}",
            f"{row['cpu_seconds']:.1f}",
            f"{row['resident_bytes'] / MIB:,.0f}",
            f"{row['device_peak_bytes'] / GIB:,.1f}",
            f"{row['host_peak_bytes'] / GIB:,.1f}",
        ]
        for row in rows
    ]
    print_table("steps followed without arithmetic, batch 1, bf16, AdamW", header, lines)


def _result(options: argparse.Namespace, row: dict[str, Any], figure: str) -> ResultRow:
    name = "llama-2-7b" if options.config is None else options.config.stem
    settings = f"model={name};tokens={row['tokens']};tiles={options.tiles}"
    return ResultRow.of(settings, row["mode"], figure, [row[figure]])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, help="a Hugging Face config.json or its folder")
    parser.add_argument("--tokens", type=int, nargs="+", default=[65536, 1048576])
    parser.add_argument("--tiles", type=int, default=16, help="token tiles of a block")
    parser.add_argument("--mode", choices=MODES, help="measure one mode in this process")
    parser.add_argument("--trace", type=Path, help="write the last step's trace here")
    parser.add_argument("--profile", type=Path, help="write the profile here")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--csv", action="store_true", help="add rows to benchmarks/results/")
    return parser.parse_args()


if __name__ == "__main__":
    main()
