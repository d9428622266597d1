"""What memory a process may plan with: its share of what a container or the machine allows."""

from __future__ import annotations

from pathlib import Path

import pytest

import memo_train
from memo_train.device import memory_share_bytes
from tests.runtime.small_llama import own_llama

GIB = 2**30


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)


def test_without_groups_the_machine_is_the_limit(tmp_path: Path) -> None:
    assert memory_share_bytes(tmp_path) > GIB // 4


def test_the_tightest_group_around_the_process_counts(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/jobs/mine\n")
    write(tmp_path / "sys/fs/cgroup/jobs/mine/memory.max", "max\n")
    write(tmp_path / "sys/fs/cgroup/jobs/memory.max", f"{GIB // 4}\n")
    assert memory_share_bytes(tmp_path) == GIB // 4


def test_a_container_sees_its_limit_at_the_top_only(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "9:cpu:/outside/name\n4:memory:/outside/name\n")
    write(tmp_path / "sys/fs/cgroup/memory/memory.limit_in_bytes", f"{GIB // 8}\n")
    assert memory_share_bytes(tmp_path) == GIB // 8


def test_ranks_of_a_machine_share_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/\n")
    write(tmp_path / "sys/fs/cgroup/memory.max", f"{GIB}\n")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory_share_bytes(tmp_path) == GIB // 4


def test_ranks_of_a_machine_share_what_a_plan_may_use_of_its_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def host_bytes(num_ranks: int) -> int | None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(num_ranks))
        model = memo_train.wrap(own_llama(), seq_len=16)
        found = memo_train.plan(model).limits.host_bytes
        memo_train.unwrap(model)
        return found

    alone = host_bytes(1)
    assert alone == memory_share_bytes() // 2
    assert host_bytes(2) == alone // 2
