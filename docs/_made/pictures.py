"""The pictures of the docs, drawn from plans, steps on the planner's clock and a recorded step.

usage: python docs/_made/pictures.py            writes docs/step.svg, the README's picture
       python docs/_made/pictures.py FOLDER     writes all of them

`docs/step.svg` is the only one in the repository; the site draws the others when it is built.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "planner")]

from docs._made.svg import (
    ATTENTION,
    FAINT,
    GRID,
    KEEP,
    LETTER_PIXELS,
    RECOMPUTE,
    STALL,
    SWAP,
    TEXT,
    WHOLE,
    Drawing,
)
from memo_planner import Limits, Place, Plan, TilePlace
from memo_planner.errors import format_bytes
from memo_planner.export import Addresses, memory_map
from memo_planner.hardware import machine
from memo_planner.schedule import (
    Kind,
    Operation,
    Phase,
    Simulation,
    Speeds,
    Stream,
    copy_budget,
    plan_on_clock,
    schedule_of,
    simulate,
    svg_text,
)
from memo_planner.strategies import Job, Strategy, plan_job
from memo_planner.trace import Requests
from memo_planner.workload import Parallel, Workload, model_named

README_PICTURE = ROOT / "docs" / "step.svg"

_TILES, _TOKENS = 6, 48 * 2**10
_ROOM = {1: 0.6, 4: 0.4}
"""By the number of blocks: a limit so far from nothing kept to all kept that all fates are seen."""
_OF_PLACE = {TilePlace.KEEP: KEEP, TilePlace.SWAP: SWAP, TilePlace.RECOMPUTE: RECOMPUTE}
_OF_WHOLE = {Place.KEEP: KEEP, Place.SWAP: SWAP, Place.RECOMPUTE: RECOMPUTE}
_WHOLES = ("x", "o", "saved by attention")
_LANES = {Stream.COMPUTE: "computation", Stream.D2H: "to the host", Stream.H2D: "from the host"}
_LEFT, _WIDTH, _RIGHT, _TOP = 104, 740, 14, 88
_LANE, _GAP, _CURVE = 26, 8, 120
_ROW = 14


def pictures() -> dict[str, Callable[[], str]]:
    """What draws each picture, by its file's name; gives the text of an SVG document."""
    return {
        "block.svg": lambda: step_picture(small_plan(1), "One block of Llama-3-8B"),
        "step.svg": lambda: step_picture(small_plan(4), "Four blocks of Llama-3-8B"),
        "policy.svg": lambda: policy_picture(long_plan()),
        "schedule.svg": lambda: svg_text(on_clock(long_plan())),
        "addresses-planned.svg": partial(_addresses, Addresses.PLANNED),
        "addresses-caching.svg": partial(_addresses, Addresses.CACHING),
    }


@cache
def small_plan(num_blocks: int) -> Plan:
    """Few blocks as large as Llama-3-8B's on one H100, with room for some of what they save."""
    model = model_named("llama-3-8b")
    model = replace(model, kinds=tuple(replace(kind, count=num_blocks) for kind in model.kinds))
    workload = Workload(model=model, tokens=_TOKENS, batch=1, parallel=Parallel(gpus=1))
    job = Job.of(workload, machine("h100-80g-x8"))
    make = partial(
        plan_on_clock, job.profile(Strategy.TILES), _TOKENS, tile_tokens=_TOKENS // _TILES
    )
    no_limits = Limits(device_bytes=None, host_bytes=None)
    least, most = (
        made.prediction.device_peak_bytes for made in (make(no_limits, alpha=1.0), make(no_limits))
    )
    room_bytes = int(_ROOM[num_blocks] * (most - least))
    return make(Limits(device_bytes=least + room_bytes, host_bytes=None))


@cache
def long_plan() -> Plan:
    """The paper's 7B model at 1M tokens on 8 A800, as `memo-plan make` plans it."""
    parallel = Parallel(gpus=8, sequence=8, zero_stage=3)
    workload = Workload(model=model_named("7b"), tokens=2**20, batch=1, parallel=parallel)
    return plan_job(Job.of(workload, machine("a800-80g-x8")), Strategy.TILES)


def on_clock(plan: Plan) -> Simulation:
    """The plan's step with the copies that its limits allow."""
    setting = plan.setting
    speeds = Speeds.of_link(
        plan.profile.link, peak_flops_per_s=None if setting is None else setting.peak_flops
    )
    return simulate(schedule_of(plan, budget=copy_budget(plan)), speeds)


