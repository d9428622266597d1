"""What each of several ranks is planned to hold, and what it holds; how long a sequence they share.

usage: python benchmarks/rank_peaks.py [--ranks 1 2 4] [--ways ulysses ring both] [--longest]
    [--csv]

Ranks are processes on this machine, joined by gloo. Each row is a run of its own: a small Llama
with AdamW under DistributedDataParallel (gradients are views of its buckets), wrapped with
`state="ddp-views"`, four steps of a sequence of `--tokens` that all ranks share. The last three
find AdamW's moments; of these the highest device peak of any rank counts. "both" is a mesh: keys
and values go around, and as many ranks as there are key-value heads exchange tokens for heads.

With `--longest` a model with little state beside its activations gets `--device-mib` on every rank;
the longest sequence is what the planner names when it refuses a far longer one, and it is then run.
"""

import argparse
import gc
import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.results import ResultRow, append_csv, mib, print_table, write_json

MIB = 2**20
GIB = 2**30
_STEPS = 4
_VOCAB = 256
_FAR_TOO_LONG = 2**22
_WAYS = ("ulysses", "ring", "both")
POLICIES = {"recompute": 0.0, "swap": 1.0}


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """One run: the highest planned and measured device peak of any rank, in bytes."""

    way: str
    num_ranks: int
    policy: str
    tokens: int
    tile_tokens: int
    state_bytes: int
    planned_bytes: int
    planned_at: str
    device_bytes: int

    @property
    def ratio(self) -> float:
        """Planned over measured."""
        return self.planned_bytes / self.device_bytes


def on_this_rank(options: argparse.Namespace) -> None:
    """Run as one of torchrun's ranks, and let the first one write what all found."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.nn.parallel import DistributedDataParallel

    import memo_train
    from memo_train.device import get_cpu_device

    torch.set_num_threads(1)
    # Before the model, so that its parameters are counted.
    get_cpu_device()
    dist.init_process_group("gloo")
    size = dist.get_world_size()
    inside = math.gcd(size, options.kv_heads) if options.way == "both" else size
    mesh = init_device_mesh("cpu", (size // inside, inside), mesh_dim_names=("cp", "sp"))
    model = _model(options)
    tokens = options.tokens
    wrap: dict[str, Any] = {
        "mesh": mesh,
        "sp": "auto" if options.way == "both" else options.way,
        "state": "ddp-views",
        "alpha": POLICIES[options.policy],
    }
    if options.longest:
        wrap["device_gib"] = options.device_mib / 1024
        tokens = _longest(model, wrap)
    else:
        wrap["tile_tokens"] = options.tile_tokens
    memo_train.wrap(model, seq_len=tokens, **wrap)
    found = _train(
        model, DistributedDataParallel(model, gradient_as_bucket_view=True), tokens, mesh
    )
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, found)
    if dist.get_rank() == 0:
        highest = max(every, key=lambda each: each["device_bytes"])
        whole = Peaks(way=options.way, num_ranks=len(every), policy=options.policy, **highest)
        options.out.write_text(json.dumps(asdict(whole)))
    dist.barrier()
    dist.destroy_process_group()


def _longest(model: Any, options: dict[str, Any]) -> int:
    """Tokens of the longest sequence that all ranks together can train."""
    import memo_train
    from memo_train.errors import PlanInfeasible

    try:
        memo_train.wrap(model, seq_len=_FAR_TOO_LONG, **options)
    except PlanInfeasible as error:
        if not error.max_tokens:
            raise
        return int(error.max_tokens)
    raise RuntimeError(f"{_FAR_TOO_LONG:,} tokens fit: give less memory")


def _train(model: Any, trained: Any, tokens: int, mesh: Any) -> dict[str, Any]:
    import torch

    import memo_train

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    plan = memo_train.plan(model)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(_VOCAB, (1, tokens), generator=generator)
    part = memo_train.shard_batch({"input_ids": ids, "labels": ids}, mesh)
    del ids
    device_bytes = 0
    for step in range(_STEPS):
        gc.collect()
        memo_train.reset_stats()
        trained(**part).loss.backward()
        if step:
            device_bytes = max(device_bytes, memo_train.stats().device_peak_bytes)
        optimizer.step()
        optimizer.zero_grad()
    return {
        "tokens": tokens,
        "tile_tokens": plan.policy.tile_tokens,
        "state_bytes": plan.profile.state_bytes,
        "planned_bytes": plan.prediction.device_peak_bytes,
        "planned_at": plan.prediction.device_peak_point,
        "device_bytes": device_bytes,
    }


def _model(options: argparse.Namespace) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=_VOCAB,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
        num_key_value_heads=options.kv_heads,
        max_position_embeddings=_FAR_TOO_LONG,
    )
    make: Any = LlamaForCausalLM
    return make(config).train()


def measured(options: argparse.Namespace, way: str, num_ranks: int, policy: str) -> Peaks:
    """A run of so many fresh processes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "peaks.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(num_ranks), str(Path(__file__).resolve())]
        command += ["--out", str(out), "--way", way, "--policy", policy]
        for name in ("tokens", "tile_tokens", "hidden", "layers", "kv_heads", "device_mib"):
            command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
        command += ["--longest"] if options.longest else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            raise RuntimeError(f"{way}, {num_ranks} ranks: {done.stderr[-3000:]}")
        return Peaks(**json.loads(out.read_text()))


