"""Profiles in files: read as written, refused when changed or of something else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memo_planner import InvalidInput, PlanFileError
from memo_planner.trace import BlockFlops, LinkRates, ProfileFile, ProfileSource
from tests.planner.cases import small_profile

FUZZ = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
FLOPS = BlockFlops(
    pre_flops_per_token=1.0,
    post_flops_per_token=2.0,
    attention_flops_per_token2=3.0,
    pre_backward_flops_per_token=4.0,
    post_backward_flops_per_token=5.0,
    attention_backward_flops_per_token2=6.0,
)
RATES = LinkRates(
    num_ranks=8,
    d2h_alone_bytes_per_s=32e9,
    h2d_alone_bytes_per_s=32e9,
    d2h_both_bytes_per_s=20e9,
    h2d_both_bytes_per_s=20e9,
    d2h_all_ranks_bytes_per_s=9e9,
    h2d_all_ranks_bytes_per_s=9e9,
)


def profile_file(**options: Any) -> ProfileFile:
    profile = small_profile()
    source = ProfileSource(
        kind="measured",
        model_hash=profile.model_hash,
        device=profile.device,
        batch=profile.batch,
        tokens=2048,
        assumptions="none",
    )
    return ProfileFile.of(source, profile, **options)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "profile.json"


@pytest.mark.parametrize("options", [{}, {"flops": FLOPS, "link_rates": RATES}])
def test_a_profile_is_read_as_it_was_written(path: Path, options: dict[str, Any]) -> None:
    profile_file(**options).save(path)
    assert ProfileFile.load(path) == profile_file(**options)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("version",), 1, "version is 1, expected 6"),
        (("format",), "memo-plan", "expected 'memo-profile'"),
        (("profile", "x_bytes_per_token"), 3.5, "profile_hash is"),
        (("profile", "state_bytes"), -1, "state_bytes is -1"),
        (("profile", "batch"), 7, "batch is 1 in the source, 7 in the profile"),
        (("source", "tokens"), 4096, "inputs_hash is"),
        (("source", "kind"), "guessed", "kind is 'guessed'"),
        (("flops", "pre_flops_per_token"), "1", "expected float"),
        (("link_rates", "d2h_alone_bytes_per_s"), 0, "must be 1 or more"),
        (("link_rates",), None, "profile_hash is"),
        (("profile_hash",), None, "profile_hash is None, expected str"),
    ],
)
def test_a_changed_profile_is_refused(
    path: Path, keys: tuple[str, ...], value: Any, message: str
) -> None:
    profile_file(flops=FLOPS, link_rates=RATES).save(path)
    document = json.loads(path.read_text())
    place = document
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(document))
    with pytest.raises(PlanFileError, match=message):
        ProfileFile.load(path)


def test_figures_that_are_not_finite_are_refused(path: Path) -> None:
    profile_file(flops=FLOPS).save(path)
    path.write_text(
        path.read_text().replace('"pre_flops_per_token": 1.0', '"pre_flops_per_token": NaN')
    )
    with pytest.raises(PlanFileError, match="NaN"):
        ProfileFile.load(path)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(InvalidInput, match="finite"):
            replace(RATES, d2h_both_bytes_per_s=bad)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
FIELDS = ("format", "version", "source", "profile", "flops", "link_rates", "profile_hash")


@FUZZ
@given(st.sampled_from(FIELDS), _JSON)
def test_any_value_in_any_field_is_read_or_refused(path: Path, name: str, value: Any) -> None:
    profile_file(flops=FLOPS).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    try:
        found = ProfileFile.load(path)
    except PlanFileError:
        return
    assert found == profile_file(flops=FLOPS)


def test_flops_of_a_step_add_up() -> None:
    assert FLOPS.step_flops(10, 2) == 2 * ((1 + 2 + 4 + 5) * 10 + (3 + 6) * 100)
