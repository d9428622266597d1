"""The CSV form: what is tolerated, what is refused, and that nothing else happens."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memo_planner.errors import InvalidInput
from memo_planner.layout import pack, read_problem, write_placement
from memo_planner.layout._problem import parse_problem
from tests.planner.layout.problems import problem_of

HEAD = "id,lower,upper,size\n"


@pytest.mark.parametrize(
    "text",
    [
        HEAD + "a,0,4,8\nb,1,5,16\n",
        "id,lower,upper,size\r\na,0,4,8\r\nb,1,5,16\r\n\r\n",
        " id , lower, upper ,size\n a , 0, 4 , 8\nb,1,5,16",
        "size,upper,id,lower,offset\n8,4,a,0,7\n\n16,5,b,1,9\n\n",
    ],
)
def test_spelling_does_not_matter(text: str) -> None:
    problem = parse_problem(text)
    assert problem.ids == ("a", "b")
    assert problem.lower.tolist() == [0, 1]
    assert problem.upper.tolist() == [4, 5]
    assert problem.size_bytes.tolist() == [8, 16]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("id,lower,size\na,0,8\n", "must name id,lower,upper,size once each"),
        ("id,lower,upper,size,size\na,0,4,8,8\n", "once each"),
        (HEAD + "a,0,4\n", "line 2 has 3 columns, the header 4"),
        (HEAD + "a,0,4,8\na,1,4,8\n", "line 3 repeats the id 'a' of line 2"),
        (HEAD + ",0,4,8\n", "line 2 has no id"),
        (HEAD + "a,0,4,-8\n", "size is -8 in line 2"),
        (HEAD + "a,0,4,0\n", "size is 0 in line 2"),
        (HEAD + "a,4,4,8\n", "upper is 4 in line 2"),
        (HEAD + "a,0,4,nan\n", "size is 'nan' in line 2"),
        (HEAD + "a,0,4,1.5\n", "size is '1.5' in line 2"),
        (HEAD + "a,0,4,1_0\n", "size is '1_0' in line 2"),
        (HEAD + "a,0,4,9999999999999999999\n", "size is 9,999,999,999,999,999,999 in line 2"),
        (HEAD + "a,0,4,99999999999999999999\n", "must be a whole number"),
        (HEAD + 'a,0,4,"8\n', "line 2: unexpected end of data"),
    ],
)
def test_bad_text_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        parse_problem(text)


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(), st.text("id,lowerupsz019-\n\r \"'", max_size=60).map(HEAD.__add__)))
def test_any_text_is_a_problem_or_a_clear_error(text: str) -> None:
    try:
        problem = parse_problem(text)
    except InvalidInput:
        return
    assert (problem.upper > problem.lower).all()
    assert (problem.size_bytes > 0).all()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_are_a_problem_or_a_clear_error(tmp_path_factory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_bytes(data)
    with pytest.raises(InvalidInput):
        read_problem(path)


def test_a_placement_written_reads_back(tmp_path: Path) -> None:
    placement = pack(problem_of([(0, 4, 8), (1, 5, 16)]))
    write_placement(tmp_path / "out.csv", placement)
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0] == "id,lower,upper,size,offset"
    assert lines[1] == f"b0,0,4,8,{placement.offset_bytes[0]}"
    assert read_problem(tmp_path / "out.csv").ids == ("b0", "b1")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"none\.csv: cannot be read"):
        read_problem(tmp_path / "none.csv")
