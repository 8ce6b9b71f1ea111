"""Maps over shards: one pure function, on the processes of this machine or on a Ray cluster.

    for number, result in executor(settings.where, item_seconds=5).map(task, shards): ...

A shard whose worker or node dies is done again, and so is one that was not done when the driver died: a task writes its output
whole or not at all, and gives the same bytes each time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from ninthsky.config.schema import Where

# Called by a task before each item of its shard (a page, say) with its index, and with -1 when it is through with them.
# A task that never calls it is never stopped.
Clock = Callable[[int], None]
# (shard, items to leave out with the reason why, clock) -> result: a function of a module, not a closure.
Task = Callable[[Any, dict[int, str], Clock], Any]


class Executor(Protocol):
    """What maps a task over shards."""

    def map(self, task: Task, shards: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Yields (number of shard, result) as shards finish, in any order; takes few more shards than are at work.

        Raises RuntimeError with the worker's traceback where the task itself fails.
        """
        ...


def executor(where: Where, item_seconds: float) -> Executor:
    """What `[where] executor` names. An item that takes more than `item_seconds` of processor time is left out.

    Raises UserError N9-RUN-005 where Ray is not installed or not reached.
    """
    if where.executor == "ray":
        from ninthsky.run.executor.ray import Ray

        return Ray(item_seconds, where.workers, where.ray_address)
    from ninthsky.run.executor.local import Local

    return Local(item_seconds, where.workers or os.cpu_count() or 1)
