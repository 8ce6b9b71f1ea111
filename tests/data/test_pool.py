from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ninthsky.data.pool import map_shards, processor_seconds

TASKS = """
import os, signal, time

def work(shard, skip, clock):
    out = []
    for index, page in enumerate(shard):
        if index in skip:
            out.append(skip[index])
            continue
        clock(index)
        if page == "spin":
            while True:
                pass
        if page == "sleep":
            time.sleep(3600)
        if page == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if page == "raise":
            raise ValueError("a fault of the task")
        out.append(page.upper())
    clock(-1)
    return out

def broken_start(shard, skip, clock):
    os._exit(7)
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """A module that spawned processes can import: they are given our sys.path."""
    (tmp_path / "pool_tasks.py").write_text(TASKS)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("pool_tasks", None)
    import pool_tasks  # type: ignore[import-not-found]

    return pool_tasks


def test_bad_pages_are_set_aside_alone(tasks) -> None:  # type: ignore[no-untyped-def]
    """Spinning, crashing, sleeping: each is named with its reason, its neighbours are done, and other shards do not notice."""
    shards = [["a", "spin", "b"], ["c", "crash", "d", "spin"], ["e"], ["sleep", "f"]]
    seen: list[int] = []
    results = dict(map_shards(tasks.work, shards, workers=2, page_seconds=0.15, advance=seen.append))
    assert sorted(seen) == [0, 1, 2, 3]
    assert results[0] == ["A", "it ran for more than 0.15 s", "B"]
    assert results[1] == ["C", "its process ended with status -11", "D", "it ran for more than 0.15 s"]
    assert results[2] == ["E"]
    assert results[3] == ["it ran for more than 0.15 s", "F"]


def test_a_task_that_raises_ends_the_map_with_its_traceback(tasks) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RuntimeError, match="a fault of the task"):
        list(map_shards(tasks.work, [["raise"]], workers=1, page_seconds=5))


def test_a_worker_that_dies_outside_of_a_page(tasks) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RuntimeError, match="outside of any page"):
        list(map_shards(tasks.broken_start, [["a"]], workers=1, page_seconds=5))


def test_no_shards(tasks) -> None:  # type: ignore[no-untyped-def]
    assert list(map_shards(tasks.work, [], workers=2, page_seconds=5)) == []


def test_processor_seconds_of_nobody() -> None:
    assert processor_seconds(2**22 + 1) == float("inf")
