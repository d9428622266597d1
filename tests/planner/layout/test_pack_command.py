"""`memo-plan pack`: offsets and exit codes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from memo_planner.cli import app
from memo_planner.layout import read_problem
from memo_planner.trace import Trace, write_csv
from tests.planner.layout.test_step import swapped_step
from tests.planner.trace.test_trace_file import SOURCE

ROWS = "id,lower,upper,size\nb1,0,3,4\nb2,3,9,4\nb3,0,9,4\nb4,9,21,4\nb5,0,21,4\n"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "in.csv"
    path.write_text(ROWS)
    return path


def run(*arguments: object):
    return CliRunner().invoke(app, ["pack", *map(str, arguments)])


def test_a_capacity_that_holds_gives_offsets_and_exit_0(table: Path) -> None:
    out = table.with_name("out.csv")
    done = run(table, "--capacity", 12, "-o", out)
    assert done.exit_code == 0, done.output
    rows = [line.split(",") for line in out.read_text().splitlines()[1:]]
    assert [row[0] for row in rows] == list(read_problem(table).ids)
    assert max(int(row[3]) + int(row[4]) for row in rows) <= 12


def test_a_capacity_too_small_exits_2_with_the_reason(table: Path) -> None:
    done = run(table, "--capacity", 11, "-o", table.with_name("out.csv"))
    assert done.exit_code == 2
    assert "no placement within 11 bytes exists; best peak 12" in done.stderr
    assert not table.with_name("out.csv").exists()


def test_without_a_capacity_the_peak_is_the_lowest(table: Path) -> None:
    summary = json.loads(run(table, "--json", "--alignment", 8).stdout)
    assert summary["peak_bytes"] == summary["lower_bound_bytes"] == 24
    assert summary["gap"] == 0.0
    assert summary["buffers"] == 5


def test_bad_rows_exit_2_on_one_line(table: Path) -> None:
    table.write_text("id,lower,upper,size\nb1,3,3,4\n")
    done = run(table)
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert "upper is 3 in line 2" in done.stderr


@pytest.mark.parametrize("name", ["step.json", "step.csv"])
def test_a_trace_is_packed_like_a_table(table: Path, name: str) -> None:
    requests = swapped_step(4)
    path, out = table.with_name(name), table.with_name("out.csv")
    if name.endswith("json"):
        Trace.of(SOURCE, requests).save(path)
    else:
        write_csv(requests, path)
    summary = json.loads(run(path, "--json", "-o", out).stdout)
    assert summary["buffers"] == len(requests)
    assert summary["peak_bytes"] == summary["lower_bound_bytes"] == requests.peak_bytes()
    assert len(read_problem(out)) == len(requests)
    short = run(path, "--capacity", summary["peak_bytes"] - 1)
    assert short.exit_code == 2
    assert "no placement within" in short.stderr
