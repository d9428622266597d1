"""Two ranks whose model DDP or FSDP2 looks after give one process's losses and gradients."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.runtime.model_state import CASES, REFUSED
from tests.runtime.ranks import run_ranks

SCRIPT = Path(__file__).with_name("model_state.py")


def outcomes_of(script: Path, out: Path) -> Mapping[str, str]:
    """What came out of every case. They run one behind another: starting takes longest."""
    run_ranks(2, script, out)
    found: dict[str, str] = json.loads(out.read_text())
    return found


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    return outcomes_of(SCRIPT, tmp_path_factory.mktemp("model_state") / "outcomes.json")


def test_zero_gives_one_process_s_losses(tmp_path: Path) -> None:
    """Of 20 steps (level 6), and without gathered weights between forward and backward."""
    pytest.importorskip("deepspeed")
    # Not imported here: that reads the machine and takes long.
    outcomes = outcomes_of(SCRIPT.with_name("zero_state.py"), tmp_path / "outcomes.json")
    refused = {name: text for name, text in outcomes.items() if text != "right"}
    assert sorted(refused) == ["stage 3 without leaves", "stage 3, wrapped after"], refused
    assert "set_z3_leaf_modules(model, [LlamaDecoderLayer])" in refused["stage 3 without leaves"]
    assert "call it before deepspeed.initialize" in refused["stage 3, wrapped after"]


@pytest.mark.parametrize("case", [case for case in CASES if case not in REFUSED])
def test_one_process_s_loss_and_gradients(case: str, outcomes) -> None:
    """Level 4: errors against float64 at most twice plain autograd's, of all ranks together."""
    assert outcomes[case] == "right"


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_says_the_way_out(case: str, outcomes) -> None:
    assert outcomes[case].startswith("UnsupportedModel: ")
    assert REFUSED[case] in outcomes[case]
