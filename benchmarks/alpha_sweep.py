"""Step seconds over a sweep of alpha on three links, and with the planner's own choices.

usage: python benchmarks/alpha_sweep.py --json out.json [--csv] [--shares 0.25 0.6 2.0]

One small Llama on the CPU device, profiled a few times; the fastest profile counts, as the others
were disturbed. A link carries all that a block saves in 1 / share of its forward's time. On each
link every block swaps alpha of its tiles and recomputes the rest; all values of alpha, one of which
is the planner's, and a plan of the planner's that may also keep, take turns, one step at a time.
The latter has a device limit that leaves half the room between nothing kept and everything kept.
ratio: the planner's median over the best median; least ratio: the same of the least seconds, which
other work on the machine disturbs less.
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

EIGHTHS = tuple(n / 8 for n in range(9))
KEEP = "planner with keep"
_PROFILES = 5


def variants_of(profile: Profile, options: argparse.Namespace, rest: StepRest) -> list[Variant]:
    """Every eighth of alpha without limits, and the planner's choice under a limit."""
    no_limits = Limits(device_bytes=None, host_bytes=None)
    tokens, tile_tokens = options.tokens, options.tile_tokens
    plans = {
        f"alpha {alpha:g}": make_plan(
            profile, tokens, no_limits, alpha=alpha, tile_tokens=tile_tokens
        )
        for alpha in EIGHTHS
    }
    limits = half_room(profile, tokens, tile_tokens)
    plans[KEEP] = plan_on_clock(profile, tokens, limits, tile_tokens=tile_tokens)
    return [Variant.of(name, plan, rest) for name, plan in plans.items()]


def sweep_link(
    model: PlannedModel, profile: Profile, share: float, options: argparse.Namespace
) -> dict[str, Any]:
    """What was measured and predicted on one link."""
    link = links_around(profile, options.tokens, (share,))[0]
    on_link = with_link(profile, link)
    rest = model.rest(on_link, options.tile_tokens)
    variants = variants_of(on_link, options, rest)
    steps = steps_in_turn(model, variants, options.repeats)
    seconds = {name: [step.seconds for step in each] for name, each in steps.items()}
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    alphas = [variant for variant in variants if variant.name != KEEP]
    best_s = min(medians[variant.name] for variant in alphas)
    least = {name: min(each) for name, each in seconds.items()}
    least_s = min(least[variant.name] for variant in alphas)
    chosen = min(alphas, key=lambda variant: variant.predicted_s).name
    simulated = min(alphas, key=lambda variant: variant.simulated.step_s).name
    return {
        "share": share,
        "link_bytes_per_s": link.d2h_bytes_per_s,
        "best": min((v.name for v in alphas), key=lambda name: medians[name]),
        "planner": chosen,
        "ratio": medians[chosen] / best_s,
        "least_ratio": least[chosen] / least_s,
        "simulator": simulated,
        "simulator_ratio": medians[simulated] / best_s,
        "keep_ratio": medians[KEEP] / best_s,
        "seconds": seconds,
        "stall_s": {name: [step.stall_s for step in each] for name, each in steps.items()},
        "medians": medians,
        "simulated_s": {variant.name: variant.simulated.step_s for variant in variants},
        "predicted_s": {variant.name: variant.predicted_s + rest.loss_s for variant in variants},
    }


def main() -> None:
    """Measure, print, and write what was asked for."""
    options = _parse()
    use_one_thread()
    job = Job(mode="memo", layers=options.layers, hidden=options.hidden)
    model = PlannedModel(job, options.tokens)
    profiles = [model.profile() for _ in range(_PROFILES)]
    profile = min(profiles, key=lambda each: _forward_s(each, options.tokens))
    names = ("tokens", "layers", "hidden", "tile_tokens")
    settings = ";".join(f"{name}={getattr(options, name)}" for name in names)
    links = []
    for share in options.shares:
        links.append(sweep_link(model, profile, share, options))
        _print(links[-1])
        if options.csv:
            append_csv("alpha_sweep", _rows(f"{settings};share={share:g}", links[-1]))
    worst = max(link["ratio"] for link in links)
    least = max(link["least_ratio"] for link in links)
    print(f"\nplanner's alpha over the best alpha, worst of {len(links)} links: {worst:.3f}")
    print(f"by the least seconds of each: {least:.3f}")
    write_json(options.json, {"settings": settings, "worst_ratio": worst, "links": links})


def _forward_s(profile: Profile, tokens: int) -> float:
    times = profile.times
    return times.tilewise_s_per_token * tokens + times.attention_s_per_token2 * tokens**2


def _rows(settings: str, link: dict[str, Any]) -> list[ResultRow]:
    rows = [
        ResultRow.of(settings, name, "seconds", values) for name, values in link["seconds"].items()
    ]
    for figure in ("ratio", "least_ratio", "simulator_ratio", "keep_ratio"):
        rows.append(ResultRow.of(settings, link["planner"], figure, [link[figure]]))
    return rows


def _print(link: dict[str, Any]) -> None:
    rows = []
    for name, values in link["seconds"].items():
        marks = [key for key in ("best", "planner", "simulator") if link[key] == name]
        spread = f"{min(values):.3f} to {max(values):.3f}"
        figures = [link["simulated_s"][name], link["predicted_s"][name]]
        stall = f"{statistics.median(link['stall_s'][name]):.3f}"
        told = [f"{figure:.3f}" for figure in figures]
        rows.append([name, f"{link['medians'][name]:.3f}", spread, stall, *told, ", ".join(marks)])
    header = ["variant", "s/step", "min to max", "stalled", "simulated", "cost model", ""]
    title = (
        f"link {link['link_bytes_per_s'] / 1e6:.0f} MB/s ({link['share']:g} of what hides all "
        f"copies): planner's alpha / best {link['ratio']:.3f} (least "
        f"{link['least_ratio']:.3f}), simulator's alpha / best "
        f"{link['simulator_ratio']:.3f}, planner with keep / best {link['keep_ratio']:.3f}"
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
