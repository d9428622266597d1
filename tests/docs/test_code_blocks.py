"""All code in the pages runs: each page from its top on, in a namespace and a folder of its own."""

from __future__ import annotations

import gc
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from docs._made.commands import PROMPT, command_lines, output_of
from docs._made.fences import Fence, fences
from memo_train.device import devices_in_use

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
WITH_CODE = [page for page in PAGES if any(fences(page.read_text()))]
# What a command line may begin with, besides `memo-plan`, which is run.
KNOWN_PROGRAMS = {"make", ".", "python", "torchrun", "pip"}


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder; afterwards torch and the device are as they were."""
    monkeypatch.chdir(tmp_path)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(before)
    if dist.is_initialized():
        dist.destroy_process_group()
    gc.collect()
    for device in devices_in_use():
        # A wrapped model that was dropped leaves its caps behind.
        device.set_device_cap(None)
        device.set_host_cap(None)


def be_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment in which torchrun starts the only rank of a job."""
    rank = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for name, value in (rank | {"MASTER_PORT": "29617"}).items():
        monkeypatch.setenv(name, value)


def run_python(page: Path, fence: Fence, namespace: dict[str, object]) -> None:
    # Padded, so that a traceback shows the page's own line.
    code = compile("\n" * (fence.line - 1) + fence.text, str(page), "exec")
    exec(compile(fence.given, f"{page}, given to line {fence.line}", "exec"), namespace)
    if fence.is_run:
        exec(code, namespace)


def run_console(page: Path, fence: Fence) -> None:
    for line in command_lines(fence.text):
        words = shlex.split(line, comments=True)
        if words[0] == "memo-plan":
            assert not fence.is_run or output_of(line) is not None, f"{page.name}:{fence.line}"
        else:
            check_known(words, f"{page.name}:{fence.line}")


def check_known(words: list[str], place: str) -> None:
    """A command that is not run at least names what there is."""
    assert words[0] in KNOWN_PROGRAMS, f"{place}: who knows {words[0]}?"
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    if words[0] == "make":
        assert words[1] in targets, f"{place}: no target {words[1]}"
    if "-m" in words:
        module = words[words.index("-m") + 1]
        assert importlib.util.find_spec(module) is not None, f"{place}: no module {module}"


# PEFT 0.21 asks Transformers for a name that it is about to drop.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page.read_text()
    if "torch.distributed" in text:
        be_one_rank(monkeypatch)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for fence in fences(text):
        if fence.kind == "python":
            run_python(page, fence, namespace)
        else:
            run_console(page, fence)


def test_code_is_left_out_only_for_what_a_test_has_not() -> None:
    for page in WITH_CODE:
        for fence in fences(page.read_text()):
            if fence.kind == "python" and not fence.is_run:
                assert fence.why.startswith("needs "), f"{page.name}:{fence.line}: {fence.why}"


def test_every_console_begins_with_a_prompt() -> None:
    for page in WITH_CODE:
        for fence in fences(page.read_text()):
            assert fence.kind == "python" or fence.text.startswith(PROMPT), page.name


def test_code_that_is_wrong_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nassert 1 == 2\n```\n")
    with pytest.raises(AssertionError):
        test_the_code_of_a_page_runs(page, monkeypatch)
    page.write_text("<!-- not run: needs a GPU -->\n```python\n1 +\n```\n")
    with pytest.raises(SyntaxError):
        test_the_code_of_a_page_runs(page, monkeypatch)
    page.write_text("<!-- not run -->\n```python\n1\n```\n")
    with pytest.raises(ValueError, match="without a reason"):
        test_the_code_of_a_page_runs(page, monkeypatch)
