"""A real cluster of two nodes on this machine: head and one more, each with one core."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ninthsky.config.schema import Where
from ninthsky.errors import UserError
from ninthsky.run.executor import Clock, executor
from ninthsky.run.executor.ray import Ray

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(tasks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """ray.cluster_utils.Cluster; listens on loopback."""
    assert "ray" not in sys.modules
    for name, value in {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
        # A lost node is noticed after three seconds, not thirty.
        "RAY_health_check_initial_delay_ms": "500",
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_failure_threshold": "3",
    }.items():
        monkeypatch.setenv(name, value)
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield made
    made.shutdown()


def test_killed_workers_and_nodes_are_no_loss(cluster: Any, tasks: ModuleType, tmp_path: Path) -> None:
    second = cluster.add_node(num_cpus=1)
    log = tmp_path / "log"
    found: dict[int, int] = {}
    killed: set[int] = set()
    removed = False
    for number, result in executor(Where(executor="ray", ray_address=cluster.address), 5).map(
        tasks.slowly, [(str(log), number) for number in range(24)]
    ):
        found[number] = result
        lines = [tuple(map(int, line.split())) for line in log.read_text().splitlines()]
        if len(found) == 3:  # a Ray worker, and a process under the watch of another one
            killed = {lines[-1][2]}
            os.kill(lines[-1][2], signal.SIGKILL)
        if len(found) == 8 and not removed:
            removed = True
            assert len({line[2] for line in lines}) >= 2
            cluster.remove_node(second, allow_graceful=False)
    assert found == {number: number * number for number in range(24)} and removed and killed
    done = [int(line.split()[0]) for line in log.read_text().splitlines()]
    assert len(done) > 24 and set(done) == set(range(24))

    # The same cluster, what is left of it: an item that spins is set aside, and a task's own error is told.
    assert list(Ray(0.3, address=cluster.address).map(tasks.work, [["a", "spin", "b"]])) == [
        (0, ["A", "it ran for more than 0.3 s", "B"])
    ]
    with pytest.raises(RuntimeError, match="a fault of the task"):
        list(Ray(5, address=cluster.address).map(tasks.work, [["raise"]]))


def test_nothing_answers() -> None:
    with pytest.raises(UserError, match="N9-RUN-005"):
        list(Ray(5, address="127.0.0.1:9").map(itself, [1]))


def test_no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"N9-RUN-005.*not installed"):
        list(Ray(5).map(itself, [1]))


def itself(shard: Any, skip: dict[int, str], clock: Clock) -> Any:
    return shard
