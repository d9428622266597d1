"""MEMO_BUILD_CUDA: what is looked for, and what is said when it is not there."""

from pathlib import Path

import pytest

from cuda_build import ToolkitMissing, find_toolkit, requested_toolkit


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    return tmp_path


def test_toolkit_of_this_machine_is_whole(toolkit) -> None:
    assert requested_toolkit("1") == requested_toolkit("auto") == toolkit
    assert requested_toolkit("0") is None
    assert float(toolkit.version) >= 11
    assert toolkit.nvcc is not None


def test_named_place_is_the_only_one_looked_at(empty_home: Path) -> None:
    assert requested_toolkit("auto") is None
    with pytest.raises(ToolkitMissing, match=f"not below any of {empty_home}; .*CUDA_HOME"):
        requested_toolkit("1")


def test_header_alone_is_no_whole_toolkit(empty_home: Path) -> None:
    header = empty_home / "include" / "cuda_runtime_api.h"
    header.parent.mkdir()
    header.write_text("#define CUDART_VERSION  12080\n")
    assert find_toolkit().version == "12.8"
    assert requested_toolkit("auto") is None
    with pytest.raises(ToolkitMissing, match=r"no nvcc or no libcudart_static\.a"):
        requested_toolkit("1")


@pytest.mark.parametrize("wish", ["", "yes", "2"])
def test_other_wishes_are_refused(wish: str) -> None:
    with pytest.raises(ValueError, match="must be auto, 0 or 1"):
        requested_toolkit(wish)
