"""`memo-plan make`, `check`, `compare`, `max-seq`, `hardware`: output, files and exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from memo_planner import Plan
from memo_planner.cli import app

SMALL = ["--model", "7b", "--device-gib", "40", "--host-gib", "400"]


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output + str(result.exception)
    return result.output


def told(*arguments: str, code: int = 0) -> Any:
    output = run(*arguments, "--json", code=code)
    return json.loads(output[: output.rindex("}" if output[0] == "{" else "]") + 1])


def test_make_writes_a_plan_that_loads_shows_and_checks(tmp_path: Path) -> None:
    path = str(tmp_path / "plan.json")
    made = told("make", *SMALL, "--seq-len", "512K", "--gpus", "8", "-o", path)
    plan = Plan.load(path)
    assert plan.policy.tokens == made["tokens"] == 512 * 1024
    assert plan.limits.host_bytes == 400 * 2**30 // 8
    assert made["job"]["node_host_bytes"] == 8 * plan.prediction.host_peak_bytes <= 400 * 2**30
    assert 0.3 < made["job"]["mfu"] < 0.7
    assert {each["limit"] for each in made["one_more_gib"]} == {"device", "host"}
    shown = run("show", path)
    assert "strategy tiles, 8 devices (SP 8, ZeRO 3)" in shown
    assert "MFU" in shown
    assert told("show", path)["inputs_hash"] == plan.inputs_hash
    assert run("check", path).startswith("fits: 524,288 tokens")
    refused = told("check", path, "--host-gib", "1", code=3)
    assert (refused["fits"], refused["short"], refused["max_tokens"]) == (False, "host", None)
    assert refused["short_bytes"] == plan.prediction.host_peak_bytes - 2**30 // 8


def test_check_and_make_refuse_what_will_not_fit() -> None:
    refused = told("check", *SMALL, "--seq-len", "64M", code=3)
    assert refused["short_bytes"] == refused["need_bytes"] - refused["limit_bytes"] > 0
    longest = told("max-seq", *SMALL, "--strategy", "tiles")["tiles"]
    assert refused["max_tokens"] == longest
    output = run("make", *SMALL, "--seq-len", "64M", code=3)
    assert f"longest sequence that fits: {longest:,} tokens" in output
    assert told("check", *SMALL, "--seq-len", str(longest))["fits"]
    run("check", *SMALL, "--seq-len", str(longest + 1), code=3)


def test_compare_shows_every_strategy_at_every_length() -> None:
    rows = told("compare", *SMALL, "--seq-lens", "64K,1M")
    assert len(rows) == 12
    assert {row["tokens"] for row in rows} == {65536, 2**20}
    assert all((row["mfu"] is None) == (row["short"] is not None) for row in rows)
    text = run("compare", *SMALL, "--seq-lens", "64K", "--strategies", "checkpoint, none")
    assert "checkpoint" in text
    assert "memo-paper" not in text


def test_hardware_lists_machines_and_sources() -> None:
    assert "rtx4090-24g-x8" in run("hardware")
    text = run("hardware", "a800-80g-x8", "--figure", "peak_flops=3e14")
    assert "MEMO" in text
    assert "the command line" in text
    assert told("hardware", "cpu")["name"] == "cpu"


def test_a_config_is_a_model(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    sizes = {"hidden_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 16}
    path.write_text(json.dumps({"model_type": "gpt_neox", "vocab_size": 1000, **sizes}))
    made = told("make", "--model", str(path), "--seq-len", "4096", "--gpus", "1")
    assert made["num_blocks"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["make", "--seq-len", "1M"], "--model is missing"),
        (["make", *SMALL, "--seq-len", "1Q"], "length '1Q'"),
        (["make", *SMALL, "--seq-len", "1M", "--strategy", "luck"], "strategy 'luck'"),
        (["make", "--model", "7b", "--seq-len", "1M", "--hardware", "b1"], "hardware 'b1'"),
        (["make", "--model", "7b", "--seq-len", "1M", "--host-gib", "nan"], "--host-gib"),
        (["make", "--model", "7b", "--seq-len", "1M", "--device-gib", "0"], "--device-gib"),
        (["make", "--model", "7b", "--seq-len", "1M", "--host-gib", "1e300"], "--host-gib"),
        (["make", "--model", "7b", "--seq-len", "1M", "--gpus", "0"], "gpus"),
        (["make", "--model", "7b", "--seq-len", "1M", "--tensor", "3"], "whole number of times"),
        (["make", "--model", "7b", "--seq-len", "1M", "--figure", "peak=1"], "--figure"),
        (["make", "--model", "7b", "--seq-len", "1M", "--figure", "peak_flops=x"], "no number"),
        (["make", *SMALL, "--seq-len", "1K", "-o", "/nowhere/p.json"], "cannot be written"),
        (["check"], "nothing to check"),
        (["check", "/nowhere/p.json"], "cannot be read"),
        (["check", "p.json", "--model", "7b"], "not both"),
        (["compare", *SMALL, "--seq-lens", "64K,,"], "length ''"),
        (["hardware", "none"], "hardware 'none'"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: list[str], message: str) -> None:
    output = run(*arguments, code=2)
    assert message in output
    assert output.strip().count("\n") == 0


def config_file(tmp_path: Path, **change: Any) -> str:
    config = {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**config, **change}))
    return str(path)


def test_a_config_is_read_with_and_without_torch(tmp_path: Path) -> None:
    path = config_file(tmp_path)
    asked = ["make", "--model", path, "--seq-len", "1001", "--gpus", "8"]
    with_torch, without = told(*asked), told(*asked, "--no-torch")
    expected = 2 * 1024 * 256 + 256 + 4 * (3 * 256 * 512 + 2 * 256 * (256 + 64) + 2 * 256)
    assert with_torch["parameters"] == without["parameters"] == expected
    assert with_torch["kinds"] == without["kinds"] == {"attention": 4}
    assert f"{expected:,} parameters; 4 blocks of attention" in run(*asked)
    assert "1,001 tokens padded to 1,008" in run(*asked)
    refused = run(
        *asked[:2], config_file(tmp_path, num_experts=4), *asked[3:], "--no-torch", code=2
    )
    assert "field num_experts is 4" in refused


def test_a_config_with_experts_and_windows_is_planned(tmp_path: Path) -> None:
    change = {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 512}
    path = config_file(tmp_path, model_type="mixtral", **change)
    made = told("make", "--model", path, "--seq-len", "4K", "--gpus", "8")
    assert made["active_parameters"] < made["parameters"]
    assert made["kinds"] == {"attention, window 512, experts": 4}
    refused = run("make", "--model", path, "--seq-len", "4K", "--no-torch", code=2)
    assert "model_type 'mixtral' is not planned without torch" in refused
