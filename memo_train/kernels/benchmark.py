"""python -m memo_train.kernels.benchmark: time the kernels, and say which are to be used here.

Each operation's forward and backward against torch's own ways to compute the same, in turn, on the
device at hand. The file that it writes is what `memo_train.kernels.use(model)` goes by. Without a
GPU it times the reference on the CPU, which runs on one thread and is not used by itself.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from memo_train.kernels._launch import DTYPES
from memo_train.kernels._peers import OPERATIONS, Peers, Sizes
from memo_train.kernels._timings import Timing, device_name, save_timings, timings_path

# The first runs load kernels and fill the allocator's cache.
_WARM_UP = 3


def time_operation(
    operation: str, dtype: torch.dtype, sizes: Sizes, device: torch.device, repeats: int
) -> Timing:
    """Medians of `repeats` forwards and backwards of each way, which take turns."""
    peers = OPERATIONS[operation]
    inputs = make_inputs(peers, dtype, sizes, device)
    ways = (peers.kernel, *peers.torchs)
    seconds: list[list[float]] = [[] for _ in ways]
    for turn in range(_WARM_UP + repeats):
        for way, taken in zip(ways, seconds, strict=True):
            step_s = _time_step(way, inputs, peers.num_differentiated, device)
            if turn >= _WARM_UP:
                taken.append(step_s)
    kernel_s, *torch_s = (statistics.median(taken) for taken in seconds)
    return Timing(
        device=device_name(device),
        operation=operation,
        dtype=DTYPES[dtype],
        sizes=asdict(sizes),
        kernel_s=kernel_s,
        torch_s=min(torch_s),
    )


def make_inputs(
    peers: Peers, dtype: torch.dtype, sizes: Sizes, device: torch.device
) -> tuple[Tensor, ...]:
    """Random inputs, always the same, those with gradients first."""
    generator = torch.Generator().manual_seed(0)
    shapes = peers.shapes(sizes)
    inputs = tuple(torch.randn(s, generator=generator).to(device, dtype) for s in shapes)
    for tensor in inputs[: peers.num_differentiated]:
        tensor.requires_grad_()
    return inputs


def _time_step(
    way: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    num_differentiated: int,
    device: torch.device,
) -> float:
    # Else the clock would start on work that is still queued.
    _wait(device)
    start = time.perf_counter()
    y = way(*inputs)
    torch.autograd.grad(y, inputs[:num_differentiated], torch.ones_like(y))
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m memo_train.kernels.benchmark")
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--device", type=torch.device, default="cuda" if on_gpu else "cpu")
    parser.add_argument("--json", type=Path, default=timings_path(), help="where to write")
    parser.add_argument("--repeats", type=int, default=20 if on_gpu else 5)
    parser.add_argument("--tokens", type=int, default=4096 if on_gpu else 64, help="of a tile")
    for name, default in (("hidden", 4096), ("ffn", 11008), ("heads", 32), ("head-dim", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def main() -> None:
    """Time everything, print a table, write the file."""
    options = _arguments()
    sizes = Sizes(
        tokens=options.tokens,
        hidden=options.hidden,
        ffn=options.ffn,
        heads=options.heads,
        head_dim=options.head_dim,
    )
    print(f"{device_name(options.device)}; {sizes}; forward and backward, median milliseconds")
    print(f"{'operation':<10} {'dtype':<9} {'kernel':>9} {'torch':>9}  used")
    timings = []
    for operation in OPERATIONS:
        for dtype, name in DTYPES.items():
            timing = time_operation(operation, dtype, sizes, options.device, options.repeats)
            used = "kernel" if timing.wins else "torch"
            times = f"{1e3 * timing.kernel_s:>9.3f} {1e3 * timing.torch_s:>9.3f}"
            print(f"{operation:<10} {name:<9} {times}  {used}", flush=True)
            timings.append(timing)
    save_timings(options.json, tuple(timings))
    print("written to", options.json)


if __name__ == "__main__":
    main()
