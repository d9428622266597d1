"""The paper's tables, predicted by the planner's cost model with three cells fitted.

usage: python benchmarks/paper_table.py [--model 7b] [--json [out.json]] [--csv]

All other cells, and all of the other models', are predictions with the same fit. Every assumption
is printed and in the JSON file; so is every place where two printed facts contradict each other.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.paper_cells import ABLATION, ALPHA, LENGTHS, MAIN, Cell, K
from benchmarks.paper_facts import ASSUMPTIONS, contradictions
from benchmarks.paper_fit import ABLATION_PARALLEL, Fit, fit_cells
from benchmarks.results import (
    STDOUT,
    ResultRow,
    add_json_option,
    append_csv,
    print_table,
    write_json,
)
from memo_planner.errors import InvalidInput, PlanInfeasible
from memo_planner.strategies import Strategy, plan_job
from memo_planner.workload import MODELS, PAPER_GPUS, Parallel

STRATEGIES = (
    Strategy.CHECKPOINT,
    Strategy.CHECKPOINT_OFFLOAD,
    Strategy.SWAP_ALL,
    Strategy.MEMO_PAPER,
    Strategy.TILES,
    Strategy.NONE,
)
_DEGREES = (1, 2, 4, 8, 16, 32, 64)
_MOST_TENSOR = 8
_STATE_SHARE = 0.5


def main() -> None:
    """Fit, predict, print, and write what was asked for."""
    options = _parse()
    fit = fit_cells()
    fixed = fixed_parallel(options.model)
    tables = {
        "ablation": [row(fit, options.model, each, fixed) for each in STRATEGIES],
        "main": main_rows(fit, options.model, fixed),
        "alpha": alpha_rows(fit, options.model, fixed),
    }
    result = {
        "model": options.model,
        "gpus": PAPER_GPUS[options.model],
        "parallel": asdict(fixed),
        "fit": {**asdict(fit), "cells": [list(cell) for cell in fit.cells]},
        "assumptions": list(ASSUMPTIONS),
        "contradictions": contradictions(fit),
        "tables": tables,
        "worst_error_points": worst_error(tables),
        "wrong_borders": wrong_borders(tables),
    }
    if options.json != STDOUT:
        _print(result)
    write_json(options.json, result)
    if options.csv:
        append_csv("paper_table", _csv_rows(result))


def fixed_parallel(model: str) -> Parallel:
    """TP 4 CP 2 for 7B, as printed; for the larger ones TP 8 and the rest context, as assumed."""
    if model == "7b":
        return ABLATION_PARALLEL
    gpus = PAPER_GPUS[model]
    return _staged(model, Parallel(gpus=gpus, tensor=8, context=gpus // 8))


def row(fit: Fit, model: str, strategy: Strategy, parallel: Parallel) -> dict[str, Any]:
    """One strategy at every length, with fixed degrees."""
    printed = ABLATION.get(strategy.value, {}) if model == "7b" else {}
    cells = [
        cell(fit, model, strategy, parallel, thousands, printed.get(thousands))
        for thousands in LENGTHS
    ]
    return {"strategy": strategy.value, "parallel": parallel.described(), "cells": cells}


def main_rows(fit: Fit, model: str, fixed: Parallel) -> list[dict[str, Any]]:
    """MEMO with the fastest degrees at each length, and with the fixed ones wherever they fit.

    From 128K on the main table prints the ablation's figures, so there the paper used those.
    """
    printed = MAIN if model == "7b" else {}
    fastest, preferred = [], []
    for thousands in LENGTHS:
        found = [
            cell(fit, model, Strategy.MEMO_PAPER, each, thousands, printed.get(thousands))
            for each in (fixed, *parallel_choices(model))
        ]
        fastest.append(max(found, key=lambda each: each["mfu"] or 0.0))
        preferred.append(found[0] if found[0]["mfu"] else fastest[-1])
    name = Strategy.MEMO_PAPER.value
    return [
        {"strategy": name, "parallel": "fastest", "cells": fastest},
        {"strategy": name, "parallel": f"{fixed.described()}, else fastest", "cells": preferred},
    ]


def alpha_rows(fit: Fit, model: str, parallel: Parallel) -> list[dict[str, Any]]:
    """MFU of every alpha, and the best, at the lengths of the paper's alpha table."""
    rows = []
    for thousands, printed in ALPHA.items():
        known = printed if model == "7b" else (None,) * len(printed)
        cells = [
            cell(fit, model, Strategy.MEMO_PAPER, parallel, thousands, known[i], alpha=i / 8)
            for i in range(9)
        ]
        best = max(range(9), key=lambda i: cells[i]["mfu"] or 0.0) / 8
        wanted = max(range(9), key=lambda i: _points(printed[i])) / 8 if model == "7b" else None
        rows.append(
            {"seq_len": thousands * K, "cells": cells, "best": best, "printed_best": wanted}
        )
    return rows


