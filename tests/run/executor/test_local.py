from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ninthsky.config.schema import Where
from ninthsky.run.executor import executor
from ninthsky.run.executor.local import Local
from ninthsky.run.executor.watched import processor_seconds


def done(executor: Local, task: Any, shards: list[Any]) -> list[tuple[int, Any]]:
    return sorted(executor.map(task, shards))


def test_bad_items_are_set_aside_alone(tasks: ModuleType) -> None:
    """Spinning, crashing, sleeping: each is named with its reason, its neighbours are done, and other shards do not notice."""
    shards = [["a", "spin", "b"], ["c", "crash", "d", "spin"], ["e"], ["sleep", "f"]]
    assert done(Local(0.15, 2), tasks.work, shards) == [
        (0, ["A", "it ran for more than 0.15 s", "B"]),
        (1, ["C", "its process ended with status -11", "D", "it ran for more than 0.15 s"]),
        (2, ["E"]),
        (3, ["it ran for more than 0.15 s", "F"]),
    ]


def test_a_worker_that_somebody_kills_does_its_shard_again_and_no_item_is_blamed(tasks: ModuleType, tmp_path: Path) -> None:
    item = f"once:{tmp_path / 'done'}"
    assert done(Local(5, 1), tasks.work, [["a", item, "b"], ["c"]]) == [(0, ["A", item.upper(), "B"]), (1, ["C"])]


def test_a_task_that_raises_ends_the_map_with_its_traceback(tasks: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="a fault of the task"):
        list(Local(5, 1).map(tasks.work, [["raise"]]))


def test_a_worker_that_dies_outside_of_an_item(tasks: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="outside of any item"):
        list(Local(5, 1).map(tasks.broken_start, [["a"]]))


def test_no_shards(tasks: ModuleType) -> None:
    assert list(Local(5, 2).map(tasks.work, [])) == []


def test_the_settings_choose() -> None:
    assert executor(Where(workers=3), 1.5) == Local(1.5, 3)


def test_processor_seconds_of_nobody() -> None:
    assert processor_seconds(2**22 + 1) == float("inf")