def step_picture(plan: Plan, name: str) -> str:
    """Every operation of a step as a bar in its stream, and the device's bytes below."""
    step = on_clock(plan)
    height = _TOP + len(_LANES) * (_LANE + _GAP) + 2 * 24 + _CURVE + 40
    drawing = Drawing(_LEFT + _WIDTH + _RIGHT, height)
    _head(drawing, plan, name)
    for row, (stream, lane) in enumerate(_LANES.items()):
        y = _TOP + row * (_LANE + _GAP)
        drawing.say(_LEFT - 8, y + 17, lane, anchor="end")
        for start, width, operation in _shown(step, stream):
            drawing.bar(start, y, (width, _LANE), _colour(operation, plan))
            _name_of_whole(drawing, operation, start + width / 2, width, y)
    _blocks(drawing, step, _TOP + len(_LANES) * (_LANE + _GAP))
    _bytes_curve(drawing, plan, step, height - _CURVE - 34)
    drawing.say(_LEFT, height - 10, "time, left to right", fill=FAINT)
    return drawing.text()


def _head(drawing: Drawing, plan: Plan, name: str) -> None:
    policy = plan.policy
    title = f"{name}, {policy.tokens:,} tokens in {policy.num_tiles} tiles"
    drawing.say(_LEFT, 22, title, font_size=15)
    told = (
        "The blocks of a step on the planner's clock, at the speeds that it takes for one H100: a "
        "prediction, without head and loss"
    )
    drawing.say(_LEFT, 40, told, fill=FAINT)
    drawing.legend(
        _LEFT,
        66,
        {
            "kept tile": KEEP,
            "swapped tile": SWAP,
            "recomputed tile": RECOMPUTE,
            "attention": ATTENTION,
            "x, o, saved by attention": WHOLE,
        },
    )


def _shown(step: Simulation, stream: Stream) -> Iterator[tuple[float, float, Operation]]:
    """Begin and width in pixels of what takes time on a stream."""
    across = _WIDTH / step.step_s
    rows = zip(step.starts_s, step.ends_s, step.schedule.operations, strict=True)
    for start_s, end_s, operation in rows:
        if operation.stream is stream and operation.kind is not Kind.WAIT and end_s > start_s:
            width = float(end_s - start_s) * across
            # Neighbours are told apart by a gap of half a pixel.
            yield _LEFT + float(start_s) * across, max(width - 0.5, 0.5), operation


def _colour(operation: Operation, plan: Plan) -> str:
    if operation.kind is not Kind.COMPUTE:
        # Copies ahead of time are asked for by another tile than theirs.
        return WHOLE if operation.name in _WHOLES else SWAP
    if operation.tile is None or operation.block is None:
        return ATTENTION
    return _OF_PLACE[plan.policy.blocks[operation.block].tile_place(operation.tile)]


def _name_of_whole(
    drawing: Drawing, operation: Operation, middle: float, width: float, y: float
) -> None:
    """The name of a bar that is no tile's, where it has room."""
    names = {"attention": "attention", "attention backward": "attention"}
    name = names.get(operation.name)
    if name is not None and width > LETTER_PIXELS * len(name):
        drawing.say(middle, y + 17, name, anchor="middle", fill="#ffffff")


def _blocks(drawing: Drawing, step: Simulation, y: float) -> None:
    """Below the streams: which block computes."""
    spans: dict[tuple[Phase, int], tuple[float, float]] = {}
    for start, width, operation in _shown(step, Stream.COMPUTE):
        if operation.block is not None:
            first, _ = spans.get((operation.phase, operation.block), (start, 0.0))
            spans[operation.phase, operation.block] = (first, start + width)
    for (phase, block), (first, last) in spans.items():
        drawing.line(f"M{first:.1f} {y + 4:.1f}v-6M{first:.1f} {y:.1f}H{last:.1f}", FAINT)
        for name in (f"block {block} {phase.value}", f"{block} {phase.value}", str(block)):
            if last - first > LETTER_PIXELS * len(name):
                drawing.say((first + last) / 2, y + 15, name, anchor="middle", fill=FAINT)
                break


