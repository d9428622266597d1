"""`memo-plan export` and `memo-plan fragmentation`."""

import json
import pickle
from pathlib import Path

import pytest
from typer.testing import CliRunner

from memo_planner.allocators._glibc import can_measure
from memo_planner.cli import app
from memo_planner.layout import read_step
from memo_planner.trace import Trace, TraceSource, write_csv
from tests.planner.allocators.steps import MIB, PAPER, step
from tests.planner.export.placed import placed_step

SOURCE = TraceSource(
    kind="fake",
    model="Toy",
    model_hash="abc",
    device="cpu",
    batch=1,
    tokens=8,
    num_blocks=2,
    tile_tokens=4,
    policy_hash="none",
)


def run(*arguments: object):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def paper(tmp_path: Path) -> Path:
    path = tmp_path / "paper.csv"
    write_csv(step(PAPER, MIB), path)
    return path


def test_requests_are_read_from_traces_tables_and_packing_problems(tmp_path: Path) -> None:
    requests = placed_step()
    trace, table, problem = (tmp_path / name for name in ("a.json", "b.csv", "c.csv"))
    Trace.of(SOURCE, requests).save(trace)
    write_csv(requests, table)
    problem.write_text("id,lower,upper,size\nlate,50,70,8\nearly,-3,50,9\n")
    assert read_step(trace) == requests
    # A table holds no names that no request has.
    assert read_step(table).ids.tolist() == requests.ids.tolist()
    bare = read_step(problem)
    assert bare.ids.tolist() == [1, 0]
    assert bare.malloc_times.tolist() == [1, 2]
    assert bare.free_times.tolist() == [2, 3]
    assert bare.size_bytes.tolist() == [9, 8]


def test_fragmentation_as_json(paper: Path) -> None:
    done = run("fragmentation", paper, "--steps", 1, "--json")
    assert done.exit_code == 0, done.output
    rows = {row["allocator"]: row for row in json.loads(done.stdout)}
    assert rows["caching allocator"]["reserved_peak_bytes"] == 2816 * MIB
    assert rows["caching allocator"]["fragmentation"] == pytest.approx(1 - 2432 / 2816)
    assert rows["layout, 512 B"]["fragmentation"] == 0.0
    assert ("glibc malloc" in rows) == can_measure()


def test_fragmentation_as_text(paper: Path) -> None:
    done = run("fragmentation", paper, "--device-gib", 2432 / 1024)
    assert done.exit_code == 0, done.output
    lines = {line.split("  ")[0]: " ".join(line.split()) for line in done.stdout.splitlines()}
    # 21 empties the cache; then 23 cuts the 256 of 15, which 24 (512) would need given back.
    assert "out at request 24" in lines["caching allocator"]
    assert "simulated" in lines["caching allocator"]
    assert "2.4 GiB 2.4 GiB 0.00%" in lines["layout, 512 B"]


@pytest.mark.parametrize("addresses", ["planned", "best-fit", "caching"])
def test_export_writes_what_each_viewer_opens(paper: Path, addresses: str) -> None:
    outs = {name: paper.with_suffix(f".{name}") for name in ("memory-viz", "perfetto", "svg")}
    for viewer, out in outs.items():
        done = run("export", paper, "--to", viewer, "-o", out, "--addresses", addresses)
        assert done.exit_code == 0, done.output
    total = {"planned": 2432, "best-fit": 2688, "caching": 2816}[addresses] * MIB
    assert pickle.loads(outs["memory-viz"].read_bytes())["segments"][0]["total_size"] == total
    assert json.loads(outs["perfetto"].read_text())["otherData"] == {
        "title": f"paper.csv, {addresses} addresses"
    }
    assert outs["svg"].read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["fragmentation", "no.csv"], "no.csv: cannot be read"),
        (["fragmentation", "PAPER", "--steps", "0"], "num_steps is 0"),
        (
            ["fragmentation", "PAPER", "--device-gib", "nan"],
            "--device-gib is nan; it must be finite",
        ),
        (["fragmentation", "PAPER", "--device-gib", "0"], "cap_bytes is 0; it must be from 512"),
        (["export", "PAPER", "--to", "svg", "-o", "no/such/folder"], "cannot be written"),
    ],
)
def test_mistakes_exit_2_on_one_line(paper: Path, arguments: list[str], reason: str) -> None:
    done = run(*(str(paper) if text == "PAPER" else text for text in arguments))
    assert done.exit_code == 2
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
