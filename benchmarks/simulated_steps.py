"""Seconds of steps on the CPU device beside those that the simulator gives them, on three links.

usage: python benchmarks/simulated_steps.py --json out.json [--csv] [--shares 0.25 0.6 2.0]

One small Llama, profiled once. On each link: alpha 0, a half and 1, and two plans under a device
limit: the planner's by its cost model alone, and the one chosen on the clock. The simulator knows
the profile, the link and the seconds of the loss, nothing of the steps it is compared with.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.job import Job
from benchmarks.planned_steps import (
    PlannedModel,
    Variant,
    half_room,
    links_around,
    steps_in_turn,
    use_one_thread,
    with_link,
)
from benchmarks.results import ResultRow, append_csv, print_table, write_json
from memo_planner import Limits, Profile, make_plan
from memo_planner.schedule import StepRest, plan_on_clock

ALPHAS = (0.0, 0.5, 1.0)


def variants_of(profile: Profile, options: argparse.Namespace, rest: StepRest) -> list[Variant]:
    """Three values of alpha without limits, and two plans under a limit."""
    no_limits = Limits(device_bytes=None, host_bytes=None)
    tokens, tile_tokens = options.tokens, options.tile_tokens
    plans = {
        f"alpha {alpha:g}": make_plan(
            profile, tokens, no_limits, alpha=alpha, tile_tokens=tile_tokens
        )
        for alpha in ALPHAS
    }
    limits = half_room(profile, tokens, tile_tokens)
    plans["cost model"] = make_plan(profile, tokens, limits, tile_tokens=tile_tokens)
    plans["on the clock"] = plan_on_clock(profile, tokens, limits, tile_tokens=tile_tokens)
    return [Variant.of(name, plan, rest) for name, plan in plans.items()]


def compare_link(
    model: PlannedModel, profile: Profile, share: float, options: argparse.Namespace
) -> dict[str, Any]:
    """Measured and simulated seconds of every variant on one link."""
    link = links_around(profile, options.tokens, (share,))[0]
    on_link = with_link(profile, link)
    variants = variants_of(on_link, options, model.rest(on_link, options.tile_tokens))
    steps = steps_in_turn(model, variants, options.repeats)
    rows = {}
    for variant in variants:
        seconds = [step.seconds for step in steps[variant.name]]
        median_s = statistics.median(seconds)
        rows[variant.name] = {
            "seconds": seconds,
            "median_s": median_s,
            "simulated_s": variant.simulated.step_s,
            "error": variant.simulated.step_s / median_s - 1,
            "stall_s": statistics.median(step.stall_s for step in steps[variant.name]),
            "simulated_stall_s": variant.simulated.stall_s,
            "predicted_stall_s": variant.plan.prediction.stall_s,
        }
    return {"share": share, "link_bytes_per_s": link.d2h_bytes_per_s, "variants": rows}


def main() -> None:
    """Measure, print, and write what was asked for."""
    options = _parse()
    use_one_thread()
    job = Job(mode="memo", layers=options.layers, hidden=options.hidden)
    model = PlannedModel(job, options.tokens)
    profile = model.profile()
    names = ("tokens", "layers", "hidden", "tile_tokens")
    settings = ";".join(f"{name}={getattr(options, name)}" for name in names)
    links = []
    for share in options.shares:
        links.append(compare_link(model, profile, share, options))
        _print(links[-1])
        if options.csv:
            append_csv("simulated_steps", _rows(f"{settings};share={share:g}", links[-1]))
    write_json(options.json, {"settings": settings, "links": links})


def _rows(settings: str, link: dict[str, Any]) -> list[ResultRow]:
    rows = []
    for name, each in link["variants"].items():
        rows.append(ResultRow.of(settings, name, "seconds", each["seconds"]))
        for figure in ("simulated_s", "error", "stall_s", "simulated_stall_s"):
            rows.append(ResultRow.of(settings, name, figure, [each[figure]]))
    return rows


def _print(link: dict[str, Any]) -> None:
    rows = []
    for name, each in link["variants"].items():
        spread = f"{min(each['seconds']):.3f} to {max(each['seconds']):.3f}"
        stalls = [f"{each[key]:.3f}" for key in ("stall_s", "simulated_stall_s")]
        told = f"{each['predicted_stall_s']:.3f}"
        figures = [f"{each['median_s']:.3f}", spread, f"{each['simulated_s']:.3f}"]
        rows.append([name, *figures, f"{each['error']:+.1%}", *stalls, told])
    header = ["variant", "s/step", "min to max", "simulated", "error"]
    header += ["stalled", "simulated", "cost model"]
    title = (
        f"link {link['link_bytes_per_s'] / 1e6:.0f} MB/s, {link['share']:g} of what hides copies"
    )
    print_table(title, header, rows)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--tile-tokens", type=int, default=128)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.6, 2.0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--csv", action="store_true", help="add rows to benchmarks/results/")
    return parser.parse_args()


if __name__ == "__main__":
    main()
