"""A measured machine: its file, its shares of peak, and what plans made with it say."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from memo_planner.cli import _app
from memo_planner.cli._app import app
from memo_planner.errors import InvalidInput, PlanFileError
from memo_planner.hardware import (
    PAPER,
    AttentionRate,
    AttentionShare,
    Hardware,
    MachineFile,
    ProductRate,
    machine,
)
from memo_planner.strategies import Job, Strategy, plan_job
from memo_planner.trace import LinkRates
from memo_planner.workload import MODELS, Parallel, Workload

fuzz = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
PEAK = 989e12


def attention(tokens: int, share: float, backend: str = "default") -> AttentionRate:
    rate = share * PEAK
    return AttentionRate(
        backend=backend, tokens=tokens, forward_flops_per_s=rate, backward_flops_per_s=rate
    )


def here() -> Hardware:
    return Hardware(**{**machine("h100-80g-x8").__dict__, "name": "a lent H100"})


def measured(**other: Any) -> MachineFile:
    rates = LinkRates(
        num_ranks=1,
        d2h_alone_bytes_per_s=55e9,
        h2d_alone_bytes_per_s=54e9,
        d2h_both_bytes_per_s=50e9,
        h2d_both_bytes_per_s=49e9,
        d2h_all_ranks_bytes_per_s=50e9,
        h2d_all_ranks_bytes_per_s=49e9,
    )
    products = (
        ProductRate(tokens=256, flops_per_s=0.3 * PEAK),
        ProductRate(tokens=4096, flops_per_s=0.7 * PEAK),
    )
    attentions = (
        attention(65536, 0.5),
        attention(4096, 0.25),
        attention(4096, 0.6, "cudnn"),
    )
    given_: dict[str, Any] = {
        "software": "torch 2.11",
        "hardware": here(),
        "rates": (products, attentions, rates),
        "launch_s": 5e-6,
        "tile_s": (1e-4, 1e-3),
    }
    return MachineFile.of(**{**given_, **other})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("machines") / "machine.json"
    measured().save(path)
    return path


def test_a_file_comes_back_as_it_was(saved: Path) -> None:
    assert MachineFile.load(saved) == measured()


def test_shares_are_of_the_best_product_and_of_attention_by_length() -> None:
    shares = measured().efficiency
    assert shares.linear == pytest.approx(0.7)
    assert shares.attention_at(1024) == pytest.approx(0.25)
    assert shares.attention_at(4096) == pytest.approx(0.25)
    assert shares.attention_at(65535) == pytest.approx(0.25)
    assert shares.attention_at(1 << 20) == pytest.approx(0.5)
    assert (shares.tile_overhead_s, shares.tile_issue_s) == (1e-4, 1e-3)
    assert PAPER.attention_at(64) == PAPER.attention


def test_both_ways_of_attention_count_by_their_flops() -> None:
    rate = AttentionRate(
        backend="flash", tokens=8, forward_flops_per_s=100.0, backward_flops_per_s=50.0
    )
    assert rate.flops_per_s == pytest.approx(3.5 / (1 / 100 + 2.5 / 50))


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_a_share_of_attention_is_a_share(share: float) -> None:
    with pytest.raises(InvalidInput, match="share"):
        AttentionShare(tokens=8, share=share)


def test_rates_above_the_peak_are_refused() -> None:
    slow = here().with_figures("test", peak_flops=0.5 * PEAK)
    with pytest.raises(InvalidInput, match="above its peak_flops"):
        measured(hardware=slow)


def test_a_file_without_what_plans_go_by_is_refused() -> None:
    rates = (measured().products, (attention(64, 0.5, "flash"),), measured().link_rates)
    with pytest.raises(InvalidInput, match="'default'"):
        measured(rates=rates)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, each in items:
        found.append((*at, key))
        if isinstance(each, dict | list):
            found += places(each, (*at, key))
    return found


@fuzz
@given(data=st.data())
def test_any_value_replaced_is_refused_or_equal(saved: Path, data: st.DataObject) -> None:
    changed: Any = json.loads(saved.read_text())
    place = data.draw(st.sampled_from(places(changed)))
    record = changed
    for key in place[:-1]:
        record = record[key]
    values = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just([])
    record[place[-1]] = data.draw(values)
    path = saved.with_name("fuzzed.json")
    path.write_text(json.dumps(changed))
    with contextlib.suppress(PlanFileError):
        assert MachineFile.load(path) == measured()


@fuzz
@given(start=st.integers(0, 6000), length=st.integers(0, 50), insert=st.binary(max_size=20))
def test_damaged_bytes_never_raise_anything_else(
    saved: Path, start: int, length: int, insert: bytes
) -> None:
    whole = saved.read_bytes()
    path = saved.with_name("damaged.json")
    path.write_bytes(whole[:start] + insert + whole[start + length :])
    with contextlib.suppress(PlanFileError):
        MachineFile.load(path)


SMALL = ["--model", "7b", "--seq-len", "64K", "--gpus", "8"]


def run(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == code, done.output
    return done.output


@pytest.mark.parametrize("command", ["make", "max-seq", "compare", "check"])
def test_a_file_stands_wherever_a_machine_s_name_does(saved: Path, command: str) -> None:
    lengths = {"make": ["--seq-len", "64K"], "check": ["--seq-len", "64K"]}
    lengths["compare"] = ["--seq-lens", "64K"]
    options = ["--model", "7b", "--hardware", str(saved), *lengths.get(command, [])]
    assert run(command, *options)


def test_a_plan_says_whether_its_efficiencies_are_assumptions(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    assumed = "efficiencies: assumption: those of h200-141g-x8 (measured on one H200"
    assert assumed in run("make", *SMALL, "--hardware", "h100-80g-x8", "-o", str(path))
    assert assumed in run("show", str(path))
    assert json.loads(run("show", str(path), "--json"))["setting"]["efficiency"].startswith(
        "assumption"
    )
    told = run("make", *SMALL, "--hardware", str(saved))
    assert "efficiencies: measured there with torch 2.11" in told
    assert "efficiencies: fitted on three cells" in run("make", *SMALL)
    other = run("make", *SMALL, "--hardware", "a100-80g-x8")
    assert "efficiencies: assumption: those of a800-80g-x8" in other
    assert "assumption: those of h200-141g-x8" in run("hardware", "h100-80g-x8")


def test_plans_go_by_what_was_measured() -> None:
    """Twice the share of linear work takes half the time of it; a tile waits to be asked for."""
    workload = Workload(
        model=MODELS["7b"],
        tokens=1 << 16,
        batch=1,
        parallel=Parallel(gpus=8, sequence=8, zero_stage=3),
    )
    shares = measured().efficiency
    slow = replace(shares, linear=0.35)
    jobs = [Job.of(workload, here(), each) for each in (shares, slow)]
    times = [job.profile(Strategy.TILES).times for job in jobs]
    assert times[1].post_s_per_token > 1.5 * times[0].post_s_per_token
    assert times[0].tile_issue_s == 1e-3
    told = plan_job(jobs[0], Strategy.TILES).setting
    assert told is not None
    assert told.efficiency == "measured there with torch 2.11"


def test_measuring_needs_a_file_and_nothing_else() -> None:
    for options in (["--measure"], ["-o", "m.json"], ["cpu", "--measure", "-o", "m.json"]):
        assert "--measure goes with -o FILE" in run("hardware", *options, code=2)


def test_without_torch_measuring_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_app, "_MEASURER_NEEDS", ("torch", "no_such_module"))
    told = run("hardware", "--measure", "-o", str(tmp_path / "m.json"), code=2)
    assert "needs no_such_module" in told
    assert not (tmp_path / "m.json").exists()


def test_a_file_that_is_none_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    path.write_text("{}")
    assert "format is None" in run("make", *SMALL, "--hardware", str(path), code=2)
