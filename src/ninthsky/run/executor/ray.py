"""Shards over a Ray cluster: one task a shard, which a watched process does on whatever node has a free core.

Ray does the task again where its worker or its node was lost; a driver that was lost is started again by `n9 run` and goes on
from what is on disk. The run folder must lie where all nodes see it under the same path.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ninthsky.errors import UserError
from ninthsky.run.executor import Task
from ninthsky.run.executor.watched import Watched

_AHEAD = 2  # shards given to the cluster for each of its cores: the next one is there when a core is free
_LOOPBACK = "127.0.0.1"

_child: Watched | None = None  # of a Ray worker: kept from shard to shard, since what a task loads takes seconds


def _do(task: Task, item_seconds: float, shard: Any) -> Any:
    """Runs on a node."""
    global _child
    if _child is None or (_child.task, _child.item_seconds) != (task, item_seconds):
        if _child is not None:
            _child.end()
        _child = Watched(task, item_seconds)
    try:
        return _child.do(shard)
    except BaseException:
        _child.end()
        _child = None
        raise


@dataclass(frozen=True)
class Ray:
    """The cluster at `address` (host:port), or at $RAY_ADDRESS; without either, one of this machine alone, for this map.

    `workers` bounds the shards at work at once; None: as many as the cluster has cores, nodes that come and go included.
    Raises UserError N9-RUN-005 where Ray is not installed or nothing answers there.
    """

    item_seconds: float
    workers: int | None = None
    address: str | None = None

    def map(self, task: Task, shards: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        with _connected(self.address, self.workers) as ray:
            # Lost workers and nodes are no fault of the task: it is done again as often as that happens.
            remote = ray.remote(num_cpus=1, max_retries=-1)(_do)
            held = ray.put(task)
            waiting = enumerate(shards)
            at_work: dict[Any, int] = {}
            more = True
            while more or at_work:
                room = (self.workers or _AHEAD * max(int(ray.cluster_resources().get("CPU", 1)), 1)) - len(at_work)
                while more and room > 0:
                    if (following := next(waiting, None)) is None:
                        more = False
                        break
                    at_work[remote.remote(held, self.item_seconds, following[1])] = following[0]
                    room -= 1
                ready, _ = ray.wait(list(at_work), num_returns=1, timeout=1.0) if at_work else ([], [])
                for reference in ready:
                    try:
                        result = ray.get(reference)
                    except ray.exceptions.RayTaskError as error:
                        raise RuntimeError(str(error)) from None
                    yield at_work.pop(reference), result


@contextlib.contextmanager
def _connected(address: str | None, workers: int | None) -> Iterator[Any]:
    """The module `ray`, connected; a cluster that was connected before is used as it is, and left."""
    address = address or os.environ.get("RAY_ADDRESS")
    with _environment({"RAY_USAGE_STATS_ENABLED": "0"} | ({} if address else _alone())):
        try:
            import ray
        except ModuleNotFoundError as error:
            raise UserError(
                "N9-RUN-005", "Ray is not installed", '[where] executor = "ray"',
                "pip install 'ninthsky[ray]', or executor = \"local\"",
            ) from error  # fmt: skip
        if ray.is_initialized():
            yield ray
            return
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if address:
                _knock(address)
                ray.init(address=address, **quiet)
            else:
                ray.init(address="local", num_cpus=workers, include_dashboard=False, _node_ip_address=_LOOPBACK, **quiet)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                "N9-RUN-005", f"no Ray cluster answers at {address or 'this machine'}: {said[0]}", "[where] ray_address",
                "`ray start --head` prints an address; every node needs this Python, this Ray and this package",
            ) from error  # fmt: skip
        try:
            yield ray
        finally:
            ray.shutdown()


def _knock(address: str) -> None:
    """Raises OSError where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


@functools.cache  # Ray reads a token once in a process's life
def _alone() -> dict[str, str]:
    """A cluster of this machine alone: it listens on loopback, and only to who has its token."""
    # Despite its name, this is what keeps Ray from putting the host's outside address in the place of 127.0.0.1.
    return {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Ray and its processes take their settings from there."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
