"""memo-train against DeepSpeed's ALST on ranks that share every sequence: device peak and seconds.

usage: python benchmarks/alst.py [--ranks 2 --tokens 8192 --layers 4 --hidden 512] [--repeats 5]
                                 [--csv] [--json out.json]

It needs DeepSpeed: `pip install deepspeed`. ALST is what DeepSpeed's own package gives, unmodified:
Ulysses attention (UlyssesSPAttentionHF), TiledMLP in pieces of `hidden` tokens and
TiledFusedLogitsLoss in pieces of 1,024; and checkpointing with block inputs on the host, by
asynchronous copies (benchmarks/offloaded_checkpoints.py; DeepSpeed's package has none for Hugging
Face models). Both train the same Hugging Face Llama, fp32, on the same text over gloo; each rank
has one thread and holds the whole model, and gradients are averaged after backward, alike in both.

First ALST takes steps without a cap: its device peak above the model's state is the measure.
memo-train plans under a cap of `--peak-share` of that peak (0.4). Then both take turns, one step at
a time. Losses must agree.
"""

import argparse
import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

import memo_train
from benchmarks.job import MIB, Job
from benchmarks.llama import build_model, piece_of_text
from benchmarks.offloaded_checkpoints import OffloadedCheckpoints
from benchmarks.results import ResultRow, append_csv, mib, print_table, write_json
from memo_train.device import get_cpu_device

GIB = 2**30
_LOSS_TILE = 1024
_MOST_OFF = 1e-4
"""Relative: how far the losses of one step may be apart."""


def main() -> None:
    """Measure, print, and write what was asked for."""
    options = _parse()
    if options.rank is not None:
        # DeepSpeed's messages go to stdout.
        replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        _serve(_RankRun(options.mode, options), replies)
        return
    settings = {name: getattr(options, name) for name in ("ranks", "tokens", "layers", "hidden")}
    with ExitStack() as stack:
        alst = stack.enter_context(_Ranks("alst", options))
        first = alst.ask("step", index=0, trains=False)
        limit_bytes = int(options.peak_share * max(first["peak_bytes"]))
        memo = stack.enter_context(_Ranks("memo", options))
        memo.ask("wrap", limit_bytes=limit_bytes)
        ranks = {"alst": alst, "memo": memo}
        steps: dict[str, list[dict[str, Any]]] = {"alst": [], "memo": []}
        for index in range(options.repeats + 3):
            for mode, asked in ranks.items():
                steps[mode].append(asked.ask("step", index=index))
            _check_losses(steps)
    # The first ones warm up; memo-train's second or third is recorded for its layout.
    rows = _rows(settings, {mode: each[3:] for mode, each in steps.items()})
    _print(rows, limit_bytes)
    write_json(options.json, {"settings": settings, "limit_bytes": limit_bytes, "steps": steps})
    if options.csv:
        append_csv("alst", rows)


def _check_losses(steps: dict[str, list[dict[str, Any]]]) -> None:
    ours, theirs = (steps[mode][-1]["loss"][0] for mode in ("memo", "alst"))
    if not abs(ours - theirs) <= _MOST_OFF * abs(theirs):
        raise SystemExit(f"the losses of a step differ: memo-train {ours}, ALST {theirs}")


def _rows(settings: dict[str, Any], steps: dict[str, list[dict[str, Any]]]) -> list[ResultRow]:
    """By mode: seconds of the slower rank, highest peak of any rank; and ratios of each turn."""
    named = ";".join(f"{name}={value}" for name, value in settings.items())
    found = {
        (mode, figure): [float(max(step[figure])) for step in each]
        for mode, each in steps.items()
        for figure in ("seconds", "peak_bytes", "host_bytes")
    }
    for figure in ("seconds", "peak_bytes"):
        pairs = zip(found["memo", figure], found["alst", figure], strict=True)
        found["memo over alst", figure] = [ours / theirs for ours, theirs in pairs]
    return [ResultRow.of(named, mode, figure, v) for (mode, figure), v in found.items()]


def _print(rows: list[ResultRow], limit_bytes: int) -> None:
    by = {(row.mode, row.figure): row.median for row in rows}
    lines = [
        [
            mode,
            f"{by[mode, 'seconds']:.2f}",
            *(mib(by[mode, f]) for f in ("peak_bytes", "host_bytes")),
        ]
        for mode in ("alst", "memo")
    ]
    over = [by["memo over alst", figure] for figure in ("seconds", "peak_bytes")]
    lines.append(["memo over alst", *(f"{ratio:.2f}" for ratio in over), ""])
    title = (
        f"step by step in turns; memo-train's activations limited to {limit_bytes / MIB:.1f} MiB"
    )
    print_table(title, ["", "seconds", "device MiB", "host MiB"], lines)


