"""Every causal-LM family of the installed Transformers as a tiny model: tiled, whole or refused?

    python benchmarks/families.py                       # all of them, a table
    python benchmarks/families.py llama falcon          # some
    python benchmarks/families.py --csv --markdown docs/families.md

A family is wrapped three times (all recomputed, all swapped, planned), each in a step whose loss
and gradients are compared with plain autograd's by their errors against float64.
"""

from __future__ import annotations

import argparse
import inspect
import multiprocessing
import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import memo_train
from benchmarks.results import ResultRow, append_csv, print_table
from benchmarks.tiny_configs import VOCAB_SIZE, families, tiny_models
from memo_train.errors import MemoError
from memo_train.runtime import HowToRun
from memo_train.testing import Step, float64_step, run_step
from memo_train.wrap import planner_of

TOKENS = 48
TILE_TOKENS = 16
_WAYS: dict[str, dict[str, Any]] = {
    "recomputed": {"alpha": 0.0, "tile_tokens": TILE_TOKENS},
    "swapped": {"alpha": 1.0, "tile_tokens": TILE_TOKENS},
    "planned": {},
}
_ERROR_OVER_PLAIN = 2.0
_ROUNDING = 1e-5
"""Relative: what fp32 may be off where plain autograd happens to be exact."""

RESULTS = ("tiled", "partly", "whole", "refused", "wrong", "crash", "not made")
"""Every block and the loss by tiles; some of them; none; an error of memo-train's own; gradients
off; any other error; no tiny model of it that trains by itself."""


@dataclass(frozen=True, kw_only=True)
class FamilyResult:
    """What became of one family; `reason` is empty for tiled ones."""

    family: str
    model: str
    result: str
    num_blocks: int = 0
    num_tiled: int = 0
    reason: str = ""
    seconds: float = 0.0


def try_family(family: str) -> FamilyResult:
    """Wrap and train a tiny model of the family, in this process."""
    torch.set_num_threads(1)
    made = partial(FamilyResult, family=family, model=families()[family])
    try:
        model, batch, plain = _trained_plainly(family)
    except Exception as error:  # not memo-train's: the model itself does not run
        return made(result="not made", reason=_told(error))
    exact = _exact_step(model, batch, plain)
    start_s, how = time.monotonic(), dict[str, Any]()
    result, reason = "tiled", ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for way, options in _WAYS.items():
            result, reason = _wrapped_step(model, options, batch, plain, exact, how)
            if result != "tiled":
                reason = f"{way}: {reason}"
                break
    if result == "tiled":
        told = [str(w.message) for w in caught if "not tiled" in str(w.message)]
        whole_loss = any("the loss is not tiled" in text for text in told)
        complete = how["num_tiled"] == how["num_blocks"] and not whole_loss
        result = "tiled" if complete else "partly" if how["num_tiled"] else "whole"
        reason = " | ".join(dict.fromkeys(told))
    return made(result=result, reason=reason, seconds=time.monotonic() - start_s, **how)


def _trained_plainly(family: str) -> tuple[nn.Module, dict[str, Any], Step]:
    """The first tiny model that trains by itself, its batch, and what a step gave."""
    ids = torch.arange(TOKENS)[None] * 7 % (VOCAB_SIZE - 3) + 3
    failed: Exception | None = None
    for model in tiny_models(family):
        batch: dict[str, Any] = {"input_ids": ids, "labels": ids}
        if "use_cache" in inspect.signature(model.forward).parameters:
            batch["use_cache"] = False
        try:
            step = run_step(model, **batch)
        except Exception as error:  # sizes that do not go together
            failed = error
            continue
        if not torch.equal(step.loss, run_step(model, seed=1, **batch).loss):
            model.eval()  # it draws in training: tiles would draw other numbers
            step = run_step(model, **batch)
        if not step.loss.isfinite():
            raise ValueError(f"the plain loss is {step.loss}")
        return model, batch, step
    raise failed or ValueError("no sizes were found")


def _exact_step(model: nn.Module, batch: dict[str, Any], plain: Step) -> Step:
    """The step in float64; where the model casts too much for that, plain autograd's."""
    try:
        return float64_step(model, **batch)
    except (RuntimeError, TypeError):
        return plain


def _wrapped_step(
    model: nn.Module,
    options: dict[str, Any],
    batch: dict[str, Any],
    plain: Step,
    exact: Step,
    how: dict[str, Any],
) -> tuple[str, str]:
    """("tiled", "") if all went well, else the result and why; `how` is told of the blocks."""
    try:
        memo_train.wrap(model, **options)
    except MemoError as error:
        return "refused", _told(error)
    except Exception as error:
        return "crash", f"wrap: {_told(error)}"
    try:
        verdicts = planner_of(model).wrapped.verdicts
        how["num_blocks"] = len(verdicts)
        how["num_tiled"] = sum(verdict.how is HowToRun.TILED for verdict in verdicts)
        difference = _difference(run_step(model, **batch), plain, exact)
    except MemoError as error:
        return "refused", f"step: {_told(error)}"
    except Exception as error:
        return "crash", f"step: {_told(error)}"
    finally:
        memo_train.unwrap(model)
        model.zero_grad(set_to_none=True)
    return ("tiled", "") if difference is None else ("wrong", difference)