def cell(
    fit: Fit,
    model: str,
    strategy: Strategy,
    parallel: Parallel,
    thousands: int,
    printed: Cell,
    *,
    alpha: float | None = None,
) -> dict[str, Any]:
    """One prediction beside the printed figure, MFU in %; `short` names the memory that ran out."""
    known = {"seq_len": thousands * K, "parallel": parallel.described(), "printed": printed}
    try:
        plan = plan_job(fit.job(model, thousands * K, parallel), strategy, alpha=alpha)
    except PlanInfeasible as error:
        longest = error.max_tokens
        return {**known, "mfu": None, "short": error.where, "longest": longest, "error": None}
    assert plan.setting is not None
    told = plan.prediction
    mfu = 100 * plan.setting.mfu(told)
    return {
        **known,
        "mfu": mfu,
        "short": None,
        "error": mfu - printed if isinstance(printed, float) else None,
        "alpha": plan.policy.blocks[0].swap_tiles / plan.policy.num_tiles,
        "step_s": plan.setting.step_s(told),
        "device_peak_bytes": told.device_peak_bytes,
        "node_host_bytes": told.host_peak_bytes * plan.setting.ranks_on_node,
    }


def parallel_choices(model: str) -> list[Parallel]:
    """Tensor degrees up to a node, any context degree, the rest data."""
    gpus = PAPER_GPUS[model]
    found = []
    for tensor in _DEGREES:
        for context in _DEGREES:
            if tensor <= _MOST_TENSOR and gpus % (tensor * context) == 0:
                found.append(_staged(model, Parallel(gpus=gpus, tensor=tensor, context=context)))
    return [each for each in found if MODELS[model].num_heads % each.tensor == 0]


def _staged(model: str, parallel: Parallel) -> Parallel:
    """ZeRO 0 where the state then takes at most half of a device, else 1."""
    state_bytes = 18 * MODELS[model].parameters / parallel.tensor
    stage = 0 if state_bytes <= _STATE_SHARE * 80e9 else 1
    return Parallel(
        gpus=parallel.gpus, tensor=parallel.tensor, context=parallel.context, zero_stage=stage
    )


def worst_error(tables: dict[str, Any]) -> dict[str, float | None]:
    """Largest error in MFU points over the printed cells of each table; None if none is printed."""
    return {
        name: max(
            (abs(c["error"]) for r in rows for c in r["cells"] if c["error"] is not None),
            default=None,
        )
        for name, rows in tables.items()
    }


def wrong_borders(tables: dict[str, Any]) -> list[str]:
    """Printed cells for which fitting or the memory that runs out is predicted otherwise."""
    wrong = []
    for name, rows in tables.items():
        for each in (c for r in rows for c in r["cells"] if c["printed"] is not None):
            expected = each["printed"] if isinstance(each["printed"], str) else None
            if each["short"] != expected:
                wrong.append(
                    f"{name} at {each['seq_len'] // K}K: printed {each['printed']}, "
                    f"predicted {each['short'] or 'fits'}"
                )
    return wrong


def _points(printed: Cell) -> float:
    return printed if isinstance(printed, float) else 0.0


def _shown(each: dict[str, Any]) -> str:
    printed = each["printed"]
    told = f"{each['mfu']:.2f}" if each["mfu"] else each["short"]
    if printed is None:
        return str(told)
    return f"{told} ({printed if isinstance(printed, str) else format(printed, '.2f')})"


def _print(result: dict[str, Any]) -> None:
    fit = result["fit"]
    print(f"{result['model']} on {result['gpus']} A800: MFU in %, predicted (printed)")
    print(
        f"fit on {fit['cells']}: linear {fit['linear']:.3f}, attention {fit['attention']:.3f}, "
        f"link {fit['link_bytes_per_s'] / 1e9:.2f} GB/s"
    )
    header = ["strategy", *(f"{thousands}K" for thousands in LENGTHS)]
    for name in ("ablation", "main"):
        rows = result["tables"][name]
        lines = [
            [f"{r['strategy']} ({r['parallel']})", *(_shown(c) for c in r["cells"])] for r in rows
        ]
        print_table(name, header, lines)
    rows = [
        [f"{r['seq_len'] // K}K", *(_shown(c) for c in r["cells"]), str(r["best"])]
        for r in result["tables"]["alpha"]
    ]
    print_table("alpha", ["length", *(f"{i / 8:g}" for i in range(9)), "best"], rows)
    print()
    for name, points in result["worst_error_points"].items():
        told = "no cells are printed" if points is None else f"{points:.2f} points"
        print(f"worst error, {name}: {told}")
    for title in ("wrong_borders", "assumptions", "contradictions"):
        print(f"\n{title.replace('_', ' ')}:", *result[title] or ["none"], sep="\n  - ")


def _csv_rows(result: dict[str, Any]) -> list[ResultRow]:
    settings = f"model={result['model']};gpus={result['gpus']};prediction"
    rows = []
    for name in ("ablation", "main"):
        for line in result["tables"][name]:
            for each in (c for c in line["cells"] if c["mfu"]):
                figure = f"{name} MFU % at {each['seq_len'] // K}K"
                mode = f"{line['strategy']} ({each['parallel']})"
                rows.append(ResultRow.of(settings, mode, figure, [each["mfu"]]))
    return rows


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=sorted(PAPER_GPUS), default="7b")
    add_json_option(parser)
    parser.add_argument("--csv", action="store_true", help="add rows to benchmarks/results")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except InvalidInput as error:
        raise SystemExit(str(error)) from error
