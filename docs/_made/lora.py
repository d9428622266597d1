"""The plan of the LoRA guide: Llama-3-8B with adapters at 128K tokens, in the memory of one card.

Bytes are those of the model's own operations, followed without arithmetic; seconds of a block and
the link are what `benchmarks/gpu_check` measured on one H200 for two layers of the same model.
"""

from __future__ import annotations

import csv
import warnings
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from docs._made.commands import output_of, scratch_folder
from memo_planner import BlockTimes, Limits, Link, Plan
from memo_planner.schedule import plan_on_clock

TOKENS, DEVICE_GIB, HOST_GIB = 131_072, 74, 100
_ROWS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "gpu_check.csv"
_GIB = 2**30


@cache
def lora_plan() -> Plan:
    """The plan as `wrap` would make it, were its seconds those of the H200."""
    # The rest of the site needs neither torch nor PEFT.
    from memo_train.trace._fake_device import A800
    from memo_train.trace._fake_step import FakeModel

    measured = _measured()
    profile = FakeModel(_model, A800).profile(batch=1, tokens=TOKENS)
    names = [field.name for field in fields(BlockTimes)]
    profile = replace(
        profile,
        model="Llama-3-8B with LoRA of rank 16",
        device="one 80 GB GPU",
        times=BlockTimes(**{name: measured[name] for name in names}),
        link=Link(**{f.name: measured[f.name] for f in fields(Link)}),
    )
    limits = Limits(device_bytes=DEVICE_GIB * _GIB, host_bytes=HOST_GIB * _GIB)
    return plan_on_clock(profile, TOKENS, limits)


def shown() -> str:
    """The plan as `memo-plan show` prints it, as a block of a page."""
    with scratch_folder() as folder:
        lora_plan().save(folder / "plan.json")
        return f"```text\n{output_of('memo-plan show plan.json')}```"


def _measured() -> dict[str, float]:
    with _ROWS.open(encoding="utf-8") as rows:
        return {
            row["figure"]: float(row["median"])
            for row in csv.DictReader(rows)
            if row["settings"].startswith("part=b;what=profile")
        }


def _model() -> Any:
    from peft import LoraConfig, get_peft_model

    from benchmarks.recorded_steps import MODEL_SIZES

    config = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = MODEL_SIZES["llama-3-8b"].make(TOKENS)
    with warnings.catch_warnings():
        # PEFT 0.21 asks Transformers for a name that it is about to drop.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, config)
