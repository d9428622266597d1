"""What the site is made of: pictures, references and figures that cannot go stale."""

from __future__ import annotations

import csv
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

from docs._made.api import PACKAGES, as_markdown, directives, names_of
from docs._made.commands import output_of, reference, with_outputs
from docs._made.hooks import MADE, on_page_markdown
from docs._made.lora import lora_plan
from docs._made.pictures import README_PICTURE, pictures, small_plan
from memo_planner.cli import app

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def test_the_readmes_picture_is_what_the_code_draws() -> None:
    drawn = pictures()["step.svg"]()
    assert README_PICTURE.read_text() == drawn, "run: python docs/_made/pictures.py"


@pytest.mark.parametrize("name", ["block.svg", "step.svg", "policy.svg", "schedule.svg"])
def test_a_picture_stays_within_its_frame(name: str) -> None:
    root = ET.fromstring(pictures()[name]())
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    bars = [e for e in root.iter() if e.tag.endswith("rect")]
    assert len(bars) > 20
    for bar in bars:
        x, y = float(bar.get("x", 0)), float(bar.get("y", 0))
        assert 0 <= x <= x + float(bar.attrib["width"]) <= width + 0.1
        assert 0 <= y <= y + float(bar.attrib["height"]) <= height + 0.1


def test_every_command_and_option_is_in_the_reference() -> None:
    text = reference()
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__.replace("_", "-")
        assert f"## memo-plan {name}\n" in text
    for option in ("--hardware", "--seq-len", "--svg", "--capacity"):
        assert option in text


def test_outputs_stand_below_their_commands_and_remarks_are_gone() -> None:
    page = (
        "<!-- not run: needs a GPU -->\n```console\n$ memo-plan show none.json\n```\n\n"
        "```console\n$ memo-plan hardware\n```\n"
    )
    made = with_outputs(page)
    assert "<!--" not in made
    assert made.count("```console") == 2
    assert "h100-80g-x8" in made.partition("$ memo-plan hardware\n")[2]


def test_the_reference_has_every_public_name_once() -> None:
    entries = [line for line in directives().splitlines() if line.startswith(":::")]
    assert len(entries) == len(set(entries))
    offered = {name for package in PACKAGES for name in names_of(package)}
    assert {entry.rpartition(".")[2] for entry in entries} == offered


def test_docstrings_explain_names_in_lists() -> None:
    made = as_markdown(
        "Do it.\n\na: one,\n    and more. b, c: two.\nd: three.\nRaises: InvalidInput.\n\n"
        "End: this."
    )
    assert made == (
        "Do it.\n\n* `a`: one, and more.\n* `b, c`: two.\n* `d`: three.\n"
        "* **Raises**: InvalidInput.\n\nEnd: this."
    )


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    named = {page.name for page in (ROOT / "docs").glob("*.md") if page.name in text}
    assert named == {page.name for page in (ROOT / "docs").glob("*.md")}
    assert yaml.safe_load(text)["strict"] is True


def test_the_quickstarts_plan_is_printed_as_plans_are(tmp_path: Path) -> None:
    example = (ROOT / "docs" / "quickstart.md").read_text().split("```text\n")[1].split("```")[0]
    small_plan(4).save(tmp_path / "plan.json")
    printed = output_of(f"memo-plan show {tmp_path / 'plan.json'}") or ""
    head = next(line for line in printed.splitlines() if line.startswith("blocks"))
    assert head.split() == next(x for x in example.splitlines() if x[:6] == "blocks").split()
    labels = {line.partition(":")[0] for line in example.splitlines()[6:] if ":" in line}
    assert labels <= {line.partition(":")[0] for line in printed.splitlines()} | {"room"}


def test_the_lora_plan_fits_an_80_gb_card_by_measured_seconds() -> None:
    plan = lora_plan()
    assert plan.prediction.device_room_bytes <= 74 * 2**30
    assert (
        plan.profile.times.tile_issue_s
        == newest_medians(
            "gpu_check.csv",
            "part=b;what=profile;model=Llama-3-8B, 2 layers;lora_rank=16;batch=1",
            "tile_issue_s",
        )["memo"]
    )
    assert (
        "DEVICE_GIB, HOST_GIB = 131_072, 74.0, 100.0"
        in (ROOT / "docs" / "howto_lora_128k.md").read_text()
    )


def test_everything_that_a_page_asks_for_is_made() -> None:
    pages = "\n".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    asked = set(re.findall(r"<!-- made: (\w+) -->", pages))
    assert asked == set(MADE)
    assert "<!--" not in on_page_markdown("<!-- made: launchers -->\n")


def newest_medians(file: str, settings: str, figure: str) -> dict[str, float]:
    """By mode; later rows of a file are newer."""
    with (RESULTS / file).open() as rows:
        found = [r for r in csv.DictReader(rows) if r["settings"] == settings]
    return {r["mode"]: float(r["median"]) for r in found if r["figure"] == figure}


def test_the_readmes_table_is_what_was_measured() -> None:
    settings = "tokens=16384;layers=2;hidden=128;tile_tokens=None"
    measured = newest_medians("step_time.csv", settings, "seconds")
    order = ["plain", "checkpoint", "checkpoint_offload", "memo", "memo_recompute", "memo_swap"]
    for peer in ("plain", "checkpoint"):
        ratios = " | ".join(f"{measured[mode] / measured[peer]:.2f}" for mode in order)
        name = {"plain": "plain", "checkpoint": "checkpointing"}[peer]
        assert f"| time / {name} | {ratios} |" in (ROOT / "README.md").read_text()


def test_measured_figures_of_the_gpu_pages_have_their_rows() -> None:
    with (RESULTS / "gpu_check.csv").open() as rows:
        step = {
            row["figure"]: float(row["median"])
            for row in csv.DictReader(rows)
            if row["settings"].startswith("part=a") and row["mode"] == "hf_checkpoint"
        }
    page = (ROOT / "docs" / "howto_lora_128k.md").read_text()
    for shown in (
        f"{step['seconds']:.1f} s",
        f"{step['device_peak_bytes'] / 2**30:.1f} GiB",
        f"{step['device_reserved_bytes'] / 2**30:.1f} GiB",
    ):
        assert shown in page