def _bytes_curve(drawing: Drawing, plan: Plan, step: Simulation, y: float) -> None:
    """Bytes on the device over time, above the state, and the limit."""
    state, limit = plan.profile.state_bytes, plan.limits.device_bytes
    levels = [int(level) - state for level in step.device.sampled(_WIDTH, step.step_s)]
    top = max([*levels, 0 if limit is None else limit - state])
    base = y + _CURVE
    path = [f"M{_LEFT} {base:.1f}"]
    before = None
    for column, level in enumerate(levels):
        if level != before:
            path.append(f"H{_LEFT + column}V{base - _CURVE * level / top:.1f}")
            before = level
    drawing.line(f"{''.join(path)}H{_LEFT + _WIDTH}V{base:.1f}Z", "none", fill="#cfe3cd")
    drawing.line(f"M{_LEFT} {base:.1f}h{_WIDTH}", GRID)
    if limit is not None:
        at = base - _CURVE * (limit - state) / top
        drawing.line(f"M{_LEFT} {at:.1f}h{_WIDTH}", STALL, dashed=True)
        drawing.say(_LEFT - 8, at + 4, f"limit {format_bytes(limit)}", anchor="end", fill=STALL)
    drawing.say(_LEFT - 8, y + _CURVE / 2, "device bytes", anchor="end")
    drawing.say(_LEFT - 8, base + 4, f"state {format_bytes(state)}", anchor="end", fill=FAINT)


def policy_picture(plan: Plan) -> str:
    """A row for each block of a plan, tiles from left to right, then where x and o wait."""
    policy = plan.policy
    height = _TOP + len(policy.blocks) * _ROW + 46
    drawing = Drawing(_LEFT + _WIDTH + _RIGHT, height)
    title = (
        f"{plan.profile.model}, {policy.tokens:,} tokens: {policy.num_tiles} tiles of "
        f"{policy.tile_tokens:,} in each of {len(policy.blocks)} blocks"
    )
    drawing.say(_LEFT, 24, title, font_size=15)
    drawing.say(_LEFT, 42, _plan_line(plan), fill=FAINT)
    fates = {"kept on the device": KEEP, "swapped to the host": SWAP, "computed again": RECOMPUTE}
    drawing.legend(_LEFT, 66, fates)
    tiles_width = _WIDTH - 90
    for index, block in enumerate(policy.blocks):
        y, x = _TOP + index * _ROW, float(_LEFT)
        counts = (block.swap_tiles, block.recompute_tiles, block.keep_tiles)
        # In token order, as the runtime takes them.
        for count, colour in zip(counts, (SWAP, RECOMPUTE, KEEP), strict=True):
            width = tiles_width * count / policy.num_tiles
            drawing.bar(x, y, (width, _ROW - 2), colour)
            x += width
        for place, at in ((block.x, 20), (block.o, 56)):
            drawing.bar(_LEFT + tiles_width + at, y, (30, _ROW - 2), _OF_WHOLE[place])
        if index % 4 == 0:
            drawing.say(_LEFT - 8, y + 10, f"block {index}", anchor="end", font_size=10)
    for tile in range(1, policy.num_tiles if policy.num_tiles <= 128 else 1):
        x = _LEFT + tiles_width * tile / policy.num_tiles
        drawing.line(f"M{x:.1f} {_TOP}V{height - 48}", "#ffffff")
    for name, at in (("x", 35), ("o", 71)):
        drawing.say(_LEFT + tiles_width + at, _TOP - 6, name, anchor="middle", fill=TEXT)
    drawing.say(_LEFT, height - 20, "tokens, left to right", fill=FAINT)
    return drawing.text()


def _plan_line(plan: Plan) -> str:
    told, setting = plan.prediction, plan.setting
    where = plan.profile.device if setting is None else f"{setting.gpus} of {setting.hardware}"
    seconds = told.step_forward_s + told.step_backward_s
    seconds = seconds if setting is None else setting.step_s(told)
    return (
        f"{where}, predicted: {seconds:.0f} s a step, {format_bytes(told.device_peak_bytes)} on "
        f"each device, {format_bytes(told.host_peak_bytes)} on the host for each"
    )


@cache
def recorded_step() -> Requests:
    """The requests of a small Llama's step by tiles, computed here for real."""
    # It needs torch and Transformers, which the other pictures do not.
    from benchmarks.recorded_steps import real_steps

    *_, (_, record) = real_steps()
    return record()


def _addresses(rule: Addresses) -> str:
    requests = recorded_step()
    names = {
        Addresses.PLANNED: "planned addresses",
        Addresses.CACHING: "where PyTorch's caching allocator would put them (simulated)",
    }
    title = f"A step of a small Llama by token tiles, recorded on the CPU: {names[rule]}"
    return memory_map(requests, rule.of(requests), title=title)


def main() -> None:
    """Write the README's picture, or all pictures to the folder that is named."""
    if len(sys.argv) == 1:
        README_PICTURE.write_text(pictures()["step.svg"](), encoding="utf-8")
        return
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in pictures().items():
        (folder / name).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
