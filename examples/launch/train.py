"""Train a causal language model on sequences that several ranks share; see README.md beside it.

    torchrun --nproc-per-node 8 examples/launch/train.py --model ./model --seq-len 1048576
    python examples/launch/train.py --model ./model/config.json --seq-len 1048576 --gpus 8 --dry-run

Options may stand in a YAML or JSON file (`--config FILE`, the names as below with _ for -).
`--dry-run` prints the plan of the job and what each rank holds; it needs no GPU and starts no rank,
and its figures are predictions. With `-o` it writes the plan, which `--plan` has ranks carry out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import memo_train

STATES = {
    "ddp": "ddp-views",
    "fsdp2": "fsdp2",
    "zero1": "zero1",
    "zero2": "zero2",
    "zero3": "zero3",
}
"""What `--state` may be, and what `memo_train.wrap` calls it."""
STAGES = {"ddp": 0, "fsdp2": 3, "zero1": 1, "zero2": 2, "zero3": 3}


def options() -> argparse.Namespace:
    """The command line over the file of `--config` over the defaults."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--config", type=Path, help="YAML or JSON of these options")
    add("--model", type=Path, help="a Hugging Face folder, or a config.json for random weights")
    add("--text", type=Path, default=Path(__file__), help="trained on byte by byte")
    add("--seq-len", type=int, default=4096, help="tokens of a whole sequence, on all its ranks")
    add("--steps", type=int, default=10)
    add("--lr", type=float, default=3e-4)
    add("--bf16", action="store_true", help="bf16 weights")
    add("--sp", type=int, help="ranks that share a sequence; all by default, else data parallel")
    add("--way", choices=("auto", "ulysses", "ring"), default="auto", help="how they share it")
    add("--state", choices=list(STAGES), default="ddp", help="who divides the model's state")
    add("--deepspeed", type=Path, help="DeepSpeed's JSON, for zero1 to zero3")
    add("--device-gib", type=float, help="of each rank's device")
    add("--host-gib", type=float, help="of each rank's host memory, for swapped tensors")
    add("--checkpoints", type=Path, help="saved here, and gone on from")
    add("--save-every", type=int, default=5, help="steps")
    add("--plan", type=Path, help="a plan of memo-plan or --dry-run -o, to be carried out")
    add("--dry-run", action="store_true", help="print the plan, train nothing")
    add("--gpus", type=int, default=8, help="of the job, for --dry-run")
    add("--hardware", default="h100-80g-x8", help="of memo-plan hardware, for --dry-run")
    add("-o", "--output", type=Path, help="where --dry-run writes the plan")
    first = parser.parse_args()
    if first.config is not None:
        yaml: Any = importlib.import_module("yaml")
        parser.set_defaults(**yaml.safe_load(first.config.read_text()))
    return parser.parse_args()


# What is trained


