"""The paper's 7B tables from three fitted cells: within 3 points of MFU, and the same borders."""

from __future__ import annotations

import pytest

from benchmarks.paper_cells import ABLATION, ALPHA, MAIN, K
from benchmarks.paper_fit import ABLATION_PARALLEL, CELLS, Fit, fit_cells
from memo_planner import PlanInfeasible
from memo_planner.hardware import PAPER, machine
from memo_planner.strategies import Strategy, plan_job, strategy_named
from memo_planner.workload import Parallel

POINTS = 3.0
CASES = [(row, length) for row, cells in ABLATION.items() for length in cells]


@pytest.fixture(scope="module")
def fit() -> Fit:
    return fit_cells()


def predicted(
    fit: Fit, strategy: Strategy, thousands: int, parallel: Parallel, alpha: float | None = None
) -> float | str:
    """MFU in %, or which memory runs out."""
    try:
        plan = plan_job(fit.job("7b", thousands * K, parallel), strategy, alpha=alpha)
    except PlanInfeasible as refusal:
        return refusal.where
    assert plan.setting is not None
    return 100 * plan.setting.mfu(plan.prediction)


def test_three_cells_are_fitted_exactly_and_no_more(fit: Fit) -> None:
    assert len(CELLS) == 3
    for name, length in CELLS:
        told = predicted(fit, strategy_named(name), length, ABLATION_PARALLEL)
        assert told == pytest.approx(ABLATION[name][length], abs=1e-4)


@pytest.mark.parametrize(("name", "length"), CASES)
def test_planned_rows_of_the_ablation(fit: Fit, name: str, length: int) -> None:
    told = predicted(fit, strategy_named(name), length, ABLATION_PARALLEL)
    printed = ABLATION[name][length]
    if isinstance(printed, str):
        assert told == printed
    else:
        assert told == pytest.approx(printed, abs=POINTS)


@pytest.mark.parametrize("length", ALPHA)
def test_the_best_alpha_is_within_an_eighth(fit: Fit, length: int) -> None:
    told = [
        predicted(fit, Strategy.MEMO_PAPER, length, ABLATION_PARALLEL, alpha=i / 8)
        for i in range(9)
    ]
    best = max(range(9), key=lambda i: told[i] if isinstance(told[i], float) else 0.0)
    printed = ALPHA[length]
    wanted = max(range(9), key=lambda i: printed[i] if isinstance(printed[i], float) else 0.0)
    assert abs(best - wanted) <= 1
    for mine, theirs in zip(told, printed, strict=True):
        if isinstance(mine, float) and isinstance(theirs, float):
            assert mine == pytest.approx(theirs, abs=POINTS)


def test_the_main_rows_end(fit: Fit) -> None:
    """With tensor parallelism over the node, MEMO's memory ends where it is printed to end."""
    parallel = Parallel(gpus=8, tensor=8)
    assert isinstance(predicted(fit, Strategy.MEMO_PAPER, 1024, parallel), float)
    assert predicted(fit, Strategy.MEMO_PAPER, 1152, parallel) == MAIN[1152]


def test_the_defaults_are_the_fit(fit: Fit) -> None:
    assert fit.linear == pytest.approx(PAPER.linear, abs=2e-3)
    assert fit.attention == pytest.approx(PAPER.attention, abs=2e-3)
    link = machine("a800-80g-x8").link(8)
    assert fit.link_bytes_per_s == pytest.approx(link.d2h_bytes_per_s, rel=0.01)
