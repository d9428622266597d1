"""Machines: every figure has a source, every figure can be overridden, NVML fills them in."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from memo_planner.errors import InvalidInput
from memo_planner.hardware import (
    FIGURES,
    NAMED,
    Efficiency,
    efficiency_on,
    machine,
    this_machine,
)

GIB = 2**30


@pytest.mark.parametrize("name", NAMED)
def test_every_figure_has_a_source(name: str) -> None:
    hardware = machine(name)
    assert hardware.name == name
    for figure in FIGURES:
        assert len(hardware.source_of(figure)) > 5, figure
    assert 0 < hardware.tensor_bytes <= hardware.device_bytes
    assert hardware.host_usable_bytes <= hardware.host_nominal_bytes


def test_the_machines_of_the_issue_are_there() -> None:
    assert set(NAMED) == {
        "a800-80g-x8",
        "a100-80g-x8",
        "h100-80g-x8",
        "h200-141g-x8",
        "rtx4090-24g-x8",
        "cpu",
    }
    with pytest.raises(InvalidInput, match="known: a800-80g-x8"):
        machine("b300")


def test_an_override_replaces_value_and_source_and_nothing_else() -> None:
    before = machine("a800-80g-x8")
    after = before.with_figures("measured here", peak_flops=2e14, host_usable_bytes=5 * GIB)
    assert (after.peak_flops, after.host_usable_bytes) == (2e14, 5 * GIB)
    assert after.source_of("peak_flops") == "measured here"
    for figure in set(FIGURES) - {"peak_flops", "host_usable_bytes"}:
        assert getattr(after, figure) == getattr(before, figure)
        assert after.source_of(figure) == before.source_of(figure)


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({"speed": 1.0}, "no figures of a machine"),
        ({"peak_flops": float("nan")}, "finite"),
        ({"d2h_loaded_bytes_per_s": float("inf")}, "finite"),
        ({"h2d_alone_bytes_per_s": 0.0}, "1 or more"),
        ({"reserve_bytes": 2**40}, "must leave something"),
        ({"gpus_per_node": 0}, "from 1"),
    ],
)
def test_bad_figures_are_named(figures: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        machine("a800-80g-x8").with_figures("test", **figures)


def test_a_rank_alone_copies_faster_than_one_of_eight() -> None:
    hardware = machine("a800-80g-x8")
    assert hardware.link(1).d2h_bytes_per_s > 2 * hardware.link(8).d2h_bytes_per_s


@pytest.mark.parametrize("linear", [0.0, 1.01, float("nan")])
def test_an_efficiency_is_a_share(linear: float) -> None:
    with pytest.raises(InvalidInput):
        Efficiency(linear=linear, attention=0.5, tile_overhead_s=0.0, source="test", machine="test")


class FakeNvml:
    """As much of NVML as the reader asks."""

    class NVMLError(Exception):
        pass

    def __init__(self, names: list[str], generation: int = 5, driver: bool = True) -> None:
        self.names, self.generation, self.driver, self.open = names, generation, driver, False

    def nvmlInit(self) -> None:
        if not self.driver:
            raise self.NVMLError("Driver Not Loaded")
        self.open = True

    def nvmlShutdown(self) -> None:
        self.open = False

    def nvmlDeviceGetCount(self) -> int:
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> bytes | str:
        return self.names[handle].encode() if handle % 2 else self.names[handle]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(total=81_559 * 2**20)

    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle: int) -> int:
        return self.generation

    def nvmlDeviceGetMaxPcieLinkWidth(self, handle: int) -> int:
        return 16


def test_nvml_fills_the_figures_in(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(["NVIDIA H100 80GB HBM3"] * 4)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    here = this_machine()
    assert (here.gpus_per_node, here.device_bytes) == (4, 81_559 * 2**20)
    assert here.peak_flops == machine("h100-80g-x8").peak_flops
    assert here.d2h_alone_bytes_per_s == pytest.approx(0.8 * 16 * 3.938e9)
    assert "NVML" in here.source_of("device_bytes")
    assert "NVML" in here.source_of("d2h_loaded_bytes_per_s")
    assert "operating system" in here.source_of("host_nominal_bytes")
    assert not nvml.open


@pytest.mark.parametrize(
    ("nvml", "message"),
    [
        (None, "nvidia-ml-py is not installed"),
        (FakeNvml([], driver=False), "no driver"),
        (FakeNvml([]), "devices of one kind"),
        (FakeNvml(["NVIDIA H100", "NVIDIA A100"]), "devices of one kind"),
        (FakeNvml(["Some Other Card"]), "no peak FLOP/s is known"),
        (FakeNvml(["NVIDIA H100"], generation=9), "generation 9"),
    ],
)
def test_without_a_machine_nvml_can_read_the_error_says_why(
    monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml | None, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    with pytest.raises(InvalidInput, match=message):
        this_machine()
    assert nvml is None or not nvml.open


@pytest.mark.parametrize(
    ("name", "whose"),
    [
        ("h200-141g-x8", "h200-141g-x8"),
        ("h100-80g-x8", "h200-141g-x8"),
        ("NVIDIA H100 80GB HBM3 x8", "h200-141g-x8"),
        ("a100-80g-x8", "a800-80g-x8"),
        ("cpu", "a800-80g-x8"),
    ],
)
def test_shares_are_those_of_the_closest_measured_chip(name: str, whose: str) -> None:
    shares = efficiency_on(name)
    assert shares.machine == whose
    assert shares.source_on(name).startswith("assumption: those of") == (name != whose)