def make_model(args: argparse.Namespace) -> nn.Module:
    """The same weights on every rank."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    auto: Any = AutoModelForCausalLM
    if args.model is None:
        config = AutoConfig.for_model("llama", **TINY)
    elif args.model.suffix == ".json":
        values = json.loads(args.model.read_text())
        config = AutoConfig.for_model(values.pop("model_type"), **values)
    else:
        loaded: nn.Module = auto.from_pretrained(args.model, dtype=dtype)
        return loaded.train()
    model: nn.Module = auto.from_config(config)
    return model.to(dtype).train()


TINY = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1 << 20,
}
"""The model where none is named: for a first try on any machine."""


def batches(args: argparse.Namespace, group: int, groups: int) -> Iterator[dict[str, Any]]:
    """One sequence of the text after the other; each group of ranks has its own."""
    text = torch.frombuffer(bytearray(args.text.read_bytes()), dtype=torch.uint8).long()
    index = group
    while True:
        start = index * args.seq_len
        at = torch.arange(start, start + args.seq_len) % len(text)
        yield {"input_ids": text[at][None], "labels": text[at][None]}
        index += groups


# How it is spread over ranks

Step = Callable[[dict[str, Any]], torch.Tensor]


def spread(
    args: argparse.Namespace, model: nn.Module, optimizer_of: Callable[[], torch.optim.Optimizer]
) -> tuple[Step, torch.optim.Optimizer | None, Any]:
    """(one optimiser step on a batch, the optimiser, DeepSpeed's engine) for a wrapped model."""
    if args.state.startswith("zero"):
        engine = engine_of(args, model, optimizer_of())

        def by_engine(batch: dict[str, Any]) -> torch.Tensor:
            loss: torch.Tensor = engine(**batch).loss
            engine.backward(loss)
            engine.step()
            return loss.detach()

        return by_engine, None, engine
    trained: Any = model
    if args.state == "fsdp2":
        for block in blocks_of(model):
            fully_shard(block)
        fully_shard(model)
    elif dist.get_world_size() > 1:
        ids = [model.device.index] if torch.cuda.is_available() else None
        trained = DistributedDataParallel(model, ids, gradient_as_bucket_view=True)
    optimizer = optimizer_of()

    def by_optimizer(batch: dict[str, Any]) -> torch.Tensor:
        loss: torch.Tensor = trained(**batch).loss
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return by_optimizer, optimizer, None


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The model's list of equal blocks."""
    lists = [list(m) for m in model.modules() if isinstance(m, nn.ModuleList)]
    return max(lists, key=len)


def state_of(args: argparse.Namespace) -> memo_train.ModelState:
    """Who looks after the model's state, as `memo_train.wrap` is told."""
    if args.state == "ddp":
        return memo_train.ModelState(kind="ddp-views")
    config = json.loads(args.deepspeed.read_text()) if args.deepspeed else {}
    numbers = config.get("zero_optimization", {}).get("reduce_bucket_size", 500_000_000)
    bucket_bytes = int(numbers) * (2 if args.bf16 else 4) if args.state != "fsdp2" else 0
    return memo_train.ModelState(kind=args.state, bucket_bytes=bucket_bytes)


def engine_of(args: argparse.Namespace, model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """DeepSpeed's, by the JSON of `--deepspeed` at the stage of `--state`."""
    deepspeed: Any = importlib.import_module("deepspeed")
    if not torch.cuda.is_available():
        # An operator for CPUs that takes a minute to build, for what gloo does as well.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    config = json.loads(args.deepspeed.read_text()) if args.deepspeed else {}
    config.setdefault("zero_optimization", {})["stage"] = STAGES[args.state]
    config |= {"train_micro_batch_size_per_gpu": 1, "zero_allow_untested_optimizer": True}
    config["bf16"] = {"enabled": args.bf16}
    if args.state == "zero3":
        deepspeed.utils.set_z3_leaf_modules(model, [type(blocks_of(model)[0])])
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine


# Checkpoints: torchrun's elastic restart goes on from the newest


def save(
    args: argparse.Namespace, step: int, model: nn.Module, optimizer: Any, engine: Any
) -> None:
    """All ranks write; the folder has its name only when it is complete."""
    if args.checkpoints is None or step % args.save_every:
        return
    if engine is not None:
        engine.save_checkpoint(args.checkpoints, tag=f"step-{step}")
        return
    part, whole = args.checkpoints / f".step-{step}", args.checkpoints / f"step-{step}"
    state, moments = get_state_dict(model, optimizer)
    state_dict_saver.save({"model": state, "optimizer": moments}, checkpoint_id=part)
    if dist.get_rank() == 0:
        shutil.rmtree(whole, ignore_errors=True)
        part.rename(whole)
    dist.barrier()


def resume(args: argparse.Namespace, model: nn.Module, optimizer: Any, engine: Any) -> int:
    """The number of steps that are done."""
    found = sorted(args.checkpoints.glob("step-*"), key=number_of) if args.checkpoints else []
    if not found:
        return 0
    if engine is not None:
        engine.load_checkpoint(args.checkpoints, tag=found[-1].name)
    else:
        state, moments = get_state_dict(model, optimizer)
        state_dict_loader.load({"model": state, "optimizer": moments}, checkpoint_id=found[-1])
        set_state_dict(model, optimizer, model_state_dict=state, optim_state_dict=moments)
    return number_of(found[-1])


def number_of(path: Path) -> int:
    """7 of step-7."""
    return int(path.name.rpartition("-")[2])


# The two things it does


def dry_run(args: argparse.Namespace) -> None:
    """Print the job's plan and what each rank holds: predictions, from the model's sizes alone."""
    from memo_planner import Plan
    from memo_planner.cli import main as memo_plan
    from memo_planner.errors import format_bytes
    from memo_planner.strategies import rank_plan

    with tempfile.TemporaryDirectory() as folder:
        model = args.model or Path(folder) / "config.json"
        if args.model is None:
            model.write_text(json.dumps({"model_type": "llama", **TINY}))
        output = args.output or Path(folder) / "plan.json"
        sys.argv = ["memo-plan", "make", "--model", str(model), *job_of(args), "-o", str(output)]
        print("predictions, by", *sys.argv, flush=True)
        try:
            memo_plan()
        except SystemExit as ended:
            if ended.code:
                raise
        plan = Plan.load(output)
    told, mine = plan.prediction, rank_plan(plan).policy
    print(
        f"each rank holds {mine.tokens:,} tokens in {mine.num_tiles:,} tiles of "
        f"{mine.tile_tokens:,}; {format_bytes(plan.profile.state_bytes)} of parameters, gradients "
        f"and moments; at most {format_bytes(told.device_peak_bytes)} on its device and "
        f"{format_bytes(told.host_peak_bytes)} on the host"
    )


def job_of(args: argparse.Namespace) -> list[str]:
    """The job in memo-plan's words."""
    sp = args.sp or args.gpus
    shared = {"--context": sp} if args.way == "ring" else {"--sequence": sp}
    values = {
        "--seq-len": args.seq_len,
        "--gpus": args.gpus,
        "--hardware": args.hardware,
        "--batch": args.gpus // sp,
        "--zero": STAGES[args.state],
        "--dtype-bytes": 2 if args.bf16 else 4,
        "--device-gib": args.device_gib,
        "--host-gib": args.host_gib,
        **shared,
    }
    given = [text for name, v in values.items() if v is not None for text in (name, str(v))]
    return [*given, "--attention-once"]


def meshes(args: argparse.Namespace, kind: str) -> DeviceMesh:
    """Ranks by groups that share a sequence."""
    ranks = dist.get_world_size()
    # `accelerate launch` says it so.
    told = max(int(os.environ.get(f"PARALLELISM_CONFIG_{n}_SIZE", "1")) for n in ("SP", "CP"))
    sp = args.sp or (told if told > 1 else ranks)
    if ranks % sp:
        raise SystemExit(f"{ranks} ranks are no whole number of groups of {sp} (--sp)")
    return init_device_mesh(kind, (ranks // sp, sp), mesh_dim_names=("dp", "sp"))


def train(args: argparse.Namespace) -> None:
    """Train on all ranks that were started."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    mesh = meshes(args, "cuda" if on_gpu else "cpu")
    model = make_model(args).to("cuda" if on_gpu else "cpu")
    limits = {"device_gib": args.device_gib, "host_gib": args.host_gib}
    how = {"mesh": mesh, "sp": args.way, "state": state_of(args)}
    seq_len = args.seq_len if args.plan is None else None
    memo_train.wrap(model, seq_len=seq_len, **how, **limits)
    if args.plan is not None:
        memo_train.load_plan(model, args.plan)
    # Dropout of other tokens is drawn apart.
    torch.manual_seed(1 + dist.get_rank())
    step_of, optimizer, engine = spread(
        args, model, lambda: torch.optim.AdamW(model.parameters(), lr=args.lr)
    )
    done = resume(args, model, optimizer, engine)
    group, groups = mesh.get_local_rank("dp"), mesh["dp"].size()
    for step, batch in enumerate(batches(args, group, groups), 1):
        if step > args.steps:
            break
        if step <= done:
            continue
        start_s = time.perf_counter()
        part = memo_train.shard_batch(batch, mesh)
        loss = step_of({n: t.to(mesh.device_type) for n, t in part.items()})
        if dist.get_rank() == 0:
            seconds, peak = time.perf_counter() - start_s, memo_train.stats().device_peak_bytes
            print(f"step {step}: loss {loss:.4f}, {seconds:.2f} s, peak {peak:,} B", flush=True)
        save(args, step, model, optimizer, engine)
    dist.destroy_process_group()


@record
def main() -> None:
    """`record` writes an error to the file that torchrun reads, which then names rank and error."""
    args = options()
    if args.dry_run:
        dry_run(args)
    else:
        train(args)


if __name__ == "__main__":
    main()
