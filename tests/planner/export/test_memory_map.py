"""The picture: one rectangle a request, where it lies, in the colour of what it is for."""

import xml.etree.ElementTree as ET
from dataclasses import replace

from hypothesis import given, settings

from memo_planner.export import memory_map
from memo_planner.export._memory_map import Kind, kinds_of
from memo_planner.trace import PHASES, Requests
from tests.planner.allocators.steps import MIB, step, steps
from tests.planner.export.placed import ADDRESSES, placed_step

SVG = "{http://www.w3.org/2000/svg}"


def rectangles(text: str) -> list[tuple[str, float, float, float, float]]:
    """(colour, x, y, width, height) of the requests."""
    found = []
    for group in ET.fromstring(text).findall(f"{SVG}g"):
        for each in group.findall(f"{SVG}rect"):
            numbers = (float(each.attrib[name]) for name in ("x", "y", "width", "height"))
            found.append((group.attrib["fill"], *numbers))
    return found


def test_kinds_are_by_when_a_request_is_made_and_freed() -> None:
    assert kinds_of(placed_step()) == [
        Kind.BEFORE,
        Kind.SAVED,
        Kind.FORWARD,
        Kind.OUTLIVES,
        Kind.LOSS,
        Kind.BACKWARD,
        Kind.OUTLIVES,
    ]
    assert set(kinds_of(step("1:5 -1"))) == {Kind.WITHIN}
    requests = placed_step()
    phases = requests.phases.copy()
    phases[6] = PHASES.index("optimizer")  # 16 at 11; 15 is freed at 10, so now at 12
    freed = requests.free_times.copy()
    freed[5] = 12
    with_optimizer = replace(requests, phases=phases, free_times=freed, end_time=13)
    assert kinds_of(with_optimizer)[5:] == [Kind.GRADIENT, Kind.OPTIMIZER]


def test_rectangles_have_the_proportions_of_the_requests() -> None:
    found = rectangles(memory_map(placed_step(), ADDRESSES, title="a < b"))
    assert len(found) == 7
    saved = next(each for each in found if each[0] == "#4c78a8")  # request 11
    before = next(each for each in found if each[0] == "#7f7f7f")  # request 10
    assert abs(saved[4] / before[4] - 400 / 100) < 0.01
    assert abs(saved[3] / before[3] - 7 / 9) < 0.01
    assert abs(saved[2] + saved[4] - before[2]) < 0.02, "11 lies upon 10"


def test_title_and_figures_are_in_the_picture() -> None:
    text = memory_map(placed_step(), ADDRESSES, title="a < b")
    assert "a &lt; b" in text
    assert "7 requests, highest address 780 B, most alive at once 780 B" in text
    assert ">backward</text>" in text
    loose = memory_map(step("1:60 2:40 -1 3:100", MIB))
    assert "highest address 200.0 MiB, most alive at once 140.0 MiB, 30.0% of it never" in loose


@settings(max_examples=20, deadline=None)
@given(requests=steps())
def test_any_step_is_drawn_inside_its_frame(requests: Requests) -> None:
    text = memory_map(requests)
    root = ET.fromstring(text)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for _, x, y, wide, high in rectangles(text):
        assert 96 <= x <= x + wide <= width
        assert 84 - 0.1 <= y <= y + high <= height
