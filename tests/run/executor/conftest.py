from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

TASKS = """
import os, pathlib, signal, time

def work(shard, skip, clock):
    out = []
    for index, item in enumerate(shard):
        if index in skip:
            out.append(skip[index])
            continue
        clock(index)
        if item == "spin":
            while True:
                pass
        if item == "sleep":
            time.sleep(3600)
        if item == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if item == "raise":
            raise ValueError("a fault of the task")
        if item.startswith("once:") and not os.path.exists(item[5:]):  # killed by somebody, the first two times
            marks = pathlib.Path(item[5:] + ".marks")
            with marks.open("a") as file:
                file.write("x")
            if len(marks.read_text()) == 2:
                pathlib.Path(item[5:]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        out.append(item.upper())
    clock(-1)
    return out

def slowly(shard, skip, clock):
    path, number = shard
    with open(path, "a") as file:
        file.write(f"{number} {os.getpid()} {os.getppid()}\\n")
    time.sleep(0.2)
    return number * number

def broken_start(shard, skip, clock):
    os._exit(7)
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that spawned processes can import: they are given our sys.path, and Ray's workers this PYTHONPATH."""
    (tmp_path / "executor_tasks.py").write_text(TASKS)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("executor_tasks", None)
    return importlib.import_module("executor_tasks")
