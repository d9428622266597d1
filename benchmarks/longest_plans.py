"""The longest plans that fit, as predicted, beside what other systems have published.

usage: python benchmarks/longest_plans.py [--json [out.json]] [--csv]

Every row of this project is a prediction of the planner: bytes counted from the runtime, seconds
from the efficiencies that benchmarks/paper_table.py fits. No such run has been made. The published
rows are their authors' measurements, on their own settings.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.results import (
    STDOUT,
    ResultRow,
    add_json_option,
    append_csv,
    print_table,
    write_json,
)
from memo_planner import max_tokens
from memo_planner.errors import format_bytes
from memo_planner.hardware import machine
from memo_planner.strategies import Job, Strategy, longest_job, plan_job
from memo_planner.workload import Parallel, Workload, model_named

TB = 10**12
TIB = 2**40
GIB = 2**30
STEP_TOKENS = 64 * 1024
"""Lengths are cut to multiples of this."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model on a machine, with so much host memory usable on a node."""

    model: str
    hardware: str
    host_bytes: int


CASES = (
    Case(model="7b", hardware="a800-80g-x8", host_bytes=int(0.96 * TIB)),
    Case(model="7b", hardware="a800-80g-x8", host_bytes=2 * TB),
    Case(model="llama-3-8b", hardware="h100-80g-x8", host_bytes=int(1.9 * TB)),
)

PUBLISHED = (
    ("MEMO", "7B GPT, 8 A800 80 GB", 1_048_576),
    ("ALST", "Llama 3 8B, 8 H100 80 GB", 3_700_000),
    ("FPDT", "Llama 3 8B, 8 A100 80 GB", 4_000_000),
    ("UPipe", "Llama 3 8B, 8 H100 80 GB", 5_000_000),
)
"""Authors' figures, rounded as they give them."""


def main() -> None:
    """Predict, print, and write what was asked for."""
    options = _parse()
    found = [predicted(case) for case in CASES]
    if options.json != STDOUT:
        _print(found)
    write_json(
        options.json,
        {
            "predicted": found,
            "published": [
                {"name": name, "setting": where, "tokens": tokens}
                for name, where, tokens in PUBLISHED
            ],
            "assumptions": assumptions(),
        },
    )
    if options.csv:
        append_csv("longest_plans", [_csv_row(each) for each in found])


def _print(found: list[dict[str, Any]]) -> None:
    rows = [
        [name, where, f"{tokens:,}", "published", "", "", ""] for name, where, tokens in PUBLISHED
    ]
    rows += [_row(each) for each in found]
    header = ["who", "setting", "tokens", "kind", "MFU", "what ends it", "attention once"]
    print_table("longest sequence of one step", header, rows)
    print("\nassumptions:", *(f"  - {text}" for text in assumptions()), sep="\n")


def predicted(case: Case) -> dict[str, Any]:
    """The longest plan of strategy `tiles`, what ends it, and what it does."""
    job = _job(case)
    longest = longest_job(job, Strategy.TILES)
    tokens = longest // STEP_TOKENS * STEP_TOKENS
    plan = plan_job(job.with_tokens(tokens), Strategy.TILES)
    assert plan.setting is not None
    told = plan.prediction
    again = sum(block.o.value == "recompute" for block in plan.policy.blocks)
    attention_once = max_tokens(job.profile(Strategy.TILES), job.limits)
    return {
        "model": case.model,
        "hardware": case.hardware,
        "host_bytes": case.host_bytes,
        "parallel": plan.setting.parallel,
        "longest_tokens": longest,
        "longest_tokens_attention_once": attention_once,
        "tokens": tokens,
        "tile_tokens": plan.policy.tile_tokens,
        "ends_it": _ending(job, longest),
        "mfu": plan.setting.mfu(told),
        "step_s": plan.setting.step_s(told),
        "device_peak_bytes": told.device_peak_bytes,
        "node_host_bytes": told.host_peak_bytes * plan.setting.ranks_on_node,
        "blocks_that_run_attention_again": again,
        "blocks": len(plan.policy.blocks),
    }


def assumptions() -> list[str]:
    """What the predictions rest on."""
    return [
        "8 GPUs, Ulysses 8, ZeRO 3 (FSDP full shard), bf16, fp32 gradients and AdamW: 18 bytes of "
        "state a parameter over 8 ranks; one sequence",
        "4 GiB of a device are not for tensors; memory is placed without gaps",
        "device bytes a token: those of the tiled runtime, and q, k, v and o once more while they "
        "are exchanged between ranks",
        "a block may save x alone and run attention again where host memory runs out; the planner "
        "weighs it, the runtime does not carry it out yet: the last column is what fits without",
        "efficiencies and link of the paper's A800 node; on H100 the same shares of its peak",
    ]


def _job(case: Case) -> Job:
    parallel = Parallel(gpus=8, sequence=8, zero_stage=3)
    workload = Workload(
        model=model_named(case.model), tokens=STEP_TOKENS, batch=1, parallel=parallel
    )
    hardware = machine(case.hardware).with_figures("this case", host_usable_bytes=case.host_bytes)
    return Job.of(workload, hardware)


def _ending(job: Job, longest: int) -> str:
    """The memory that gives a longer sequence if there is more of it."""
    limits = job.limits
    assert limits.device_bytes is not None
    assert limits.host_bytes is not None
    more = {
        "device": replace(limits, device_bytes=limits.device_bytes + GIB),
        "host": replace(limits, host_bytes=limits.host_bytes + GIB),
    }
    longer = [
        name
        for name, each in more.items()
        if longest_job(replace(job, limits=each), Strategy.TILES) > longest
    ]
    return " and ".join(longer) or "device and host together"


def _row(each: dict[str, Any]) -> list[str]:
    where = f"{each['model']}, {each['hardware']}, host {format_bytes(each['host_bytes'])}"
    mfu = f"{each['mfu']:.1%}"
    once = f"{each['longest_tokens_attention_once']:,}"
    return ["tiles", where, f"{each['tokens']:,}", "prediction", mfu, each["ends_it"], once]


def _csv_row(each: dict[str, Any]) -> ResultRow:
    settings = f"model={each['model']};hardware={each['hardware']};host_bytes={each['host_bytes']}"
    return ResultRow.of(settings, "tiles", "tokens, predicted", [each["tokens"]])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_json_option(parser)
    parser.add_argument("--csv", action="store_true", help="add rows to benchmarks/results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
