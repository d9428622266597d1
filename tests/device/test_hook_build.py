"""The hook is compiled once per torch, source and compiler; every way to fail says what to do."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from memo_train.device._hook import build_hook
from memo_train.device.errors import HookUnavailable


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path / "memo-train"


def write_program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_second_build_comes_from_the_cache(cache: Path) -> None:
    first = build_hook("cpu_allocator_hook")
    written = first.stat().st_mtime_ns
    assert build_hook("cpu_allocator_hook") == first
    assert first.stat().st_mtime_ns == written
    assert [path.name for path in cache.iterdir()] == [first.name]


def test_other_compiler_means_other_file(cache: Path, tmp_path: Path, monkeypatch) -> None:
    first = build_hook("cpu_allocator_hook")
    real = shutil.which("c++") or shutil.which("g++")
    log = tmp_path / "calls"
    wrapped = write_program(tmp_path / "wrapped", f'echo "$@" >> {log}; exec {real} "$@"')
    monkeypatch.setenv("CXX", f"{wrapped} -O1")
    second = build_hook("cpu_allocator_hook")
    assert second != first
    assert second.exists()
    assert "-O1 -std=c++17" in log.read_text()


def test_processes_may_build_at_the_same_time(cache: Path) -> None:
    code = """
from memo_train.device import get_cpu_device
import torch
assert get_cpu_device().owns(torch.ones(3).data_ptr())
"""
    processes = [subprocess.Popen([sys.executable, "-c", code], env=os.environ) for _ in range(2)]
    assert [process.wait(1100) for process in processes] == [0, 0]
    assert [path.suffix for path in cache.iterdir()] == [".so"]


def test_missing_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(cache))
    with pytest.raises(HookUnavailable, match=r"no C\+\+ compiler.*g\+\+.*install.*CXX"):
        build_hook("cpu_allocator_hook")
    monkeypatch.setenv("CXX", "no-such-compiler -v")
    with pytest.raises(HookUnavailable, match="looked for no-such-compiler"):
        build_hook("cpu_allocator_hook")


def test_failing_compiler_shows_its_output_and_leaves_nothing(cache, tmp_path, monkeypatch) -> None:
    broken = write_program(tmp_path / "broken", "echo 'internal error 42' >&2; exit 3")
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(HookUnavailable, match=r"exit code 3:\ninternal error 42"):
        build_hook("cpu_allocator_hook")
    assert list(cache.iterdir()) == []


def test_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_the_way))
    with pytest.raises(HookUnavailable, match=r"cannot be made.*XDG_CACHE_HOME"):
        build_hook("cpu_allocator_hook")