def main() -> None:
    """Measure, print, and write what was asked for."""
    options = _parse()
    if options.out is not None:
        on_this_rank(options)
        return
    found = []
    for way in options.ways:
        for policy in options.policies:
            for num_ranks in options.ranks:
                found.append(measured(options, way, num_ranks, policy))
                print(f"{way}, {policy}, {num_ranks}: {found[-1].ratio:.4f}", file=sys.stderr)
    _print(found)
    write_json(options.json, {"peaks": [asdict(each) for each in found]})
    if options.csv:
        append_csv("rank_peaks", [row for each in found for row in _rows(each, options)])


def _rows(each: Peaks, options: argparse.Namespace) -> list[ResultRow]:
    what = f"longest;device_mib={options.device_mib}" if options.longest else "peaks"
    sizes = f"hidden={options.hidden};layers={options.layers};kv_heads={options.kv_heads}"
    settings = f"{what};ranks={each.num_ranks};policy={each.policy};{sizes}"
    figures = {
        "tokens": each.tokens,
        "planned_device_bytes": each.planned_bytes,
        "device_bytes": each.device_bytes,
        "device_planned_over_measured": each.ratio,
    }
    return [ResultRow.of(settings, each.way, name, [value]) for name, value in figures.items()]


def _print(found: list[Peaks]) -> None:
    first = {(each.way, each.policy): each for each in reversed(found)}
    rows = []
    for each in found:
        one = first[each.way, each.policy]
        rows.append(
            [
                each.way,
                each.policy,
                str(each.num_ranks),
                f"{each.tokens:,}",
                f"{each.tokens / one.tokens:.2f}",
                f"{each.tile_tokens:,}",
                mib(each.state_bytes),
                mib(each.planned_bytes),
                mib(each.device_bytes),
                f"{each.ratio:.4f}",
                f"{_above_state(one) / _above_state(each):.2f}",
                each.planned_at,
            ]
        )
    header = ["way", "policy", "ranks", "tokens", "times", "tile", "state", "planned", "device"]
    print_table("device peak of each rank", [*header, "ratio", "one / this", "at"], rows)


def _above_state(each: Peaks) -> int:
    return each.device_bytes - each.state_bytes


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--ways", nargs="+", choices=_WAYS, default=["ulysses"])
    parser.add_argument("--policies", nargs="+", choices=list(POLICIES), default=list(POLICIES))
    parser.add_argument("--tokens", type=int, default=4096, help="of the whole sequence")
    parser.add_argument("--tile-tokens", type=int, default=128, help="of a rank")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--longest", action="store_true", help="the longest sequence instead")
    parser.add_argument("--device-mib", type=float, default=24.0)
    parser.add_argument("--way", choices=_WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--policy", choices=list(POLICIES), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--csv", action="store_true", help="add rows to benchmarks/results/")
    return parser.parse_args()


if __name__ == "__main__":
    main()
