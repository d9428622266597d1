"""Fits two efficiencies and the link's speed on three cells of the paper's 7B ablation."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.paper_cells import ABLATION, K
from memo_planner.hardware import Efficiency, Hardware, machine
from memo_planner.strategies import Job, plan_job, strategy_named
from memo_planner.workload import MODELS, Parallel, Workload

CELLS = (("checkpoint", 256), ("memo-paper", 64), ("swap-all", 128))
"""One cell of each row. Attention rules the first, matrix products the second, the link the
third."""
FIRST_GUESS = (0.65, 0.62, 1.0)
"""Linear efficiency, attention efficiency, link in 10 GB/s."""
ABLATION_PARALLEL = Parallel(gpus=8, tensor=4, context=2, zero_stage=0)
BATCH = 16
_STEP_SHARE = 5e-4
_CLOSE_POINTS = 1e-6
_MOST_STEPS = 30
_MOST = (0.99, 0.99, 5.0)

Vector = npt.NDArray[np.float64]
Cells = tuple[tuple[str, int], ...]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What the three cells give. `link_bytes_per_s`: each way, all ranks copying."""

    cells: Cells
    linear: float
    attention: float
    link_bytes_per_s: float

    @property
    def efficiency(self) -> Efficiency:
        """The two efficiencies; blocks run whole, so tiles have no overhead."""
        return Efficiency(
            linear=self.linear,
            attention=self.attention,
            tile_overhead_s=0.0,
            source=f"fitted on {self.cells}",
            machine="a800-80g-x8",
        )

    @property
    def hardware(self) -> Hardware:
        """The paper's node with the fitted link."""
        return machine("a800-80g-x8").with_figures(
            f"fitted on {self.cells}",
            d2h_loaded_bytes_per_s=self.link_bytes_per_s,
            h2d_loaded_bytes_per_s=self.link_bytes_per_s,
        )

    def job(self, model: str, tokens: int, parallel: Parallel) -> Job:
        """A job of the paper: 16 sequences a step."""
        workload = Workload(model=MODELS[model], tokens=tokens, batch=BATCH, parallel=parallel)
        return Job.of(workload, self.hardware, self.efficiency)


def fit_cells(cells: Cells = CELLS) -> Fit:
    """Newton's method on predicted less printed MFU of three cells. Raises: ValueError."""
    printed = np.array([ABLATION[strategy][thousands] for strategy, thousands in cells], float)

    def misses(values: Vector) -> Vector:
        fit = _fit_of(cells, values)
        return np.asarray([_predicted(fit, *cell) for cell in cells] - printed, np.float64)

    values = _solve(misses, np.array(FIRST_GUESS, np.float64))
    return _fit_of(cells, values)


def _solve(misses: Callable[[Vector], Vector], values: Vector) -> Vector:
    for _ in range(_MOST_STEPS):
        at = misses(values)
        if np.abs(at).max() < _CLOSE_POINTS:
            return values
        slopes = np.zeros((3, 3))
        for column in range(3):
            moved = values.copy()
            moved[column] *= 1 + _STEP_SHARE
            slopes[:, column] = (misses(moved) - at) / (moved[column] - values[column])
        step = np.linalg.solve(slopes, -at)
        stepped = values + np.clip(step, -0.1, 0.1)
        values = np.asarray(np.clip(stepped, 0.05, _MOST), np.float64)
    raise ValueError(f"no fit within {_MOST_STEPS} steps: {values}, off by {at} points")


def _fit_of(cells: Cells, values: Vector) -> Fit:
    linear, attention, link = values.tolist()
    return Fit(cells=cells, linear=linear, attention=attention, link_bytes_per_s=link * 1e10)


def _predicted(fit: Fit, strategy: str, thousands: int) -> float:
    job = fit.job("7b", thousands * K, ABLATION_PARALLEL)
    plan = plan_job(job, strategy_named(strategy))
    assert plan.setting is not None
    return 100 * plan.setting.mfu(plan.prediction)
