"""The cost of a tile is measured for every fate of its saved tensors, beside its computation."""

from pathlib import Path

import pytest

from tests.benchmarks.test_scripts import run_script


@pytest.mark.slow
def test_a_quick_look_gives_every_figure(tmp_path: Path) -> None:
    costs = run_script("tile_cost", tmp_path, "--quick")["costs_ms"]
    figures = ("tile_ms", "computation_ms", "beyond_ms")
    fates = ("keep", "recompute", "swap")
    assert list(costs) == [f"{fate}/{figure}" for fate in fates for figure in figures]
    for fate in fates:
        tile, alone, beyond = (costs[f"{fate}/{figure}"] for figure in figures)
        assert len(tile) == 2
        assert beyond == pytest.approx([a - b for a, b in zip(tile, alone, strict=True)])