class _Ranks:
    """The processes of one mode; use as a context manager."""

    def __init__(self, mode: str, options: argparse.Namespace) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shape = [f"--{n}={getattr(options, n)}" for n in ("ranks", "tokens", "layers", "hidden")]
        one = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        local = {"WORLD_SIZE": str(options.ranks), "LOCAL_WORLD_SIZE": str(options.ranks)}
        self._processes = [
            subprocess.Popen(
                [sys.executable, __file__, f"--mode={mode}", f"--rank={rank}", *shape],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | one | local | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(options.ranks)
        ]

    def __enter__(self) -> "_Ranks":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for process in self._processes:
            if kind is not None:
                process.kill()
            process.communicate()

    def ask(self, operation: str, **arguments: Any) -> dict[str, list[Any]]:
        """Ask all ranks at once; each figure by rank. Raises: RuntimeError if one has ended."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps({"op": operation, **arguments}) + "\n")
            process.stdin.flush()
        replies = []
        for rank, process in enumerate(self._processes):
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"rank {rank} ended during {operation} {arguments}")
            replies.append(json.loads(line))
        return {name: [reply[name] for reply in replies] for name in replies[0]}


def _serve(run: "_RankRun", replies: TextIO) -> None:
    """Answer requests until stdin closes."""
    for line in sys.stdin:
        request = json.loads(line)
        reply = (
            run.wrap(**_rest(request)) if request["op"] == "wrap" else run.step(**_rest(request))
        )
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def _rest(request: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in request.items() if name != "op"}


class _RankRun:
    """One rank's model and optimiser in one mode."""

    def __init__(self, mode: str, options: argparse.Namespace) -> None:
        torch.set_num_threads(1)
        dist.init_process_group("gloo")
        self._tokens, self._device = options.tokens, get_cpu_device()
        kind = "memo" if mode == "memo" else "checkpoint_offload"
        self._model = build_model(Job(mode=kind, layers=options.layers, hidden=options.hidden))
        self._mesh = init_device_mesh("cpu", (options.ranks,), mesh_dim_names=("sp",))
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-3, fused=True)
        for parameter in self._model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        # So that the state is as large from the first step on; of zero gradients, weights stay but
        # for the decay.
        self._optimizer.step()
        self._state_bytes = 4 * sum(p.nbytes for p in self._model.parameters())
        self._loss_of: Callable[[Tensor], Tensor] = self._memo_loss
        if mode == "alst":
            self._loss_of = _Alst(self._model, self._device, options).loss_of

    def wrap(self, limit_bytes: int) -> dict[str, Any]:
        """Wrap the model under a device cap of its state and `limit_bytes`."""
        memo_train.wrap(
            self._model,
            mesh=self._mesh,
            sp="ulysses",
            seq_len=self._tokens,
            device_gib=(self._state_bytes + limit_bytes) / GIB,
        )
        return {"wrapped": True}

    def step(self, index: int, *, trains: bool = True) -> dict[str, Any]:
        """A step on piece number `index` of the text. trains: whether the optimiser steps."""
        self._device.reset_peak()
        dist.barrier()
        started_s = time.perf_counter()
        loss = self._loss_of(piece_of_text(self._tokens, index))
        loss.backward()  # type: ignore[no-untyped-call]
        self._average_gradients()
        if trains:
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=False)
        seconds, counters = time.perf_counter() - started_s, self._device.counters()
        return {
            "loss": loss.item(),
            "seconds": seconds,
            "peak_bytes": counters.device_peak_bytes - self._state_bytes,
            "host_bytes": counters.host_peak_bytes,
        }

    def _memo_loss(self, ids: Tensor) -> Tensor:
        batch = memo_train.shard_batch({"input_ids": ids, "labels": ids}, self._mesh)
        loss: Tensor = self._model(**batch).loss
        return loss

    def _average_gradients(self) -> None:
        """One all-reduce a parameter; a large bucket would count among the bytes of a step."""
        for parameter in self._model.parameters():
            assert parameter.grad is not None
            dist.all_reduce(parameter.grad)
            parameter.grad.div_(dist.get_world_size())


class _Alst:
    """DeepSpeed's ALST put into a Hugging Face Llama."""

    def __init__(self, model: Any, device: Any, options: argparse.Namespace) -> None:
        self._model, self._options = model, options
        self._alst: Any = import_module("deepspeed.runtime.sequence_parallel.ulysses_sp")
        import_module("deepspeed").init_distributed("gloo")
        self._group = self._alst.UlyssesSPAttentionHF.register_with_transformers(
            model, "sdpa", options.ranks, 1, seq_length_is_variable=True
        ).get_sequence_parallel_group()
        model.activation_checkpointing_enable({"use_reentrant": False})
        OffloadedCheckpoints(device, model.model.layers)
        for layer in model.model.layers:
            self._tile(layer.mlp)

    def loss_of(self, ids: Tensor) -> Tensor:
        """The mean loss of all ranks' tokens; its gradient is this rank's, times the ranks."""
        ranks, tokens = self._options.ranks, ids.shape[1]
        labels = F.pad(ids[:, 1:], (0, 1), value=-100)
        positions = torch.arange(tokens)[None]
        ids, labels, positions = (
            t.chunk(ranks, 1)[dist.get_rank()] for t in (ids, labels, positions)
        )
        hidden = self._model.model(
            input_ids=ids, position_ids=positions, use_cache=False
        ).last_hidden_state
        total = self._alst.TiledFusedLogitsLoss.apply(
            _sum_of_losses,
            self._model,
            hidden,
            labels,
            None,
            math.ceil(hidden.shape[1] / _LOSS_TILE),
            [self._model.lm_head.weight],
            "sum",
        )
        own = total * ranks / (tokens - 1)
        mean = own.detach().clone()
        dist.all_reduce(mean)
        # The value of all ranks' loss with the gradient of this rank's share.
        loss: Tensor = own + (mean / ranks - own).detach()
        return loss

    def _tile(self, mlp: nn.Module) -> None:
        weights = list(mlp.parameters())
        plain, tiled, hidden = type(mlp).forward, self._alst.TiledMLP, self._options.hidden

        def forward(x: Tensor) -> Any:
            return tiled.apply(plain, mlp, x, math.ceil(x.shape[1] / hidden), weights)

        mlp.forward = forward


def _sum_of_losses(model: Any, hidden: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model.lm_head(hidden).float(), labels, reduction="sum")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=8192, help="of all ranks together")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak-share", type=float, default=0.4, help="of ALST's peak, for the cap")
    parser.add_argument("--csv", action="store_true", help="add rows to results/alst.csv")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--mode", choices=("alst", "memo"), help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
