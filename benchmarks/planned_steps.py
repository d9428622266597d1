"""Steps of one small Llama on the CPU device under policies and link speeds given one by one."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import memo_train
from benchmarks.job import Job
from benchmarks.llama import build_model, piece_of_text
from memo_planner import Limits, Link, Plan, Profile, make_plan
from memo_planner.schedule import CopyBudget, Simulation, Speeds, StepRest, schedule_of, simulate
from memo_train.device import get_cpu_device
from memo_train.runtime import StepPolicy, WrappedModel, ignore
from memo_train.trace import measure_profile
from memo_train.trace._steps import StageRecorder


@dataclass(frozen=True, kw_only=True)
class TimedStep:
    """One forward and backward.

    seconds: on the wall. cpu_s: of the computing thread. stall_s: waiting for copies.
    """

    seconds: float
    cpu_s: float
    stall_s: float
    loss: float


class PlannedModel:
    """A wrapped model that runs each step under the plan it is handed.

    The device has no cap, so that plans can be compared whose peaks differ.
    """

    def __init__(self, job: Job, tokens: int) -> None:
        self.device = get_cpu_device()
        self.tokens = tokens
        self._model = memo_train.wrap(build_model(job))
        planner: Any = self._model._memo_train
        self._wrapped: WrappedModel = planner.wrapped
        self._ids = piece_of_text(tokens, 0)

    def profile(self) -> Profile:
        """One block, measured now, with whatever link is set."""
        return measure_profile(self._wrapped, 1, self.tokens)

    def step(self, plan: Plan, budget: CopyBudget, link: Link | None) -> TimedStep:
        """A forward and backward of `plan` on a link limited to `link`; None: unlimited."""
        speeds = (None, None) if link is None else (link.d2h_bytes_per_s, link.h2d_bytes_per_s)
        self.device.set_bandwidth(*speeds)
        step_policy = self._step_policy(plan, budget)
        self._wrapped.choose_policy = lambda batch, tokens: step_policy
        before = self.device.counters()
        started_s, started_cpu_s = time.perf_counter(), time.thread_time()
        loss: Tensor = self._model(input_ids=self._ids, labels=self._ids).loss
        loss.backward()  # type: ignore[no-untyped-call]
        self.device.synchronize()
        seconds, cpu_s = time.perf_counter() - started_s, time.thread_time() - started_cpu_s
        after = self.device.counters()
        self._model.zero_grad(set_to_none=False)
        return TimedStep(
            seconds=seconds,
            cpu_s=cpu_s,
            stall_s=after.stall_s - before.stall_s,
            loss=float(loss.detach()),
        )

    def rest(self, profile: Profile, tile_tokens: int) -> StepRest:
        """Seconds of a step outside the blocks: embedding, norm, head and loss."""
        limits = Limits(device_bytes=None, host_bytes=None)
        plan = make_plan(profile, self.tokens, limits, alpha=0.0, tile_tokens=tile_tokens)
        recorder = StageRecorder(self.device)
        self._wrapped.observer = recorder
        self.step(plan, CopyBudget.of(plan), None)
        recorder.end()
        self._wrapped.observer = ignore
        return StepRest(loss_s=recorder.seconds["loss"] + recorder.seconds["between"])

    def _step_policy(self, plan: Plan, budget: CopyBudget) -> StepPolicy:
        return StepPolicy(
            policy=plan.policy,
            loss_tile_tokens=self._wrapped.parts.loss_tile_tokens(plan.policy.tile_tokens),
            copies=budget,
        )


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A plan to measure, how far its copies may go, and the step it is simulated to take."""

    name: str
    plan: Plan
    budget: CopyBudget
    simulated: Simulation

    @classmethod
    def of(cls, name: str, plan: Plan, rest: StepRest) -> "Variant":
        """A plan with the budget the runtime takes, on the clock at its profile's link."""
        budget = CopyBudget.of(plan)
        schedule = schedule_of(plan, budget=budget, rest=rest)
        simulated = simulate(schedule, Speeds.of_link(plan.profile.link))
        return cls(name=name, plan=plan, budget=budget, simulated=simulated)

    @property
    def predicted_s(self) -> float:
        """The cost model's seconds for the blocks."""
        return self.plan.prediction.step_forward_s + self.plan.prediction.step_backward_s


def steps_in_turn(
    model: PlannedModel, variants: Sequence[Variant], repeats: int
) -> dict[str, list[TimedStep]]:
    """Steps of every variant on its link, one variant after the other, after one to warm up."""
    steps: dict[str, list[TimedStep]] = {variant.name: [] for variant in variants}
    for turn in range(repeats + 1):
        for variant in variants:
            step = model.step(variant.plan, variant.budget, variant.plan.profile.link)
            if turn:
                steps[variant.name].append(step)
    return steps


def half_room(profile: Profile, tokens: int, tile_tokens: int) -> Limits:
    """A device limit halfway between what nothing kept and everything kept need."""
    no_limits = Limits(device_bytes=None, host_bytes=None)
    swapped = make_plan(profile, tokens, no_limits, alpha=1.0, tile_tokens=tile_tokens)
    kept = make_plan(profile, tokens, no_limits, tile_tokens=tile_tokens)
    peaks = [plan.prediction.device_peak_bytes for plan in (swapped, kept)]
    return Limits(device_bytes=sum(peaks) // 2, host_bytes=None)


def with_link(profile: Profile, link: Link) -> Profile:
    """The same block on another link."""
    return replace(profile, link=link)


def links_around(profile: Profile, tokens: int, shares: tuple[float, ...]) -> list[Link]:
    """Links that carry all of a block's saved bytes in 1 / share of its forward's time."""
    times = profile.times
    forward_s = times.tilewise_s_per_token * tokens + times.attention_s_per_token2 * tokens**2
    per_token = profile.tile_bytes_per_token + profile.x_bytes_per_token
    per_token += profile.o_bytes_per_token + profile.attention_bytes_per_token
    speed = per_token * tokens / forward_s
    return [Link(d2h_bytes_per_s=share * speed, h2d_bytes_per_s=share * speed) for share in shares]


def use_one_thread() -> None:
    """Compute on one core, so that copies have another."""
    torch.set_num_threads(1)