def _difference(step: Step, plain: Step, exact: Step) -> str | None:
    """What is further from float64 than plain autograd's by more than the tolerance, or None."""
    missing = step.gradients.keys() ^ plain.gradients.keys()
    if missing:
        return f"only one of the two has gradients of {sorted(missing)[:3]}"
    total = torch.stack([g.double().norm() for g in exact.gradients.values()]).norm()
    pairs = {"loss": (step.loss, plain.loss, exact.loss, exact.loss.double().abs())}
    for name, gradient in step.gradients.items():
        reference = exact.gradients.get(name, plain.gradients[name])
        # A gradient that is next to nothing beside the others is their rounding.
        size = reference.double().norm() + 1e-3 * total
        pairs[name] = (gradient, plain.gradients[name], reference, size)
    for name, (ours, theirs, reference, size) in pairs.items():
        off, plain_off = (
            float((t.double() - reference.double()).norm() / size) for t in (ours, theirs)
        )
        if not off <= max(_ERROR_OVER_PLAIN * plain_off, _ROUNDING):
            return f"{name} is off by {off:.2g}, plain autograd's by {plain_off:.2g}"
    return None


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def run_families(names: Sequence[str], *, limit_s: float, jobs: int) -> list[FamilyResult]:
    """Every family in a process of its own, `jobs` at a time, none longer than `limit_s`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.families", "transformers.modeling_utils"])
    with ThreadPoolExecutor(jobs) as threads:
        return list(threads.map(partial(_in_process, context, limit_s), names))


def _in_process(context: Any, limit_s: float, family: str) -> FamilyResult:
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(there, family))
    process.start()
    there.close()
    lost = partial(FamilyResult, family=family, model=families()[family], result="crash")
    try:
        if not here.poll(limit_s):
            return lost(reason=f"no answer in {limit_s:.0f} s")
        result: FamilyResult = here.recv()
        print(family, result.result, result.reason[:120], file=sys.stderr, flush=True)
    except EOFError:
        process.join()
        return lost(reason=f"the process ended with {process.exitcode}")
    else:
        return result
    finally:
        process.kill()
        process.join()


def _answer(connection: Any, family: str) -> None:
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    connection.send(try_family(family))


def markdown(results: Sequence[FamilyResult]) -> str:
    """The table as a page of the documentation."""
    counts = Counter(result.result for result in results)
    told = ", ".join(f"{counts[name]} {name}" for name in RESULTS if counts[name])
    lines = [
        "# Model families",
        "",
        f"Every causal-LM family of Transformers {transformers.__version__} as a tiny model of "
        f"{TOKENS} tokens, written by `benchmarks/families.py --markdown`.",
        f"{len(results)} families: {told}.",
        "",
        "Tiled: all blocks and the loss run by token tiles. Partly: some blocks, or all but the "
        "loss. Whole: blocks are",
        "checkpointed whole with their inputs swapped. Refused: an error says so. Not made: no "
        "tiny model of it trains by itself.",
        "In all but the refused ones loss and gradients are as near to float64 as plain "
        "autograd's, recomputed, swapped and planned.",
        "",
        "| family | model | result | blocks tiled | reason |",
        "|---|---|---|---|---|",
    ]
    for r in results:
        reason = r.reason.replace("|", "/").replace("<", "&lt;")[:160]
        lines.append(
            f"| {r.family} | {r.model} | {r.result} | {r.num_tiled} of {r.num_blocks} | {reason} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Try the families that are asked for, and show what became of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("families", nargs="*", help="model types; all if none is given")
    parser.add_argument("--limit-s", type=float, default=120.0, help="seconds for one family")
    parser.add_argument("--jobs", type=int, default=1, help="families at a time")
    parser.add_argument("--csv", action="store_true", help="append to results/families.csv")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    options = parser.parse_args()
    names = options.families or list(families())
    results = run_families(names, limit_s=options.limit_s, jobs=options.jobs)
    rows = [(r.family, r.result, f"{r.num_tiled}/{r.num_blocks}", r.reason[:200]) for r in results]
    print_table("Causal-LM families", ("family", "result", "tiled", "reason"), rows)
    counts = Counter(result.result for result in results)
    print("\n" + ", ".join(f"{counts[name]} {name}" for name in RESULTS))
    if options.csv:
        settings = f"Transformers {transformers.__version__}, {len(results)} families"
        found = [ResultRow.of(settings, name, "families", [counts[name]]) for name in RESULTS]
        append_csv("families", found)
    if options.markdown is not None:
        options.markdown.write_text(markdown(results))


if __name__ == "__main__":
    main()
